//! What an incident's steps have done: how the upstream and honest clients fared in the second before
//! each, so that the first is before the rule and the others are under the step before. Judges nothing.

use serde::{Deserialize, Serialize};

use super::act::Measure;
use super::incident::Event;
use super::window::SECOND;
use super::{Detector, Stress};
use crate::time::Instant;
use crate::traffic::LeafKey;

/// How the upstream of a service did in the last second, those requests included that it did not answer
/// yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct UpstreamSigns {
    /// Requests that came for it and that no rule refused, a second.
    pub arrived_per_second: f64,
    /// Requests that it answered, a second.
    pub answered_per_second: f64,
    /// Requests that got no place, a second.
    pub shed_per_second: f64,
    /// Requests that wait for a place, now.
    pub waiting: f64,
    /// Requests that it has, now.
    pub in_flight: f64,
    /// How long its answers took to begin, in the mean, in seconds; 0 without answers.
    pub latency_s: f64,
    /// The share of its answers that were failures, 0 to 1.
    pub failed_share: f64,
}

/// Requests of some clients in the last second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Seen {
    /// Requests a second, refused ones included.
    pub requests_per_second: f64,
    /// The share of them that was refused, 0 to 1; absent where it cannot be told: of one address it is only
    /// counted how many requests came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused_share: Option<f64>,
}

/// What was seen in the second before a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Effect {
    /// Of the source; of nobody, while it is not known.
    pub source: Seen,
    /// Of everybody else: of everybody, where nobody is blamed.
    pub others: Seen,
    /// The upstreams of the services that the source goes to, or all together; absent where nobody says.
    pub upstream: Option<UpstreamSigns>,
}

impl Detector {
    /// Notes in each event, and in its incident, what was seen before it.
    pub(super) fn measure_effects(&mut self, events: &mut [Event], stress: &Stress, now: Instant) {
        for event in events {
            let measure = self
                .measures
                .iter()
                .find(|measure| measure.incident == event.incident);
            if measure.is_none() && self.incidents.has_rule(event.incident) {
                // The rule is gone, and who was meant by it cannot be told from the others any more.
                continue;
            }
            let (source, others) = self.seen_of(measure, now);
            let services = measure.map_or(&[][..], |measure| &measure.services);
            let effect = Effect {
                source,
                others,
                upstream: stress.signs_of(services),
            };
            event.effect = Some(effect);
            self.incidents.note_effect(event.incident, event.at, effect);
        }
    }

    /// Returns what was seen of a rule's source, and of everybody else.
    fn seen_of(&self, measure: Option<&Measure>, now: Instant) -> (Seen, Seen) {
        let all = || self.seen(|_| true, now);
        let Some(measure) = measure else {
            return (Seen::nobody(), all());
        };
        if measure.address.is_some() {
            let rate = |rate| Seen {
                requests_per_second: rate,
                refused_share: None,
            };
            let came = self.offered(measure, SECOND, now);
            let others = (all().requests_per_second - came).max(0.0);
            return (rate(came), rate(others));
        }
        let source = self.seen(|key| measure.pattern.matches(key), now);
        // Who shares is not blamed.
        let others = if measure.shares || measure.pattern.is_everybody() {
            all()
        } else {
            self.seen(|key| !measure.pattern.matches(key), now)
        };
        (source, others)
    }

    fn seen(&self, belongs: impl Fn(&LeafKey) -> bool, now: Instant) -> Seen {
        let from = now - SECOND;
        let seconds = self.window.seconds_since(from).max(f64::MIN_POSITIVE);
        let (mut all, mut refused) = (0.0, 0.0);
        for leaf in self.window.since(from).flat_map(|tick| &tick.leaves) {
            if belongs(&leaf.key) {
                all += leaf.requests;
                if leaf.key.refused() {
                    refused += leaf.requests;
                }
            }
        }
        Seen {
            requests_per_second: all / seconds,
            refused_share: Some(if all > 0.0 { refused / all } else { 0.0 }),
        }
    }
}

impl Seen {
    fn nobody() -> Self {
        Self {
            requests_per_second: 0.0,
            refused_share: Some(0.0),
        }
    }
}

impl Stress {
    /// Returns how the upstreams of these services did, or of all of them where none is named.
    fn signs_of(&self, services: &[std::sync::Arc<str>]) -> Option<UpstreamSigns> {
        let mut sum = UpstreamSigns::default();
        let mut count = 0;
        for (service, signs) in &self.signs {
            if services.is_empty() || services.contains(service) {
                count += 1;
                sum.arrived_per_second += signs.arrived_per_second;
                sum.answered_per_second += signs.answered_per_second;
                sum.shed_per_second += signs.shed_per_second;
                sum.waiting += signs.waiting;
                sum.in_flight += signs.in_flight;
                sum.latency_s += signs.latency_s * signs.answered_per_second;
                sum.failed_share += signs.failed_share * signs.answered_per_second;
            }
        }
        if count == 0 {
            return None;
        }
        let answered = sum.answered_per_second.max(f64::MIN_POSITIVE);
        sum.latency_s /= answered;
        sum.failed_share /= answered;
        Some(sum)
    }
}
