//! One rule of an operator: as it was given, and what it means under the settings in force.

use std::cell::Cell;
use std::collections::HashSet;
use std::fmt;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use tidegate_engine::problem::Problems;
use tidegate_engine::rules::{Mode, Origin, Rule};
use tidegate_engine::rules_file::{Vocabulary, parse_rule};
use tidegate_engine::verdict::Name;

/// What a rule that was given over the API is called in problems.
const PLACE: &str = "rule";

/// One rule as it stands in the file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Kept {
    /// As it was given: YAML or JSON.
    pub(super) text: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    shadow: Option<bool>,
    /// When it ends: a `ttl` counts from when it was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    until: Option<String>,
    pub(super) created: String,
    /// What it takes in the file, at most; 0: not counted yet.
    #[serde(skip)]
    bytes: Cell<usize>,
}

/// What a rule takes in the file besides its text, at most: names, two times, a flag.
const BESIDES_BYTES_MAX: usize = 256;

impl Kept {
    /// Returns how many bytes it takes in the file, at most.
    pub(super) fn bytes(&self) -> usize {
        if self.bytes.get() == 0 {
            // No byte takes more than `\u0000` does.
            let text = serde_json::to_string(&self.text);
            let text = text.map_or(6 * self.text.len(), |text| text.len());
            self.bytes.set(text + BESIDES_BYTES_MAX);
        }
        self.bytes.get()
    }
}

/// An operator's rule.
#[derive(Clone, Debug)]
pub struct OperatorRule {
    /// The rule.
    pub rule: Rule,
    pub(super) kept: Kept,
}

/// An operator's rule that is not in force, and could be again.
#[derive(Clone, Debug)]
pub struct IdleRule {
    /// The rule, as far as it can be read. Attributes that the settings do not have have places of their
    /// own here: what it is about is `when_text`.
    pub rule: Rule,
    /// Why it is not in force.
    pub why: Idle,
    pub(super) kept: Kept,
}

/// Why a rule is not in force.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Idle {
    /// A rule or limit of a file has its name.
    InAFile,
    /// The settings do not allow it.
    NotAllowed(String),
}

impl fmt::Display for Idle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InAFile => f.write_str("a file has a rule or limit of this name"),
            Self::NotAllowed(why) => f.write_str(why),
        }
    }
}

/// What became of a rule that was kept.
#[derive(Debug)]
pub(super) enum Restored {
    InForce(OperatorRule),
    Idle(IdleRule),
    /// No rule at all, and why.
    Unreadable(Kept, String),
}

impl IdleRule {
    /// Returns when the rule was given.
    pub fn created(&self) -> &str {
        &self.kept.created
    }
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
            bytes: Cell::new(0),
        };
        Ok(Self { rule, kept })
    }

    /// Reads a kept rule under the settings in force; `taken` are the names that files have.
    pub(super) fn restore(
        kept: Kept,
        vocabulary: &mut Vocabulary,
        taken: &HashSet<&Name>,
    ) -> Restored {
        let (rule, why) = match kept.read(vocabulary) {
            Ok(rule) if taken.contains(&rule.name) => (rule, Idle::InAFile),
            Ok(rule) => return Restored::InForce(Self { rule, kept }),
            // Which attributes there are, is what may be wrong.
            Err(why) => match kept.read(&mut Vocabulary::lenient()) {
                Ok(rule) => (rule, Idle::NotAllowed(why)),
                Err(_) => return Restored::Unreadable(kept, why),
            },
        };
        Restored::Idle(IdleRule { rule, why, kept })
    }

    pub(super) fn set_mode(&mut self, mode: Mode) {
        self.rule.mode = mode;
        self.kept.shadow = Some(mode == Mode::Shadow);
    }
}

impl Kept {
    fn read(&self, vocabulary: &mut Vocabulary) -> Result<Rule, String> {
        let time = |text: &str| {
            humantime::parse_rfc3339(text).map_err(|error| format!("`{text}` is no time: {error}"))
        };
        let now = time(&self.created)?;
        let mut rule = parse_rule(PLACE, &self.text, vocabulary, now, Origin::Operator)
            .map_err(|problems| problems.to_string())?;
        rule.until = self.until.as_deref().map(time).transpose()?;
        if let Some(shadow) = self.shadow {
            rule.mode = if shadow { Mode::Shadow } else { Mode::Enforce };
        }
        Ok(rule)
    }
}

/// Returns whether the time of a rule is not over.
pub(super) fn is_live(rule: &Rule, now: SystemTime) -> bool {
    rule.until.is_none_or(|until| until > now)
}

fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}
