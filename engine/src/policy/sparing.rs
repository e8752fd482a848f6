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
//! 3 × the usual rate of each, and all together what was expected of the source: never more than a
//! normal day. Then the source's honest users compete with him for that much.

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
const EXPECTED_BURST_S: f64 = 2.0;

/// The smallest burst of one instance: opening an app is ten requests.
const LOUD_BURST_MIN: f64 = 10.0;

/// Instances that are metered at once: 524,288 × 18.3 B = 9.1 MiB a rule at most, as they come.
///
/// Only known ones are metered. With 300,000 of them about 1 in 50 finds no place and is measured in
/// the limiter's memory of pushed-out keys, where 1 quiet one in 100 is taken for loud.
const METERED_MAX: usize = 1 << 19;

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
    pub(super) fn new(sparing: &Sparing, previous: Option<&Self>) -> Self {
        let loud = LOUD_FACTOR * sparing.usual_per_instance_per_second;
        let usual = LimitSpec::per_second(
            loud,
            (loud * LOUD_BURST_S).max(LOUD_BURST_MIN) as u32,
            METERED_MAX,
        );
        let rate = sparing.expected_per_second;
        let expected = (rate > 0.0).then(|| {
            let burst = (rate * EXPECTED_BURST_S).max(1.0) as u32;
            LimitSpec::per_second(rate, burst, 1)
        });
        Self {
            known: Arc::clone(&sparing.familiar) as Arc<dyn Known>,
            usual: carry(previous.map(|sparing| &sparing.usual), usual, Limiter::new),
            expected: expected.map(|spec| {
                let previous = previous.and_then(|sparing| sparing.expected.as_ref());
                carry(previous, spec, Limiter::new)
            }),
        }
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
