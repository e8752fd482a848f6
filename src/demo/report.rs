//! What was promised, what came of it, and the figures. Knows nothing of sockets or terminals.
//!
//! All times are since the demonstration's start; all latencies are those of honest clients, counted
//! from when a request was due to the last byte of its answer, or to when the client gave up.

use std::time::Duration;

use serde::Serialize;
use tidegate_engine::source::Source;

/// How soon after the loop's start its source is throttled.
const THROTTLED_WITHIN: f64 = 3.0;
/// How soon it is blocked.
const BLOCKED_WITHIN: f64 = 10.0;
/// The share of honest requests that succeed while the loop runs.
const SUCCESS_MIN: f64 = 0.999;
/// The share of honest requests that are refused meanwhile.
const REFUSED_MAX: f64 = 0.001;
/// Honest p99 latency under the rule, as a multiple of the calm one.
const P99_FACTOR_MAX: f64 = 1.5;
/// How long after the first rule the services may still be busy with what had piled up.
const SETTLED_AFTER: Duration = Duration::from_secs(1);

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// A complete 2xx answer.
    Succeeded,
    /// Refused by the proxy: 429 or 403.
    Refused,
    /// Any other answer, none in time, or a connection that broke.
    Failed,
}

impl End {
    /// Returns what an answer with this status is.
    pub(super) fn of_status(status: u16) -> Self {
        match status {
            200..=299 => Self::Succeeded,
            403 | 429 => Self::Refused,
            _ => Self::Failed,
        }
    }
}

/// One request of an honest client.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outcome {
    /// When it should have been sent.
    pub(super) due: Duration,
    /// How long after that it ended.
    pub(super) took: Duration,
    /// How.
    pub(super) end: End,
}

/// Returns the share of requests that ended in this way; `None` without requests.
pub(super) fn share(outcomes: &[Outcome], end: End) -> Option<f64> {
    let count = outcomes.iter().filter(|outcome| outcome.end == end).count();
    (!outcomes.is_empty()).then(|| count as f64 / outcomes.len() as f64)
}

/// Returns the latency in milliseconds that 99 % of requests do not exceed (nearest rank);
/// `None` without requests.
pub(super) fn p99_ms(outcomes: &[Outcome]) -> Option<f64> {
    let mut took: Vec<Duration> = outcomes.iter().map(|outcome| outcome.took).collect();
    took.sort_unstable();
    let rank = (took.len() * 99).div_ceil(100);
    let took = took.get(rank.checked_sub(1)?)?;
    Some(took.as_secs_f64() * 1000.0)
}

/// When what happened.
#[derive(Clone, Debug, Default)]
pub(super) struct Timeline {
    /// From when on clients are in their rhythm.
    pub(super) calm_from: Duration,
    /// When the loop began and ended.
    pub(super) loop_began: Duration,
    /// See above.
    pub(super) loop_ended: Duration,
    /// When the first rule since then throttled.
    pub(super) throttled: Option<Duration>,
    /// When it blocked.
    pub(super) blocked: Option<Duration>,
    /// When the last rule was gone.
    pub(super) released: Option<Duration>,
    /// The sources of all rules there were, calm included.
    pub(super) sources: Vec<Source>,
}

/// What all requests of the loop came to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LoopCount {
    /// Sent.
    pub(super) sent: u64,
    /// Refused.
    pub(super) refused: u64,
}

/// The figures of a run; `None` is what did not happen.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Figures {
    /// From the loop's start.
    throttled_after_s: Option<f64>,
    /// From the loop's start.
    blocked_after_s: Option<f64>,
    /// From the loop's end.
    released_after_s: Option<f64>,
    /// The first source that got a rule.
    source: Option<Source>,
    /// Of requests due while the loop ran.
    legitimate_success_ratio: Option<f64>,
    /// Likewise.
    legitimate_refused_ratio: Option<f64>,
    /// Of all that the loop sent.
    bad_refused_ratio: f64,
    /// Before the loop.
    legitimate_p99_ms_calm: Option<f64>,
    /// From the loop's start to the first rule.
    legitimate_p99_ms_before_rule: Option<f64>,
    /// From 1 s after the first rule to the loop's end.
    legitimate_p99_ms_during: Option<f64>,
    /// Of everybody, in all.
    requests: u64,
    #[serde(skip)]
    sources: Vec<Source>,
}

