//! Finds a place for a request in its service: at once, after a while, or not at all.

use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tidegate_engine::time::Instant;

use super::service::Service;
use crate::overload::Scarce;
use crate::service::{Claim, Lane, Waiting};

/// Why a request gets no place; in the order of [`crate::metrics::SHED_REASONS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shed {
    /// The service is full, and so is its queue, as far as this source may use it.
    Full,
    /// It waited as long as it may.
    Waited,
    /// The process is full, as far as this priority may use it.
    Priority,
    /// Memory is short.
    Memory,
}

/// A request that the process has taken in.
#[derive(Debug)]
struct Inside(Rc<Service>);

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.overload.leave();
    }
}

/// A place in a service, as long as it lives.
#[derive(Debug)]
pub(crate) struct Place {
    inside: Inside,
    lane: Lane,
    flow: u64,
    /// Whether it was got in the queue, which is told then how long it was held.
    was_queued: bool,
    since: Instant,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.leave_lane();
    }
}

impl Place {
    fn leave_lane(&self) {
        let service = &self.inside.0;
        service.shared.leave(self.lane, || {
            let now = service.clock.now();
            let held = || (self.flow, now.since(self.since));
            (now, self.was_queued.then(held))
        });
    }

    /// Returns since when it is taken.
    pub(crate) fn since(&self) -> Instant {
        self.since
    }

    /// Returns which lane it is in.
    pub(crate) fn lane(&self) -> Lane {
        self.lane
    }

    /// Moves to the lane of large bodies, where a place is free. False: there is none. An error: memory is
    /// too short for it.
    pub(crate) fn move_to_large(&mut self) -> Result<bool, Shed> {
        let service = &self.inside.0;
        if service.overload.sheds(service.priority.get(), Lane::Large) {
            return Err(Shed::Memory);
        }
        let is_free = service.shared.enter(Lane::Large);
        if is_free {
            self.moved_to_large(false);
        }
        Ok(is_free)
    }

    /// Waits for a place in the lane of large bodies. `None`: too many do.
    pub(crate) fn wait_for_large(&self, bytes: u64) -> Option<Waiting> {
        let service = &self.inside.0;
        let claim = Claim {
            flow: self.flow,
            bytes,
            now: service.clock.now(),
        };
        service.shared.wait(Lane::Large, claim)
    }

    /// Moves as soon as the place comes that is waited for. Ready with false: it does not come.
    pub(crate) fn poll_move(&mut self, waiting: &mut Waiting, cx: &mut Context<'_>) -> Poll<bool> {
        let came = ready!(waiting.poll_granted(cx));
        if came {
            self.moved_to_large(true);
        }
        Poll::Ready(came)
    }

    fn moved_to_large(&mut self, was_queued: bool) {
        self.leave_lane();
        self.was_queued = was_queued;
        self.lane = Lane::Large;
        self.since = self.inside.0.clock.now();
    }
}

/// What became of a request that asks for a place.
#[derive(Debug)]
pub(crate) enum Admission {
    /// It has one.
    Admitted(Place),
    /// It waits for one.
    Waits(Pending),
    /// It gets none.
    Shed(Shed),
}

/// A request that waits for a place. Dropped, it leaves the queue.
#[derive(Debug)]
pub(crate) struct Pending {
    waiting: Waiting,
    inside: Inside,
    lane: Lane,
    claim: Claim,
}

/// Asks for a place, for a request of this flow. What it holds in memory is only asked for where there is
/// no place at once.
pub(crate) fn admit(
    service: &Rc<Service>,
    lane: Lane,
    (flow, now): (u64, Instant),
    bytes: impl FnOnce() -> u64,
) -> Admission {
    let own = || service.shared.at_upstream() + service.shared.waiting();
    match service.overload.enter(service.priority.get(), lane, own) {
        Ok(()) => {}
        Err(Scarce::Inflight) => return Admission::Shed(Shed::Priority),
        Err(Scarce::Memory) => return Admission::Shed(Shed::Memory),
    }
    let inside = Inside(Rc::clone(service));
    if service.shared.enter(lane) {
        return Admission::Admitted(Place {
            inside,
            lane,
            flow,
            was_queued: false,
            since: now,
        });
    }
    let bytes = bytes();
    let claim = Claim { flow, bytes, now };
    match service.shared.wait(lane, claim) {
        Some(waiting) => Admission::Waits(Pending {
            waiting,
            inside,
            lane,
            claim,
        }),
        None => Admission::Shed(Shed::Full),
    }
}

impl Pending {
    /// Waits for the place, `limit` at most.
    pub(crate) async fn wait(mut self, limit: Duration) -> Result<Place, Shed> {
        let granted = std::future::poll_fn(|cx| self.waiting.poll_granted(cx));
        match tokio::time::timeout(limit, granted).await {
            Ok(true) => {
                let service = &self.inside.0;
                let now = service.clock.now();
                service.waited(now.since(self.claim.now));
                Ok(Place {
                    inside: self.inside,
                    lane: self.lane,
                    flow: self.claim.flow,
                    was_queued: true,
                    since: now,
                })
            }
            Ok(false) => Err(Shed::Full),
            Err(_elapsed) => Err(Shed::Waited),
        }
    }
}
