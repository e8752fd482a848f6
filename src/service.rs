//! What all workers share of one service: how many are in it, how its upstream does, who has been there
//! longest. Lives on when settings are read again, as long as the service has its name.

mod places;
mod vitals;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tidegate_engine::time::Instant;

pub(crate) use self::places::Places;
pub use self::vitals::VitalSigns;
pub(crate) use self::vitals::Vitals;

/// One service, as all workers see it.
#[derive(Debug)]
pub struct SharedService {
    /// Its name.
    pub name: Arc<str>,
    /// Its concurrency budget.
    pub(crate) places: Places,
    /// How its upstream does.
    pub(crate) vitals: Vitals,
    /// One cell per worker.
    inflight: Vec<InflightCell>,
}

/// What one worker says about its requests in flight.
#[derive(Debug, Default)]
struct InflightCell {
    count: AtomicU64,
    /// When the oldest began, in nanoseconds; 0: there is none.
    oldest: AtomicU64,
}

impl SharedService {
    /// Begins with nobody in it. `max` requests may be in it at once.
    pub fn new(name: Arc<str>, max: usize, workers: usize) -> Arc<Self> {
        Arc::new(Self {
            name,
            places: Places::new(max),
            vitals: Vitals::default(),
            inflight: (0..workers).map(|_| InflightCell::default()).collect(),
        })
    }

    /// Returns how many requests are in flight, and when the oldest began.
    pub fn in_flight(&self) -> (u64, Option<Instant>) {
        let counts = self.inflight.iter();
        let count = counts.map(|cell| cell.count.load(Ordering::Relaxed)).sum();
        let begins = self.inflight.iter();
        let oldest = begins
            .map(|cell| cell.oldest.load(Ordering::Relaxed))
            .filter(|nanos| *nanos > 0)
            .min()
            .map(Instant::from_nanos);
        (count, oldest)
    }

    /// Says how many requests of a worker are in flight, and when the oldest of them began.
    pub(crate) fn publish_in_flight(&self, worker: usize, count: u64, oldest: Option<Instant>) {
        if let Some(cell) = self.inflight.get(worker) {
            cell.count.store(count, Ordering::Relaxed);
            let nanos = oldest.map_or(0, Instant::as_nanos);
            cell.oldest.store(nanos, Ordering::Relaxed);
        }
    }

    /// Returns how the upstream did since the start.
    pub fn vital_signs(&self) -> VitalSigns {
        self.vitals.read()
    }

    /// Changes how many requests may be in it at once. Those that are in it stay.
    pub(crate) fn set_max(&self, max: usize) {
        self.places.set_max(max);
    }
}
