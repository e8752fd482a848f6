//! A fair queue that is slow and obvious: everything is in one list.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tidegate_engine::capacity::QueueBounds;
use tidegate_engine::time::Instant;

#[derive(Clone, Debug)]
pub(crate) struct SlowWaiter {
    pub(crate) item: u32,
    pub(crate) flow: u64,
    pub(crate) bytes: u64,
    pub(crate) arrived: Instant,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct SlowFlow {
    deficit: i64,
    visited: bool,
    since: Instant,
    overrun_until: Instant,
}

/// All waiters in one list, in the order they came; every question is answered by walking it. What a
/// place costs is counted in 1024ths of one, as there.
pub(crate) struct Slow {
    bounds: QueueBounds,
    pub(crate) waiters: Vec<SlowWaiter>,
    pub(crate) aged: Vec<SlowWaiter>,
    flows: BTreeMap<u64, SlowFlow>,
    pub(crate) ring: Vec<u64>,
    mean_ns: Option<i64>,
}

impl Slow {
    pub(crate) fn new(bounds: QueueBounds) -> Self {
        Self {
            bounds,
            waiters: Vec::new(),
            aged: Vec::new(),
            flows: BTreeMap::new(),
            ring: Vec::new(),
            mean_ns: None,
        }
    }

    pub(crate) fn of(&self, flow: u64) -> Vec<&SlowWaiter> {
        self.waiters.iter().filter(|w| w.flow == flow).collect()
    }

    pub(crate) fn bytes(&self) -> u64 {
        let all = self.waiters.iter().chain(&self.aged);
        all.map(|w| w.bytes).sum()
    }

    /// A flow that has no waiter left leaves the ring.
    pub(crate) fn tidy(&mut self, now: Instant) {
        for flow in self.ring.clone() {
            if self.of(flow).is_empty() {
                self.ring.retain(|other| *other != flow);
                let flow = self.flows.entry(flow).or_default();
                flow.deficit = flow.deficit.min(0);
                flow.visited = false;
                flow.since = now;
            }
        }
    }

    pub(crate) fn age(&mut self, now: Instant) {
        let (aged, rest) = self
            .waiters
            .drain(..)
            .partition(|w| now.since(w.arrived) >= self.bounds.age);
        self.waiters = rest;
        self.aged.extend::<Vec<_>>(aged);
        self.tidy(now);
    }

    pub(crate) fn drop_item(&mut self, item: u32, now: Instant) {
        self.waiters.retain(|w| w.item != item);
        self.aged.retain(|w| w.item != item);
        self.tidy(now);
    }

    /// The share that a flow takes with some more, and its oldest.
    pub(crate) fn share(&self, flow: u64, more: Option<&SlowWaiter>) -> (u64, u32) {
        let mut own = self.of(flow);
        own.extend(more);
        let bytes: u64 = own.iter().map(|w| w.bytes).sum();
        let share = (own.len() as u64 * self.bounds.bytes).max(bytes * self.bounds.count as u64);
        (share, own.first().map_or(0, |w| w.item))
    }

    /// Returns who was thrown out, or `Err` with those for nothing.
    pub(crate) fn push(&mut self, waiter: SlowWaiter, now: Instant) -> Result<Vec<u32>, Vec<u32>> {
        self.age(now);
        let mut evicted = Vec::new();
        if waiter.bytes > self.bounds.bytes {
            return Err(evicted);
        }
        let fresh = SlowFlow {
            since: now,
            ..SlowFlow::default()
        };
        let flow = self.flows.entry(waiter.flow).or_insert(fresh);
        if now < flow.overrun_until {
            let own = self.of(waiter.flow);
            let spare = own.len().saturating_sub(2);
            let late = own.iter().take(spare);
            let late = late.filter(|w| now.since(w.arrived) > Duration::from_millis(1));
            evicted = late.map(|w| w.item).collect();
            for item in &evicted {
                self.drop_item(*item, now);
                let flow = self.flows.entry(waiter.flow).or_default();
                flow.overrun_until = now + Duration::from_millis(100);
            }
        }
        while self.waiters.len() + self.aged.len() >= self.bounds.count
            || self.bytes() + waiter.bytes > self.bounds.bytes
        {
            let victim = if let Some(aged) = self.aged.first() {
                aged.item
            } else {
                let share = |flow: u64| {
                    let more = (flow == waiter.flow).then_some(&waiter);
                    self.share(flow, more)
                };
                let mut all: BTreeSet<u64> = self.ring.iter().copied().collect();
                all.insert(waiter.flow);
                // The largest share; of equal ones that whose oldest came first.
                let largest = |flow: &&u64| {
                    let (share, oldest) = share(**flow);
                    (share, u32::MAX - oldest)
                };
                let flow = *all.iter().max_by_key(largest).expect("one comes");
                let standing = Duration::from_millis(100);
                if self.ring.contains(&flow)
                    && let Some(flow) = self.flows.get_mut(&flow)
                    && (now.since(flow.since) > standing || now < flow.overrun_until)
                {
                    flow.overrun_until = now + standing;
                }
                match self.of(flow).first() {
                    Some(first) => first.item,
                    None => return Err(evicted),
                }
            };
            evicted.push(victim);
            self.drop_item(victim, now);
        }
        let flow = self.flows.entry(waiter.flow).or_default();
        if !self.ring.contains(&waiter.flow) {
            if let Some(mean) = self.mean_ns {
                let rounds = (now.since(flow.since).as_nanos() as i64 / mean).min(8);
                flow.deficit = (flow.deficit + rounds * 1024).min(0);
            }
            flow.since = now;
            self.ring.push(waiter.flow);
        }
        self.waiters.push(waiter);
        Ok(evicted)
    }

    pub(crate) fn pop(&mut self, now: Instant) -> Option<u32> {
        self.age(now);
        loop {
            let id = *self.ring.first()?;
            let flow = self.flows.entry(id).or_default();
            if !flow.visited {
                flow.visited = true;
                flow.deficit = (flow.deficit + 1024).min(4 * 1024);
            }
            if flow.deficit < 1024 {
                flow.visited = false;
                self.ring.rotate_left(1);
                continue;
            }
            flow.deficit -= 1024;
            let stands = now.since(flow.since) > Duration::from_millis(100);
            let (is_over, mut own) = (flow.deficit < 1024, self.of(id));
            let item = if stands {
                own.pop()?.item
            } else {
                own.first()?.item
            };
            self.drop_item(item, now);
            let flow = self.flows.entry(id).or_default();
            if self.ring.first() == Some(&id) && is_over {
                flow.visited = false;
                self.ring.rotate_left(1);
            }
            return Some(item);
        }
    }

    pub(crate) fn spent(&mut self, flow: u64, hold_us: u64) {
        let mut hold = hold_us as i64 * 1000;
        let mean = self.mean_ns.unwrap_or(hold).max(1000);
        hold = hold.min(8 * mean);
        self.mean_ns = Some((mean + (hold - mean) / 64).max(1000));
        let most = if self.ring.contains(&flow) { 4096 } else { 0 };
        if let Some(flow) = self.flows.get_mut(&flow) {
            let cost = (hold * 1024 / mean).clamp(128, 8 * 1024);
            flow.deficit = (flow.deficit + 1024 - cost).clamp(-8 * 1024, most);
        }
    }
}
