//! A full service with a loop in it, in virtual time: everybody else does not notice.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use tidegate_engine::capacity::{FairQueue, QueueBounds};
use tidegate_engine::time::Instant;
use tidegate_engine::traffic::Random;

const PLACES: usize = 50;
const HONEST: u64 = 20;
const LOOP: u64 = 1000;
const QUEUE: QueueBounds = QueueBounds {
    count: 200,
    bytes: 1 << 20,
    flows: 256,
    age: Duration::from_millis(500),
};

/// Requests a second that the places can serve: 50 / 20 ms in the mean.
const CAPACITY: f64 = 2_500.0;
const LASTS: f64 = 20.0;

#[derive(Clone, Copy)]
struct Request {
    flow: u64,
    arrived: Instant,
}

/// One that is being served: until when, since when.
type Served = Reverse<(Instant, Instant, u64, Instant)>;

/// Where requests wait.
trait Line {
    /// Returns how many were refused for it or waited too long.
    fn line_up(&mut self, request: Request, now: Instant) -> usize;
    fn next(&mut self, now: Instant) -> Option<Request>;
    fn held(&mut self, flow: u64, hold: Duration);
}

impl Line for FairQueue<Request> {
    fn line_up(&mut self, request: Request, now: Instant) -> usize {
        let (mut refused, flow) = (0, request.flow);
        let pushed = self.push(flow, 1, now, request, |_| refused += 1);
        refused += usize::from(pushed.is_err());
        while self.expire(now).is_some() {
            refused += 1;
        }
        refused
    }

    fn next(&mut self, now: Instant) -> Option<Request> {
        self.pop(now)
    }

    fn held(&mut self, flow: u64, hold: Duration) {
        self.spent(flow, hold);
    }
}

/// The negative control: the same size, first come first served.
struct Fifo(VecDeque<Request>);

impl Line for Fifo {
    fn line_up(&mut self, request: Request, now: Instant) -> usize {
        let before = self.0.len();
        self.0.retain(|other| now.since(other.arrived) < QUEUE.age);
        let refused = before - self.0.len();
        if self.0.len() < QUEUE.count {
            self.0.push_back(request);
            return refused;
        }
        refused + 1
    }

    fn next(&mut self, now: Instant) -> Option<Request> {
        self.0.retain(|other| now.since(other.arrived) < QUEUE.age);
        self.0.pop_front()
    }

    fn held(&mut self, _flow: u64, _hold: Duration) {}
}

/// What was seen of those that came before the last second.
struct Seen {
    /// Of the honest ones that came, how many were served.
    success: f64,
    /// The 99th percentile of the time from coming to being served, in seconds.
    p99: f64,
    /// Of everybody.
    refused: usize,
    /// Of all that was served, what was the loop's.
    loop_share: f64,
}

/// Plays 20 honest flows that ask for 60 % of the capacity together and a loop that asks for
/// `loops` times the capacity.
fn play(line: &mut dyn Line, loops: f64, seed: u64) -> Seen {
    let mut random = Random::from_seed(seed);
    let (mut honest_at, mut loop_at) = (gap(&mut random, 0.6 * CAPACITY), 0.0);
    let counts_until = Instant::from_secs_f64(LASTS - 1.0);
    let mut busy: BinaryHeap<Served> = BinaryHeap::new();
    let (mut asked, mut served_loop, mut refused) = (0_usize, 0_usize, 0_usize);
    let mut latencies = Vec::new();
    loop {
        let is_loop = loops > 0.0 && loop_at < honest_at;
        let arrival = if is_loop { loop_at } else { honest_at };
        if arrival > LASTS {
            break;
        }
        let now = Instant::from_secs_f64(arrival);
        while let Some(Reverse((done, begun, flow, arrived))) = busy.peek().copied()
            && done <= now
        {
            busy.pop();
            line.held(flow, done.since(begun));
            if flow == LOOP {
                served_loop += 1;
            } else if arrived < counts_until {
                latencies.push(done.since(arrived).as_secs_f64());
            }
            if let Some(next) = line.next(done) {
                let until = done + service(&mut random);
                busy.push(Reverse((until, done, next.flow, next.arrived)));
            }
        }
        let flow = if is_loop {
            loop_at += gap(&mut random, loops * CAPACITY);
            LOOP
        } else {
            honest_at += gap(&mut random, 0.6 * CAPACITY);
            asked += usize::from(now < counts_until);
            random.bits() % HONEST
        };
        if busy.len() < PLACES {
            let until = now + service(&mut random);
            busy.push(Reverse((until, now, flow, now)));
        } else {
            refused += line.line_up(Request { flow, arrived: now }, now);
        }
    }
    latencies.sort_by(f64::total_cmp);
    let p99 = latencies.get(latencies.len() * 99 / 100).copied();
    Seen {
        success: latencies.len() as f64 / asked as f64,
        p99: p99.unwrap_or(f64::MAX),
        refused,
        loop_share: served_loop as f64 / (served_loop + latencies.len()) as f64,
    }
}

/// Draws the time until the next of a Poisson process.
fn gap(random: &mut Random, rate: f64) -> f64 {
    let uniform = (random.bits() >> 11) as f64 / (1_u64 << 53) as f64;
    -(1.0 - uniform).ln() / rate
}

/// Draws how long a place is held: 20 ms in the mean, evenly between 10 and 30 ms. Were it always the
/// same, a loop that took all places at once would free them at once for ever.
fn service(random: &mut Random) -> Duration {
    Duration::from_micros(10_000 + random.bits() % 20_001)
}

/// Whether the honest ones notice that there is a loop.
fn is_held_off(line: impl Fn() -> Box<dyn Line>, loops: f64) -> bool {
    let calm = play(&mut *line(), 0.0, 7);
    assert!(calm.success >= 0.999, "{}", calm.success);
    let flood = play(&mut *line(), loops, 7);
    assert!(flood.refused > 0, "no flood");
    flood.success >= 0.999 && flood.p99 <= 1.5 * calm.p99
}

#[test]
fn a_loop_of_fifty_times_the_capacity_is_not_noticed_by_the_others() {
    for loops in [0.5, 1.0, 5.0, 50.0] {
        assert!(is_held_off(|| Box::new(FairQueue::new(QUEUE)), loops));
    }
}

/// The control: without fair shares the same load is noticed, so the test above can fail.
#[test]
fn first_come_first_served_lets_the_loop_have_everything() {
    for loops in [1.0, 5.0, 50.0] {
        assert!(!is_held_off(|| Box::new(Fifo(VecDeque::new())), loops));
    }
}

/// Nothing is kept free for anybody: what the honest ones leave is the loop's.
#[test]
fn the_loop_gets_what_the_others_leave() {
    let seen = play(&mut FairQueue::new(QUEUE), 50.0, 7);
    assert!((seen.loop_share - 0.4).abs() < 0.03, "{}", seen.loop_share);
}
