//! The adaptive limit in front of a little upstream, in virtual time: 50 hands, one queue.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use tidegate_engine::capacity::{AdaptiveLimit, WindowSample};
use tidegate_engine::time::Instant;
use tidegate_engine::traffic::Random;

const HANDS: usize = 50;

/// Seconds that the upstream works on one request, in the mean.
const WORK: f64 = 0.02;

/// Requests a second that all hands can serve.
const CAPACITY: f64 = HANDS as f64 / WORK;

const TICK: f64 = 0.1;

const SEED: u64 = 11;

/// How long one request takes.
#[derive(Clone, Copy)]
enum Works {
    Always,
    Exponentially,
    /// Nine of ten are hits of a cache and take a twentieth; the tenth takes nearly ten times as long.
    Cached,
}

/// What was seen in one tick.
#[derive(Clone, Copy)]
struct Tick {
    limit: usize,
    usual: f64,
    refused: u64,
}

/// An upstream behind a limit.
struct World {
    limit: AdaptiveLimit,
    works: Works,
    random: Random,
    now: f64,
    /// How much slower than usual the upstream is.
    slower: f64,
    /// How long it was frozen so far: its own clock lags by so much.
    frozen: f64,
    /// When each hand is free, on the upstream's own clock.
    hands: BinaryHeap<Reverse<Instant>>,
    /// What is under way: done when, on its own clock; sent when.
    under_way: BinaryHeap<Reverse<(Instant, Instant)>>,
    ticks: Vec<Tick>,
}

impl World {
    fn new(limit: AdaptiveLimit, works: Works) -> Self {
        Self {
            limit,
            works,
            random: Random::from_seed(SEED),
            now: 0.0,
            slower: 1.0,
            frozen: 0.0,
            hands: (0..HANDS).map(|_| Reverse(Instant::ZERO)).collect(),
            under_way: BinaryHeap::new(),
            ticks: Vec::new(),
        }
    }