impl Figures {
    /// Adds up a run.
    pub(super) fn of(timeline: &Timeline, outcomes: &[Outcome], bad: LoopCount) -> Self {
        let due = |from: Duration, until: Duration| -> Vec<Outcome> {
            let within = |outcome: &&Outcome| outcome.due >= from && outcome.due < until;
            outcomes.iter().filter(within).copied().collect()
        };
        let (began, ended) = (timeline.loop_began, timeline.loop_ended);
        let seconds_since = |from: Duration, at: Option<Duration>| {
            at.map(|at| at.saturating_sub(from).as_secs_f64())
        };
        let meanwhile = due(began, ended);
        let settled = timeline.throttled.map(|at| at + SETTLED_AFTER);
        Self {
            throttled_after_s: seconds_since(began, timeline.throttled),
            blocked_after_s: seconds_since(began, timeline.blocked),
            released_after_s: seconds_since(ended, timeline.released),
            source: timeline.sources.first().cloned(),
            legitimate_success_ratio: share(&meanwhile, End::Succeeded),
            legitimate_refused_ratio: share(&meanwhile, End::Refused),
            bad_refused_ratio: bad.refused as f64 / bad.sent.max(1) as f64,
            legitimate_p99_ms_calm: p99_ms(&due(timeline.calm_from, began)),
            legitimate_p99_ms_before_rule: p99_ms(&due(began, timeline.throttled.unwrap_or(ended))),
            legitimate_p99_ms_during: settled.and_then(|from| p99_ms(&due(from, ended))),
            requests: outcomes.len() as u64 + bad.sent,
            sources: timeline.sources.clone(),
        }
    }

    /// Holds the figures against the promises; `source` is the one that loops.
    pub(super) fn promises(&self, source: &Source) -> Vec<Promise> {
        let seconds = |value: Option<f64>| text(value, |value| format!("{value:.1} s"));
        let percent = |value: Option<f64>| text(value, |value| format!("{:.2} %", 100.0 * value));
        let slowdown = self
            .legitimate_p99_ms_during
            .zip(self.legitimate_p99_ms_calm)
            .map(|(during, calm)| during / calm);
        let mut named: Vec<String> = self.sources.iter().map(ToString::to_string).collect();
        named.dedup();
        let found = if named.is_empty() {
            "nobody".to_owned()
        } else {
            named.join("; and ")
        };
        vec![
            Promise {
                text: "the source is throttled within 3 s",
                value: seconds(self.throttled_after_s),
                held: self
                    .throttled_after_s
                    .is_some_and(|s| s <= THROTTLED_WITHIN),
            },
            Promise {
                text: "and blocked within 10 s",
                value: seconds(self.blocked_after_s),
                held: self.blocked_after_s.is_some_and(|s| s <= BLOCKED_WITHIN),
            },
            Promise {
                text: "it is named exactly, and nobody else",
                value: found,
                held: !self.sources.is_empty() && self.sources.iter().all(|one| one == source),
            },
            Promise {
                text: "99.9 % of honest requests succeed",
                value: percent(self.legitimate_success_ratio),
                held: self
                    .legitimate_success_ratio
                    .is_some_and(|ratio| ratio >= SUCCESS_MIN),
            },
            Promise {
                text: "at most 0.1 % of them are refused",
                value: percent(self.legitimate_refused_ratio),
                held: self
                    .legitimate_refused_ratio
                    .is_some_and(|ratio| ratio <= REFUSED_MAX),
            },
            Promise {
                text: "honest p99 at most 1.5 times the calm one",
                value: text(slowdown, |factor| {
                    let ms = self.legitimate_p99_ms_during.unwrap_or(f64::NAN);
                    let calm = self.legitimate_p99_ms_calm.unwrap_or(f64::NAN);
                    format!("{factor:.2} times: {ms:.1} ms, calm {calm:.1} ms")
                }),
                held: slowdown.is_some_and(|factor| factor <= P99_FACTOR_MAX),
            },
            Promise {
                text: "the rule goes when the loop has ended",
                value: text(self.released_after_s, |s| format!("{s:.1} s later")),
                held: self.released_after_s.is_some(),
            },
        ]
    }

    /// Returns what the honest and the loop met with, in words.
    pub(super) fn remarks(&self) -> Vec<String> {
        let ms = |value: Option<f64>| {
            value.map_or_else(|| "nothing".to_owned(), |value| format!("{value:.1} ms"))
        };
        vec![
            format!(
                "honest p99: {} in the calm, {} in the loop without a rule, {} under it",
                ms(self.legitimate_p99_ms_calm),
                ms(self.legitimate_p99_ms_before_rule),
                ms(self.legitimate_p99_ms_during),
            ),
            format!(
                "{:.1} % of the loop was refused; {} requests in all",
                100.0 * self.bad_refused_ratio,
                self.requests
            ),
        ]
    }
}

fn text(value: Option<f64>, write: impl FnOnce(f64) -> String) -> String {
    value.map_or_else(|| "never".to_owned(), write)
}

