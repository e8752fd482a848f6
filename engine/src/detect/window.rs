//! The last seconds of traffic, tick by tick. Judges nothing.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use ahash::AHashMap;

use crate::time::Instant;
use crate::traffic::{CocoSketch, LeafKey, Names, ROWS_MAX, Random, Sample, SampleRow, Traffic};

/// How long combinations are kept: what blame may look back on.
pub(super) const LEAVES_KEPT: Duration = Duration::from_secs(2);

/// How long samples of clients are kept: the longest of the three windows in which a client's
/// requests are counted.
pub(super) const CLIENTS_KEPT: Duration = Duration::from_secs(8);

/// The one in the middle, over which rates are taken, too.
pub(super) const SECOND: Duration = Duration::from_secs(1);

/// The shortest: in it most clients usually send one request, so who loops quickly stands out before
/// a second is over.
pub(super) const SHORT: Duration = Duration::from_millis(300);

/// The most combinations of the newest tick, and of each older one; above, they are sampled through a
/// sketch of this size. The newest is tested by itself; of older ones only the sum over ticks is asked
/// for. (8,192 + 19 × 2,048) × 72 B = 3.3 MiB at worst.
const LEAVES_NEWEST_MAX: usize = 1 << 13;
const LEAVES_OLDER_MAX: usize = 1 << 11;

/// The most ticks of which combinations are kept, should they come faster than every 100 ms.
const LEAVES_TICKS_MAX: usize = 20;

/// The most ticks kept.
const TICKS_MAX: usize = 96;

/// The most sampled clients of one kind in one tick: 96 × 2 × 512 × 80 B = 7.5 MiB at worst.
const CLIENTS_MAX: usize = ROWS_MAX / 2;

/// The most addresses kept of one tick: 96 × 32 × about 40 B = 120 KiB.
const TALKERS_MAX: usize = 32;

/// Requests of one combination in one tick.
#[derive(Clone, Copy, Debug)]
pub(super) struct Leaf {
    pub(super) key: LeafKey,
    pub(super) requests: f64,
}

/// A sample of clients in one tick or window.
#[derive(Clone, Debug, Default)]
pub(super) struct Clients {
    pub(super) shift: u32,
    pub(super) rows: Vec<SampleRow>,
}

/// One tick.
#[derive(Debug)]
pub(super) struct Tick {
    pub(super) from: Instant,
    pub(super) until: Instant,
    pub(super) leaves: Vec<Leaf>,
    instances: Clients,
    addresses: Clients,
    /// The busiest addresses, at most [`TALKERS_MAX`].
    talkers: BTreeMap<IpAddr, f64>,
}

impl Tick {
    pub(super) fn seconds(&self) -> f64 {
        self.until.since(self.from).as_secs_f64()
    }

    /// Keeps a sample of the combinations where there are many.
    fn thin_out(&mut self, random: &mut Random) {
        if self.leaves.len() > LEAVES_OLDER_MAX {
            let mut sketch = CocoSketch::new(LEAVES_OLDER_MAX);
            for leaf in &self.leaves {
                sketch.add(leaf.key.tag(), &leaf.key, leaf.requests, random);
            }
            self.leaves = leaves_of(&sketch);
        }
    }
}

/// What tells clients apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClientKind {
    Instance,
    Address,
}

/// The last ticks, newest last.
#[derive(Debug)]
pub(super) struct Window {
    ticks: VecDeque<Tick>,
    random: Random,
}

