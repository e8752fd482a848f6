//! The flows of a queue and whose turn it is: deficit round robin (Shreedhar and Varghese, *Efficient
//! fair queueing using deficit round robin*, SIGCOMM 1995). Knows nothing of bounds.

use std::collections::HashMap;
use std::time::Duration;

use ahash::RandomState;

use crate::capacity::chain::{Chain, Links};
use crate::time::Instant;

/// What a place costs that is held for the mean time; also what a flow gets in each round.
const PLACE: i64 = 1024;

/// The most that a place costs, and the least, however long it was held: one request that hangs costs
/// its flow seven more rounds, not the day.
const COST_MAX: i64 = 8 * PLACE;
const COST_MIN: i64 = PLACE / 8;

/// The deepest debt: whoever has it is served after eight rounds.
const DEBT_MAX: i64 = 8 * PLACE;

/// The most that a flow of quick requests has left over: four places in one turn.
const CREDIT_MAX: i64 = 4 * PLACE;

/// Bounds of the mean time that a place is held, in nanoseconds: 1 µs and 1 h.
const MEAN_NANOS_MIN: u64 = 1_000;
const MEAN_NANOS_MAX: u64 = 3_600_000_000_000;

/// The mean follows with 1/64 of each place.
const MEAN_WEIGHT: i64 = 64;

/// How long a flow may have waiters without a break before its newest are served first.
///
/// A queue that is never empty for so long is no burst but a standing queue, in which the oldest are
/// those whose clients have given up (B. Maurer, *Fail at Scale*, ACM Queue 2015, which takes the same
/// 100 ms; the idea of telling the two apart is `CoDel`'s, Nichols and Jacobson 2012).
const STANDING: Duration = Duration::from_millis(100);

/// One flow.
#[derive(Debug)]
pub(super) struct Flow {
    id: u64,
    /// Its waiters, in the order they came.
    pub(super) waiters: Chain,
    pub(super) count: u64,
    pub(super) bytes: u64,
    /// What it may still spend; below zero what it owes.
    deficit: i64,
    /// Whether this round's quantum was given.
    is_visited: bool,
    /// Since when it has had waiters, or has had none.
    pub(super) since: Instant,
    /// Until when it counts as overrun.
    overrun_until: Instant,
}

impl Flow {
    /// Returns whether its queue stands. Asked while it has waiters.
    pub(super) fn stands(&self, now: Instant) -> bool {
        now.since(self.since) > STANDING
    }

    /// Notes that a waiter of it makes room.
    pub(super) fn overrun(&mut self, now: Instant) {
        if self.stands(now) || self.is_overrun(now) {
            self.overrun_until = now + STANDING;
        }
    }

    /// Returns whether it stood and had to make room lately.
    pub(super) fn is_overrun(&self, now: Instant) -> bool {
        now < self.overrun_until
    }
}

/// A bounded number of flows, those that have waiters in a ring.
///
/// A flow that has none keeps its place, and what it owes, until another needs it. When every place has
/// waiters, new flows share the place that their number picks: memory is fixed, and those who came
/// first are only as much worse off as the strangers in their place.
#[derive(Debug)]
pub(super) struct Flows {
    table: Vec<Flow>,
    table_max: usize,
    by_id: HashMap<u64, u32, RandomState>,
    links: Links,
    ring: Chain,
    idle: Chain,
    waiting: usize,
    /// How long a place is held in the mean, in nanoseconds; `None` before the first.
    mean_nanos: Option<u64>,
}

impl Flows {
    pub(super) fn new(flows_max: usize) -> Self {
        let flows_max = flows_max.clamp(1, u32::MAX as usize / 2);
        Self {
            table: Vec::new(),
            table_max: flows_max,
            // Numbers of flows are keyed hashes already; twice the room, so that the table never grows.
            by_id: HashMap::with_capacity_and_hasher(
                2 * flows_max,
                RandomState::with_seeds(1, 2, 3, 4),
            ),
            links: Links::default(),
            ring: Chain::EMPTY,
            idle: Chain::EMPTY,
            waiting: 0,
            mean_nanos: None,
        }
    }

