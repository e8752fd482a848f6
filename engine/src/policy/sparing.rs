//! Who keeps being served inside a source under a detected rule. Knows nothing of what the rule does
//! with the others.
//!
//! Identity headers can be forged: whoever floods in a victim's name must not get the victim's users
//! refused. So a request passes if its instance was known before the incident, sends no more than
//! is usual, and all of those together stay within what was expected of the source.
//!
//! What is usual is *metered*, not limited: an instance that keeps sending above it is out until it
//! has been quiet, so that known devices that loop (the usual incident: one app version, installed
//! long ago) do not use up what was expected and starve the known devices that do not loop.
//!
//! # What an attacker can do at worst
//!
//! Who can forge the identities of known instances (the tokens are secret, but may be stolen) gets
//! 3 × the usual rate of each, and all together what was expected of the source, or one request a
//! second: never more than a normal day. Then the source's honest users compete with him for that much.

use std::fmt::Debug;
use std::sync::Arc;

use crate::limit::{LimitSpec, Limiter, RetryAfter};
use crate::rules::Sparing;
use crate::time::Instant;
use crate::traffic::Familiar;

/// An instance may send so many times its usual rate before it counts as loud: what is usual is an
/// upper bound over many instances, and honest ones retry when they are refused.
const LOUD_FACTOR: f64 = 3.0;

/// Seconds of the loud rate, and of what was expected of the source, that may come at once.
const LOUD_BURST_S: f64 = 10.0;
const EXPECTED_BURST_S: f64 = 5.0;

/// What known clients of a source get in any case, in requests per second and at once: of a source that
/// sends one request in a minute, two in one second are no attack.
const EXPECTED_MIN: f64 = 1.0;
const EXPECTED_BURST_MIN: f64 = 5.0;

/// The smallest burst of one instance: opening an app is ten requests.
const LOUD_BURST_MIN: f64 = 10.0;

/// Instances that are metered at once by one rule, and by all rules together, and what a rule gets in
/// any case: (1,048,576 + 64 × 4,096) × 18.3 B = 23 MiB for 64 rules at most, as they come, and 1 MiB for
/// what is pushed out of each of the first four.
///
/// The first rule gets half of all, each further one half of what is left, for the first incident is
/// the largest. Only known instances are metered. With 300,000 of them in the first rule about 1 in 50 finds
/// no place and is measured in the limiter's memory of pushed-out keys, where 1 quiet one in 100 is
/// taken for loud.
const METERED_MAX: usize = 1 << 19;
const METERED_TOTAL: usize = 1 << 20;
const METERED_MIN: usize = 1 << 12;

/// From how many places on what is pushed out is remembered.
const REMEMBERED_MIN: usize = 1 << 16;

/// Instances that share a detected throttle fairly, in one rule and in all: (524,288 + 64 × 4,096) ×
/// 18.3 B = 13.7 MiB at most.
const FAIR_MAX: usize = 1 << 16;
const FAIR_TOTAL: usize = 1 << 19;
const FAIR_MIN: usize = 1 << 12;

/// Places that are left for rules to come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places {
    metered: usize,
    fair: usize,
}

impl Places {
    /// Returns what is left besides those that `taken` walks: places metered and fair of the rules
    /// that stay.
    pub(super) fn besides(taken: impl Iterator<Item = (usize, usize)>) -> Self {
        let all = Self {
            metered: METERED_TOTAL,
            fair: FAIR_TOTAL,
        };
        taken.fold(all, |left, (metered, fair)| Self {
            metered: left.metered.saturating_sub(metered),
            fair: left.fair.saturating_sub(fair),
        })
    }

    /// Takes the places of a rule that meters: those that it had, or half of what is left.
    fn metered(&mut self, had: Option<usize>) -> usize {
        had.unwrap_or_else(|| {
            let places = (self.metered / 2).clamp(METERED_MIN, METERED_MAX);
            self.metered = self.metered.saturating_sub(places);
            places
        })
    }

    /// Takes the places of a throttle that is shared fairly.
    pub(super) fn fair(&mut self, had: Option<usize>) -> usize {
        had.unwrap_or_else(|| {
            let places = (self.fair / 8).clamp(FAIR_MIN, FAIR_MAX);
            self.fair = self.fair.saturating_sub(places);
            places
        })
    }
}

/// The instances known from before an incident.
pub(super) trait Known: Debug + Send + Sync {
    /// Returns whether this is one of them.
    fn is_known(&self, instance: u64) -> bool;
}

impl Known for Familiar {
    fn is_known(&self, instance: u64) -> bool {
        self.contains(instance)
    }
}

/// A [`Sparing`] in force.
#[derive(Clone, Debug)]
pub(super) struct SparingInForce {
    pub(super) known: Arc<dyn Known>,
    /// Meters each known instance.
    usual: Arc<Limiter>,
    /// One bucket for all that are spared; `None` where nothing was expected of the source.
    expected: Option<Arc<Limiter>>,
}

impl SparingInForce {
    /// Puts a sparing in force, with the meters of `previous` where the numbers are the same.
    pub(super) fn new(sparing: &Sparing, previous: Option<&Self>, places: &mut Places) -> Self {
        let loud = LOUD_FACTOR * sparing.usual_per_instance_per_second;
        let usual = LimitSpec::per_second(
            loud,
            (loud * LOUD_BURST_S).max(LOUD_BURST_MIN) as u32,
            places.metered(previous.map(Self::metered_max)),
        );
        let make = if usual.keys_max() >= REMEMBERED_MIN {
            Limiter::new
        } else {
            Limiter::forgetful
        };
        let rate = sparing.expected_per_second;
        let expected = (rate > 0.0).then(|| {
            let burst = (rate * EXPECTED_BURST_S).max(EXPECTED_BURST_MIN) as u32;
            LimitSpec::per_second(rate.max(EXPECTED_MIN), burst, 1)
        });
        Self {
            known: Arc::clone(&sparing.familiar) as Arc<dyn Known>,
            usual: carry(previous.map(|sparing| &sparing.usual), usual, make),
            expected: expected.map(|spec| {
                let previous = previous.and_then(|sparing| sparing.expected.as_ref());
                carry(previous, spec, Limiter::new)
            }),
        }
    }

    /// Returns how many instances it can meter.
    pub(super) fn metered_max(&self) -> usize {
        self.usual.spec().keys_max()
    }

    /// Returns the bucket that the request must be paid from if its instance is one to spare.
    /// `meter` is told of every request of a known instance, spared or not.
    pub(super) fn spares(
        &self,
        instance: u64,
        now: Instant,
        meter: impl FnOnce(&Limiter) -> Result<(), RetryAfter>,
    ) -> Option<&Limiter> {
        let expected = self.expected.as_deref()?;
        let quiet = self.known.is_known(instance) && meter(&self.usual).is_ok();
        (quiet && expected.peek(0, now).is_ok()).then_some(expected)
    }
}

/// Returns the previous limiter if it is of this spec, or a new one.
pub(super) fn carry(
    previous: Option<&Arc<Limiter>>,
    spec: LimitSpec,
    make: impl FnOnce(LimitSpec) -> Limiter,
) -> Arc<Limiter> {
    match previous {
        Some(previous) if previous.spec() == spec => Arc::clone(previous),
        _ => Arc::new(make(spec)),
    }
}

#[cfg(test)]
mod tests;
