//! Stops connecting to an upstream that nobody answers for: open for about a second, then one
//! connection finds out. Requests that find a connection waiting for them never ask.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tidegate_engine::time::Instant;

/// How long it is open, before jitter of up to a quarter less or more.
const OPEN_FOR: Duration = Duration::from_secs(1);
/// How long an attempt may leave its outcome open before the next one is made.
const ATTEMPT_FOR: Duration = Duration::from_secs(10);

/// Connections may be made.
const CLOSED: u64 = 0;

/// Whether a connection may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Permit {
    /// As always.
    Given,
    /// For this one alone, to find out.
    Probe,
    /// Not now.
    Refused,
}

/// One upstream's breaker, shared by all workers. Closed, asking costs one read of memory that is
/// hardly ever written.
#[derive(Debug, Default)]
pub(crate) struct Breaker {
    /// When the next attempt may be made, in nanoseconds; [`CLOSED`].
    next_attempt: AtomicU64,
}

impl Breaker {
    /// Asks whether a connection may be made.
    pub(crate) fn permit(&self, now: impl FnOnce() -> Instant) -> Permit {
        let next = self.next_attempt.load(Ordering::Relaxed);
        if next == CLOSED {
            return Permit::Given;
        }
        let now = now();
        if now.as_nanos() < next {
            return Permit::Refused;
        }
        // Whoever moves the time on has the attempt.
        let later = (now + ATTEMPT_FOR).as_nanos();
        let moved =
            self.next_attempt
                .compare_exchange(next, later, Ordering::Relaxed, Ordering::Relaxed);
        if moved.is_ok() {
            Permit::Probe
        } else {
            Permit::Refused
        }
    }

    /// Opens it, or keeps it open after an attempt that failed. `jitter` is random, from 0 to 1.
    /// Returns whether it was closed.
    pub(crate) fn open(&self, jitter: f64, now: Instant) -> bool {
        let until = now + OPEN_FOR.mul_f64(0.75 + 0.5 * jitter);
        let before = self
            .next_attempt
            .swap(until.as_nanos().max(1), Ordering::Relaxed);
        before == CLOSED
    }

    /// Gives back an attempt that told nothing.
    pub(crate) fn give_back(&self, now: Instant) {
        if self.is_open() {
            self.next_attempt
                .store(now.as_nanos().max(1), Ordering::Relaxed);
        }
    }

    /// Closes it. Returns whether it was open.
    pub(crate) fn close(&self) -> bool {
        self.is_open() && self.next_attempt.swap(CLOSED, Ordering::Relaxed) != CLOSED
    }

    /// Returns whether it is open.
    pub(crate) fn is_open(&self) -> bool {
        self.next_attempt.load(Ordering::Relaxed) != CLOSED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(1_000_000_000_000 + millis * 1_000_000)
    }

    /// What is permitted in each millisecond of three seconds, with attempts that fail after 1 ms.
    fn attempts(jitter: f64) -> Vec<u64> {
        let breaker = Breaker::default();
        assert!(breaker.open(jitter, at(0)));
        (0..3_000)
            .filter(|millis| {
                let permit = breaker.permit(|| at(*millis));
                if permit == Permit::Probe {
                    assert_eq!(breaker.permit(|| at(*millis)), Permit::Refused);
                    assert!(!breaker.open(jitter, at(*millis)));
                }
                permit != Permit::Refused
            })
            .collect()
    }

    #[test]
    fn while_open_one_connection_a_second_is_tried() {
        assert_eq!(attempts(0.0), [750, 1500, 2250]);
        assert_eq!(attempts(0.5), [1000, 2000]);
        assert_eq!(attempts(1.0).len(), 2);
    }

    #[test]
    fn closed_it_permits_everything_without_looking_at_the_time() {
        let breaker = Breaker::default();
        let never = || unreachable!("nobody asked for the time");
        assert_eq!(breaker.permit(never), Permit::Given);
        breaker.open(0.0, at(0));
        assert!(breaker.close());
        assert!(!breaker.close(), "once is enough");
        assert_eq!(breaker.permit(never), Permit::Given);
    }

    #[test]
    fn an_attempt_that_told_nothing_is_made_again_at_once_and_a_lost_one_later() {
        let breaker = Breaker::default();
        breaker.open(0.0, at(0));
        assert_eq!(breaker.permit(|| at(800)), Permit::Probe);
        breaker.give_back(at(900));
        assert_eq!(breaker.permit(|| at(900)), Permit::Probe);
        assert_eq!(breaker.permit(|| at(10_899)), Permit::Refused);
        assert_eq!(breaker.permit(|| at(10_900)), Permit::Probe);
    }
}
