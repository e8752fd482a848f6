//! The fair queue beside a slow and obvious one, and what it promises, over generated sequences.

#[path = "fair_queue/slow.rs"]
mod slow;

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use tidegate_engine::capacity::{FairQueue, Key, QueueBounds};
use tidegate_engine::time::Instant;

use self::slow::{Slow, SlowWaiter};

const AGE: Duration = Duration::from_millis(500);

/// One step of a sequence.
#[derive(Clone, Debug)]
enum Step {
    Push {
        flow: u64,
        bytes: u64,
    },
    Pop,
    /// The how-manieth of those that were pushed, modulo how many there are.
    Remove(usize),
    Expire,
    Wait(u64),
    Spent {
        flow: u64,
        hold_us: u64,
    },
}

fn steps(flows: u64, length: usize) -> impl Strategy<Value = Vec<Step>> {
    // Half of what comes is of one flow: the loop.
    let flow = prop_oneof![Just(0), 0..flows];
    let bytes = prop_oneof![4 => 1_u64..20, 1 => 100_u64..1_100];
    let wait = prop_oneof![0_u64..1_000, 0_u64..60_000, Just(500_000)];
    let step = prop_oneof![
        8 => (flow, bytes).prop_map(|(flow, bytes)| Step::Push { flow, bytes }),
        4 => Just(Step::Pop),
        1 => any::<usize>().prop_map(Step::Remove),
        1 => Just(Step::Expire),
        2 => wait.prop_map(Step::Wait),
        2 => (0..flows, 0_u64..300_000)
            .prop_map(|(flow, hold_us)| Step::Spent { flow, hold_us }),
    ];
    prop::collection::vec(step, 0..length)
}

fn bounds(count: usize, flows: usize) -> QueueBounds {
    QueueBounds {
        count,
        bytes: 1_000,
        flows,
        age: AGE,
    }
}