    fn uniform(&mut self) -> f64 {
        (self.random.bits() >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn work(&mut self) -> f64 {
        let drawn = self.uniform();
        let work = match self.works {
            Works::Always => 1.0,
            Works::Exponentially => -(1.0 - drawn).ln(),
            Works::Cached if drawn < 0.9 => 0.05,
            Works::Cached => 9.55,
        };
        work * WORK * self.slower
    }

    /// Lets `load` times the capacity come for some time, and gives back what was seen.
    fn play(&mut self, load: f64, seconds: f64) -> &[Tick] {
        let first = self.ticks.len();
        for _ in 0..(seconds / TICK).round() as usize {
            self.tick(load);
        }
        self.ticks.get(first..).unwrap_or_default()
    }

    fn freeze(&mut self, load: f64, seconds: f64) {
        for _ in 0..(seconds / TICK).round() as usize {
            self.frozen += TICK;
            self.tick(load);
        }
    }

    fn tick(&mut self, load: f64) {
        let until = self.now + TICK;
        let mut sample = WindowSample {
            in_flight_max: self.under_way.len() as u64,
            ..WindowSample::default()
        };
        loop {
            self.now += -(1.0 - self.uniform()).ln() / (load * CAPACITY);
            let now = self.now.min(until);
            self.answer(now, &mut sample);
            if self.now >= until {
                break;
            }
            if self.under_way.len() >= self.limit.limit() {
                sample.refused += 1;
                continue;
            }
            let own = Instant::from_secs_f64(now - self.frozen);
            let free = self.hands.pop().map_or(own, |Reverse(free)| free.max(own));
            let done = free + Duration::from_secs_f64(self.work());
            self.hands.push(Reverse(done));
            let sent = Instant::from_secs_f64(now);
            self.under_way.push(Reverse((done, sent)));
            sample.in_flight_max = sample.in_flight_max.max(self.under_way.len() as u64);
        }
        self.now = until;
        let limit = self.limit.tick(&sample, Instant::from_secs_f64(until));
        let usual = self.limit.usual_latency().unwrap_or_default();
        self.ticks.push(Tick {
            limit,
            usual: usual.as_secs_f64(),
            refused: sample.refused,
        });
    }

    fn answer(&mut self, now: f64, sample: &mut WindowSample) {
        let frozen = Duration::from_secs_f64(self.frozen);
        let own = Instant::from_secs_f64(now) - frozen;
        while let Some(Reverse((done, sent))) = self.under_way.peek().copied()
            && done <= own
        {
            self.under_way.pop();
            sample.count += 1;
            sample.latency_sum += (done + frozen).since(sent);
        }
    }

    fn usual(&self) -> f64 {
        self.ticks.last().map_or(0.0, |tick| tick.usual)
    }
}

fn refused(ticks: &[Tick]) -> u64 {
    ticks.iter().map(|tick| tick.refused).sum()
}

fn median_limit(ticks: &[Tick]) -> usize {
    let mut limits: Vec<usize> = ticks.iter().map(|tick| tick.limit).collect();
    limits.sort_unstable();
    limits.get(limits.len() / 2).copied().unwrap_or(0)
}

#[test]
fn an_overload_finds_the_number_of_hands_within_a_third() {
    for works in [Works::Always, Works::Exponentially] {
        for (load, max) in [(1.2, 400), (2.0, 200), (10.0, 400), (10.0, 4000)] {
            let mut world = World::new(AdaptiveLimit::new(5, max), works);
            assert_eq!(refused(world.play(0.6, 30.0)), 0);
            let all = world.play(load, 60.0);
            let found = median_limit(&all[200..]);
            assert!((35..=65).contains(&found), "{found} at {load}, {max}");
            let least = all.iter().map(|tick| tick.limit).min();
            assert!(least >= Some(45), "lowered too far: {least:?}");
            let worst = all[200..].iter().map(|tick| tick.limit).max();
            assert!(worst < Some(80), "{worst:?}");
        }
    }
}

#[test]
fn answers_that_merely_vary_lower_nothing_that_calm_needs() {
    for works in [Works::Exponentially, Works::Cached] {
        // With the limit far away, and with one that is in sight: calm needs 30 in the mean.
        for max in [400, 70, 60] {
            let mut world = World::new(AdaptiveLimit::new(5, max), works);
            let ticks = world.play(0.6, 300.0);
            let least = ticks.iter().map(|tick| tick.limit).min();
            assert!(least >= Some(max * 8 / 10), "{least:?} of {max}");
            // A limit that never moves refuses what comes at once by chance; this one no more.
            let mut still = World::new(AdaptiveLimit::new(max, max), works);
            assert!(refused(ticks) <= refused(still.play(0.6, 300.0)));
        }
    }
}

/// Three seconds in thirty in which everything takes twice as long: a batch job, say. 20 are under way
/// in calm.
#[test]
fn a_few_slow_seconds_take_nothing_away_that_calm_needs() {
    let mut world = World::new(AdaptiveLimit::new(5, 60), Works::Exponentially);
    world.play(0.4, 60.0);
    for _ in 0..10 {
        world.slower = 2.0;
        world.play(0.4, 3.0);
        world.slower = 1.0;
        world.play(0.4, 27.0);
    }
    let least = world.ticks.iter().map(|tick| tick.limit).min();
    assert!(least >= Some(30), "{least:?}");
}

#[test]
fn ten_overloads_leave_the_usual_latency_as_it_was_and_nobody_is_refused_afterwards() {
    let mut world = World::new(AdaptiveLimit::new(5, 400), Works::Exponentially);
    world.play(0.6, 60.0);
    let before = world.usual();
    for round in 0..10 {
        world.play(10.0, 60.0);
        let during = world.usual() / before;
        assert!((during - 1.0).abs() < 0.1, "round {round}: {during}");
        world.play(0.6, 5.0);
        let after = world.play(0.6, 25.0);
        assert_eq!(refused(after), 0, "round {round}");
    }
    let after = world.usual() / before;
    assert!((after - 1.0).abs() < 0.1, "{after}");
}

/// 125 more under way in each second, and a limit that is far away.
#[test]
fn an_overload_that_builds_up_slowly_is_not_taken_for_usual() {
    for works in [Works::Always, Works::Exponentially] {
        let mut world = World::new(AdaptiveLimit::new(5, 10_000), works);
        world.play(0.6, 60.0);
        let before = world.usual();
        let during = world.play(1.05, 120.0).to_vec();
        let change = world.usual() / before;
        assert!((change - 1.0).abs() < 0.15, "{change}");
        let found = median_limit(&during[200..]);
        assert!((35..=80).contains(&found), "{found}");
        assert_eq!(refused(&world.play(0.6, 30.0)[50..]), 0);
    }
}

#[test]
fn an_upstream_that_is_slower_for_good_is_accepted_within_a_minute() {
    // The limit as it began; and as an overload left it, close above what calm needs.
    for overloaded in [false, true] {
        let mut world = World::new(AdaptiveLimit::new(5, 200), Works::Exponentially);
        world.play(0.4, 30.0);
        if overloaded {
            world.play(3.0, 30.0);
            world.play(0.4, 30.0);
        }
        let before = world.usual();
        world.slower = 2.0;
        let turned_away = refused(world.play(0.4, 60.0)) as f64;
        let most = if overloaded { 0.15 } else { 0.0 };
        assert!(turned_away <= most * 0.4 * CAPACITY * 60.0, "{turned_away}");
        let after = world.play(0.4, 30.0);
        // Of 30,000; at 80 % of what it now can do, chance alone fills a limit of 60.
        assert!(refused(after) <= 10, "{}", refused(after));
        let limit = after.iter().map(|tick| tick.limit).min();
        assert!(limit >= Some(60), "{limit:?}");
        assert!(world.usual() > 1.7 * before, "{}", world.usual() / before);
    }
}

/// What it owes when it thaws took seconds and fills many windows; it says nothing.
#[test]
fn an_upstream_that_was_frozen_does_not_pay_for_it_afterwards() {
    for max in [200, 2000] {
        let mut world = World::new(AdaptiveLimit::new(5, max), Works::Exponentially);
        world.play(0.6, 30.0);
        let before = world.usual();
        world.freeze(0.6, 20.0);
        let after = world.play(0.6, 30.0);
        let least = after.iter().map(|tick| tick.limit).min();
        // What came meanwhile is under way too for a moment, and says so.
        assert!(least >= Some(max / 2), "{least:?}");
        assert_eq!(refused(&after[1..]), 0);
        assert!((world.usual() / before - 1.0).abs() < 0.1);
    }
}

/// What was sent under a higher limit still comes back late for a while.
#[test]
fn a_limit_that_was_lowered_is_not_lowered_again_before_it_shows() {
    let mut world = World::new(AdaptiveLimit::new(5, 4000), Works::Exponentially);
    world.play(0.1, 30.0);
    let during = world.play(10.0, 30.0);
    let least = during.iter().map(|tick| tick.limit).min();
    assert!(least >= Some(45), "{least:?}");
    let found = median_limit(&during[200..]);
    assert!((35..=65).contains(&found), "{found}");
}

#[test]
fn an_upstream_that_loses_half_its_hands_gets_half_as_much() {
    let mut world = World::new(AdaptiveLimit::new(5, 200), Works::Exponentially);
    world.play(0.8, 30.0);
    for _ in 0..HANDS / 2 {
        world.hands.pop();
    }
    let found = median_limit(&world.play(0.8, 120.0)[600..]);
    assert!((18..=33).contains(&found), "{found}");
}

/// Where everything is overloaded from the first moment, nothing is known; the limit is what was
/// configured, and right once there was calm.
#[test]
fn a_start_in_an_overload_lowers_nothing_and_learns_nothing() {
    let mut world = World::new(AdaptiveLimit::new(5, 100), Works::Exponentially);
    let ticks = world.play(5.0, 30.0);
    assert!(
        ticks
            .iter()
            .all(|tick| tick.limit == 100 && tick.usual == 0.0)
    );
    world.play(0.6, 60.0);
    assert!(
        (world.usual() / WORK - 1.0).abs() < 0.1,
        "{}",
        world.usual()
    );
    let found = median_limit(&world.play(5.0, 60.0)[200..]);
    assert!((35..=65).contains(&found), "{found}");
}

/// 250 answers of 20 ms in each tick, or failures in their place.
fn told(failed: u64, in_flight_max: u64) -> WindowSample {
    slow(20, failed, in_flight_max)
}

fn slow(ms: u64, failed: u64, in_flight_max: u64) -> WindowSample {
    WindowSample {
        count: 250 - failed,
        latency_sum: Duration::from_millis(ms) * (250 - failed) as u32,
        in_flight_max,
        failed,
        refused: 0,
    }
}

fn after(limit: &mut AdaptiveLimit, from: u64, ticks: u64, sample: &WindowSample) -> usize {
    let tick = |at: u64| Instant::from_nanos(at * 100_000_000);
    (from..from + ticks).fold(limit.limit(), |_, at| limit.tick(sample, tick(at)))
}

#[test]
fn failures_lower_a_limit_that_is_used_and_no_other() {
    let mut limit = AdaptiveLimit::new(5, 100);
    assert_eq!(after(&mut limit, 1, 100, &told(0, 60)), 100);
    let mut unused = limit.clone();
    assert_eq!(after(&mut unused, 101, 100, &told(100, 40)), 100);
    assert!(after(&mut limit, 101, 100, &told(100, 90)) < 60);
    let back = after(&mut limit, 201, 100, &told(0, 60));
    assert_eq!(back, 100, "it comes back when they cease");
}

/// Whatever all fail of, their latencies are of no answer, and nothing is learnt from them.
#[test]
fn an_upstream_that_only_fails_leaves_limit_and_usual_latency_alone() {
    let mut limit = AdaptiveLimit::new(5, 100);
    after(&mut limit, 1, 100, &told(0, 60));
    let usual = limit.usual_latency();
    assert_eq!(after(&mut limit, 101, 600, &told(250, 100)), 100);
    assert_eq!(limit.usual_latency(), usual);
}

/// Under a limit that cannot be lowered: nothing is refused, and it still is no calm.
#[test]
fn slow_answers_are_not_learnt_while_many_are_under_way() {
    let mut limit = AdaptiveLimit::new(100, 100);
    after(&mut limit, 1, 100, &told(0, 60));
    let usual = limit.usual_latency();
    after(&mut limit, 101, 600, &slow(30, 0, 80));
    assert_eq!(limit.usual_latency(), usual);
    after(&mut limit, 701, 600, &slow(30, 0, 40));
    assert!(limit.usual_latency() > Some(Duration::from_millis(29)));
}

#[test]
fn answers_that_take_no_time_at_all_are_borne() {
    let mut limit = AdaptiveLimit::new(5, 100);
    after(&mut limit, 1, 100, &slow(0, 0, 60));
    assert!(after(&mut limit, 101, 100, &slow(0, 100, 90)) >= 5);
    assert_eq!(after(&mut limit, 201, 100, &slow(0, 0, 60)), 100);
}

#[test]
fn new_bounds_hold_at_once_and_what_was_learnt_stays() {
    let mut limit = AdaptiveLimit::new(5, 100);
    after(&mut limit, 1, 100, &told(0, 60));
    let usual = limit.usual_latency();
    limit.set_bounds(10, 300);
    assert_eq!(limit.limit(), 300, "it was open and stays so");
    limit.set_bounds(10, 20);
    assert_eq!(limit.limit(), 20);
    assert_eq!(limit.usual_latency(), usual);
    assert!(usual.is_some());
    assert_eq!(AdaptiveLimit::new(50, 10).limit(), 10);
    assert_eq!(AdaptiveLimit::new(0, 0).limit(), 1);
}
