//! How the upstreams are doing, per service, as the detector wants to know it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Counts of forwarded requests that ended, per service. Read as differences by the control side.
#[derive(Debug)]
pub struct Vitals {
    services: Vec<ServiceVitals>,
}

/// One service's counts since the start.
#[derive(Debug, Default)]
struct ServiceVitals {
    finished: AtomicU64,
    failed: AtomicU64,
    duration_us: AtomicU64,
}

/// One service's counts at one moment.
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
    /// Begins at zero.
    pub fn new(services: usize) -> Arc<Self> {
        Arc::new(Self {
            services: (0..services).map(|_| ServiceVitals::default()).collect(),
        })
    }

    /// Counts a forwarded request that ended.
    pub(crate) fn finished(&self, service: usize, failed: bool, duration: Duration) {
        let Some(vitals) = self.services.get(service) else {
            return;
        };
        vitals.finished.fetch_add(1, Ordering::Relaxed);
        vitals
            .duration_us
            .fetch_add(duration.as_micros() as u64, Ordering::Relaxed);
        if failed {
            vitals.failed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Reads all services.
    pub fn read(&self) -> Vec<VitalSigns> {
        let read = |vitals: &ServiceVitals| VitalSigns {
            finished: vitals.finished.load(Ordering::Relaxed),
            failed: vitals.failed.load(Ordering::Relaxed),
            duration_us: vitals.duration_us.load(Ordering::Relaxed),
        };
        self.services.iter().map(read).collect()
    }
}
