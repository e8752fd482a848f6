//! How a service's upstream is doing, as the detector wants to know it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Counts of forwarded requests that ended, since the start. Read as differences by the control side.
#[derive(Debug, Default)]
pub(crate) struct Vitals {
    finished: AtomicU64,
    failed: AtomicU64,
    overloaded: AtomicU64,
    overloaded_us: AtomicU64,
    shed: AtomicU64,
    duration_us: AtomicU64,
}

/// How a forwarded request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The upstream answered as it should.
    Good,
    /// It answered that it failed.
    Failed,
    /// It gave no answer, or said that it has too much to do.
    Overloaded,
}

/// The counts at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VitalSigns {
    /// Requests forwarded and answered, well or badly.
    pub finished: u64,
    /// Of them, those answered 5xx.
    pub failed: u64,
    /// Of those, the ones that got no answer, or that there was too much to do.
    pub overloaded: u64,
    /// How long these waited, summed up, in microseconds.
    pub overloaded_us: u64,
    /// Requests besides that got no place.
    pub shed: u64,
    /// How long they waited for their answers to begin, summed up, in microseconds.
    pub duration_us: u64,
}

impl Vitals {
    /// Counts a forwarded request that ended.
    pub(crate) fn finished(&self, ending: Ending, duration: Duration) {
        self.finished.fetch_add(1, Ordering::Relaxed);
        let micros = duration.as_micros() as u64;
        self.duration_us.fetch_add(micros, Ordering::Relaxed);
        if ending != Ending::Good {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
        if ending == Ending::Overloaded {
            self.overloaded.fetch_add(1, Ordering::Relaxed);
            self.overloaded_us.fetch_add(micros, Ordering::Relaxed);
        }
    }

    /// Counts a request that got no place.
    pub(crate) fn shed(&self) {
        self.shed.fetch_add(1, Ordering::Relaxed);
    }

    /// Reads all counts.
    pub(super) fn read(&self) -> VitalSigns {
        VitalSigns {
            finished: self.finished.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            overloaded: self.overloaded.load(Ordering::Relaxed),
            overloaded_us: self.overloaded_us.load(Ordering::Relaxed),
            shed: self.shed.load(Ordering::Relaxed),
            duration_us: self.duration_us.load(Ordering::Relaxed),
        }
    }
}
