//! Operators' rules: read as they were given, kept under `state`, in force until they end or are
//! revoked. What they do is the policy's business.

mod rule;

use std::collections::HashSet;
use std::path::Path;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use tidegate_engine::rules::{Mode, Rule, Rules};
use tidegate_engine::rules_file::Vocabulary;
use tidegate_engine::verdict::Name;

pub use self::rule::{Idle, IdleRule, OperatorRule};
use self::rule::{Kept, Restored, is_live};
use crate::state::{Found, KeptFile};

/// The file, under the state folder.
const FILE: &str = "operator-rules.json";
const VERSION: u32 = 1;

/// The most rules that operators may add.
pub const OPERATOR_RULES_MAX: usize = 10_000;

/// The longest text of one rule, in bytes.
pub const RULE_BYTES_MAX: usize = 64 << 10;

/// The most bytes of all of them in the file: 10,000 rules of three KiB each. All are written whenever one
/// changes, and no larger file is read than twice of this.
pub const OPERATOR_BYTES_MAX: usize = 32 << 20;

#[derive(Debug, Default, Serialize, Deserialize)]
struct Content {
    rules: Vec<Kept>,
}

/// All operators' rules.
#[derive(Debug)]
pub struct OperatorRules {
    file: KeptFile,
    rules: Vec<OperatorRule>,
    /// Rules that are not in force, and could be again. They stay in the file.
    idle: Vec<IdleRule>,
    /// What is no rule at all stays in the file, too, for somebody to look at.
    unreadable: Vec<Kept>,
}

/// Rules that are not in force any more, and such as are again.
#[derive(Debug, Default)]
pub(super) struct Moved {
    pub(super) idle: Vec<(Rule, Idle)>,
    pub(super) back: Vec<Rule>,
}

impl OperatorRules {
    /// Reads what was kept under the state folder. What cannot be used is said, and stays where it can be
    /// looked at; what is over is gone.
    pub fn load(
        folder: &Path,
        vocabulary: &mut Vocabulary,
        files: &Rules,
        now: SystemTime,
    ) -> Self {
        let file = KeptFile::new(folder, FILE, "operator-rules", VERSION);
        let content = match file.read() {
            Found::Nothing | Found::Unusable(_) | Found::Unreadable(_) => Content::default(),
            Found::Content(content) => serde_json::from_slice(&content).unwrap_or_else(|error| {
                file.set_aside(&error.to_string());
                Content::default()
            }),
        };
        let mut loaded = Self {
            file,
            rules: Vec::new(),
            idle: Vec::new(),
            unreadable: content.rules,
        };
        loaded.restore_all(vocabulary, files);
        loaded.forget_ended(now);
        for idle in &loaded.idle {
            say_idle(&idle.rule, &idle.why);
        }
        loaded
    }

    /// Reads all rules again, for their names may mean something else, or nothing, under other settings.
    /// What cannot be in force is kept. Returns what has changed.
    pub(super) fn read_again(&mut self, vocabulary: &mut Vocabulary, files: &Rules) -> Moved {
        let names = |rules: &mut dyn Iterator<Item = &Rule>| -> HashSet<Name> {
            rules.map(|rule| rule.name.clone()).collect()
        };
        let in_force = names(&mut self.rules());
        let idle: Vec<(Name, Idle)> = self
            .idle
            .iter()
            .map(|idle| (idle.rule.name.clone(), idle.why.clone()))
            .collect();
        self.restore_all(vocabulary, files);
        let was_idle: HashSet<(&Name, &Idle)> =
            idle.iter().map(|(name, why)| (name, why)).collect();
        Moved {
            idle: self
                .idle
                .iter()
                .filter(|idle| !was_idle.contains(&(&idle.rule.name, &idle.why)))
                .map(|idle| (idle.rule.clone(), idle.why.clone()))
                .collect(),
            back: self
                .rules()
                .filter(|rule| !in_force.contains(&rule.name))
                .cloned()
                .collect(),
        }
    }

    fn restore_all(&mut self, vocabulary: &mut Vocabulary, files: &Rules) {
        let taken: HashSet<&Name> = names(files).collect();
        let rules = std::mem::take(&mut self.rules).into_iter();
        let idle = std::mem::take(&mut self.idle).into_iter();
        let all = rules
            .map(|rule| rule.kept)
            .chain(idle.map(|idle| idle.kept))
            .chain(std::mem::take(&mut self.unreadable));
        for kept in all {
            match OperatorRule::restore(kept, vocabulary, &taken) {
                Restored::InForce(rule) => self.rules.push(rule),
                Restored::Idle(idle) => self.idle.push(idle),
                Restored::Unreadable(kept, why) => {
                    tracing::error!(rule = %kept.text, why, "this is no rule; it stays in {FILE}");
                    self.unreadable.push(kept);
                }
            }
        }
        self.sort();
    }