impl Window {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            ticks: VecDeque::new(),
            random: Random::from_seed(seed),
        }
    }

    /// Takes a tick from the workers.
    pub(super) fn collect(&mut self, traffic: &Traffic, names: &mut Names, now: Instant) {
        let from = self.ticks.back().map_or(now, |tick| tick.until);
        let mut leaves = Merge::default();
        let mut instances = MergeClients::default();
        let mut addresses = MergeClients::default();
        let mut talkers: BTreeMap<IpAddr, f64> = BTreeMap::new();
        let shifts = self.ticks.back().map_or((0, 0), |tick| {
            (next_shift(&tick.instances), next_shift(&tick.addresses))
        });
        traffic.collect(names, shifts, |counts| {
            leaves.add(&counts.leaves, &mut self.random);
            instances.add_sample(&counts.instances);
            addresses.add_sample(&counts.addresses);
            for talker in counts.talkers.iter() {
                *talkers.entry(talker.address).or_default() += f64::from(talker.requests);
            }
        });
        let mut busiest: Vec<(IpAddr, f64)> = talkers.into_iter().collect();
        busiest.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        busiest.truncate(TALKERS_MAX);
        if let Some(tick) = self.ticks.back_mut() {
            tick.thin_out(&mut self.random);
        }
        self.ticks.push_back(Tick {
            from,
            until: now,
            leaves: leaves.finish(),
            instances: instances.finish(CLIENTS_MAX),
            addresses: addresses.finish(CLIENTS_MAX),
            talkers: busiest.into_iter().collect(),
        });
        while self.ticks.len() > TICKS_MAX
            || self
                .ticks
                .front()
                .is_some_and(|tick| now.since(tick.from) > CLIENTS_KEPT + SECOND)
        {
            self.ticks.pop_front();
        }
        for (age, tick) in self.ticks.iter_mut().rev().enumerate() {
            if age >= LEAVES_TICKS_MAX || now.since(tick.from) > LEAVES_KEPT {
                tick.leaves = Vec::new();
            }
        }
    }

    /// Walks the ticks that began at `from` or later, newest first; the newest in any case. It is
    /// longer than what was asked for when the control side was held up, and then it is all that
    /// is known.
    pub(super) fn since(&self, from: Instant) -> impl Iterator<Item = &Tick> {
        let older = self
            .ticks
            .iter()
            .rev()
            .skip(1)
            .take_while(move |tick| tick.from >= from);
        self.ticks.back().into_iter().chain(older)
    }

    /// Returns the newest tick.
    pub(super) fn newest(&self) -> Option<&Tick> {
        self.ticks.back()
    }

    /// Returns the tick that has just become as old as `age`.
    pub(super) fn of_age(&self, age: Duration) -> Option<&Tick> {
        let now = self.ticks.back()?.until;
        let before = self.ticks.len().checked_sub(2)?;
        let last = self.ticks.get(before)?.until;
        self.ticks
            .iter()
            .find(|tick| now.since(tick.until) >= age && last.since(tick.until) < age)
    }

    /// Returns seconds covered by the ticks since `from`.
    pub(super) fn seconds_since(&self, from: Instant) -> f64 {
        self.since(from).map(Tick::seconds).sum()
    }

    /// Returns the requests since `from` of the leaves that `belongs` picks.
    pub(super) fn requests_since(&self, from: Instant, belongs: impl Fn(&LeafKey) -> bool) -> f64 {
        self.since(from)
            .flat_map(|tick| &tick.leaves)
            .filter(|leaf| belongs(&leaf.key))
            .map(|leaf| leaf.requests)
            .sum()
    }

    /// Returns the requests since `from` of one address; 0 while it is not among the busiest.
    pub(super) fn requests_of_address(&self, from: Instant, address: IpAddr) -> f64 {
        self.since(from)
            .filter_map(|tick| tick.talkers.get(&address))
            .sum()
    }

    /// Returns the address, of those that `belongs` picks, whose requests per second since `from`
    /// have risen the most over what they were before `began`, that rise, and what they were. `None`
    /// where too little is kept from before to tell.
    pub(super) fn risen_most(
        &self,
        from: Instant,
        began: Instant,
        belongs: impl Fn(IpAddr) -> bool,
    ) -> Option<(IpAddr, f64, f64)> {
        let before = || self.ticks.iter().filter(|tick| tick.until <= began);
        let seconds_before: f64 = before().map(Tick::seconds).sum();
        let seconds = self.seconds_since(from);
        if seconds_before < SECOND.as_secs_f64() || seconds <= 0.0 {
            return None;
        }
        let mut rates: BTreeMap<IpAddr, (f64, f64)> = BTreeMap::new();
        for (address, requests) in self.since(from).flat_map(|tick| &tick.talkers) {
            rates.entry(*address).or_default().0 += requests / seconds;
        }
        for (address, requests) in before().flat_map(|tick| &tick.talkers) {
            if let Some((_, earlier)) = rates.get_mut(address) {
                *earlier += requests / seconds_before;
            }
        }
        rates
            .into_iter()
            .filter(|(address, _)| belongs(*address))
            .map(|(address, (rate, earlier))| (address, rate - earlier, earlier))
            .max_by(|a, b| a.1.total_cmp(&b.1))
    }

    /// Returns the sampled clients since `from` with the requests of each, of those that `belongs`
    /// picks.
    pub(super) fn clients_since(
        &self,
        kind: ClientKind,
        from: Instant,
        belongs: impl Fn(&LeafKey) -> bool,
    ) -> Clients {
        self.clients_between(kind, from, Instant::MAX, belongs)
    }

    /// The same, of the ticks that ended at `until` or before.
    pub(super) fn clients_between(
        &self,
        kind: ClientKind,
        from: Instant,
        until: Instant,
        belongs: impl Fn(&LeafKey) -> bool,
    ) -> Clients {
        let mut merged = MergeClients::default();
        for tick in self.since(from).filter(|tick| tick.until <= until) {
            let clients = match kind {
                ClientKind::Instance => &tick.instances,
                ClientKind::Address => &tick.addresses,
            };
            merged.add(clients.shift, &clients.rows, &belongs);
        }
        merged.finish(usize::MAX)
    }
}

/// Follows the traffic: a nearly full sample is halved, a nearly empty one doubled.
fn next_shift(clients: &Clients) -> u32 {
    if clients.rows.len() > CLIENTS_MAX * 3 / 4 {
        clients.shift + 1
    } else if clients.rows.len() < CLIENTS_MAX / 8 {
        clients.shift.saturating_sub(1)
    } else {
        clients.shift
    }
}

