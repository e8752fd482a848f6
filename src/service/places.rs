//! The places of a service, over all workers: how many are taken, and who waits for one.
//!
//! Taking a free place is one atomic step. Only where there is none, a lock is taken, for as long as it
//! takes to join the queue or to see who is next; whoever holds it waits for nothing.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use parking_lot::Mutex;
use tidegate_engine::capacity::{FairQueue, Key, QueueBounds};
use tidegate_engine::time::Instant;
use tokio::sync::oneshot;

use super::{Lane, SharedService};

/// The places of one lane of a service.
#[derive(Debug)]
pub(crate) struct Places {
    limit: AtomicUsize,
    taken: AtomicUsize,
    /// How many wait. Written under the lock; read without, to know whether it must be taken.
    waiting: AtomicUsize,
    queue: Mutex<FairQueue<oneshot::Sender<Granted>>>,
}

/// What somebody asks for who waits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim {
    /// The source, as far as sharing goes.
    pub(crate) flow: u64,
    /// What it holds in memory, in bytes.
    pub(crate) bytes: u64,
    /// Since when.
    pub(crate) now: Instant,
}

/// A place that was handed to somebody who waited. Given back where it is dropped, for who waited may
/// have gone.
#[derive(Debug)]
struct Granted {
    service: Arc<SharedService>,
    lane: Lane,
    at: Instant,
    is_kept: bool,
}

impl Granted {
    /// Keeps the place, to be given back with [`SharedService::leave`].
    fn keep(mut self) {
        self.is_kept = true;
    }
}

impl Drop for Granted {
    fn drop(&mut self) {
        if !self.is_kept {
            self.service.leave(self.lane, || (self.at, None));
        }
    }
}

/// Somebody who waits for a place. Dropped, it leaves the queue.
#[derive(Debug)]
pub(crate) struct Waiting {
    service: Arc<SharedService>,
    lane: Lane,
    key: Key,
    /// Brings the place; ends without one where somebody else had a better right to wait.
    granted: oneshot::Receiver<Granted>,
    has_ended: bool,
}

impl Waiting {
    /// Ready with true when the place is there, to be given back with [`SharedService::leave`]; with
    /// false when it will never be.
    pub(crate) fn poll_granted(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let granted = ready!(Pin::new(&mut self.granted).poll(cx));
        self.has_ended = true;
        Poll::Ready(granted.map(Granted::keep).is_ok())
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.has_ended {
            return;
        }
        let places = self.service.lane(self.lane);
        let mut queue = places.queue.lock();
        queue.remove(self.key);
        places.waiting.store(queue.len(), Ordering::SeqCst);
    }
}

impl Places {
    /// Begins with all places free.
    pub(super) fn new(limit: usize, bounds: QueueBounds) -> Self {
        Self {
            limit: AtomicUsize::new(limit),
            taken: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            queue: Mutex::new(FairQueue::new(bounds)),
        }
    }

    /// Changes how many may wait. Those who do, stay.
    pub(super) fn set_bounds(&self, bounds: QueueBounds) {
        self.queue.lock().set_bounds(bounds);
    }

    /// Returns how many places there are.
    pub(crate) fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    /// Returns how many are taken.
    pub(crate) fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    /// Returns how many wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Takes a free place. False: there is none, or others wait already.
    fn enter(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) == 0 && self.take()
    }

    fn take(&self) -> bool {
        let limit = self.limit.load(Ordering::SeqCst);
        let more = |taken| (taken < limit).then_some(taken + 1);
        // Not more than the limit even for a moment: who looks meanwhile would go away for nothing.
        let taken = self
            .taken
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, more);
        taken.is_ok()
    }
}

impl SharedService {
    /// Takes a free place, to be given back with [`Self::leave`]. False: there is none, or others wait.
    pub(crate) fn enter(&self, lane: Lane) -> bool {
        self.lane(lane).enter()
    }

    /// Joins the queue. `None`: it is full, and nobody in it has less right to wait.
    pub(crate) fn wait(self: &Arc<Self>, lane: Lane, claim: Claim) -> Option<Waiting> {
        let (sender, granted) = oneshot::channel();
        let places = self.lane(lane);
        let mut gone = Vec::new();
        let mut queue = places.queue.lock();
        let pushed = queue.push(claim.flow, claim.bytes, claim.now, sender, |sender| {
            gone.push(sender);
        });
        let waiting = pushed.ok().map(|key| Waiting {
            service: Arc::clone(self),
            lane,
            key,
            granted,
            has_ended: false,
        });
        self.grant(lane, &mut queue, claim.now);
        drop(queue);
        // Woken without the lock.
        drop(gone);
        waiting
    }

    /// Gives a place back. Only where somebody waits for it, is asked what time it is, by which flow it
    /// was held, and for how long; only what was got in the queue is settled there.
    pub(crate) fn leave(
        self: &Arc<Self>,
        lane: Lane,
        held: impl FnOnce() -> (Instant, Option<(u64, Duration)>),
    ) {
        let places = self.lane(lane);
        places.taken.fetch_sub(1, Ordering::SeqCst);
        if places.waiting.load(Ordering::SeqCst) == 0 {
            return;
        }
        let (now, held) = held();
        let mut queue = places.queue.lock();
        if let Some((flow, hold)) = held {
            queue.spent(flow, hold);
        }
        self.grant(lane, &mut queue, now);
    }

    /// Changes how many places there are, and lets in who waits for those that came.
    pub(crate) fn set_limit(self: &Arc<Self>, lane: Lane, limit: usize, now: Instant) {
        let places = self.lane(lane);
        let before = places.limit.swap(limit, Ordering::SeqCst);
        if limit > before && places.waiting.load(Ordering::SeqCst) > 0 {
            self.grant(lane, &mut places.queue.lock(), now);
        }
    }

    /// Hands free places to those who wait, as long as there are both.
    fn grant(
        self: &Arc<Self>,
        lane: Lane,
        queue: &mut FairQueue<oneshot::Sender<Granted>>,
        now: Instant,
    ) {
        let places = self.lane(lane);
        // Seen before it is looked for free places: whoever gives one back sees it, too.
        places.waiting.store(queue.len(), Ordering::SeqCst);
        while !queue.is_empty() && places.take() {
            let Some(sender) = queue.pop(now) else {
                // Nobody of them is worth serving any more.
                places.taken.fetch_sub(1, Ordering::SeqCst);
                break;
            };
            let granted = Granted {
                service: Arc::clone(self),
                lane,
                at: now,
                is_kept: false,
            };
            if let Err(unwanted) = sender.send(granted) {
                // It has gone this very moment.
                unwanted.keep();
                places.taken.fetch_sub(1, Ordering::SeqCst);
            }
        }
        places.waiting.store(queue.len(), Ordering::SeqCst);
    }
}
