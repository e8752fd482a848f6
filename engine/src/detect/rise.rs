//! Is what comes now still the surge that is being looked into, or one of its own upon it? Told by how
//! suddenly it came.

use std::time::Duration;

use super::window::SHORT;
use crate::time::Instant;

/// Within which time a surge of its own doubles what has come so far. What rises more slowly is the same
/// surge, growing, unless it was clear already what that is.
const LEAP_WITHIN: Duration = Duration::from_millis(1500);

/// The time in which what has come so far is followed.
const STEADY_TIME_S: f64 = 10.0;

/// How a surge has gone on so far.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rise {
    /// Requests per second above what is expected, before `rising`.
    steady: f64,
    /// Since when clearly more than that comes.
    rising: Option<Instant>,
    /// Whether it is known what the surge is.
    concluded: bool,
    heard: Instant,
}

impl Rise {
    /// Begins with a surge that begins.
    pub(super) fn since(began: Instant) -> Self {
        Self {
            steady: 0.0,
            rising: Some(began),
            concluded: false,
            heard: began,
        }
    }

    /// Says that what has come so far is what it is.
    pub(super) fn conclude(&mut self, excess: f64) {
        if !self.concluded {
            self.concluded = true;
            self.steady = excess;
            self.rising = None;
        }
    }

    /// Takes in how many requests per second above what is expected came in the last [`SHORT`]; `more`
    /// is what makes a surge. Returns since when there is a surge of its own, if there is one.
    pub(super) fn hear(&mut self, excess: f64, more: f64, now: Instant) -> Option<Instant> {
        let passed = now.since(self.heard).as_secs_f64();
        self.heard = now;
        let rises = excess >= self.steady + more / 2.0;
        let since = rises.then(|| *self.rising.get_or_insert(now - SHORT));
        self.rising = since;
        let suddenly = since.is_some_and(|since| now.since(since) <= LEAP_WITHIN + SHORT);
        if suddenly || rises && self.concluded {
            return since.filter(|_| excess >= self.steady + more.max(self.steady));
        }
        if rises {
            self.steady = excess;
            self.rising = None;
        } else {
            self.steady += (excess - self.steady) * (passed / STEADY_TIME_S).min(1.0);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays 20 s of a surge tick by tick, from the third on; returns when one of its own was heard of.
    fn heard_at(concluded: bool, excess: impl Fn(f64) -> f64) -> Option<f64> {
        let mut rise = Rise::since(Instant::ZERO);
        (1..200).map(|tick| f64::from(tick) / 10.0).find(|t| {
            if *t > 3.0 && concluded {
                rise.conclude(excess(*t));
            }
            let now = Instant::from_secs_f64(*t);
            rise.hear(excess(*t), 500.0, now).is_some() && *t > 3.0
        })
    }

    #[test]
    fn a_surge_that_goes_on_or_grows_slowly_is_the_same() {
        assert_eq!(heard_at(false, |_| 600.0), None);
        assert_eq!(heard_at(false, |t| 150.0 * t), None);
        let steps = |t| if t < 10.0 { 5000.0 } else { 6000.0 };
        assert_eq!(heard_at(false, steps), None);
    }

    /// As a crowd, say, on which a loop grows.
    #[test]
    fn what_doubles_a_surge_that_is_explained_is_one_of_its_own() {
        let grows = |t: f64| 150.0 * t;
        assert_eq!(heard_at(false, grows), None);
        let at = heard_at(true, grows);
        assert!(at.is_some_and(|at| (6.0..8.0).contains(&at)), "{at:?}");
    }

    #[test]
    fn what_doubles_it_at_once_is_one_of_its_own() {
        let at = heard_at(false, |t| if t < 10.0 { 600.0 } else { 3000.0 });
        assert_eq!(at, Some(10.0));
    }
}
