//! The one clock of the process. The engine gets its time from here, as an argument.

use std::time::SystemTime;

use tidegate_engine::time::Instant;

/// Turns the monotonic clock into the engine's [`Instant`]s, counted from when this was made.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    epoch: std::time::Instant,
}

impl Clock {
    /// Starts the process's time.
    ///
    /// The first moment is some days after the engine's zero, so that "an hour ago" can be said from the
    /// beginning, and "yesterday" of an incident before a restart.
    pub fn start() -> Self {
        Self {
            epoch: std::time::Instant::now(),
        }
    }

    /// Returns the present moment.
    pub fn now(&self) -> Instant {
        const DAYS_NANOS: u64 = 3 * 24 * 3_600_000_000_000;
        Instant::from_nanos(DAYS_NANOS + self.epoch.elapsed().as_nanos() as u64)
    }

    /// Returns the wall clock, for logs and for rules with an end.
    pub fn wall(&self) -> SystemTime {
        SystemTime::now()
    }
}
