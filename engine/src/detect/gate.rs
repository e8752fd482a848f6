//! Is there a surge? Says when and in which scope; who causes it is for [`super::blame`].
//!
//! A CUSUM test (Page, 1954) per scope: everybody, and each single value of an attribute (services
//! are values too). Each tick adds the log likelihood ratio between twice the expected rate and the
//! expected rate, for counts whose variance is `dispersion` times the mean; what falls below zero
//! begins anew. The sum exceeds `h` by chance about once in e^h ticks: with h = 27.6, 4,096 scopes and
//! ten ticks a second, 0.004 times a day.

use std::collections::BTreeMap;

use ahash::AHashMap;

use super::pattern::Literal;
use super::reference::Reference;
use super::window::{Leaf, Window};
use crate::time::Instant;
use crate::traffic::LeafKey;

/// The alarm threshold `h`, in nats.
pub(super) const THRESHOLD: f64 = 27.6;

/// How much more than expected a surge is at least.
pub(super) const EFFECT_MIN: f64 = 1.5;

/// Requests per second above what is expected that are no surge of a small service: twice what is
/// expected, and at least these.
const FLOOR_MIN: f64 = 5.0;
const FLOOR_FACTOR: f64 = 2.0;

/// Returns the requests per second above `expected` that are no surge, where `most` are none of a
/// large scope.
pub(super) fn floor_of(expected: f64, most: f64) -> f64 {
    (FLOOR_FACTOR * expected).clamp(FLOOR_MIN.min(most), most)
}

/// The most single values watched at a time: 4,096 × 48 B.
const SCOPES_MAX: usize = 4096;

/// The most one tick may add, so that one tick alone is no surge.
const STEP_MAX: f64 = THRESHOLD / 2.0;

/// From which sum on nothing is learnt: one tick of a surge suffices.
const UNEASY: f64 = STEP_MAX;

/// The running sum of one scope.
#[derive(Clone, Copy, Debug)]
struct Cusum {
    sum: f64,
    since: Instant,
}

impl Cusum {
    fn step(self, came: f64, expected: f64, dispersion: f64, from: Instant) -> Self {
        let step = (came * std::f64::consts::LN_2 - expected) / dispersion;
        // Capped, or a long surge that turned out to be a crowd would be remembered for as long.
        let sum = (self.sum + step.min(STEP_MAX)).min(2.0 * THRESHOLD);
        if sum > 0.0 {
            let since = if self.sum > 0.0 { self.since } else { from };
            Self { sum, since }
        } else {
            Self::quiet(from)
        }
    }

    fn quiet(at: Instant) -> Self {
        Self {
            sum: 0.0,
            since: at,
        }
    }
}

/// A surge in one scope.
#[derive(Clone, Copy, Debug)]
pub(super) struct Alarm {
    /// The value that surges; `None`: everybody.
    pub(super) scope: Option<Literal>,
    /// When the surge began, as far as the test can tell.
    pub(super) since: Instant,
    /// Requests per second of the scope since then, over a second at most.
    pub(super) observed: f64,
    /// Requests per second that were expected of it.
    pub(super) expected: f64,
}

/// The running sums of all scopes.
#[derive(Debug)]
pub(super) struct Gate {
    everybody: Cusum,
    values: BTreeMap<Literal, Cusum>,
}

impl Gate {
    pub(super) fn new() -> Self {
        Self {
            everybody: Cusum::quiet(Instant::ZERO),
            values: BTreeMap::new(),
        }
    }

    /// Begins anew everywhere, after what was normal has changed.
    pub(super) fn reset(&mut self) {
        *self = Self::new();
    }

    /// Returns whether everybody's sum is half way to an alarm: too suspicious to learn from.
    pub(super) fn is_uneasy(&self) -> bool {
        self.everybody.sum >= UNEASY
    }

