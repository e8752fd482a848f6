//! What an incident's steps have done: how the upstream and honest clients fared in the second before
//! each, so that the first is before the rule and the others are under the step before. Judges nothing.

use serde::{Deserialize, Serialize};

use super::incident::Event;
use super::pattern::Pattern;
use super::window::SECOND;
use super::{Detector, Stress};
use crate::time::Instant;
use crate::traffic::LeafKey;

/// How the upstream of a service did in the last second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct UpstreamSigns {
    /// Requests that it answered, a second.
    pub answered_per_second: f64,
    /// Requests that it had at a time, in the mean: what it answers times how long that takes (Little's
    /// law, 1961).
    pub in_flight: f64,
    /// How long its answers took to begin, in the mean, in seconds.
    pub latency_s: f64,
    /// The share of its answers that were failures, 0 to 1.
    pub failed_share: f64,
}

/// Requests of some clients in the last second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Seen {
    /// Requests a second, refused ones included.
    pub requests_per_second: f64,
    /// The share of them that was refused, 0 to 1.
    pub refused_share: f64,
}

/// What was seen in the second before a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Effect {
    /// Of the source; of nobody, while it is not known.
    pub source: Seen,
    /// Of everybody else.
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
            let source = measure.map(|measure| &measure.pattern);
            let services = measure.map_or(&[][..], |measure| &measure.services);
            let effect = Effect {
                source: source.map_or_else(Seen::default, |source| {
                    self.seen(|key| source.matches(key), now)
                }),
                others: self.seen(|key| !source.is_some_and(|source| is_of(source, key)), now),
                upstream: stress.signs_of(services),
            };
            event.effect = Some(effect);
            self.incidents.note_effect(event.incident, event.at, effect);
        }
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
            refused_share: if all > 0.0 { refused / all } else { 0.0 },
        }
    }
}

/// Everybody is nobody's source: who shares is not blamed.
fn is_of(source: &Pattern, key: &LeafKey) -> bool {
    !source.is_everybody() && source.matches(key)
}

impl Stress {
    /// Returns how the upstreams of these services did, or of all of them where none is named.
    fn signs_of(&self, services: &[std::sync::Arc<str>]) -> Option<UpstreamSigns> {
        let mut sum = UpstreamSigns::default();
        let mut count = 0;
        for (service, signs) in &self.signs {
            if services.is_empty() || services.contains(service) {
                count += 1;
                sum.answered_per_second += signs.answered_per_second;
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
