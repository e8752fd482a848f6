//! A service as one worker sees it: its part of what is counted, and who is in flight.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use tidegate_engine::time::Instant;

use super::inflight::{Inflight, Ticket};
use crate::metrics::{Metrics, ServiceCounts};
use crate::service::SharedService;

/// One worker's part of a service.
#[derive(Debug)]
pub(crate) struct Service {
    /// What it has in common with the other workers.
    pub(crate) shared: Arc<SharedService>,
    worker: usize,
    inflight: RefCell<Inflight>,
    counts: ServiceCounts,
}

impl Service {
    /// Begins with nobody in it.
    pub(crate) fn new(shared: &Arc<SharedService>, worker: usize, metrics: &Metrics) -> Self {
        Self {
            shared: Arc::clone(shared),
            worker,
            inflight: RefCell::default(),
            counts: ServiceCounts::new(metrics, &shared.name),
        }
    }

    /// Notes a request that begins.
    pub(crate) fn begin(&self, now: Instant) -> Ticket {
        self.inflight.borrow_mut().begin(now)
    }

    /// Notes that a request ended, and how.
    pub(crate) fn end(&self, ticket: Ticket, outcome: &str, duration: Duration) {
        self.inflight.borrow_mut().end(ticket);
        self.counts.finished(outcome, duration);
    }

    /// Returns how many requests are in flight.
    pub(crate) fn in_flight(&self) -> u64 {
        self.inflight.borrow().count()
    }

    /// Hands over what was counted; called ten times a second.
    pub(crate) fn flush(&self) {
        self.counts.flush();
        let inflight = self.inflight.borrow();
        let (count, oldest) = (inflight.count(), inflight.oldest());
        self.shared.publish_in_flight(self.worker, count, oldest);
    }
}
