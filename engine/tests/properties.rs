//! The clever limiter beside a slow and obvious one, over generated sequences of visits.

use std::collections::HashMap;
use std::time::Duration;

use proptest::prelude::*;
use tidegate_engine::limit::{LimitSpec, Limiter, RetryAfter};
use tidegate_engine::time::Instant;
use tidegate_engine::units::Rate;

/// A token bucket as in a textbook: tokens are counted, in nanoseconds of refilling.
struct Textbook {
    interval: u64,
    burst: u64,
    buckets: HashMap<u64, (u64, u64)>,
}

impl Textbook {
    fn spend(&mut self, key: u64, now: u64) -> Result<(), RetryAfter> {
        let whole = self.interval * self.burst;
        let (tokens, at) = self.buckets.entry(key).or_insert((whole, now));
        *tokens = whole.min(*tokens + (now - *at));
        *at = now;
        if *tokens >= self.interval {
            *tokens -= self.interval;
            Ok(())
        } else {
            Err(RetryAfter(Duration::from_nanos(self.interval - *tokens)))
        }
    }
}

fn rate(requests: u32, per_ms: u64) -> Rate {
    Rate::new(requests, Duration::from_millis(per_ms)).expect("neither is zero")
}

/// Visits of four keys; gaps cluster around 10 ms, the interval of 100/s, where off-by-ones live.
fn visits() -> impl Strategy<Value = Vec<(u64, u64)>> {
    let gap = prop_oneof![
        Just(0),
        1_u64..1_000,
        0_u64..50_000_000,
        Just(10_000_000),
        Just(9_999_999),
        1_000_000_000_u64..100_000_000_000
    ];
    prop::collection::vec((0_u64..4, gap), 1..200)
}

/// Spends `spent` tokens of key 0, lets `strangers` push it out, and returns what key 0 has left.
fn left_after_cycling(limiter: &Limiter, strangers: u64, spent: u32) -> u32 {
    let now = Instant::from_secs_f64(1.0);
    for _ in 0..spent {
        assert_eq!(limiter.spend(0, now), Ok(()));
    }
    for stranger in 1..=strangers {
        exhaust(limiter, stranger, now);
    }
    limiter.remaining(0, now)
}

fn exhaust(limiter: &Limiter, key: u64, now: Instant) {
    while limiter.spend(key, now).is_ok() {}
}

proptest! {
    #[test]
    fn the_limiter_answers_as_the_textbook_does(
        requests in 1_u32..1000, per_ms in 1_u64..100_000, burst in 1_u32..20, visits in visits()
    ) {
        let rate = rate(requests, per_ms);
        let limiter = Limiter::new(LimitSpec::new(rate, burst, 1000));
        let mut textbook = Textbook {
            interval: rate.interval().as_nanos() as u64,
            burst: burst.into(),
            buckets: HashMap::new(),
        };
        let mut now = 0;
        for (key, gap) in visits {
            now += gap;
            let at = Instant::from_nanos(now);
            let peeked = limiter.peek(key, at);
            let spent = limiter.spend(key, at);
            prop_assert_eq!(peeked, spent, "a peek answers as a spend would");
            prop_assert_eq!(spent, textbook.spend(key, now));
        }
    }

    #[test]
    fn no_window_ever_admits_more_than_burst_plus_rate(
        burst in 1_u32..10, visits in visits()
    ) {
        let limiter = Limiter::new(LimitSpec::new(rate(100, 1000), burst, 1000));
        let mut admitted = Vec::new();
        let mut now = 0;
        for (_, gap) in visits {
            now += gap;
            if limiter.spend(0, Instant::from_nanos(now)).is_ok() {
                admitted.push(now);
            }
        }
        for (first, from) in admitted.iter().enumerate() {
            for (last, to) in admitted.iter().enumerate().skip(first) {
                let bound = u64::from(burst) + (to - from) / 10_000_000;
                prop_assert!((last - first + 1) as u64 <= bound, "from {from} to {to}");
            }
        }
    }

    #[test]
    fn whoever_waits_as_told_is_admitted_and_not_a_nanosecond_sooner(
        requests in 1_u32..1000, burst in 1_u32..20, visits in visits()
    ) {
        let limiter = Limiter::new(LimitSpec::new(rate(requests, 1000), burst, 1000));
        let mut now = Instant::ZERO;
        for (_, gap) in visits {
            now = now + Duration::from_nanos(gap);
            if let Err(RetryAfter(wait)) = limiter.spend(0, now) {
                let sooner = (now + wait) - Duration::from_nanos(1);
                prop_assert_eq!(limiter.peek(0, sooner), Err(RetryAfter(Duration::from_nanos(1))));
                prop_assert_eq!(limiter.peek(0, now + wait), Ok(()));
            }
        }
    }

    #[test]
    fn a_spent_key_does_not_come_back_full_after_it_was_pushed_out(
        keys_max in 1_usize..200, strangers in 1_u64..2000, spent in 1_u32..=10
    ) {
        let limiter = Limiter::new(LimitSpec::new(rate(1, 1000), 10, keys_max));
        prop_assert!(left_after_cycling(&limiter, strangers, spent) <= 10 - spent);
    }
}

#[test]
fn without_the_memory_of_what_was_pushed_out_cycling_keys_is_an_amnesty() {
    let spec = LimitSpec::new(rate(1, 1000), 10, 100);
    assert_eq!(
        left_after_cycling(&Limiter::forgetful(spec), 2000, 9),
        10,
        "the control"
    );
    assert_eq!(left_after_cycling(&Limiter::new(spec), 2000, 9), 1);
}

/// Meters 1,000 looping keys in 700 places for a minute, and returns the share admitted after 10 s.
fn share_of_loops(limiter: &Limiter) -> f64 {
    let (mut admitted, mut sent) = (0, 0);
    for tick in 0..120 {
        for key in 0..1000 {
            let now = Instant::from_nanos(tick * 500_000_000 + key * 500_000);
            let is_admitted = limiter.meter(key, now).is_ok();
            if tick >= 20 {
                sent += 1;
                admitted += u32::from(is_admitted);
            }
        }
    }
    f64::from(admitted) / f64::from(sent)
}

#[test]
fn loops_beyond_the_places_of_a_meter_are_known_as_loops() {
    let spec = LimitSpec::new(rate(3, 10_000), 10, 700);
    let remembered = share_of_loops(&Limiter::new(spec));
    assert!(remembered < 0.01, "{remembered}");
    let forgotten = share_of_loops(&Limiter::forgetful(spec));
    assert!(forgotten > 0.2, "the control: {forgotten}");
}

#[test]
fn a_stranger_starts_full_while_a_thousand_others_are_pushed_out() {
    let limiter = Limiter::new(LimitSpec::new(rate(1, 1000), 10, 7000));
    let now = Instant::from_secs_f64(1.0);
    for key in 0..8000 {
        exhaust(&limiter, key, now);
    }
    let strangers = 1_000_000..1_010_000;
    let short = strangers
        .filter(|key| limiter.remaining(*key, now) < 10)
        .count();
    assert!(
        short < 100,
        "{short} of 10,000 start with less than a full bucket"
    );
}
