//! What all workers share of one service: its places and who waits for one, how its upstream does, who
//! has been there longest. Lives on when settings are read again, as long as the service has its name.

mod places;
mod vitals;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tidegate_engine::capacity::{FLOWS_MAX_DEFAULT, QueueBounds};
use tidegate_engine::time::Instant;

use crate::settings;

use self::places::Places;
pub(crate) use self::places::{Claim, Waiting};
pub use self::vitals::VitalSigns;
pub(crate) use self::vitals::{Ending, RECENT, Vitals};

/// The most bytes that the requests with large bodies may hold which wait for their lane.
const LARGE_QUEUE_BYTES: u64 = 16 << 20;

/// Which of a service's places a request takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Those of its concurrency budget.
    Normal,
    /// The few of requests with large bodies.
    Large,
}

/// One service, as all workers see it.
#[derive(Debug)]
pub struct SharedService {
    /// Its name.
    pub name: Arc<str>,
    normal: Places,
    large: Places,
    /// How its upstream does, as each worker counts it.
    vitals: Vec<Vitals>,
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
    /// Begins with nobody in it.
    pub fn new(service: &settings::Service, workers: usize) -> Arc<Self> {
        let name = &service.spec.name;
        let [normal, large] = bounds(service);
        let (places, large_places) = (service.concurrency.max, service.bodies.large_max);
        Self::with(name, (places, normal), (large_places, large), workers)
    }

    /// Makes what requests without a service belong to: nobody has a place there.
    pub fn nobodys(name: &Arc<str>, workers: usize) -> Arc<Self> {
        let none = QueueBounds {
            count: 0,
            bytes: 0,
            flows: 1,
            age: std::time::Duration::ZERO,
        };
        Self::with(name, (0, none), (0, none), workers)
    }

    fn with(
        name: &Arc<str>,
        normal: (usize, QueueBounds),
        large: (usize, QueueBounds),
        workers: usize,
    ) -> Arc<Self> {
        Arc::new(Self {
            name: Arc::clone(name),
            normal: Places::new(normal.0, normal.1),
            large: Places::new(large.0, large.1),
            vitals: (0..workers).map(|_| Vitals::default()).collect(),
            inflight: (0..workers).map(|_| InflightCell::default()).collect(),
        })
    }

    /// Takes other settings over. Those who are in it or wait, stay.
    pub(crate) fn change_to(self: &Arc<Self>, service: &settings::Service, now: Instant) {
        let [normal, large] = bounds(service);
        self.normal.set_bounds(normal);
        self.large.set_bounds(large);
        // What follows the upstream's latency is put right within a tick.
        let max = service.concurrency.max;
        if !service.concurrency.adaptive || self.limit() > max {
            self.set_limit(Lane::Normal, max, now);
        }
        self.set_limit(Lane::Large, service.bodies.large_max, now);
    }

    /// Returns the places of a lane.
    pub(crate) fn lane(&self, lane: Lane) -> &Places {
        match lane {
            Lane::Normal => &self.normal,
            Lane::Large => &self.large,
        }
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

    /// Returns how many requests wait for a place.
    pub fn waiting(&self) -> usize {
        self.normal.waiting() + self.large.waiting()
    }

    /// Returns how many requests may be in it at once.
    pub fn limit(&self) -> usize {
        self.normal.limit()
    }

    /// Returns how many are, but for those with large bodies.
    pub fn taken(&self) -> usize {
        self.normal.taken()
    }

    /// Returns how many requests have a place, those with large bodies included.
    pub fn at_upstream(&self) -> usize {
        self.normal.taken() + self.large.taken()
    }

    /// Changes how many requests may be in it at once.
    pub fn follow(self: &Arc<Self>, limit: usize, now: Instant) {
        self.set_limit(Lane::Normal, limit, now);
    }

    /// Returns what this worker, and nobody else, counts.
    pub(crate) fn vitals(&self, worker: usize) -> Option<&Vitals> {
        self.vitals.get(worker)
    }

    /// Returns how the upstream did since the start.
    pub fn vital_signs(&self) -> VitalSigns {
        let mut signs = VitalSigns::default();
        self.vitals.iter().for_each(|one| one.add_to(&mut signs));
        signs
    }
}

/// Returns how much may wait, for the places and for those of large bodies.
fn bounds(service: &settings::Service) -> [QueueBounds; 2] {
    let concurrency = service.concurrency;
    let normal = QueueBounds {
        count: concurrency.queue,
        bytes: concurrency.queue_bytes,
        flows: FLOWS_MAX_DEFAULT,
        age: concurrency.queue_timeout,
    };
    let large = QueueBounds {
        count: concurrency.queue.min(service.bodies.large_max * 4),
        bytes: LARGE_QUEUE_BYTES,
        ..normal
    };
    [normal, large]
}
