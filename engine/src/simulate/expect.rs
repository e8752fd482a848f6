//! What must come of a scenario: the keys of `expect`, and whether an outcome meets them.

use serde::Serialize;

use super::outcome::{Outcome, SurgeOutcome};
use super::scenario::{Expectation, Wanted};
use crate::reader::Reader;
use crate::units::{parse_duration_or_zero, parse_percent};
use crate::yaml::Node;

const KEYS: &[&str] = &[
    "detected_within",
    "throttled_within",
    "blocked_within",
    "released_within",
    "exact_source",
    "bad_refused_min",
    "refused_legitimate_max",
    "source_legitimate_refused_max",
    "known_served_min",
    "failed_legitimate_max",
    "false_rules_max",
    "rules_max",
    "no_rules",
    "no_block",
];

/// One expectation and what came.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Checked {
    /// Its key.
    pub key: &'static str,
    /// The event that it is about; `None`: the whole.
    pub event: Option<String>,
    /// What is wanted, and what came, for people.
    pub wanted: String,
    /// What came.
    pub came: String,
    /// Whether it is met.
    pub met: bool,
}

/// Reads `expect`.
pub(super) fn read(reader: &mut Reader<'_>, node: &Node) -> Option<Vec<Expectation>> {
    reader.about("expect");
    let fields = reader.fields("expect", node, KEYS)?;
    let mut expectations = Vec::new();
    let mut fine = true;
    for entry in fields.iter() {
        let Some(key) = KEYS.iter().find(|key| **key == entry.key) else {
            continue;
        };
        let node = &entry.value;
        let wanted = match *key {
            key if key.ends_with("_within") => reader
                .parsed(key, node, "`3s`", parse_duration_or_zero)
                .map(Wanted::Within),
            "exact_source" | "no_rules" | "no_block" => reader.flag(key, node).map(Wanted::Flag),
            "false_rules_max" | "rules_max" => {
                reader.whole(key, node, 0..=1000).map(Wanted::CountMax)
            }
            key if key.ends_with("_min") => reader
                .parsed(key, node, "`99%`", parse_percent)
                .map(Wanted::AtLeast),
            key => reader
                .parsed(key, node, "`0.1%`", parse_percent)
                .map(Wanted::AtMost),
        };
        match wanted {
            Some(wanted) => expectations.push(Expectation { key, wanted }),
            None => fine = false,
        }
    }
    reader.about("");
    fine.then_some(expectations)
}

/// Holds an outcome against the expectations.
pub(super) fn check(expectations: &[Expectation], outcome: &Outcome) -> Vec<Checked> {
    let mut checked = Vec::new();
    for expectation in expectations {
        let key = expectation.key;
        let of_surge: Option<fn(&SurgeOutcome) -> Came> = match key {
            "detected_within" => Some(|surge| Came::Seconds(surge.detected_after_s)),
            "throttled_within" => Some(|surge| Came::Seconds(surge.throttled_after_s)),
            "blocked_within" => Some(|surge| Came::Seconds(surge.blocked_after_s)),
            "released_within" => Some(|surge| Came::Seconds(surge.released_after_end_s)),
            "exact_source" => Some(|surge| Came::Flag(surge.exact)),
            "bad_refused_min" => Some(|surge| Came::Ratio(surge.bad_refused_ratio)),
            "source_legitimate_refused_max" => {
                Some(|surge| Came::Ratio(surge.source_legitimate_refused_ratio.unwrap_or(1.0)))
            }
            "known_served_min" => {
                Some(|surge| Came::Ratio(surge.known_source_legitimate_served_ratio.unwrap_or(0.0)))
            }
            _ => None,
        };
        if let Some(came) = of_surge {
            for surge in outcome.surges.iter().filter(|surge| surge.is_bad()) {
                checked.push(came(surge).against(expectation, Some(&surge.name)));
            }
            continue;
        }
        let came = match key {
            "refused_legitimate_max" => Came::Ratio(outcome.legitimate_refused_ratio),
            "failed_legitimate_max" => Came::Ratio(outcome.legitimate_failed_ratio),
            "false_rules_max" => Came::Count(outcome.false_rules),
            "rules_max" => Came::Count(outcome.rules_installed),
            "no_rules" => Came::Flag(outcome.rules_installed == 0),
            _ => Came::Flag(outcome.rules.iter().all(|rule| rule.blocked_at_s.is_none())),
        };
        checked.push(came.against(expectation, None));
    }
    checked
}

enum Came {
    Seconds(Option<f64>),
    Ratio(f64),
    Count(usize),
    Flag(bool),
}

impl Came {
    fn against(self, expectation: &Expectation, event: Option<&str>) -> Checked {
        let percent = |ratio: f64| format!("{:.3} %", ratio * 100.0);
        let (wanted, came, met) = match (self, expectation.wanted) {
            (Self::Seconds(came), Wanted::Within(most)) => (
                format!("at most {:.1} s", most.as_secs_f64()),
                came.map_or_else(|| "never".to_owned(), |came| format!("{came:.1} s")),
                came.is_some_and(|came| came <= most.as_secs_f64() + 1e-6),
            ),
            (Self::Ratio(came), Wanted::AtMost(most)) => (
                format!("at most {}", percent(most)),
                percent(came),
                came <= most,
            ),
            (Self::Ratio(came), Wanted::AtLeast(least)) => (
                format!("at least {}", percent(least)),
                percent(came),
                came >= least,
            ),
            (Self::Count(came), Wanted::CountMax(most)) => (
                format!("at most {most}"),
                came.to_string(),
                came <= most as usize,
            ),
            (Self::Flag(came), Wanted::Flag(wanted)) => {
                (wanted.to_string(), came.to_string(), came == wanted)
            }
            _ => (String::new(), String::new(), false),
        };
        Checked {
            key: expectation.key,
            event: event.map(str::to_owned),
            wanted,
            came,
            met,
        }
    }
}
