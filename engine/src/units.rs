//! Values with a unit: `20/s`, `250ms`, `64KiB`, `1%`. A number without a unit is an error.

use std::fmt;
use std::time::Duration;

/// Requests per time; never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rate {
    requests: u32,
    per: Duration,
}

impl Rate {
    /// Makes a rate of `requests` per `per`, or `None` where either is zero.
    pub const fn new(requests: u32, per: Duration) -> Option<Self> {
        if requests == 0 || per.is_zero() {
            None
        } else {
            Some(Self { requests, per })
        }
    }

    /// Returns requests per second.
    pub fn per_second(self) -> f64 {
        f64::from(self.requests) / self.per.as_secs_f64()
    }

    /// Returns the time between two requests at this rate; at least 1 ns.
    pub fn interval(self) -> Duration {
        (self.per / self.requests).max(Duration::from_nanos(1))
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.per.as_secs() {
            1 => write!(f, "{}/s", self.requests),
            60 => write!(f, "{}/m", self.requests),
            3600 => write!(f, "{}/h", self.requests),
            _ => write!(f, "{:.3}/s", self.per_second()),
        }
    }
}
