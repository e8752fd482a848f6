//! What a place in a full service costs: `cargo bench -p tidegate-engine --bench capacity`.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use divan::{Bencher, black_box};
use tidegate_engine::attribute::{AttributeId, AttributeKind, AttributeSpec, Schema, Side};
use tidegate_engine::capacity::{FLOWS_MAX_DEFAULT, FairQueue, Flows, Key, QueueBounds};
use tidegate_engine::request::{HashKey, RequestFacts};
use tidegate_engine::time::Instant;
use tidegate_engine::traffic::Random;

/// The operator's attributes.
const OWN: [&str; 5] = ["sdk", "sdk_version", "app", "tenant", "platform"];

/// Waiters of a full queue: four of each flow.
const COUNT: usize = 4 * FLOWS_MAX_DEFAULT;

fn main() {
    divan::main();
}

/// A full queue of 256 flows, and numbers of theirs in no order.
struct Full {
    queue: FairQueue<u64>,
    flows: Vec<u64>,
    at: usize,
    now: Instant,
}

impl Full {
    fn new() -> Self {
        let mut random = Random::from_seed(3);
        let all: Vec<u64> = (0..FLOWS_MAX_DEFAULT).map(|_| random.bits()).collect();
        let pick = |_| {
            all.get((random.bits() % all.len() as u64) as usize)
                .copied()
        };
        let flows: Vec<u64> = (0..8192).filter_map(pick).collect();
        let mut full = Self {
            queue: FairQueue::new(QueueBounds {
                count: COUNT,
                bytes: 1 << 20,
                flows: FLOWS_MAX_DEFAULT,
                age: Duration::from_secs(1),
            }),
            flows,
            at: 0,
            now: Instant::ZERO,
        };
        for _ in 0..2 * COUNT {
            black_box(full.push().is_ok());
        }
        full
    }

    fn push(&mut self) -> Result<Key, u64> {
        self.now = self.now + Duration::from_micros(10);
        self.at = (self.at + 1) % self.flows.len();
        let flow = self.flows.get(self.at).copied().unwrap_or(0);
        let gone = |item| {
            black_box(item);
        };
        self.queue.push(flow, 64, self.now, flow, gone)
    }
}

/// A place is free, and somebody comes.
#[divan::bench]
fn pop_and_push(bencher: Bencher<'_, '_>) {
    let mut full = Full::new();
    bencher.bench_local(|| {
        let served = full.queue.pop(full.now);
        (served, full.push().is_ok())
    });
}

/// Nothing is free, and somebody comes: another goes.
#[divan::bench]
fn push_into_a_full_queue(bencher: Bencher<'_, '_>) {
    let mut full = Full::new();
    bencher.bench_local(|| full.push().is_ok());
}

/// The same of one loop, which pushes out itself.
#[divan::bench]
fn a_loop_pushes_into_a_full_queue(bencher: Bencher<'_, '_>) {
    let mut full = Full::new();
    full.flows.truncate(1);
    bencher.bench_local(|| full.push().is_ok());
}

/// One client comes and goes before it is served.
#[divan::bench]
fn push_and_remove(bencher: Bencher<'_, '_>) {
    let mut full = Full::new();
    full.queue.pop(full.now);
    bencher.bench_local(|| {
        let key = full.push().ok()?;
        full.queue.remove(key)
    });
}

#[divan::bench]
fn say_what_was_spent(bencher: Bencher<'_, '_>) {
    let mut full = Full::new();
    bencher.bench_local(|| {
        full.at = (full.at + 1) % full.flows.len();
        let flow = full.flows.get(full.at).copied().unwrap_or(0);
        full.queue.spent(black_box(flow), Duration::from_millis(7));
    });
}

/// With the attributes, and of the network alone.
#[divan::bench(args = [true, false])]
fn flow_of(bencher: Bencher<'_, '_>, named: bool) {
    let mut schema = Schema::built_in();
    let own = OWN.map(|name| {
        let spec = AttributeSpec {
            name: name.into(),
            kind: AttributeKind::Text,
            side: Side::Who,
            secret: false,
        };
        schema.add(spec).unwrap_or(AttributeId::USER_AGENT)
    });
    let key = HashKey::from_seed(1);
    let mut facts = RequestFacts::new(&key, IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7)));
    if named {
        for id in own {
            facts.set(id, Cow::Borrowed("some value"));
        }
    }
    let flows = Flows::of(&schema);
    bencher.bench_local(|| black_box(&flows).flow_of(black_box(&facts)));
}