    /// Returns how many flows have waiters.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    pub(super) fn get(&self, at: u32) -> Option<&Flow> {
        self.table.get(at as usize)
    }

    pub(super) fn get_mut(&mut self, at: u32) -> Option<&mut Flow> {
        self.table.get_mut(at as usize)
    }

    /// Returns the place of a flow: its own, a new one, that of the flow that was idle for longest, or
    /// one that it shares.
    pub(super) fn place_of(&mut self, id: u64, now: Instant) -> u32 {
        if let Some(at) = self.by_id.get(&id) {
            return *at;
        }
        let fresh = Flow {
            id,
            waiters: Chain::EMPTY,
            count: 0,
            bytes: 0,
            deficit: 0,
            is_visited: false,
            since: now,
            overrun_until: Instant::ZERO,
        };
        let at = if self.table.len() < self.table_max {
            self.table.push(fresh);
            let at = self.table.len() as u32 - 1;
            self.links.append(&mut self.idle, at);
            at
        } else if let Some(at) = self.idle.first()
            && let Some(flow) = self.table.get_mut(at as usize)
        {
            self.by_id.remove(&flow.id);
            *flow = fresh;
            self.links.unlink(&mut self.idle, at);
            self.links.append(&mut self.idle, at);
            at
        } else {
            return ((u128::from(id) * self.table.len() as u128) >> 64) as u32;
        };
        self.by_id.insert(id, at);
        at
    }

    /// Puts a flow that gets its first waiter at the end of the ring. What it owes was paid off while it
    /// was idle, by one place.
    pub(super) fn wake(&mut self, at: u32, now: Instant) {
        let mean_nanos = self.mean_nanos;
        let Some(flow) = self.table.get_mut(at as usize) else {
            return;
        };
        if let Some(mean_nanos) = mean_nanos {
            let idle_nanos = now.since(flow.since).as_nanos() as u64;
            let rounds = (idle_nanos / mean_nanos).min((DEBT_MAX / PLACE) as u64);
            flow.deficit = (flow.deficit + rounds as i64 * PLACE).min(0);
        }
        flow.since = now;
        self.links.unlink(&mut self.idle, at);
        self.links.append(&mut self.ring, at);
        self.waiting += 1;
    }

    /// Takes a flow that has no waiter left out of the ring. It keeps its debt but not its credit.
    pub(super) fn rest(&mut self, at: u32, now: Instant) {
        let Some(flow) = self.table.get_mut(at as usize) else {
            return;
        };
        flow.deficit = flow.deficit.min(0);
        flow.is_visited = false;
        flow.since = now;
        self.links.unlink(&mut self.ring, at);
        self.links.append(&mut self.idle, at);
        self.waiting -= 1;
    }

    /// Returns the flow whose turn it is, which pays for one place at the mean. `None`: nobody waits.
    ///
    /// Amortised O(1): a turn that a flow is passed over pays off debt that [`Self::spent`] made. At
    /// worst all owe the most: 9 rounds of 256 flows are 2,304 steps.
    pub(super) fn turn(&mut self) -> Option<u32> {
        loop {
            let at = self.ring.first()?;
            let flow = self.table.get_mut(at as usize)?;
            if !flow.is_visited {
                flow.is_visited = true;
                flow.deficit = (flow.deficit + PLACE).min(CREDIT_MAX);
            }
            if flow.deficit >= PLACE {
                flow.deficit -= PLACE;
                return Some(at);
            }
            self.pass_on(at);
        }
    }

    /// Ends a flow's turn if it cannot pay for another place.
    pub(super) fn end_turn(&mut self, at: u32) {
        let flow = self.table.get(at as usize);
        if flow.is_some_and(|flow| flow.deficit < PLACE) {
            self.pass_on(at);
        }
    }

    fn pass_on(&mut self, at: u32) {
        if let Some(flow) = self.table.get_mut(at as usize) {
            flow.is_visited = false;
        }
        self.links.unlink(&mut self.ring, at);
        self.links.append(&mut self.ring, at);
    }

    /// Settles what a place cost, which was paid for at the mean. One that shared its place with others
    /// is not charged: they would pay for it.
    pub(super) fn spent(&mut self, id: u64, hold: Duration) {
        let nanos = u64::try_from(hold.as_nanos()).unwrap_or(u64::MAX);
        let nanos = nanos.min(MEAN_NANOS_MAX);
        let mean = self.mean_nanos.unwrap_or(nanos).max(MEAN_NANOS_MIN);
        let nanos = nanos.min(8 * mean);
        let moved = mean as i64 + (nanos as i64 - mean as i64) / MEAN_WEIGHT;
        self.mean_nanos = Some((moved as u64).clamp(MEAN_NANOS_MIN, MEAN_NANOS_MAX));
        let Some(flow) = self.by_id.get(&id) else {
            return;
        };
        if let Some(flow) = self.table.get_mut(*flow as usize) {
            let cost = (nanos * PLACE as u64 / mean) as i64;
            let credit_max = if flow.count == 0 { 0 } else { CREDIT_MAX };
            let deficit = flow.deficit + PLACE - cost.clamp(COST_MIN, COST_MAX);
            flow.deficit = deficit.clamp(-DEBT_MAX, credit_max);
        }
    }
}
