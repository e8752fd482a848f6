//! Operators' rules: read as they were given, kept under `state`, in force until they end or are
//! revoked. What they do is the policy's business.

use std::path::Path;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use tidegate_engine::problem::Problems;
use tidegate_engine::rules::{Mode, Origin, Rule, Rules};
use tidegate_engine::rules_file::{Vocabulary, parse_rule};
use tidegate_engine::verdict::Name;

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

/// What a rule takes in the file besides its text, at most: names, two times, a flag.
const BESIDES_BYTES_MAX: usize = 256;

/// What a rule that was given over the API is called in problems.
const PLACE: &str = "rule";

/// One rule as it stands in the file.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Kept {
    /// As it was given: YAML or JSON.
    text: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    shadow: Option<bool>,
    /// When it ends: a `ttl` counts from when it was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    until: Option<String>,
    created: String,
    /// What it takes in the file, at most.
    #[serde(skip)]
    bytes: usize,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Content {
    rules: Vec<Kept>,
}

/// An operator's rule.
#[derive(Clone, Debug)]
pub struct OperatorRule {
    /// The rule.
    pub rule: Rule,
    kept: Kept,
}

impl OperatorRule {
    /// Reads a rule as it was given. A `ttl` counts from `now`.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with it.
    pub fn read(
        text: &str,
        vocabulary: &mut Vocabulary,
        now: SystemTime,
    ) -> Result<Self, Problems> {
        let rule = parse_rule(PLACE, text, vocabulary, now, Origin::Operator)?;
        let kept = Kept {
            text: text.to_owned(),
            shadow: None,
            until: rule.until.map(rfc3339),
            created: rfc3339(now),
            bytes: bytes_of(text),
        };
        Ok(Self { rule, kept })
    }

    fn restore(kept: Kept, vocabulary: &mut Vocabulary) -> Result<Self, String> {
        let time = |text: &str| {
            humantime::parse_rfc3339(text).map_err(|error| format!("`{text}` is no time: {error}"))
        };
        let now = time(&kept.created)?;
        let mut rule = parse_rule(PLACE, &kept.text, vocabulary, now, Origin::Operator)
            .map_err(|problems| problems.to_string())?;
        rule.until = kept.until.as_deref().map(time).transpose()?;
        if let Some(shadow) = kept.shadow {
            rule.mode = mode_of(shadow);
        }
        Ok(Self { rule, kept })
    }
}

/// Returns how many bytes a rule of this text takes in the file, at most.
fn bytes_of(text: &str) -> usize {
    // No byte takes more than `\u0000` does.
    let text = serde_json::to_string(text).map_or(6 * text.len(), |text| text.len());
    text + BESIDES_BYTES_MAX
}

fn mode_of(shadow: bool) -> Mode {
    if shadow { Mode::Shadow } else { Mode::Enforce }
}

fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}

/// All operators' rules.
#[derive(Debug)]
pub struct OperatorRules {
    file: KeptFile,
    rules: Vec<OperatorRule>,
    /// Rules that the settings in force do not allow. They stay in the file.
    idle: Vec<Kept>,
}

impl OperatorRules {
    /// Reads what was kept under the state folder. What cannot be used is said, and stays where it can be
    /// looked at.
    pub fn load(folder: &Path, vocabulary: &mut Vocabulary, files: &Rules) -> Self {
        let file = KeptFile::new(folder, FILE, "operator-rules", VERSION);
        let mut content = match file.read() {
            Found::Nothing | Found::Unusable(_) | Found::Unreadable(_) => Content::default(),
            Found::Content(content) => serde_json::from_slice(&content).unwrap_or_else(|error| {
                file.set_aside(&error.to_string());
                Content::default()
            }),
        };
        for kept in &mut content.rules {
            kept.bytes = bytes_of(&kept.text);
        }
        let mut loaded = Self {
            file,
            rules: Vec::new(),
            idle: content.rules,
        };
        loaded.read_again(vocabulary, files);
        loaded
    }