/// One promise, and whether it was held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Promise {
    /// What was promised.
    pub(super) text: &'static str,
    /// What came of it.
    pub(super) value: String,
    /// Whether that is as promised.
    pub(super) held: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn source() -> Source {
        Source::everybody().with("app", "acme").with("sdk", "x")
    }

    /// Ten requests a second for 30 s, 10 ms each.
    fn smooth() -> Vec<Outcome> {
        (0..300)
            .map(|number| Outcome {
                due: Duration::from_millis(number * 100),
                took: Duration::from_millis(10),
                end: End::Succeeded,
            })
            .collect()
    }

    fn good() -> Timeline {
        Timeline {
            calm_from: s(2),
            loop_began: s(10),
            loop_ended: s(20),
            throttled: Some(s(11)),
            blocked: Some(s(13)),
            released: Some(s(40)),
            sources: vec![source()],
        }
    }

    const BAD: LoopCount = LoopCount {
        sent: 1000,
        refused: 900,
    };

    /// The numbers, counted from 0, of the promises that were not held.
    fn missed(timeline: &Timeline, outcomes: &[Outcome]) -> Vec<usize> {
        let promises = Figures::of(timeline, outcomes, BAD).promises(&source());
        assert_eq!(promises.len(), 7);
        promises
            .iter()
            .enumerate()
            .filter(|(_, promise)| !promise.held)
            .map(|(at, _)| at)
            .collect()
    }

    #[test]
    fn all_promises_hold_where_all_went_well() {
        assert_eq!(missed(&good(), &smooth()), [0; 0]);
        let figures = Figures::of(&good(), &smooth(), BAD);
        assert_eq!(figures.throttled_after_s, Some(1.0));
        assert_eq!(figures.blocked_after_s, Some(3.0));
        assert_eq!(figures.released_after_s, Some(20.0));
        assert_eq!(figures.requests, 1300);
        assert!((figures.bad_refused_ratio - 0.9).abs() < 1e-9);
    }

    #[test]
    fn each_promise_is_missed_by_what_breaks_it() {
        let late = Timeline {
            throttled: Some(Duration::from_millis(13_001)),
            ..good()
        };
        assert_eq!(missed(&late, &smooth()), [0]);
        let late = Timeline {
            blocked: Some(Duration::from_millis(20_001)),
            ..good()
        };
        assert_eq!(missed(&late, &smooth()), [1]);
        let more = Source::everybody().with("app", "birch");
        let too_many = Timeline {
            sources: vec![source(), more],
            ..good()
        };
        assert_eq!(missed(&too_many, &smooth()), [2]);
        let mut refused = smooth();
        refused[150].end = End::Refused;
        assert_eq!(
            missed(&good(), &refused),
            [3, 4],
            "1 of 100 during the loop"
        );
        let mut slow = smooth();
        for outcome in &mut slow[130..140] {
            outcome.took = Duration::from_millis(16);
        }
        assert_eq!(missed(&good(), &slow), [5]);
        let kept = Timeline {
            released: None,
            ..good()
        };
        assert_eq!(missed(&kept, &smooth()), [6]);
    }

    #[test]
    fn without_a_rule_nothing_that_a_rule_brings_is_held() {
        let nothing = Timeline {
            throttled: None,
            blocked: None,
            released: None,
            sources: Vec::new(),
            ..good()
        };
        assert_eq!(missed(&nothing, &smooth()), [0, 1, 2, 5, 6]);
        assert_eq!(missed(&nothing, &[]), [0, 1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn what_happens_before_the_loop_or_after_it_is_not_held_against_the_promises() {
        let mut outcomes = smooth();
        for outcome in &mut outcomes[0..15] {
            outcome.end = End::Failed;
            outcome.took = s(2);
        }
        outcomes.push(Outcome {
            due: s(20),
            took: s(2),
            end: End::Failed,
        });
        assert_eq!(missed(&good(), &outcomes), [0; 0]);
    }

    #[test]
    fn p99_is_the_nearest_rank() {
        let mut outcomes: Vec<Outcome> = (1..=200)
            .map(|ms| Outcome {
                due: Duration::ZERO,
                took: Duration::from_millis(ms),
                end: End::Succeeded,
            })
            .collect();
        assert_eq!(p99_ms(&outcomes), Some(198.0));
        outcomes.truncate(1);
        assert_eq!(p99_ms(&outcomes), Some(1.0));
        assert_eq!(p99_ms(&[]), None);
    }

    #[test]
    fn the_figures_are_written_under_their_names() {
        let json = serde_json::to_value(Figures::of(&good(), &smooth(), BAD)).unwrap();
        let mut keys: Vec<&str> = json
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        keys.sort_unstable();
        assert_eq!(
            keys,
            [
                "bad_refused_ratio",
                "blocked_after_s",
                "legitimate_p99_ms_before_rule",
                "legitimate_p99_ms_calm",
                "legitimate_p99_ms_during",
                "legitimate_refused_ratio",
                "legitimate_success_ratio",
                "released_after_s",
                "requests",
                "source",
                "throttled_after_s",
            ]
        );
        assert_eq!(json["source"]["app"], "acme");
    }
}