    /// Judges the newest tick; `evidence` picks the leaves that count, `expected_of` says how many
    /// requests per second were expected of those, `floor` from how many more on it is a surge.
    pub(super) fn step(
        &mut self,
        window: &Window,
        reference: &Reference,
        columns: usize,
        floor: impl Fn(Option<Literal>, f64) -> f64,
        evidence: impl Fn(&LeafKey) -> bool,
        expected_of: impl Fn(Option<Literal>) -> f64,
    ) -> Vec<Alarm> {
        let Some(tick) = window.newest() else {
            return Vec::new();
        };
        if !reference.is_usable() || tick.seconds() <= 0.0 {
            return Vec::new();
        }
        let leaves: Vec<&Leaf> = tick
            .leaves
            .iter()
            .filter(|leaf| evidence(&leaf.key))
            .collect();
        let seconds = tick.seconds();
        let level = reference.level().max(f64::MIN_POSITIVE);
        // Nobody is watched below the floor: what is expected of a scope is at least so much that
        // the floor is a doubling.
        let at_least = |scope| {
            let expected = expected_of(scope);
            expected.max(floor(scope, expected) / 2.0)
        };
        let came: f64 = leaves.iter().map(|leaf| leaf.requests).sum();
        let expected = at_least(None);
        self.everybody = self.everybody.step(
            came,
            expected * seconds,
            reference.dispersion(1.0),
            tick.from,
        );

        let mut sums: AHashMap<Literal, f64> = AHashMap::new();
        for leaf in &leaves {
            for column in 0..columns {
                let value = leaf.key.value(column);
                if value != 0 {
                    *sums.entry(Literal { column, value }).or_default() += leaf.requests;
                }
            }
        }
        let judge = |cusum: Cusum, literal, came: f64| {
            let expected = at_least(Some(literal));
            let dispersion = reference.dispersion(expected / level).max(2.0);
            cusum.step(came, expected * seconds, dispersion, tick.from)
        };
        for (literal, cusum) in &mut self.values {
            *cusum = judge(*cusum, *literal, sums.remove(literal).unwrap_or(0.0));
        }
        self.values.retain(|_, cusum| cusum.sum > 0.0);
        let mut new: Vec<(Literal, Cusum)> = sums
            .into_iter()
            .map(|(literal, came)| (literal, judge(Cusum::quiet(tick.from), literal, came)))
            .filter(|(_, cusum)| cusum.sum > 0.0)
            .collect();
        new.sort_unstable_by(|a, b| b.1.sum.total_cmp(&a.1.sum).then(a.0.cmp(&b.0)));
        new.truncate(SCOPES_MAX.saturating_sub(self.values.len()));
        self.values.extend(new);

        self.alarms(window, tick.until, floor, evidence, expected_of)
    }

    /// The scopes above the threshold whose last second is also well above what was expected.
    fn alarms(
        &self,
        window: &Window,
        now: Instant,
        floor: impl Fn(Option<Literal>, f64) -> f64,
        evidence: impl Fn(&LeafKey) -> bool,
        expected_of: impl Fn(Option<Literal>) -> f64,
    ) -> Vec<Alarm> {
        let scopes = std::iter::once((None, self.everybody)).chain(
            self.values
                .iter()
                .map(|(literal, cusum)| (Some(*literal), *cusum)),
        );
        scopes
            .filter(|(_, cusum)| cusum.sum > THRESHOLD)
            .filter_map(|(scope, cusum)| {
                let from = cusum.since.max(now - super::window::SECOND);
                let seconds = window.seconds_since(from);
                if seconds <= 0.0 {
                    return None;
                }
                let came = window.requests_since(from, |key| {
                    evidence(key) && scope.is_none_or(|literal| literal.matches(key))
                });
                let observed = came / seconds;
                let expected = expected_of(scope);
                let surges = observed > EFFECT_MIN * expected
                    && observed - expected >= floor(scope, expected);
                surges.then_some(Alarm {
                    scope,
                    since: cusum.since,
                    observed,
                    expected,
                })
            })
            .collect()
    }
}
