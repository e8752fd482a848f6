//! A service as one worker sees it: its part of what is counted, and who is in flight.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::Duration;

use tidegate_engine::service::Priority;
use tidegate_engine::time::Instant;

use super::admit::Shed;
use super::inflight::{Inflight, Ticket};
use crate::clock::Clock;
use crate::metrics::{Metrics, ServiceCounts, Side};
use crate::overload::Overload;
use crate::service::{Ending, SharedService};

/// One worker's part of a service.
#[derive(Debug)]
pub(crate) struct Service {
    /// What it has in common with the other workers.
    pub(crate) shared: Arc<SharedService>,
    /// What all services have in common.
    pub(crate) overload: Arc<Overload>,
    /// Who is shed first.
    pub(crate) priority: Cell<Priority>,
    pub(crate) clock: Clock,
    worker: usize,
    inflight: RefCell<Inflight>,
    counts: ServiceCounts,
}

impl Service {
    /// Begins with nobody in it.
    pub(crate) fn new(
        shared: &Arc<SharedService>,
        overload: &Arc<Overload>,
        clock: Clock,
        worker: usize,
        metrics: &Metrics,
    ) -> Self {
        Self {
            shared: Arc::clone(shared),
            overload: Arc::clone(overload),
            priority: Cell::default(),
            clock,
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

    /// Notes how a request that was forwarded ended, and how long it waited for its answer to begin.
    pub(crate) fn forwarded(&self, ending: Ending, waited: Duration) {
        if let Some(vitals) = self.shared.vitals(self.worker) {
            vitals.finished(ending, waited);
        }
    }

    /// Notes that a request got no place, and whether the service's own limit left it none.
    pub(crate) fn shed(&self, why: Shed, was_held_back: bool) {
        self.counts.shed(why as usize);
        if let Some(vitals) = self.shared.vitals(self.worker) {
            vitals.shed(was_held_back);
        }
    }

    /// Notes that a request got its place after a while.
    pub(crate) fn waited(&self, duration: Duration) {
        self.counts.waited(duration);
    }

    /// Notes that a request was ended because nothing moved.
    pub(crate) fn stalled(&self, side: Side) {
        self.counts.stalled(side);
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