fn leaves_of(sketch: &CocoSketch) -> Vec<Leaf> {
    let leaves = sketch.iter().map(|(_, key, requests)| Leaf {
        key: *key,
        requests,
    });
    // With room for all at once: growing would leave up to as much again unused.
    let mut exact = Vec::with_capacity(sketch.iter().count());
    exact.extend(leaves);
    exact
}

/// Adds up leaves of several workers, through a sketch once they are too many.
#[derive(Default)]
struct Merge {
    places: AHashMap<u64, usize>,
    leaves: Vec<(u64, Leaf)>,
    sampled: Option<CocoSketch>,
}

impl Merge {
    fn add(&mut self, sketch: &CocoSketch, random: &mut Random) {
        for (tag, key, requests) in sketch.iter() {
            if let Some(sampled) = &mut self.sampled {
                sampled.add(tag, key, requests, random);
                continue;
            }
            let next = self.leaves.len();
            let at = *self.places.entry(tag).or_insert(next);
            if let Some((_, leaf)) = self.leaves.get_mut(at) {
                leaf.requests += requests;
                continue;
            }
            let key = *key;
            self.leaves.push((tag, Leaf { key, requests }));
            if self.leaves.len() > LEAVES_NEWEST_MAX {
                self.sample(random);
            }
        }
    }

    fn sample(&mut self, random: &mut Random) {
        let mut sampled = CocoSketch::new(LEAVES_NEWEST_MAX);
        for (tag, leaf) in self.leaves.drain(..) {
            sampled.add(tag, &leaf.key, leaf.requests, random);
        }
        self.places.clear();
        self.sampled = Some(sampled);
    }

    fn finish(self) -> Vec<Leaf> {
        match self.sampled {
            Some(sampled) => leaves_of(&sampled),
            None => self.leaves.into_iter().map(|(_, leaf)| leaf).collect(),
        }
    }
}

/// Adds up samples of clients; the sparsest of them decides who takes part.
#[derive(Default)]
struct MergeClients {
    clients: Clients,
    places: AHashMap<(u64, u64), usize>,
}

impl MergeClients {
    fn add_sample(&mut self, sample: &Sample) {
        self.add(sample.shift(), sample.rows(), |_| true);
    }

    fn add(&mut self, shift: u32, rows: &[SampleRow], belongs: impl Fn(&LeafKey) -> bool) {
        self.clients.shift = self.clients.shift.max(shift);
        for row in rows {
            if row.client.leading_zeros() < self.clients.shift || !belongs(&row.who) {
                continue;
            }
            let next = self.clients.rows.len();
            let at = *self
                .places
                .entry((row.client, row.who.tag()))
                .or_insert(next);
            if let Some(sum) = self.clients.rows.get_mut(at) {
                sum.requests = sum.requests.saturating_add(row.requests);
            } else {
                self.clients.rows.push(*row);
            }
        }
    }

    fn finish(self, rows_max: usize) -> Clients {
        let mut clients = self.clients;
        loop {
            let shift = clients.shift;
            clients
                .rows
                .retain(|row| row.client.leading_zeros() >= shift);
            if clients.rows.len() <= rows_max || shift >= u64::BITS {
                return clients;
            }
            clients.shift += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;
    use crate::attribute::{AttributeId, Schema};
    use crate::request::{HashKey, RequestFacts};
    use crate::traffic::{Arrival, Standing};

    /// What each worker can hand over at most, at 20 ticks a second: what is kept stays within what
    /// the consts say, and its sums stay right.
    #[test]
    fn a_window_of_distinct_requests_keeps_no_more_than_it_says() {
        let traffic = Traffic::new(&Schema::built_in(), 2, 1);
        let recorders = [0, 1].map(|at| traffic.recorder(at).unwrap());
        let hash = HashKey::from_seed(1);
        let mut names = Names::default();
        let mut window = Window::new(1);
        let mut now = Instant::from_secs_f64(1.0);
        window.collect(&traffic, &mut names, now);
        for tick in 0..120_u32 {
            for request in 0..10_000_u32 {
                let mut facts = RequestFacts::new(&hash, "192.0.2.1".parse().unwrap());
                let agent = (tick * 10_000 + request).to_string();
                facts.set(AttributeId::INSTANCE, Cow::Owned(agent.clone()));
                facts.set(AttributeId::USER_AGENT, Cow::Owned(agent));
                let standing = Standing::Passed;
                recorders[request as usize % 2].record(&facts, Arrival { standing });
            }
            now = now + Duration::from_millis(50);
            window.collect(&traffic, &mut names, now);
            let leaves: usize = window.ticks.iter().map(|tick| tick.leaves.capacity()).sum();
            assert!(leaves <= LEAVES_NEWEST_MAX + (LEAVES_TICKS_MAX - 1) * LEAVES_OLDER_MAX);
            assert!(window.ticks.len() <= TICKS_MAX);
            let clients = |tick: &Tick| tick.instances.rows.len().max(tick.addresses.rows.len());
            assert!(window.ticks.iter().all(|tick| clients(tick) <= CLIENTS_MAX));
        }
        let sum = window.requests_since(now - Duration::from_millis(500), |_| true);
        assert!((sum / 100_000.0 - 1.0).abs() < 1e-6, "{sum}");
    }
}
