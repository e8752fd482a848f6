//! One worker's part of one endpoint: its connections there that wait for a request, and what it
//! counts of it without sharing.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::endpoint::Endpoint;
use super::link::Link;
use crate::clock::Clock;

/// How long an unused connection is kept. Below the 5 s after which common servers close theirs, so
/// that a request seldom meets a connection that is being closed.
const IDLE_MAX: Duration = Duration::from_secs(4);

/// One worker's part of one endpoint.
#[derive(Debug)]
pub(super) struct Seat {
    pub(super) endpoint: Arc<Endpoint>,
    clock: Clock,
    idle: RefCell<VecDeque<Idle>>,
    in_flight: Cell<u32>,
    /// What everybody was told of that.
    told_in_flight: Cell<u32>,
    /// Answers since they were told; below zero where one that began well broke off.
    succeeded: Cell<i64>,
    failed: Cell<i64>,
}

#[derive(Debug)]
struct Idle {
    link: Box<Link>,
    /// A tenth of a second early at most.
    since: Instant,
}

impl Seat {
    /// Begins without connections.
    pub(super) fn new(endpoint: Arc<Endpoint>, clock: Clock) -> Rc<Self> {
        Rc::new(Self {
            endpoint,
            clock,
            idle: RefCell::default(),
            in_flight: Cell::new(0),
            told_in_flight: Cell::new(0),
            succeeded: Cell::new(0),
            failed: Cell::new(0),
        })
    }

    /// Returns requests of this worker under way to the endpoint.
    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight.get()
    }

    /// Counts an answer.
    pub(super) fn answered(&self, is_good: bool) {
        let count = if is_good {
            &self.succeeded
        } else {
            &self.failed
        };
        count.set(count.get() + 1);
    }

    /// Counts an answer that began well as one that did not end.
    pub(super) fn broke_off(&self) {
        self.succeeded.set(self.succeeded.get() - 1);
        self.failed.set(self.failed.get() + 1);
    }

    /// Keeps a connection for the next request.
    pub(super) fn keep(&self, link: Box<Link>, since: Instant) {
        self.idle.borrow_mut().push_back(Idle { link, since });
    }

    /// Returns the connection that was used last: the least likely to have been closed meanwhile.
    pub(super) fn take_idle(&self) -> Option<Box<Link>> {
        let mut busy = Vec::new();
        let found = loop {
            let Some(mut idle) = self.pop_idle() else {
                break None;
            };
            // A ready connection is looked at when it is used: it is read from before the request is
            // written, and a request that was not written goes to another connection.
            if idle.link.is_ready() {
                break Some(idle.link);
            }
            if idle.link.has_ended() {
                continue;
            }
            if idle.link.is_ready() {
                break Some(idle.link);
            }
            // Driven by a task that has not come round to it yet.
            busy.push(idle);
        };
        self.idle.borrow_mut().extend(busy);
        found
    }

    fn pop_idle(&self) -> Option<Idle> {
        self.idle.borrow_mut().pop_back()
    }

    /// Closes connections that were not used for a while or are too old, and tells everybody what was
    /// counted. Called ten times a second. Returns whether answers came.
    pub(super) fn sweep(&self, now: Instant) -> bool {
        self.idle.borrow_mut().retain_mut(|idle| {
            now - idle.since <= IDLE_MAX && !idle.link.is_old(now) && !idle.link.has_ended()
        });
        let answers = self.succeeded.get() > 0;
        self.tell(self.in_flight.get());
        answers
    }

    fn tell(&self, in_flight: u32) {
        let told = self.told_in_flight.replace(in_flight);
        self.endpoint.count(
            self.succeeded.take(),
            self.failed.take(),
            i64::from(in_flight) - i64::from(told),
        );
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.tell(0);
    }
}

/// One request's stay with an endpoint, as long as it lives.
#[derive(Debug)]
pub(crate) struct Stay {
    pub(super) seat: Rc<Seat>,
    /// Whether it is to find out if the endpoint is well again, and has not yet.
    is_probe: Cell<bool>,
}

impl Stay {
    /// Begins.
    pub(super) fn begin(seat: &Rc<Seat>, is_probe: bool) -> Self {
        seat.in_flight.set(seat.in_flight.get() + 1);
        Self {
            seat: Rc::clone(seat),
            is_probe: Cell::new(is_probe),
        }
    }

    /// Notes that it was found out how the endpoint is.
    pub(super) fn has_told(&self) {
        self.is_probe.set(false);
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        let seat = &self.seat;
        seat.in_flight.set(seat.in_flight.get() - 1);
        if self.is_probe.get() {
            let now = seat.clock.now();
            seat.endpoint
                .change(now, |health| health.give_probe_back(now));
        }
    }
}