/// Counts who is served before the first of these; all, if none is.
fn turns_until<T: PartialEq>(queue: &mut FairQueue<T>, wanted: &T, now: Instant) -> usize {
    std::iter::from_fn(|| queue.pop(now))
        .take_while(|item| item != wanted)
        .count()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn the_queue_serves_and_throws_out_whom_the_slow_one_does(
        count in 1_usize..24, steps in steps(7, 300)
    ) {
        let bounds = bounds(count, 7);
        let (mut queue, mut slow) = (FairQueue::new(bounds), Slow::new(bounds));
        let mut keys: Vec<Key> = Vec::new();
        let mut now = Instant::from_secs_f64(1.0);
        for (item, step) in (0..).zip(steps) {
            match step {
                Step::Push { flow, bytes } => {
                    let mut evicted = Vec::new();
                    let pushed = queue.push(flow, bytes, now, item, |item| evicted.push(item));
                    let arrived = now;
                    let expected = slow.push(SlowWaiter { item, flow, bytes, arrived }, now);
                    prop_assert_eq!(pushed.is_ok(), expected.is_ok());
                    prop_assert_eq!(evicted, expected.unwrap_or_else(|evicted| evicted));
                    keys.extend(pushed.ok());
                }
                Step::Pop => prop_assert_eq!(queue.pop(now), slow.pop(now)),
                Step::Remove(at) => {
                    if let Some(key) = keys.get(at % keys.len().max(1))
                        && let Some(item) = queue.remove(*key)
                    {
                        let waits = slow.waiters.iter().chain(&slow.aged).any(|w| w.item == item);
                        prop_assert!(waits);
                        slow.drop_item(item, now);
                    }
                }
                Step::Expire => {
                    slow.age(now);
                    let aged: Vec<u32> = std::iter::from_fn(|| queue.expire(now)).collect();
                    prop_assert_eq!(aged, slow.aged.drain(..).map(|w| w.item).collect::<Vec<_>>());
                }
                Step::Wait(us) => {
                    now = now + Duration::from_micros(us);
                    // Both see the time only when they are asked; here they are.
                    prop_assert_eq!(queue.expire(now).is_some(), {
                        slow.age(now);
                        !slow.aged.is_empty() && { slow.aged.remove(0); true }
                    });
                }
                Step::Spent { flow, hold_us } => {
                    queue.spent(flow, Duration::from_micros(hold_us));
                    slow.spent(flow, hold_us);
                }
            }
            prop_assert_eq!(queue.len(), slow.waiters.len() + slow.aged.len());
            prop_assert_eq!(queue.bytes(), slow.bytes());
            prop_assert_eq!(queue.flows(), slow.ring.len());
            let oldest = slow.aged.first().or_else(|| slow.waiters.first());
            prop_assert_eq!(queue.next_deadline(), oldest.map(|w| w.arrived + AGE));
        }
    }

    /// Also with ten times as many flows as are told apart.
    #[test]
    fn everybody_leaves_once_and_the_bounds_hold(count in 0_usize..40, steps in steps(40, 400)) {
        let mut queue = FairQueue::new(bounds(count, 4));
        let mut inside: BTreeMap<u32, Instant> = BTreeMap::new();
        let mut keys: Vec<(Key, u32)> = Vec::new();
        let mut now = Instant::ZERO;
        for (item, step) in (0..).zip(steps) {
            match step {
                Step::Push { flow, bytes } => {
                    let mut evicted = Vec::new();
                    let flow = flow.wrapping_mul(0x9E37_79B9_7F4A_7C15);
                    match queue.push(flow, bytes, now, item, |item| evicted.push(item)) {
                        Ok(key) => {
                            inside.insert(item, now);
                            keys.push((key, item));
                        }
                        Err(back) => prop_assert_eq!(back, item),
                    }
                    for item in evicted {
                        prop_assert!(inside.remove(&item).is_some());
                    }
                }
                Step::Pop => {
                    if let Some(item) = queue.pop(now) {
                        let arrived = inside.remove(&item);
                        prop_assert!(arrived.is_some_and(|arrived| now.since(arrived) < AGE));
                    } else {
                        let fresh = inside.values().filter(|at| now.since(**at) < AGE);
                        prop_assert_eq!(fresh.count(), 0);
                    }
                }
                Step::Remove(at) => {
                    if let Some((key, item)) = keys.get(at % keys.len().max(1)) {
                        prop_assert_eq!(queue.remove(*key), inside.remove(item).map(|_| *item));
                    }
                }
                Step::Expire => while let Some(item) = queue.expire(now) {
                    let arrived = inside.remove(&item);
                    prop_assert!(arrived.is_some_and(|arrived| now.since(arrived) >= AGE));
                },
                Step::Wait(us) => now = now + Duration::from_micros(us),
                Step::Spent { flow, hold_us } => {
                    let flow = flow.wrapping_mul(0x9E37_79B9_7F4A_7C15);
                    queue.spent(flow, Duration::from_micros(hold_us));
                }
            }
            prop_assert_eq!(queue.len(), inside.len());
            prop_assert!(queue.len() <= count && queue.bytes() <= 1_000 && queue.flows() <= 4);
        }
    }

    #[test]
    fn flows_that_all_wait_are_served_alike_at_every_moment(
        backlogs in prop::collection::vec(20_usize..60, 1..12)
    ) {
        let mut queue = FairQueue::new(QueueBounds { bytes: u64::MAX, ..bounds(1_000, 16) });
        for (flow, backlog) in (0..).zip(&backlogs) {
            for _ in 0..*backlog {
                queue.push(flow, 1, Instant::ZERO, flow, |_| {}).unwrap();
            }
        }
        let mut served = vec![0_u32; backlogs.len()];
        for _ in 0..20 * backlogs.len() {
            served[queue.pop(Instant::ZERO).unwrap() as usize] += 1;
            let (least, most) = (served.iter().min(), served.iter().max());
            prop_assert!(most.unwrap() - least.unwrap() <= 1, "{:?}", served);
        }
    }

    #[test]
    fn who_waits_alone_waits_one_round_at_most(flows in 1_u64..12, before in 0_usize..40) {
        let mut queue = FairQueue::new(QueueBounds { bytes: u64::MAX, ..bounds(2_000, 16) });
        for at in 0..flows * 100 {
            queue.push(at % flows, 1, Instant::ZERO, false, |_| {}).unwrap();
        }
        for _ in 0..before {
            queue.pop(Instant::ZERO);
        }
        queue.push(flows, 1, Instant::ZERO, true, |_| {}).unwrap();
        let turns = turns_until(&mut queue, &true, Instant::ZERO);
        prop_assert!(turns as u64 <= flows, "{} of {} flows", turns, flows);
    }

    /// Whatever a loop throws in, a flow that holds less than half of the queue loses nobody.
    #[test]
    fn a_loop_pushes_out_itself_alone(small in 1_usize..10, looping in 0_usize..200) {
        let mut queue = FairQueue::new(bounds(20, 8));
        for _ in 0..small {
            queue.push(1, 1, Instant::ZERO, 1, |_| {}).unwrap();
        }
        for _ in 0..looping {
            let pushed = queue.push(2, 1, Instant::ZERO, 2, |gone| assert_eq!(gone, 2));
            assert!(pushed.is_ok(), "the newest of a loop is worth more than its oldest");
        }
        let served: Vec<u64> = std::iter::from_fn(|| queue.pop(Instant::ZERO)).collect();
        prop_assert_eq!(served.iter().filter(|flow| **flow == 1).count(), small);
        prop_assert_eq!(served.len(), 20.min(small + looping));
    }
}

