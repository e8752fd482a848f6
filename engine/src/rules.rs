//! Valid rules and limits. [`crate::rules_file`] is what was written; this is what makes sense.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use regex::Regex;

use crate::attribute::{AttributeId, Schema};
use crate::problem::{Place, Problems};
use crate::rules_file::{RulesFile, Vocabulary};
use crate::source::Source;
use crate::traffic::Familiar;
use crate::units::Rate;
use crate::verdict::Name;

/// Where a rule comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// A file in the rules folder.
    File,
    /// An operator, through the admin API.
    Operator,
    /// The detector.
    Detected,
}

impl Origin {
    /// Returns the word for it in JSON and metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Operator => "operator",
            Self::Detected => "detected",
        }
    }
}

/// Whether a rule or limit acts, or only counts what it would have done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Acts.
    #[default]
    Enforce,
    /// Counts, and changes nothing.
    Shadow,
}

/// What a rule does with the requests that it matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ends the decision: the request is forwarded, no later rule or limit is asked.
    Allow,
    /// Closes the connection without an answer.
    Drop,
    /// Refuses.
    Block {
        /// The HTTP status, 400 to 599.
        status: u16,
    },
    /// Answers late and with nothing.
    Tarpit,
    /// Lets a rate through and refuses the rest.
    Throttle {
        /// The rate.
        rate: Rate,
        /// Requests at once.
        burst: u32,
        /// Attributes whose distinct values have a bucket each; empty: one bucket for all.
        per: Vec<AttributeId>,
    },
    /// Counts only.
    Log,
}

impl Action {
    /// Returns the word for it in YAML, metrics and logs.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Drop => "drop",
            Self::Block { .. } => "block",
            Self::Tarpit => "tarpit",
            Self::Throttle { .. } => "throttle",
            Self::Log => "log",
        }
    }
}

/// A condition on one attribute's value. An absent value matches only `Present(false)` and `Not`.
#[derive(Clone, Debug)]
pub enum Condition {
    /// Exactly this text.
    Is(Arc<str>),
    /// Any of these.
    AnyOf(Vec<Self>),
    /// Begins with this text.
    Prefix(Arc<str>),
    /// The regex finds a match.
    Regex(Regex),
    /// Has a value, or has none.
    Present(bool),
    /// The condition does not hold.
    Not(Box<Self>),
    /// A version within a range, or exactly a version.
    Version(VersionCondition),
    /// An address within a network.
    Network(IpNet),
}

/// A version range of a `version` attribute.
///
/// A value is read leniently: an optional `release-v` or `v` before it, missing parts are 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VersionCondition {
    /// Exactly this text, or a version equal to it. A value that is no version is compared as text.
    Exactly(Arc<str>, Option<semver::Version>),
    /// Within the range; a value that is no version is not.
    Range(semver::VersionReq),
}

/// All conditions of a rule or limit; all must hold. No conditions: everybody.
#[derive(Clone, Debug, Default)]
pub struct When {
    /// One condition per attribute.
    pub conditions: Vec<(AttributeId, Condition)>,
}

/// One rule: written in a file, added by an operator, or detected. All are this type.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Unique among all rules and limits in force.
    pub name: Name,
    /// Which requests it is about.
    pub when: When,
    /// `when` as it was written, for people: `app=acme, sdk_version=>=3.2.0`.
    pub when_text: Source,
    /// What it does with them.
    pub action: Action,
    /// Whether it acts.
    pub mode: Mode,
    /// Share of the instances for which it acts, 0 to 100.
    pub percent: u8,
    /// When it ends.
    pub until: Option<SystemTime>,
    /// Why it exists, in the operator's words.
    pub reason: Option<Arc<str>>,
    /// Where it comes from.
    pub origin: Origin,
    /// Who inside the source keeps being served. Detected rules have it.
    pub sparing: Option<Sparing>,
}

/// Who keeps being served inside a source under a detected rule: instances known from before the
/// incident that stay within their usual rate, up to what was expected of the source.
///
/// Identity headers can be forged; whoever floods in a victim's name must not get the victim's
/// users refused.
#[derive(Clone, Debug)]
pub struct Sparing {
    /// Requests per second that were expected of the source (upper bound); 0 for one never seen.
    pub expected_per_second: f64,
    /// Requests per second that are usual for one instance (upper bound).
    pub usual_per_instance_per_second: f64,
    /// The instances known from before.
    pub familiar: Arc<Familiar>,
}

/// A token bucket per distinct value of a key.
#[derive(Clone, Debug)]
pub struct LimitRule {
    /// Unique among all rules and limits in force.
    pub name: Name,
    /// The attributes of the key; at least one. An absent attribute is a value of its own.
    pub key: Vec<AttributeId>,
    /// The rate per distinct value.
    pub rate: Rate,
    /// Requests at once per distinct value.
    pub burst: u32,
    /// The most distinct values that are remembered.
    pub keys_max: usize,
    /// Services it applies to; empty: all.
    pub services: Vec<Arc<str>>,
    /// Which requests it is about.
    pub when: When,
    /// Whether it acts.
    pub mode: Mode,
}

/// All valid rules and limits of the rules folder, in the order of their files.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// Rules in order.
    pub rules: Vec<Rule>,
    /// Limits in order.
    pub limits: Vec<LimitRule>,
    /// Tests, run by `tidegate check`.
    pub tests: Vec<RuleTest>,
}

impl Rules {
    /// Reads one rules file that stands alone. A `ttl` counts from `now`, the moment when the file
    /// is loaded. For the files of a folder, which share their names, see [`RulesFile::join`].
    pub fn parse(
        path: &str,
        text: &str,
        schema: &Schema,
        now: SystemTime,
    ) -> Result<Self, Problems> {
        let mut vocabulary = Vocabulary::of_schema(schema.clone());
        let file = RulesFile::parse(path, text, &mut vocabulary, now)?;
        RulesFile::join(vec![file])
    }
}

/// A test in a rules file: what is given, and what must come out.
#[derive(Clone, Debug)]
pub struct RuleTest {
    /// Where the test stands.
    pub place: Place,
    /// The client's address; 192.0.2.1 where the test gives none.
    pub address: IpAddr,
    /// Attribute values.
    pub given: Vec<(AttributeId, Arc<str>)>,
    /// The verdict's word.
    pub verdict: Arc<str>,
    /// The rule or limit that must have decided.
    pub rule: Option<Name>,
}

/// What the names of detected rules begin with, and no others.
pub const DETECTED_PREFIX: &str = "detected-";

/// What the names of those end with that are on the way to become blocks, beside the throttle of the same
/// source.
pub const RAMP_SUFFIX: &str = "-ramp";

/// Returns the name by which an incident knows a detected rule: a block on its way is part of another.
pub fn whole_rule(name: &str) -> &str {
    name.strip_suffix(RAMP_SUFFIX).unwrap_or(name)
}

/// How long detected rules live at first.
pub const DETECTED_TTL: Duration = Duration::from_mins(1);
