//! What came of a scenario, for people and as JSON.

use serde::Serialize;

use super::scenario::Kind;
use crate::detect::Incident;
use crate::source::Source;

pub use super::expect::Checked as Met;

/// What came of a scenario.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Outcome {
    /// The scenario's name.
    pub name: String,
    /// Its seed.
    pub seed: u64,
    /// How long it played, in seconds.
    pub duration_s: f64,
    /// Whether all expectations are met.
    pub met: bool,
    /// Each expectation.
    pub expectations: Vec<Met>,
    /// The events.
    pub surges: Vec<SurgeOutcome>,
    /// Share of legitimate requests that a rule or limit refused; sources of surges left out.
    pub legitimate_refused_ratio: f64,
    /// The same of the legitimate requests of the surges' sources, while these were affected.
    pub source_legitimate_refused_ratio: Option<f64>,
    /// Share of the requests of honest users of the surges' sources, known before, that were served.
    pub known_source_legitimate_served_ratio: Option<f64>,
    /// Share of legitimate requests that were let through, and failed for lack of capacity.
    pub legitimate_failed_ratio: f64,
    /// How many rules were made.
    pub rules_installed: usize,
    /// How many of them hit no surge's source.
    pub false_rules: usize,
    /// The rules.
    pub rules: Vec<RuleSeen>,
    /// The incidents with their evidence.
    pub incidents: Vec<Incident>,
    /// Requests played, without the training.
    pub requests: u64,
    /// Requests of the training.
    pub requests_trained: u64,
    /// The most memory that the process held, in bytes; whoever runs it fills it in.
    pub peak_memory_bytes: u64,
    /// How long it took, in seconds of a real clock; whoever runs it fills it in.
    pub wall_s: f64,
}

/// What became of one event.
#[derive(Clone, Debug, Serialize)]
pub struct SurgeOutcome {
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: Kind,
    /// What its requests had in common.
    pub source: Source,
    /// The moment, in seconds of the scenario, from which times count.
    pub counted_from_s: f64,
    /// Until its first alarm.
    pub detected_after_s: Option<f64>,
    /// Until a rule held its source back.
    pub throttled_after_s: Option<f64>,
    /// Until that rule blocked.
    pub blocked_after_s: Option<f64>,
    /// Until its last rule was gone.
    pub released_after_s: Option<f64>,
    /// The same, from the end of the event.
    pub released_after_end_s: Option<f64>,
    /// The source of the rule that met it best.
    pub source_found: Option<Source>,
    /// That rule's name.
    pub rule: Option<String>,
    /// Share of the event's requests that this rule matches.
    pub matched_ratio: Option<f64>,
    /// Share of normal traffic of the true source, and of the rule.
    pub normal_share: f64,
    /// Share of normal traffic that the rule matches.
    pub rule_normal_share: Option<f64>,
    /// Whether the rule matches at least 99 % of the event and at most 1.05 times the true source's
    /// normal traffic.
    pub exact: bool,
    /// Requests of the event.
    pub requests: u64,
    /// Share of them that were refused.
    pub bad_refused_ratio: f64,
    /// The same of those from the first refusal on.
    pub refused_since_first_ratio: Option<f64>,
    /// Legitimate requests of the source from its beginning until the release.
    pub source_legitimate_requests: u64,
    /// Share of them that were refused.
    pub source_legitimate_refused_ratio: Option<f64>,
    /// Share of those of users known before that were served.
    pub known_source_legitimate_served_ratio: Option<f64>,
}

impl SurgeOutcome {
    /// Returns whether its requests are bad.
    pub fn is_bad(&self) -> bool {
        self.kind == Kind::Surge
    }
}

/// A detected rule that was in force.
#[derive(Clone, Debug, Serialize)]
pub struct RuleSeen {
    /// Its name.
    pub name: String,
    /// What it is about.
    pub when: Source,
    /// When it came into force, in seconds of the scenario.
    pub throttled_at_s: f64,
    /// When it first blocked.
    pub blocked_at_s: Option<f64>,
    /// When it was gone.
    pub released_at_s: Option<f64>,
    /// The event that it is about.
    pub surge: Option<String>,
    /// Share of normal traffic that it matches.
    pub normal_share: f64,
    /// Whether it only counted.
    pub shadow: bool,
}