    /// Makes room for what the files say now: one name is one rule, and the file's is the newer word. Rules
    /// whose names no file has any more are in force again. Returns what has changed.
    pub(super) fn make_way(&mut self, files: &Rules) -> Moved {
        let taken: HashSet<&Name> = names(files).collect();
        let mut moved = Moved::default();
        for rule in std::mem::take(&mut self.rules) {
            if taken.contains(&rule.rule.name) {
                moved.idle.push((rule.rule.clone(), Idle::InAFile));
                self.idle.push(IdleRule {
                    rule: rule.rule,
                    why: Idle::InAFile,
                    kept: rule.kept,
                });
            } else {
                self.rules.push(rule);
            }
        }
        for idle in std::mem::take(&mut self.idle) {
            if idle.why == Idle::InAFile && !taken.contains(&idle.rule.name) {
                moved.back.push(idle.rule.clone());
                self.rules.push(OperatorRule {
                    rule: idle.rule,
                    kept: idle.kept,
                });
            } else {
                self.idle.push(idle);
            }
        }
        if !moved.back.is_empty() {
            self.sort();
        }
        moved
    }

    /// Rules are asked in the order in which they were given.
    fn sort(&mut self) {
        self.rules
            .sort_by(|one, other| one.kept.created.cmp(&other.kept.created));
    }

    /// Returns the file.
    pub fn file(&self) -> &KeptFile {
        &self.file
    }

    /// Returns what stands in the file. Rules whose time is over are left out.
    pub fn content(&self, now: SystemTime) -> Vec<u8> {
        let rules = self.rules.iter().map(|rule| (&rule.rule, &rule.kept));
        let idle = self.idle.iter().map(|idle| (&idle.rule, &idle.kept));
        let live = rules.chain(idle).filter(|(rule, _)| is_live(rule, now));
        let content = Content {
            rules: live
                .map(|(_, kept)| kept)
                .chain(&self.unreadable)
                .cloned()
                .collect(),
        };
        // Texts and flags: there is nothing that could not be written as JSON.
        serde_json::to_vec_pretty(&content).unwrap_or_default()
    }

    /// Walks the rules that are in force.
    pub fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.rules.iter().map(|rule| &rule.rule)
    }

    /// Walks the rules that are not.
    pub fn idle(&self) -> impl Iterator<Item = &IdleRule> {
        self.idle.iter()
    }

    /// Returns whether there is a rule of this name, in force or not.
    pub fn has(&self, name: &str) -> bool {
        let idle = self.idle.iter().map(|idle| &idle.rule);
        self.rules()
            .chain(idle)
            .any(|rule| rule.name.as_str() == name)
    }

    /// Returns whether there is no room for another.
    pub fn is_full(&self) -> bool {
        self.rules.len() + self.idle.len() + self.unreadable.len() >= OPERATOR_RULES_MAX
    }

    /// Returns whether this rule would make the file too large.
    pub fn is_too_much(&self, rule: &OperatorRule) -> bool {
        let kept = self.rules.iter().map(|rule| &rule.kept);
        let kept = kept.chain(self.idle.iter().map(|idle| &idle.kept));
        let bytes: usize = kept.chain(&self.unreadable).map(Kept::bytes).sum();
        bytes + rule.kept.bytes() > OPERATOR_BYTES_MAX
    }

    /// Forgets the rules whose time is over: their names are free again.
    pub fn forget_ended(&mut self, now: SystemTime) {
        self.rules.retain(|rule| is_live(&rule.rule, now));
        self.idle.retain(|idle| is_live(&idle.rule, now));
    }

    /// Adds a rule.
    pub fn add(&mut self, rule: OperatorRule) {
        self.rules.push(rule);
    }

    /// Removes a rule that is in force. Returns whether there was one.
    pub fn remove(&mut self, name: &str) -> bool {
        let before = self.rules.len();
        self.rules.retain(|rule| rule.rule.name.as_str() != name);
        self.rules.len() != before
    }

    /// Removes a rule that is not in force. Returns whether there was one.
    pub fn remove_idle(&mut self, name: &str) -> bool {
        let before = self.idle.len();
        self.idle.retain(|idle| idle.rule.name.as_str() != name);
        self.idle.len() != before
    }

    /// Makes a rule act, or count only. Returns whether there is one.
    pub fn set_mode(&mut self, name: &str, mode: Mode) -> bool {
        let named = |rule: &&mut OperatorRule| rule.rule.name.as_str() == name;
        let found = self.rules.iter_mut().find(named);
        let is_there = found.is_some();
        if let Some(rule) = found {
            rule.set_mode(mode);
        }
        is_there
    }
}

