//! Who waits for a place in a full service, and who gets the next one. Knows nothing of tasks; the
//! caller wakes whom it is handed.
//!
//! Places go round robin over *flows*, so that a loop gets its share and no more, before anything has
//! been found out about it. A flow is a number; what makes one is the caller's.

mod flows;
mod longest;
mod waiters;

use std::cmp::Reverse;
use std::time::Duration;

use self::flows::Flows;
use self::longest::{Longest, Weight};
pub use self::waiters::Key;
use self::waiters::{Waiter, Waiters};
use crate::capacity::chain::{Chain, Links};
use crate::time::Instant;

/// The most flows that are told apart where nobody says otherwise: 256 × about 200 B = 50 KiB.
pub const FLOWS_MAX_DEFAULT: usize = 256;

/// How long somebody of an overrun flow waits in vain: among so many who keep coming, who came earlier
/// than this would only be told later that there is no place. A fifth of the queueing time that Maurer
/// allows under overload, so that a refusal reaches its client within those 5 ms.
const OVERRUN_WAIT: Duration = Duration::from_millis(1);

/// So many of an overrun flow wait however long they have: a place that comes free finds somebody.
const OVERRUN_COUNT: u64 = 3;

/// How much may wait. Nothing of it grows beyond.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueBounds {
    /// The most waiters; each costs about 100 B and its item. Zero: nobody waits.
    pub count: usize,
    /// The most bytes that all waiters hold together.
    pub bytes: u64,
    /// The most flows that are told apart; beyond, new ones share.
    pub flows: usize,
    /// The longest that a waiter is still worth serving.
    pub age: Duration,
}

/// Those who wait for a place.
///
/// When it is full, the oldest waiter of the flow that takes the most of it makes room, where the flow
/// of who comes counts with the newcomer: no flow pushes out a smaller one, and a loop that fills the
/// queue pushes out itself. What a flow takes is its share of the count or of the bytes, whichever is
/// larger (the dominant share of Ghodsi et al., *Dominant resource fairness*, NSDI 2011), or few large
/// waiters would push out many small ones.
///
/// A flow whose queue stands and has to make room is *overrun*, until it has not had to for 100 ms: more
/// come than can be served, and it is known already who will not be, the oldest. They are not kept
/// until the queue is full again: whoever has waited for more than a millisecond goes when the next one
/// comes, but for the three newest.
///
/// Not `Clone`: whoever waits does so once.
#[derive(Debug)]
pub struct FairQueue<T> {
    bounds: QueueBounds,
    waiters: Waiters<T>,
    bytes: u64,
    flows: Flows,
    longest: Longest,
    /// Waiters of one flow, in the order they came.
    by_flow: Links,
    /// All waiters, in the order they came: those who waited too long are the first of them.
    by_age: Links,
    all: Chain,
    /// The first who has not waited too long yet.
    fresh: Option<u32>,
    /// The latest time that was told.
    now: Instant,
    arrivals: u64,
}

impl<T> FairQueue<T> {
    /// Makes an empty queue. Allocates as it fills.
    pub fn new(bounds: QueueBounds) -> Self {
        Self {
            bounds,
            waiters: Waiters::new(),
            bytes: 0,
            flows: Flows::new(bounds.flows),
            longest: Longest::default(),
            by_flow: Links::default(),
            by_age: Links::default(),
            all: Chain::EMPTY,
            fresh: None,
            now: Instant::ZERO,
            arrivals: 0,
        }
    }

    /// Changes how much may wait. Those who do, stay; how many flows are told apart stays, too.
    pub fn set_bounds(&mut self, bounds: QueueBounds) {
        self.bounds = QueueBounds {
            flows: self.bounds.flows,
            ..bounds
        };
        for flow in self.longest.flows() {
            self.reweigh(flow);
        }
    }

    /// Returns how many wait, those included who waited too long and were not taken out yet.
    pub fn len(&self) -> usize {
        self.waiters.len()
    }

