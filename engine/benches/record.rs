//! What recording one request costs, and what one tick of the detector costs at 100,000 requests a
//! second: `cargo bench -p tidegate-engine --bench record`.

#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
#![expect(clippy::print_stdout, reason = "its result is for people")]

use std::borrow::Cow;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Instant;

use tidegate_engine::attribute::{AttributeId, AttributeKind, AttributeSpec, Schema, Side};
use tidegate_engine::detect::{DetectionSpec, Detector, Stress};
use tidegate_engine::request::{HashKey, RequestFacts};
use tidegate_engine::traffic::{Arrival, LeafMask, Names, Random, Standing, Traffic};

const REQUESTS: usize = 1000;
const ROUNDS: usize = 1000;

fn main() {
    record();
    tick();
}

/// Four workers, 10,000 requests a tick of 5,000 combinations, then 50,000 more of a new one.
fn tick() {
    let schema = Arc::new(Schema::built_in());
    let traffic = Traffic::new(&schema, 4, 1);
    let recorders: Vec<_> = (0..4).filter_map(|at| traffic.recorder(at)).collect();
    let mut detector = Detector::new(Arc::clone(&schema), DetectionSpec::default(), 1);
    let key = HashKey::from_seed(1);
    let mut random = Random::from_seed(2);
    let mut calm = Vec::new();
    let mut surging = Vec::new();
    for tick in 1..=220_u64 {
        let surges = tick > 200;
        for at in 0..if surges { 60_000 } else { 10_000 } {
            let client = random.bits() % 100_000;
            let mut facts = RequestFacts::new(&key, IpAddr::V4(Ipv4Addr::from_bits(client as u32)));
            let agent = if at < 10_000 {
                client % 1000
            } else {
                1_000_000
            };
            let route = (random.bits() % 5).to_string();
            facts.set(AttributeId::USER_AGENT, Cow::Owned(agent.to_string()));
            facts.set(AttributeId::SERVICE, Cow::Borrowed("chat"));
            facts.set(AttributeId::ROUTE, Cow::Owned(route));
            let arrival = Arrival {
                standing: Standing::Passed,
            };
            if let Some(recorder) = recorders.get(at % 4) {
                recorder.record(&facts, arrival);
            }
        }
        let begun = Instant::now();
        let now = tidegate_engine::time::Instant::from_nanos(tick * 100_000_000);
        let told = detector.tick(&traffic, &Stress::none(), now);
        let spent = begun.elapsed().as_secs_f64() * 1e3;
        if surges {
            surging.push(spent);
        } else {
            calm.push(spent);
        }
        for event in told.events {
            println!("tick {tick}: {:?} {:?}", event.what, event.source);
        }
    }
    for (name, spent) in [("calm", &mut calm), ("surging", &mut surging)] {
        spent.sort_by(f64::total_cmp);
        let at = |share: f64| spent.get((share * spent.len() as f64) as usize).copied();
        let (median, most) = (at(0.5).unwrap_or(0.0), spent.last().copied().unwrap_or(0.0));
        println!("tick, {name}: median {median:.2} ms, most {most:.2} ms");
    }
}

fn record() {
    let mut schema = Schema::built_in();
    let own = ["sdk", "sdk_version", "app", "tenant", "platform"].map(|name| {
        let spec = AttributeSpec {
            name: Arc::from(name),
            kind: AttributeKind::Text,
            side: Side::Who,
            secret: false,
        };
        schema.add(spec).unwrap_or(AttributeId::USER_AGENT)
    });
    for (name, distinct, suspects) in [
        ("100 combinations", 100, 0),
        ("every request distinct", REQUESTS, 0),
        ("every one of a stranger, 72 suspects", REQUESTS, 72),
    ] {
        let key = HashKey::from_seed(1);
        let mut random = Random::from_seed(2);
        let facts: Vec<RequestFacts<'_>> = (0..REQUESTS)
            .map(|at| {
                let address = IpAddr::V4(Ipv4Addr::from_bits(random.bits() as u32));
                let mut facts = RequestFacts::new(&key, address);
                let leaf = at % distinct;
                facts.set(
                    AttributeId::USER_AGENT,
                    Cow::Owned(format!("agent {}", leaf % 7)),
                );
                facts.set(AttributeId::SERVICE, Cow::Borrowed("chat"));
                facts.set(AttributeId::HOST, Cow::Borrowed("api.example.com"));
                facts.set(AttributeId::METHOD, Cow::Borrowed("GET"));
                facts.set(AttributeId::ROUTE, Cow::Borrowed("/c/v1/"));
                for (at, id) in own.into_iter().enumerate() {
                    facts.set(id, Cow::Owned(format!("{}", leaf / (at + 1))));
                }
                facts
            })
            .collect();
        let traffic = Traffic::new(&schema, 1, 3);
        // None of them is one, so each is held against all.
        let nobody = |at| LeafMask::of(std::iter::once((0, u32::MAX - at)));
        traffic.suspect((0..suspects).map(nobody).collect());
        let Some(recorder) = traffic.recorder(0) else {
            return;
        };
        let mut names = Names::default();
        let arrival = Arrival {
            standing: Standing::Passed,
        };
        let mut spent = Vec::with_capacity(ROUNDS);
        for _ in 0..ROUNDS {
            let begun = Instant::now();
            for facts in &facts {
                recorder.record(black_box(facts), arrival);
            }
            spent.push(begun.elapsed().as_nanos() as f64 / REQUESTS as f64);
            traffic.collect(&mut names, (3, 3), |counts| {
                black_box(counts.leaves.total());
            });
        }
        spent.sort_by(f64::total_cmp);
        let at = |share: f64| {
            spent
                .get((share * ROUNDS as f64) as usize)
                .copied()
                .unwrap_or(0.0)
        };
        println!(
            "record, {name}: median {:.0} ns, p99 {:.0} ns",
            at(0.5),
            at(0.99)
        );
    }
}
