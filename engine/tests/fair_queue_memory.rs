//! What a fair queue allocates, counted by the allocator. Alone in its process: others' memory would
//! count.

use std::time::Duration;

use peak_alloc::PeakAlloc;
use tidegate_engine::capacity::{FLOWS_MAX_DEFAULT, FairQueue, QueueBounds};
use tidegate_engine::time::Instant;
use tidegate_engine::traffic::Random;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// A flood of a million flows: every push throws somebody out, some leave, some are served.
fn flood(queue: &mut FairQueue<u64>, random: &mut Random, pushes: u64, now: &mut Instant) {
    for item in 0..pushes {
        *now = *now + Duration::from_micros(random.bits() % 200);
        let flow = (random.bits() % 1_000_000).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let key = queue.push(flow, random.bits() % 64, *now, item, |_| {});
        match (random.bits() % 4, key) {
            (0, _) => drop(queue.pop(*now)),
            (1, Ok(key)) => drop(queue.remove(key)),
            _ => queue.spent(flow, Duration::from_micros(random.bits() % 1_000)),
        }
    }
}

#[test]
fn a_warm_queue_allocates_nothing_and_stays_within_its_bound() {
    let before = HEAP.current_usage();
    let mut queue = FairQueue::new(QueueBounds {
        count: 1_000,
        bytes: 20_000,
        flows: FLOWS_MAX_DEFAULT,
        age: Duration::from_secs(1),
    });
    let mut random = Random::from_seed(7);
    let mut now = Instant::ZERO;
    flood(&mut queue, &mut random, 50_000, &mut now);
    let warm = HEAP.current_usage();
    HEAP.reset_peak_usage();
    flood(&mut queue, &mut random, 200_000, &mut now);
    assert_eq!(HEAP.peak_usage(), warm, "it allocated once warm");
    // 1,000 waiters of 100 B, in vectors that grow by doubling, and 256 flows of 200 B.
    let bound = 2 * 1_000 * 100 + FLOWS_MAX_DEFAULT * 200;
    let used = warm - before;
    assert!(used <= bound, "{used} B of {bound} B");
}
