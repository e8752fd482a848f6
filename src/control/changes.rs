//! Changes that operators make to the rules in force. Who may, and what is written to the audit trail,
//! is the admin API's business.

use std::io;
use std::path::PathBuf;

use tidegate_engine::policy::Preview;
use tidegate_engine::problem::Problems;
use tidegate_engine::rules::{DETECTED_PREFIX, Mode, Origin, Rules, whole_rule};
use tidegate_engine::rules_file::RulesFile;
use tidegate_engine::verdict::Name;

use super::operator::{OPERATOR_BYTES_MAX, OPERATOR_RULES_MAX, OperatorRule, names};
use super::{Control, promote};
use crate::state::Done;

/// Why a change is not made.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The rule is not right.
    #[error("{0}")]
    Wrong(Problems),
    /// The name is taken.
    #[error(
        "there is a rule or limit `{0}` already; revoke it first (`tidegate rules revoke {0}`), or choose \
         another name"
    )]
    Taken(Name),
    /// There is no such rule.
    #[error("there is no rule `{0}` in force; `tidegate rules list` shows those that are")]
    Unknown(String),
    /// The rule is written in a file.
    #[error(
        "`{0}` is written in a file of the rules folder; change it there, and it is read again within \
         seconds"
    )]
    InAFile(String),
    /// Only the detector's rules can be approved and promoted.
    #[error("`{0}` is no detected rule, so it cannot be {1}")]
    NotDetected(String, &'static str),
    /// Too many rules.
    #[error("there are {OPERATOR_RULES_MAX} rules of operators; revoke some, or write a file")]
    Full,
    /// Too long rules.
    #[error(
        "with this one the rules of operators would take more than {} MiB; revoke some, or write a file",
        OPERATOR_BYTES_MAX >> 20
    )]
    TooMuch,
    /// The rules folder cannot be written.
    #[error("the file was not written: {1}; put this text into the rules folder yourself:\n{0}")]
    NotWritten(String, io::Error),
}

/// A rule that could be added, and what it would meet.
#[derive(Debug)]
pub struct Tried {
    /// The rule.
    pub rule: OperatorRule,
    /// What it would meet.
    pub preview: Preview,
}

/// A detected rule that has become a file.
#[derive(Debug)]
pub struct Promoted {
    /// The name of the rule in the file.
    pub name: Name,
    /// The file.
    pub path: PathBuf,
    /// What it says.
    pub text: String,
}

/// A detected rule on its way into a file.
#[derive(Debug)]
pub(super) struct Promotion {
    detected: Name,
    filed: Name,
    why: String,
}

impl Control {
    /// Reads a rule and tries it on the recent requests. Changes nothing.
    ///
    /// # Errors
    ///
    /// The rule is not right, its name is taken, or there is no room.
    pub fn try_rule(&self, text: &str) -> Result<Tried, Refused> {
        let mut vocabulary = self.parts.setup.settings.vocabulary();
        let (now, wall) = (self.parts.clock.now(), self.parts.clock.wall());
        let rule = OperatorRule::read(text, &mut vocabulary, wall).map_err(Refused::Wrong)?;
        let name = &rule.rule.name;
        if self.parts.operator.has(name.as_str())
            || names(&self.parts.rules).any(|other| other == name)
        {
            return Err(Refused::Taken(name.clone()));
        }
        if self.parts.operator.is_full() {
            return Err(Refused::Full);
        }
        if self.parts.operator.is_too_much(&rule) {
            return Err(Refused::TooMuch);
        }
        let policy = self.policy();
        let preview = Preview::of(&rule.rule, &self.parts.setup.recent, policy.schema(), now);
        Ok(Tried { rule, preview })
    }

    /// Puts an operator's rule in force. Returns when it is kept, too.
    pub fn add_rule(&mut self, rule: OperatorRule) -> Option<Done> {
        self.parts.operator.add(rule);
        self.publish();
        self.keep_operator_rules()
    }

    /// Takes a rule back. Returns when that is kept, too.
    ///
    /// # Errors
    ///
    /// There is no such rule, or it stands in a file.
    pub fn revoke_rule(&mut self, name: &str, why: &str) -> Result<Option<Done>, Refused> {
        match self.origin_of(name)? {
            Origin::File => Err(Refused::InAFile(name.to_owned())),
            Origin::Operator => {
                self.parts.operator.remove(name);
                self.publish();
                Ok(self.keep_operator_rules())
            }
            Origin::Detected => {
                let now = self.parts.clock.now();
                self.parts.detector.revoke(whole_rule(name), why, now);
                self.publish();
                Ok(self.keep_detected())
            }
        }
    }

    /// Takes back all detected rules. Returns how many there were, and when that is kept, too.
    pub fn revoke_detected(&mut self, why: &str) -> (usize, Option<Done>) {
        let now = self.parts.clock.now();
        let count = self.parts.detector.revoke_all(why, now);
        self.publish();
        (count, self.keep_detected())
    }

    /// Makes a rule act, or count only. Returns when that is kept, too.
    ///
    /// # Errors
    ///
    /// There is no such rule, or it stands in a file.
    pub fn set_rule_mode(
        &mut self,
        name: &str,
        mode: Mode,
        why: &str,
    ) -> Result<Option<Done>, Refused> {
        match self.origin_of(name)? {
            Origin::File => Err(Refused::InAFile(name.to_owned())),
            Origin::Operator => {
                self.parts.operator.set_mode(name, mode);
                self.publish();
                Ok(self.keep_operator_rules())
            }
            Origin::Detected => {
                let now = self.parts.clock.now();
                let name = whole_rule(name);
                self.parts.detector.set_mode_of_rule(name, mode, why, now);
                self.publish();
                Ok(self.keep_detected())
            }
        }
    }