/// Says that a rule is not in force.
pub(super) fn say_idle(rule: &Rule, why: &Idle) {
    tracing::error!(
        rule = rule.name.as_str(),
        %why,
        "an operator's rule cannot be in force; it stays in {FILE}, and comes back when it can be"
    );
}

/// Walks the names of rules and limits.
pub(super) fn names(rules: &Rules) -> impl Iterator<Item = &Name> {
    let limits = rules.limits.iter().map(|limit| &limit.name);
    rules.rules.iter().map(|rule| &rule.name).chain(limits)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tidegate_engine::attribute::Schema;
    use tidegate_engine::rules::Origin;

    use super::*;
    use crate::state::tests::folder;

    fn vocabulary() -> Vocabulary {
        Vocabulary::of_schema(Schema::built_in())
    }

    fn write(rules: &OperatorRules, now: SystemTime) {
        let parts = rules.file.parts(&rules.content(now)).concat();
        std::fs::write(rules.file.path(), parts).unwrap();
    }

    #[test]
    fn rules_are_what_they_were_after_a_restart() {
        let folder = folder("operator-rules");
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let load = || OperatorRules::load(&folder, &mut vocabulary(), &Rules::default(), now);
        let mut rules = load();
        for text in [
            "{ name: a, when: { user_agent: { regex: \"^x\" } }, action: block, ttl: 1h }",
            "{\"name\": \"b\", \"when\": {\"method\": \"GET\"}, \"action\": \"throttle\", \"rate\": \"5/s\"}",
            "{ name: c, when: { method: PUT }, action: drop, ttl: 1m }",
        ] {
            rules.add(OperatorRule::read(text, &mut vocabulary(), now).unwrap());
        }
        assert!(rules.set_mode("b", Mode::Shadow));
        write(&rules, now + Duration::from_mins(2));
        let again = load();
        let shown: Vec<_> = again
            .rules()
            .map(|rule| (rule.name.as_str(), rule.mode, rule.until))
            .collect();
        let until = Some(now + Duration::from_hours(1));
        assert_eq!(
            shown,
            [("a", Mode::Enforce, until), ("b", Mode::Shadow, None)]
        );
        assert!(again.rules().all(|rule| rule.origin == Origin::Operator));
        std::fs::remove_dir_all(&folder).unwrap();
    }

    /// Ten thousand rules of 64 KiB used to be acknowledged, and their file refused at the next start.
    #[test]
    fn rules_that_would_not_be_read_again_are_not_added() {
        let folder = folder("operator-bytes");
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let load = || OperatorRules::load(&folder, &mut vocabulary(), &Rules::default(), now);
        let mut rules = load();
        // Each byte of the comment takes two in the file.
        let text = "{ name: r, when: { method: PUT }, action: block, ttl: 1h } # ".to_owned()
            + &"\"".repeat(RULE_BYTES_MAX - 100);
        let rule = OperatorRule::read(&text, &mut vocabulary(), now).unwrap();
        let mut added = 0;
        while !rules.is_too_much(&rule) {
            rules.add(rule.clone());
            added += 1;
        }
        assert!(added > 200, "{added}");
        let small = OperatorRule::read(
            "{ name: s, when: { method: PUT }, action: block }",
            &mut vocabulary(),
            now,
        );
        assert!(!rules.is_too_much(&small.unwrap()));
        assert!(rules.content(now).len() <= OPERATOR_BYTES_MAX);
        write(&rules, now);
        let again = load();
        assert_eq!(again.rules().count(), added);
        assert!(again.is_too_much(&rule), "after a restart, too");
        std::fs::remove_dir_all(&folder).unwrap();
    }

    /// An attribute that the settings do not have any more must not cost the other rules.
    #[test]
    fn what_the_settings_do_not_allow_stays_in_the_file() {
        let folder = folder("operator-idle");
        let now = SystemTime::now();
        let mut rules = OperatorRules::load(&folder, &mut vocabulary(), &Rules::default(), now);
        let text = "{ name: a, when: { app: acme }, action: block }";
        rules.add(OperatorRule::read(text, &mut Vocabulary::lenient(), now).unwrap());
        let text = "{ name: b, when: { method: GET }, action: block }";
        rules.add(OperatorRule::read(text, &mut vocabulary(), now).unwrap());
        write(&rules, now);
        let again = OperatorRules::load(&folder, &mut vocabulary(), &Rules::default(), now);
        assert_eq!(again.rules().count(), 1);
        write(&again, now);
        let lenient =
            OperatorRules::load(&folder, &mut Vocabulary::lenient(), &Rules::default(), now);
        assert_eq!(lenient.rules().count(), 2);
        std::fs::remove_dir_all(&folder).unwrap();
    }

    fn filed(names: &[&str]) -> Rules {
        let rule = |name| format!("{{ name: {name}, when: {{ method: GET }}, action: log }}");
        let rules: Vec<String> = names.iter().map(rule).collect();
        let text = format!("rules: [{}]", rules.join(", "));
        Rules::parse("f.yaml", &text, &Schema::built_in(), SystemTime::UNIX_EPOCH).unwrap()
    }

    fn in_force(rules: &OperatorRules) -> Vec<&str> {
        rules.rules().map(|rule| rule.name.as_str()).collect()
    }

    /// They were gone for good.
    #[test]
    fn a_rule_gives_way_to_a_file_and_is_back_in_its_place_when_the_file_is_gone() {
        let folder = folder("operator-way");
        let at = |second| SystemTime::UNIX_EPOCH + Duration::from_secs(second);
        let load = || OperatorRules::load(&folder, &mut vocabulary(), &Rules::default(), at(0));
        let mut rules = load();
        for (second, name) in [(1, "a"), (2, "b"), (3, "c")] {
            let text = format!("{{ name: {name}, when: {{ method: PUT }}, action: block }}");
            rules.add(OperatorRule::read(&text, &mut vocabulary(), at(second)).unwrap());
        }
        let moved = rules.make_way(&filed(&["b", "x"]));
        assert_eq!((moved.idle.len(), moved.back.len()), (1, 0));
        assert_eq!(in_force(&rules), ["a", "c"]);
        assert!(rules.has("b"), "its name is taken");
        let again = rules.make_way(&filed(&["b"]));
        assert_eq!((again.idle.len(), again.back.len()), (0, 0), "said once");
        // Neither a restart nor other settings lose it.
        write(&rules, at(4));
        let mut rules = load();
        assert_eq!(in_force(&rules), ["a", "b", "c"]);
        assert_eq!(
            rules
                .read_again(&mut vocabulary(), &filed(&["a", "b"]))
                .idle
                .len(),
            2
        );
        let moved = rules.read_again(&mut vocabulary(), &filed(&["a"]));
        assert_eq!((moved.idle.len(), moved.back.len()), (0, 1));
        let moved = rules.make_way(&filed(&[]));
        assert_eq!((moved.idle.len(), moved.back.len()), (0, 1));
        assert_eq!(in_force(&rules), ["a", "b", "c"], "as they were given");
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn what_is_idle_is_known_by_its_name_and_can_be_removed() {
        let folder = folder("operator-idle-name");
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let mut rules = OperatorRules::load(&folder, &mut vocabulary(), &Rules::default(), now);
        let text =
            "{ name: a, when: { app: acme }, action: throttle, rate: 5/s, per: [sdk], ttl: 1h }";
        rules.add(OperatorRule::read(text, &mut Vocabulary::lenient(), now).unwrap());
        let moved = rules.read_again(&mut vocabulary(), &Rules::default());
        let [(rule, Idle::NotAllowed(why))] = &*moved.idle else {
            panic!("{moved:?}");
        };
        assert!(why.contains("unknown attribute `app`"), "{why}");
        assert_eq!(rule.when_text.to_string(), "app=acme");
        assert!(rules.has("a") && in_force(&rules).is_empty());
        let mut over = OperatorRules::load(&folder, &mut vocabulary(), &Rules::default(), now);
        std::mem::swap(&mut over, &mut rules);
        over.forget_ended(now + Duration::from_hours(2));
        assert!(!over.has("a"), "its time is over");
        rules.add(OperatorRule::read(text, &mut Vocabulary::lenient(), now).unwrap());
        drop(rules.read_again(&mut vocabulary(), &Rules::default()));
        assert!(rules.remove_idle("a") && !rules.remove_idle("a") && !rules.has("a"));
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn what_is_over_when_it_is_read_is_gone() {
        let folder = folder("operator-over");
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let load = |at| OperatorRules::load(&folder, &mut vocabulary(), &Rules::default(), at);
        let mut rules = load(now);
        let text = "{ name: a, when: { method: PUT }, action: block, ttl: 1h }";
        rules.add(OperatorRule::read(text, &mut vocabulary(), now).unwrap());
        write(&rules, now);
        assert!(load(now).has("a"));
        assert!(!load(now + Duration::from_hours(1)).has("a"));
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
