//! How a service's upstream is doing, as the detector wants to know it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// One worker's counts of forwarded requests that ended, since the start. Read as differences by the
/// control side, and written for each request: by this worker alone, and apart from what others write.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Vitals {
    finished: AtomicU64,
    failed: AtomicU64,
    overloaded: AtomicU64,
    unjudged: AtomicU64,
    unanswered_us: AtomicU64,
    shed: AtomicU64,
    held_back: AtomicU64,
    duration_us: AtomicU64,
    recent_us: AtomicU64,
}

/// How far back [`VitalSigns::recent_us`] looks.
pub(crate) const RECENT: Duration = Duration::from_millis(100);

/// How a forwarded request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The upstream answered as it should.
    Good,
    /// It answered that it failed.
    Failed,
    /// It gave no answer, or said that it has too much to do.
    Overloaded,
    /// Nobody knows how it would have ended: the client left or did not finish its request, or the
    /// answer came before the request's end.
    Unjudged,
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
    /// Of those finished, the ones that say nothing of the upstream.
    pub unjudged: u64,
    /// How long the overloaded and the unjudged waited, summed up, in microseconds.
    pub unanswered_us: u64,
    /// Requests besides that got no place.
    pub shed: u64,
    /// Of those, the ones for which this service's own limit left none.
    pub held_back: u64,
    /// How long those finished waited for their answers to begin, from the last byte of the request on,
    /// summed up, in microseconds.
    pub duration_us: u64,
    /// How much of that was in the last [`RECENT`] before each began to be answered.
    pub recent_us: u64,
}

impl Vitals {
    /// Counts a forwarded request that ended, and how long it waited for its answer to begin.
    pub(crate) fn finished(&self, ending: Ending, waited: Duration) {
        let micros = waited.as_micros() as u64;
        add(&self.finished, 1);
        add(&self.duration_us, micros);
        add(&self.recent_us, waited.min(RECENT).as_micros() as u64);
        match ending {
            Ending::Good => return,
            Ending::Failed => {
                add(&self.failed, 1);
                return;
            }
            Ending::Overloaded => {
                add(&self.failed, 1);
                add(&self.overloaded, 1);
            }
            Ending::Unjudged => add(&self.unjudged, 1),
        }
        add(&self.unanswered_us, micros);
    }

    /// Counts a request that got no place, and whether the service's own limit left it none.
    pub(crate) fn shed(&self, was_held_back: bool) {
        add(&self.shed, 1);
        if was_held_back {
            add(&self.held_back, 1);
        }
    }

    /// Adds all counts.
    pub(super) fn add_to(&self, signs: &mut VitalSigns) {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        signs.finished += read(&self.finished);
        signs.failed += read(&self.failed);
        signs.overloaded += read(&self.overloaded);
        signs.unjudged += read(&self.unjudged);
        signs.unanswered_us += read(&self.unanswered_us);
        signs.shed += read(&self.shed);
        signs.held_back += read(&self.held_back);
        signs.duration_us += read(&self.duration_us);
        signs.recent_us += read(&self.recent_us);
    }
}

/// Adds to a count that nobody else writes: a plain load and store, no locked step.
fn add(count: &AtomicU64, more: u64) {
    count.store(count.load(Ordering::Relaxed) + more, Ordering::Relaxed);
}