    /// Has a detected rule act that waits for it. Returns when that is kept, too.
    ///
    /// # Errors
    ///
    /// There is no such rule, or it is not the detector's.
    pub fn approve_rule(&mut self, name: &str, why: &str) -> Result<Option<Done>, Refused> {
        if self.origin_of(name)? != Origin::Detected {
            return Err(Refused::NotDetected(name.to_owned(), "approved"));
        }
        let now = self.parts.clock.now();
        self.parts.detector.approve(whole_rule(name), why, now);
        self.publish();
        Ok(self.keep_detected())
    }

    /// Writes a detected rule into the rules folder, under another name, and puts it in force from
    /// there; the detector's rule ends.
    ///
    /// # Errors
    ///
    /// There is no such rule, it is not the detector's, the name is taken, or the folder cannot be written.
    pub fn promote_rule(
        &mut self,
        name: &str,
        new_name: Option<&str>,
        by: &str,
    ) -> Result<Promoted, Refused> {
        if self.origin_of(name)? != Origin::Detected {
            return Err(Refused::NotDetected(name.to_owned(), "promoted"));
        }
        let name = whole_rule(name);
        let new_name = match new_name {
            Some(new_name) => new_name.to_owned(),
            None => format!("loop-{}", name.trim_start_matches(DETECTED_PREFIX)),
        };
        let taken = Name::new(&new_name);
        if self.origin_of(&new_name).is_ok() || names(&self.parts.rules).any(|n| *n == taken) {
            return Err(Refused::Taken(taken));
        }
        let policy = self.policy();
        let in_force = policy
            .rules()
            .find(|rule| rule.rule().name.as_str() == name)
            .ok_or_else(|| Refused::Unknown(name.to_owned()))?;
        let at = humantime::format_rfc3339_seconds(self.parts.clock.wall()).to_string();
        let provenance = promote::Provenance {
            incident: self
                .incidents()
                .iter()
                .find(|incident| incident.rule.as_ref().is_some_and(|r| r.as_str() == name)),
            by,
            at: &at,
        };
        let text = promote::rule_file(in_force.rule(), &taken, provenance);
        // What would not be read must not be written: a bad name, for example.
        let mut vocabulary = self.parts.setup.settings.vocabulary();
        let wall = self.parts.clock.wall();
        RulesFile::parse(&format!("{new_name}.yaml"), &text, &mut vocabulary, wall)
            .map_err(Refused::Wrong)?;
        let folder = self.parts.setup.settings.rules.path.clone();
        match promote::write(&folder, &new_name, &text) {
            Ok(path) => {
                // It is read from there within seconds; the detector's rule holds until then. Of one rule
                // the newest file counts, and of a rule that has ended none: at most as many wait as
                // there are detected rules.
                self.promoted.retain(|promotion| {
                    let is_there = |rule: &Name| *rule == promotion.detected;
                    promotion.detected.as_str() != name
                        && policy.rules().any(|rule| is_there(&rule.rule().name))
                });
                self.promoted.push(Promotion {
                    detected: Name::new(name),
                    filed: taken.clone(),
                    why: format!("promoted to `{taken}` by {by}"),
                });
                Ok(Promoted {
                    name: taken,
                    path,
                    text,
                })
            }
            Err(error) => Err(Refused::NotWritten(text, error)),
        }
    }

    /// Returns when a line of the audit trail is kept; `None` where it will not be.
    pub fn audit(&self, line: String) -> Option<Done> {
        let writer = self.parts.state_writer.as_ref()?;
        writer.audit(line)
    }

    fn origin_of(&self, name: &str) -> Result<Origin, Refused> {
        let policy = self.policy();
        let rule = policy
            .rules()
            .find(|rule| rule.rule().name.as_str() == name);
        rule.map(|rule| rule.rule().origin)
            .ok_or_else(|| Refused::Unknown(name.to_owned()))
    }

    /// Has the detector's rules kept. Returns when they are.
    pub(super) fn keep_detected(&mut self) -> Option<Done> {
        let (now, wall) = (self.parts.clock.now(), self.parts.clock.wall());
        let carried = self.parts.detector.carried(wall, now);
        let file = &self.parts.detected_file;
        let writer = self.parts.state_writer.as_ref()?;
        self.detected_kept = now;
        self.detected_changed = false;
        Some(writer.write(file.file(), &file.content(carried)))
    }

    fn keep_operator_rules(&mut self) -> Option<Done> {
        let wall = self.parts.clock.wall();
        self.parts.operator.forget_ended(wall);
        let writer = self.parts.state_writer.as_ref()?;
        let operator = &self.parts.operator;
        Some(writer.write(operator.file(), &operator.content(wall)))
    }

    /// Makes room for what the files say now: one name is one rule, and the file's is the newer word.
    /// Detected rules that have become files end.
    pub(super) fn give_way_to(&mut self, rules: &Rules) {
        let taken: Vec<Name> = names(rules)
            .filter(|name| self.parts.operator.has(name.as_str()))
            .cloned()
            .collect();
        for name in &taken {
            tracing::warn!(
                rule = name.as_str(),
                "a file has a rule or limit of this name now; the operator's rule is over"
            );
            self.parts.operator.remove(name.as_str());
        }
        if !taken.is_empty() {
            drop(self.keep_operator_rules());
        }
        let now = self.parts.clock.now();
        let (done, waiting) = std::mem::take(&mut self.promoted)
            .into_iter()
            .partition(|promotion| names(rules).any(|name| *name == promotion.filed));
        self.promoted = waiting;
        let done: Vec<Promotion> = done;
        for promotion in &done {
            let name = promotion.detected.as_str();
            self.parts.detector.revoke(name, &promotion.why, now);
        }
        if !done.is_empty() {
            drop(self.keep_detected());
        }
    }
}
