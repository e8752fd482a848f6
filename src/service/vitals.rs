//! How a service's upstream is doing, as the detector wants to know it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Counts of forwarded requests that ended, since the start. Read as differences by the control side.
#[derive(Debug, Default)]
pub(crate) struct Vitals {
    finished: AtomicU64,
    failed: AtomicU64,
    duration_us: AtomicU64,
}

/// The counts at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VitalSigns {
    /// Requests forwarded and answered, well or badly.
    pub finished: u64,
    /// Of them, those answered 5xx.
    pub failed: u64,
    /// How long they waited for their answers to begin, summed up, in microseconds.
    pub duration_us: u64,
}

impl Vitals {
    /// Counts a forwarded request that ended.
    pub(crate) fn finished(&self, failed: bool, duration: Duration) {
        self.finished.fetch_add(1, Ordering::Relaxed);
        self.duration_us
            .fetch_add(duration.as_micros() as u64, Ordering::Relaxed);
        if failed {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Reads all counts.
    pub(super) fn read(&self) -> VitalSigns {
        VitalSigns {
            finished: self.finished.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            duration_us: self.duration_us.load(Ordering::Relaxed),
        }
    }
}