    /// Reads all rules again, for their names may mean something else, or nothing, under other settings.
    /// What cannot be in force is said and kept.
    pub fn read_again(&mut self, vocabulary: &mut Vocabulary, files: &Rules) {
        let in_force = std::mem::take(&mut self.rules).into_iter();
        let mut all: Vec<Kept> = in_force.map(|rule| rule.kept).collect();
        all.append(&mut self.idle);
        for kept in all {
            let restored = OperatorRule::restore(kept.clone(), vocabulary).and_then(|rule| {
                if names(files).any(|name| *name == rule.rule.name) {
                    return Err(format!("`{}` is in a file by now", rule.rule.name));
                }
                Ok(rule)
            });
            match restored {
                Ok(rule) => self.rules.push(rule),
                Err(why) => {
                    tracing::error!(
                        rule = %kept.text,
                        why,
                        "an operator's rule cannot be in force under these settings; it stays in {FILE}"
                    );
                    self.idle.push(kept);
                }
            }
        }
    }

    /// Returns the file.
    pub fn file(&self) -> &KeptFile {
        &self.file
    }

    /// Returns what stands in the file. Rules whose time is over are left out.
    pub fn content(&self, now: SystemTime) -> Vec<u8> {
        let live = |rule: &&OperatorRule| rule.rule.until.is_none_or(|until| until > now);
        let rules = self.rules.iter().filter(live).map(|rule| &rule.kept);
        let content = Content {
            rules: rules.chain(&self.idle).cloned().collect(),
        };
        // Texts and flags: there is nothing that could not be written as JSON.
        serde_json::to_vec_pretty(&content).unwrap_or_default()
    }

    /// Walks the rules.
    pub fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.rules.iter().map(|rule| &rule.rule)
    }

    /// Returns whether there is a rule of this name.
    pub fn has(&self, name: &str) -> bool {
        self.rules().any(|rule| rule.name.as_str() == name)
    }

    /// Returns whether there is no room for another.
    pub fn is_full(&self) -> bool {
        self.rules.len() + self.idle.len() >= OPERATOR_RULES_MAX
    }

    /// Returns whether this rule would make the file too large.
    pub fn is_too_much(&self, rule: &OperatorRule) -> bool {
        let kept = self.rules.iter().map(|rule| &rule.kept).chain(&self.idle);
        let bytes: usize = kept.map(|kept| kept.bytes).sum();
        bytes + rule.kept.bytes > OPERATOR_BYTES_MAX
    }

    /// Forgets the rules whose time is over.
    pub fn forget_ended(&mut self, now: SystemTime) {
        self.rules
            .retain(|rule| rule.rule.until.is_none_or(|until| until > now));
    }

    /// Adds a rule.
    pub fn add(&mut self, rule: OperatorRule) {
        self.rules.push(rule);
    }

    /// Removes a rule. Returns whether there was one.
    pub fn remove(&mut self, name: &str) -> bool {
        let before = self.rules.len();
        self.rules.retain(|rule| rule.rule.name.as_str() != name);
        self.rules.len() != before
    }

    /// Makes a rule act, or count only. Returns whether there is one.
    pub fn set_mode(&mut self, name: &str, mode: Mode) -> bool {
        let named = |rule: &&mut OperatorRule| rule.rule.name.as_str() == name;
        let Some(rule) = self.rules.iter_mut().find(named) else {
            return false;
        };
        rule.rule.mode = mode;
        rule.kept.shadow = Some(mode == Mode::Shadow);
        true
    }
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
        let load = || OperatorRules::load(&folder, &mut vocabulary(), &Rules::default());
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
        let load = || OperatorRules::load(&folder, &mut vocabulary(), &Rules::default());
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
        let mut rules = OperatorRules::load(&folder, &mut vocabulary(), &Rules::default());
        let text = "{ name: a, when: { app: acme }, action: block }";
        rules.add(OperatorRule::read(text, &mut Vocabulary::lenient(), now).unwrap());
        let text = "{ name: b, when: { method: GET }, action: block }";
        rules.add(OperatorRule::read(text, &mut vocabulary(), now).unwrap());
        write(&rules, now);
        let again = OperatorRules::load(&folder, &mut vocabulary(), &Rules::default());
        assert_eq!(again.rules().count(), 1);
        write(&again, now);
        let lenient = OperatorRules::load(&folder, &mut Vocabulary::lenient(), &Rules::default());
        assert_eq!(lenient.rules().count(), 2);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