    /// Returns whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns how many bytes all waiters hold.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns how many flows have waiters who may still be served.
    pub fn flows(&self) -> usize {
        self.flows.waiting()
    }

    /// Lets somebody wait who holds `bytes`. Who must go for it is handed to `evicted`: mostly nobody or
    /// one, several where the newcomer holds more than they. `Err` gives the newcomer back: there is no
    /// room that its flow has a better right to.
    pub fn push(
        &mut self,
        flow: u64,
        bytes: u64,
        now: Instant,
        item: T,
        mut evicted: impl FnMut(T),
    ) -> Result<Key, T> {
        let now = self.advance(now);
        if self.bounds.count == 0 || bytes > self.bounds.bytes {
            return Err(item);
        }
        let flow = self.flows.place_of(flow, now);
        self.thin_out(flow, &mut evicted);
        while self.len() >= self.bounds.count || self.bytes > self.bounds.bytes - bytes {
            let Some(victim) = self.victim(flow, bytes) else {
                return Err(item);
            };
            self.note_overrun(victim);
            if let Some(waiter) = self.detach(victim) {
                evicted(waiter.item);
            }
        }
        Ok(self.admit(flow, bytes, item))
    }

    /// Takes out whose turn it is: a place is free. Within a flow the oldest comes first, and the newest
    /// in one whose queue stands. Who waited too long is not served.
    pub fn pop(&mut self, now: Instant) -> Option<T> {
        let now = self.advance(now);
        let at = self.flows.turn()?;
        let flow = self.flows.get(at)?;
        let next = if flow.stands(now) {
            flow.waiters.last()
        } else {
            flow.waiters.first()
        };
        let waiter = self.detach(next?);
        if self.flows.get(at).is_some_and(|flow| flow.count > 0) {
            self.flows.end_turn(at);
        }
        waiter.map(|waiter| waiter.item)
    }

    /// Says how long a place was held that somebody of this flow had got here, so that a flow of slow
    /// requests is served in as few rounds as they are slower than the mean; at most eight.
    pub fn spent(&mut self, flow: u64, hold: Duration) {
        self.flows.spent(flow, hold);
    }

    /// Takes out somebody whose client has gone. `None` if it does not wait any more. O(1) but for the
    /// order of flows, O(log flows).
    pub fn remove(&mut self, key: Key) -> Option<T> {
        if !self.waiters.has(key) {
            return None;
        }
        self.detach(key.at()).map(|waiter| waiter.item)
    }

    /// Takes out one who waited too long; to be called until there is none.
    pub fn expire(&mut self, now: Instant) -> Option<T> {
        self.advance(now);
        self.first_aged()
            .and_then(|at| self.detach(at))
            .map(|waiter| waiter.item)
    }

    /// Returns when the next waiter will have waited too long.
    pub fn next_deadline(&self) -> Option<Instant> {
        let oldest = self.waiters.get(self.all.first()?)?;
        Some(oldest.arrived + self.bounds.age)
    }

    /// Notes the time, which never goes back, and takes those out of their flows who waited too long.
    fn advance(&mut self, now: Instant) -> Instant {
        self.now = self.now.max(now);
        while let Some(at) = self.fresh
            && let Some(waiter) = self.waiters.get_mut(at)
            && waiter.arrived + self.bounds.age <= self.now
        {
            waiter.is_aged = true;
            self.fresh = self.by_age.after(at);
            self.leave_flow(at);
        }
        self.now
    }

    /// Returns the oldest waiter if it waited too long.
    fn first_aged(&self) -> Option<u32> {
        let first = self.all.first()?;
        self.waiters.get(first)?.is_aged.then_some(first)
    }

    /// Notes that a flow loses a waiter to a newcomer.
    fn note_overrun(&mut self, victim: u32) {
        let Some(waiter) = self.waiters.get(victim).filter(|waiter| !waiter.is_aged) else {
            return;
        };
        if let Some(flow) = self.flows.get_mut(waiter.flow) {
            flow.overrun(self.now);
        }
    }