#[test]
fn few_large_ones_do_not_push_out_many_small_ones() {
    let mut queue = FairQueue::new(bounds(100, 8));
    for _ in 0..60 {
        queue.push(1, 2, Instant::ZERO, "small", |_| {}).unwrap();
    }
    for _ in 0..50 {
        let pushed = queue.push(2, 200, Instant::ZERO, "large", |gone| {
            assert_eq!(gone, "large");
        });
        assert!(pushed.is_ok());
    }
    assert_eq!(queue.bytes(), 4 * 200 + 60 * 2);
}

#[test]
fn one_that_would_need_more_than_the_whole_queue_moves_nobody() {
    let mut queue = FairQueue::new(bounds(100, 8));
    queue.push(1, 999, Instant::ZERO, 1, |_| {}).unwrap();
    let pushed = queue.push(2, 1_001, Instant::ZERO, 2, |_| panic!("moved somebody"));
    assert_eq!(pushed, Err(2));
}

/// What a flow takes is a share of the bounds; after a reload, of the new ones.
#[test]
fn under_other_bounds_the_flow_goes_that_takes_the_most_of_those() {
    let mut queue = FairQueue::new(bounds(10, 8));
    queue.push(1, 500, Instant::ZERO, "large", |_| {}).unwrap();
    for _ in 0..3 {
        queue.push(2, 10, Instant::ZERO, "small", |_| {}).unwrap();
    }
    queue.set_bounds(QueueBounds {
        bytes: 1_000_000,
        ..bounds(4, 8)
    });
    let mut gone = Vec::new();
    let pushed = queue.push(3, 10, Instant::ZERO, "other", |one| gone.push(one));
    assert!(pushed.is_ok());
    assert_eq!(gone, ["small"]);
}

/// A queue that stands serves those whose clients have not given up yet.
#[test]
fn a_flow_is_served_oldest_first_until_its_queue_stands() {
    let mut queue = FairQueue::new(bounds(100, 8));
    let mut now = Instant::ZERO;
    for item in 0..10 {
        queue.push(1, 1, now, item, |_| {}).unwrap();
    }
    assert_eq!(queue.pop(now), Some(0));
    now = now + Duration::from_millis(100);
    assert_eq!(queue.pop(now), Some(1));
    now = now + Duration::from_millis(1);
    assert_eq!(queue.pop(now), Some(9));
    assert_eq!(queue.pop(now), Some(8));
}

