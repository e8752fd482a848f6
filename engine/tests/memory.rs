//! What traffic and detector need at most, counted by the allocator. Alone in its process: others'
//! memory would count.

#![expect(clippy::print_stdout, reason = "its figures are for people")]

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use peak_alloc::PeakAlloc;
use tidegate_engine::attribute::{AttributeId, Schema};
use tidegate_engine::detect::{DetectionSpec, Detector, Stress};
use tidegate_engine::request::{HashKey, RequestFacts};
use tidegate_engine::time::Instant;
use tidegate_engine::traffic::{Arrival, Random, Standing, Traffic};

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

const WORKERS: usize = 16;

/// Requests of the background in a tick of 100 ms; a surge doubles them.
const REQUESTS: u64 = 20_000;

const MIB: f64 = (1_u32 << 20) as f64;

/// Peaks in MiB since before the counters were made: calm, and in a surge that is found.
struct Peaks {
    calm: f64,
    surging: f64,
}

/// Plays as many ticks as `values` distinct agents, instances and addresses need, then ten seconds of
/// a surge of one agent of instances that loop.
fn peaks(values: u64, text: usize) -> Peaks {
    let before = HEAP.current_usage();
    HEAP.reset_peak_usage();
    let since = |bytes: usize| bytes.saturating_sub(before) as f64 / MIB;
    let schema = Arc::new(Schema::built_in());
    let traffic = Traffic::new(&schema, WORKERS, 1);
    let recorders: Vec<_> = (0..WORKERS).filter_map(|at| traffic.recorder(at)).collect();
    let spec = DetectionSpec {
        warmup: Duration::from_secs(10),
        ..DetectionSpec::default()
    };
    let mut detector = Detector::new(Arc::clone(&schema), spec, 1);
    let key = HashKey::from_seed(1);
    let mut random = Random::from_seed(2);
    let calm_ticks = (values / REQUESTS).max(150);
    let looping = if values < 10_000 { 100 } else { 1_000 };
    let (mut next, mut calm, mut found) = (0, 0.0, 0);
    for tick in 0..calm_ticks + 100 {
        let surges = tick >= calm_ticks;
        if tick == calm_ticks {
            calm = since(HEAP.peak_usage());
        }
        for at in 0..if surges { 2 * REQUESTS } else { REQUESTS } {
            next = (next + 1) % values;
            let bad = surges && at % 2 == 1;
            let client = if bad {
                u64::from(u32::MAX) + random.bits() % looping
            } else {
                next
            };
            let address = IpAddr::V4(Ipv4Addr::from_bits(client as u32));
            let mut facts = RequestFacts::new(&key, address);
            let agent = if bad { u64::MAX } else { next };
            facts.set(AttributeId::INSTANCE, Cow::Owned(client.to_string()));
            facts.set(
                AttributeId::USER_AGENT,
                Cow::Owned(format!("{agent:0text$}")),
            );
            facts.set(AttributeId::SERVICE, Cow::Borrowed("chat"));
            facts.set(AttributeId::ROUTE, Cow::Borrowed("/"));
            if let Some(recorder) = recorders.get(at as usize % WORKERS) {
                let standing = Standing::Passed;
                recorder.record(&facts, Arrival { standing });
            }
        }
        let now = Instant::from_nanos((tick + 1) * 100_000_000);
        let told = detector.tick(&traffic, &Stress::none(), now);
        found += usize::from(told.rules_changed);
    }
    assert!(found > 0, "no rule: the search was not measured");
    assert!(!detector.incidents().is_empty());
    Peaks {
        calm,
        surging: since(HEAP.peak_usage()),
    }
}

fn stays_within_64_mib(values: u64) {
    let peaks = peaks(values, 240);
    println!(
        "{values} values: calm {:.1} MiB, searching {:.1} MiB",
        peaks.calm, peaks.surging
    );
    assert!(peaks.surging <= 64.0, "{} MiB", peaks.surging);
}

/// One after the other: tests of one file run at once, and the heap is everybody's.
#[test]
fn sixteen_workers_and_the_detector_stay_within_64_mib() {
    for values in [1_000, 300_000] {
        stays_within_64_mib(values);
    }
}

#[test]
#[ignore = "the figures of docs/DETECTION.md: 20 s in a release build"]
fn ten_million_values_need_no_more() {
    stays_within_64_mib(10_000_000);
}