    /// Takes those out of an overrun flow who would wait in vain, before another one of it comes.
    fn thin_out(&mut self, at: u32, evicted: &mut impl FnMut(T)) {
        while let Some(flow) = self.flows.get(at)
            && flow.is_overrun(self.now)
            && flow.count >= OVERRUN_COUNT
            && let Some(oldest) = flow.waiters.first()
            && let Some(waiter) = self.waiters.get(oldest)
            && self.now.since(waiter.arrived) > OVERRUN_WAIT
            && let Some(waiter) = self.detach(oldest)
        {
            if let Some(flow) = self.flows.get_mut(at) {
                flow.overrun(self.now);
            }
            evicted(waiter.item);
        }
    }

    /// Picks who goes for a newcomer of a flow. `None`: the newcomer itself.
    fn victim(&self, newcomer: u32, bytes: u64) -> Option<u32> {
        if let Some(aged) = self.first_aged() {
            return Some(aged);
        }
        let own = self.flows.get(newcomer)?;
        let first = own.waiters.first();
        let number = first.map_or(self.arrivals, |at| self.number(at));
        let own_weight = self.weight(own.count + 1, own.bytes + bytes, number);
        match self.longest.top() {
            Some((weight, flow)) if weight > own_weight => self.flows.get(flow)?.waiters.first(),
            _ => first,
        }
    }

    fn number(&self, at: u32) -> u64 {
        self.waiters.get(at).map_or(0, |waiter| waiter.number)
    }

    /// Weighs a flow: count and bytes in the same unit, each as a share of its bound.
    fn weight(&self, count: u64, bytes: u64, oldest: u64) -> Weight {
        let by_count = u128::from(count) * u128::from(self.bounds.bytes.max(1));
        let by_bytes = u128::from(bytes) * self.bounds.count as u128;
        (by_count.max(by_bytes), Reverse(oldest))
    }

    fn reweigh(&mut self, at: u32) {
        let Some(flow) = self.flows.get(at) else {
            return;
        };
        match flow.waiters.first() {
            Some(first) => {
                let weight = self.weight(flow.count, flow.bytes, self.number(first));
                self.longest.set(at, weight);
            }
            None => self.longest.remove(at),
        }
    }

    fn admit(&mut self, at: u32, bytes: u64, item: T) -> Key {
        let key = self.waiters.insert(Waiter {
            item,
            flow: at,
            bytes,
            arrived: self.now,
            number: self.arrivals,
            is_aged: false,
        });
        self.arrivals += 1;
        self.bytes += bytes;
        self.by_age.append(&mut self.all, key.at());
        if self.fresh.is_none() {
            self.fresh = Some(key.at());
        }
        if let Some(flow) = self.flows.get_mut(at) {
            self.by_flow.append(&mut flow.waiters, key.at());
            flow.count += 1;
            flow.bytes += bytes;
            if flow.count == 1 {
                self.flows.wake(at, self.now);
            }
        }
        self.reweigh(at);
        key
    }

    /// Takes a waiter out of everything.
    fn detach(&mut self, at: u32) -> Option<Waiter<T>> {
        if !self.waiters.get(at)?.is_aged {
            self.leave_flow(at);
        }
        if self.fresh == Some(at) {
            self.fresh = self.by_age.after(at);
        }
        self.by_age.unlink(&mut self.all, at);
        let waiter = self.waiters.take(at)?;
        self.bytes -= waiter.bytes;
        Some(waiter)
    }

    fn leave_flow(&mut self, at: u32) {
        let Some(waiter) = self.waiters.get(at) else {
            return;
        };
        let of = waiter.flow;
        if let Some(flow) = self.flows.get_mut(of) {
            self.by_flow.unlink(&mut flow.waiters, at);
            flow.count -= 1;
            flow.bytes -= waiter.bytes;
            if flow.count == 0 {
                self.flows.rest(of, self.now);
            }
        }
        self.reweigh(of);
    }
}