/// A queue that is full and stands throws out who will not be served, and keeps three for places to come.
#[test]
fn an_overrun_flow_tells_its_oldest_at_once() {
    let mut queue = FairQueue::new(bounds(100, 8));
    let waiting_after = |queue: &mut FairQueue<u64>, now: Instant, step: Duration| {
        let mut longest = Duration::ZERO;
        for at in 0..2_000 {
            let now = now + step * at;
            let came = now.as_nanos();
            let pushed = queue.push(1, 1, now, came, |came| {
                longest = longest.max(now.since(Instant::from_nanos(came)));
            });
            assert!(pushed.is_ok());
        }
        longest
    };
    let step = Duration::from_micros(100);
    let begins = Instant::from_secs_f64(1.0);
    waiting_after(&mut queue, begins, step);
    // It has stood for longer than 100 ms, and was thrown out of: from now on nobody waits for nothing.
    let later = begins + step * 2_000;
    let longest = waiting_after(&mut queue, later, step);
    assert!(
        longest <= Duration::from_millis(1) + 2 * step,
        "{longest:?}"
    );
    assert!((10..=12).contains(&queue.len()), "{}", queue.len());
    // Few who come seldom are kept for longer: somebody must be there when a place comes free.
    let seldom = Duration::from_millis(50);
    waiting_after(&mut queue, later + step * 2_000, seldom);
    assert_eq!(queue.len(), 3);
    // Once it has not had to make room for a while, it is a flow as any other.
    let now = later + Duration::from_mins(2);
    while queue.pop(now).or_else(|| queue.expire(now)).is_some() {}
    for item in 0..100 {
        queue
            .push(1, 1, now + step * item, 0, |_| panic!("there is room"))
            .unwrap();
    }
}

/// Two flows that never cease, one ten times as slow: each gets the same time of the one place.
#[test]
fn a_flow_of_slow_requests_pays_for_the_time_it_holds() {
    let (slow, quick) = (1_u64, 2_u64);
    let hold = |flow| Duration::from_millis(if flow == slow { 50 } else { 10 });
    let share = |pays: bool| {
        let mut queue = FairQueue::new(bounds(100, 8));
        let mut now = Instant::ZERO;
        let mut places = [Duration::ZERO; 3];
        for _ in 0..4_000 {
            for flow in [slow, quick] {
                for _ in 0..8 {
                    queue.push(flow, 1, now, flow, |_| {}).unwrap();
                }
            }
            let flow = queue.pop(now).unwrap();
            now = now + hold(flow);
            places[flow as usize] += hold(flow);
            if pays {
                queue.spent(flow, hold(flow));
            }
        }
        places[1].as_secs_f64() / (places[1] + places[2]).as_secs_f64()
    };
    assert!((share(true) - 0.5).abs() < 0.03, "{}", share(true));
    assert!(share(false) > 0.8, "without it: {}", share(false));
}

#[test]
fn whoever_owes_the_most_is_served_within_nine_rounds() {
    let mut queue = FairQueue::new(bounds(100, 8));
    queue.push(1, 1, Instant::ZERO, 1, |_| {}).unwrap();
    for _ in 0..80 {
        queue.push(2, 1, Instant::ZERO, 2, |_| {}).unwrap();
    }
    queue.spent(2, Duration::from_millis(1));
    for _ in 0..1_000 {
        queue.spent(1, Duration::from_mins(1));
        queue.spent(2, Duration::from_millis(1));
    }
    let turns = turns_until(&mut queue, &1, Instant::ZERO);
    assert!((8..=12).contains(&turns), "{turns}");
}

#[test]
fn what_a_flow_owes_is_paid_off_while_it_rests() {
    let turns_after = |rest: Duration| {
        let mut queue = FairQueue::new(bounds(100, 8));
        queue.push(1, 1, Instant::ZERO, 1, |_| {}).unwrap();
        queue.pop(Instant::ZERO);
        queue.spent(2, Duration::from_millis(10));
        queue.spent(1, Duration::from_millis(60));
        let now = Instant::ZERO + rest;
        queue.push(1, 1, now, 1, |_| {}).unwrap();
        for _ in 0..80 {
            queue.push(2, 1, now, 2, |_| {}).unwrap();
        }
        turns_until(&mut queue, &1, now)
    };
    assert_eq!(turns_after(Duration::ZERO), 5);
    assert_eq!(turns_after(Duration::from_secs(1)), 0);
}

#[test]
fn a_key_of_one_who_left_names_nobody() {
    let mut queue = FairQueue::new(bounds(10, 8));
    let key = queue.push(1, 1, Instant::ZERO, 1, |_| {}).unwrap();
    assert_eq!(queue.pop(Instant::ZERO), Some(1));
    queue.push(1, 1, Instant::ZERO, 2, |_| {}).unwrap();
    assert_eq!(queue.remove(key), None);
    assert_eq!(queue.len(), 1);
}
