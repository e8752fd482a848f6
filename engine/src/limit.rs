//! Limits: one token bucket per key, in bounded memory. Knows nothing of requests or rules.
//!
//! The arithmetic is governor's GCRA (the generic cell rate algorithm, ITU-T I.371). A bucket is one
//! number, its *theoretical arrival time*: the instant at which it is full again. Where the buckets
//! live, and what happens when there are more keys than places, is `buckets`.
//!
//! governor reads a clock; here time is an argument. So governor sees every visit at its own instant
//! zero, and the store shifts the numbers: what governor is told is *how long until full, seen from
//! now*; what is stored is the absolute instant. Nothing is relative to the moment at which a limiter
//! was made, so buckets outlive the policy that made them.

mod buckets;

use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::{Quota, RateLimiter};

use self::buckets::{Buckets, Purpose, Visit};
use crate::time::Instant;
use crate::units::Rate;

/// The longest that a bucket may take to fill, in nanoseconds: 146 years.
///
/// A quarter of `u64::MAX`, so that an interval, a whole bucket and the time until it is full can be
/// added without overflow. A burst that would take longer is cut down to it.
const FILL_NANOS_MAX: u64 = u64::MAX / 4;

/// The most keys that a limit remembers where the operator gives no `keys_max`: 8.7 MiB of buckets.
pub const KEYS_MAX_DEFAULT: usize = 500_000;

/// What a bucket holds and how fast it fills, and how many of them there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitSpec {
    interval: Duration,
    burst: u32,
    keys_max: usize,
}

impl LimitSpec {
    /// Makes a spec of `burst` requests at once, coming back at `rate`, for up to `keys_max` keys.
    /// A burst or a `keys_max` of zero counts as one.
    pub fn new(rate: Rate, burst: u32, keys_max: usize) -> Self {
        Self::every(rate.interval(), burst, keys_max)
    }

    /// Makes a spec from an estimated rate in requests per second. Rates below one in 30 years, and
    /// what is no rate at all, count as that.
    pub fn per_second(requests: f64, burst: u32, keys_max: usize) -> Self {
        let interval_s = (1.0 / requests.max(1e-9)).clamp(1e-9, 1e9);
        Self::every(Duration::from_secs_f64(interval_s), burst, keys_max)
    }

    fn every(interval: Duration, burst: u32, keys_max: usize) -> Self {
        let interval_max = Duration::from_nanos(FILL_NANOS_MAX);
        let interval = interval.clamp(Duration::from_nanos(1), interval_max);
        let burst_max = FILL_NANOS_MAX / interval.as_nanos() as u64;
        Self {
            interval,
            burst: u64::from(burst).clamp(1, burst_max) as u32,
            keys_max: keys_max.max(1),
        }
    }

    /// Returns requests at once.
    pub fn burst(&self) -> u32 {
        self.burst
    }

    /// Returns for how many keys it is.
    pub fn keys_max(&self) -> usize {
        self.keys_max
    }

    /// Returns the time in which an empty bucket is full again.
    pub fn window(&self) -> Duration {
        self.interval.saturating_mul(self.burst)
    }
}

/// How long until one more request would be admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RetryAfter(pub Duration);

/// A token bucket per key.
///
/// Keys are 64-bit hashes. Two clients whose keys collide share a bucket: at 500,000 live keys the
/// chance that any two do is 7 in a billion, and the hash is keyed, so that nobody outside can make
/// them collide.
///
/// Not `Clone`: two copies of one limit would admit twice its rate. Share it.
#[derive(Debug)]
pub struct Limiter {
    spec: LimitSpec,
    quota: Quota,
    buckets: Buckets,
}

impl Limiter {
    /// Makes a limiter whose buckets are all full. Allocates nothing for keys until there are any.
    pub fn new(spec: LimitSpec) -> Self {
        Self::with_buckets(spec, Buckets::new(spec.keys_max))
    }

    /// Makes a limiter that forgets what it pushes out: a key that comes back starts with a full
    /// bucket. For shares of something that is limited as a whole: there an amnesty costs little,
    /// and a stranger must not inherit what others spent.
    pub fn forgetful(spec: LimitSpec) -> Self {
        Self::with_buckets(spec, Buckets::forgetful(spec.keys_max))
    }

    fn with_buckets(spec: LimitSpec, buckets: Buckets) -> Self {
        let burst = NonZeroU32::new(spec.burst).unwrap_or(NonZeroU32::MIN);
        let quota = Quota::with_period(spec.interval)
            .unwrap_or(Quota::per_second(NonZeroU32::MIN))
            .allow_burst(burst);
        Self {
            spec,
            quota,
            buckets,
        }
    }

    /// Returns what the limiter was made from.
    pub fn spec(&self) -> LimitSpec {
        self.spec
    }

    /// Takes one token, or says how long until there is one. A refusal costs the key nothing.
    pub fn spend(&self, key: u64, now: Instant) -> Result<(), RetryAfter> {
        self.visit(key, now, Purpose::Spend)
    }

    /// Answers what [`Limiter::spend`] would answer, and takes nothing.
    pub fn peek(&self, key: u64, now: Instant) -> Result<(), RetryAfter> {
        self.visit(key, now, Purpose::Peek)
    }

    /// Gives back one token that was taken and not used. Does nothing where the key was pushed out
    /// in between, which errs on the strict side.
    pub fn refund(&self, key: u64) {
        let interval = self.interval_nanos();
        self.buckets
            .adjust(key, |full_at| full_at.saturating_sub(interval));
    }

    /// Measures what a key *offers*: takes a token where there is one and answers like
    /// [`Limiter::spend`], but a refusal empties the bucket again. So a key that keeps sending above
    /// its rate is never admitted; it is once it has been quiet for one interval.
    pub fn meter(&self, key: u64, now: Instant) -> Result<(), RetryAfter> {
        let answer = self.visit(key, now, Purpose::Spend);
        if answer.is_err() {
            let empty = now.as_nanos().saturating_add(self.window_nanos());
            self.buckets.raise(key, empty);
        }
        answer
    }

    /// Takes a token even where there is none: the bucket goes into debt, by one burst at most.
    /// Others are admitted again once it is paid.
    pub fn draw(&self, key: u64, now: Instant) {
        if self.visit(key, now, Purpose::Spend).is_err() {
            let (interval, window) = (self.interval_nanos(), self.window_nanos());
            let deepest = now.as_nanos().saturating_add(window.saturating_mul(2));
            self.buckets.adjust(key, |full_at| {
                full_at.saturating_add(interval).min(deepest).max(full_at)
            });
        }
    }

    /// Returns how many requests would be admitted at once.
    pub fn remaining(&self, key: u64, now: Instant) -> u32 {
        let until_full = self
            .buckets
            .full_at(key)
            .unwrap_or(0)
            .saturating_sub(now.as_nanos());
        let tokens = self.window_nanos().saturating_sub(until_full) / self.interval_nanos();
        u32::try_from(tokens).unwrap_or(u32::MAX)
    }

    /// Returns how many keys have a place, at most `keys_max`. Places of full buckets are reused
    /// when they are needed, not before.
    pub fn keys(&self) -> usize {
        self.buckets.len()
    }

    fn visit(&self, key: u64, now: Instant, purpose: Purpose) -> Result<(), RetryAfter> {
        // Made for one call: it is three numbers and two references, and leaves the store ours.
        let gcra: RateLimiter<Visit, &Buckets, Stopped, NoOpMiddleware<Nanos>> =
            RateLimiter::new(self.quota, &self.buckets, Stopped);
        let visit = Visit {
            key,
            now_nanos: now.as_nanos(),
            purpose,
        };
        gcra.check_key(&visit)
            .map_err(|until| RetryAfter(until.wait_time_from(Stopped.now())))
    }

    fn interval_nanos(&self) -> u64 {
        self.spec.interval.as_nanos() as u64
    }

    fn window_nanos(&self) -> u64 {
        self.interval_nanos()
            .saturating_mul(u64::from(self.spec.burst))
    }
}

/// governor's clock, which stands at zero: the store counts from now (see the module's head).
#[derive(Clone, Copy, Debug)]
struct Stopped;

impl Clock for Stopped {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        Nanos::new(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NANOSECOND: Duration = Duration::from_nanos(1);

    fn per_second(requests: u32, burst: u32) -> Limiter {
        let rate = Rate::new(requests, Duration::from_secs(1)).unwrap();
        Limiter::new(LimitSpec::new(rate, burst, 1000))
    }

    #[test]
    fn a_key_that_waits_as_long_as_it_was_told_is_served_again() {
        let limiter = per_second(2, 2);
        let now = Instant::from_secs_f64(100.0);
        assert_eq!(limiter.spend(7, now), Ok(()));
        assert_eq!(limiter.spend(7, now), Ok(()));
        let RetryAfter(wait) = limiter.spend(7, now).unwrap_err();
        assert_eq!(wait, Duration::from_millis(500));
        assert!(limiter.spend(7, (now + wait) - NANOSECOND).is_err());
        assert_eq!(limiter.spend(7, now + wait), Ok(()));
    }

    #[test]
    fn a_peek_spends_nothing_and_takes_no_place() {
        let limiter = per_second(1, 1);
        let now = Instant::ZERO;
        for _ in 0..10 {
            assert_eq!(limiter.peek(7, now), Ok(()));
        }
        assert_eq!(limiter.keys(), 0);
        assert_eq!(limiter.spend(7, now), Ok(()));
        assert_eq!(
            limiter.peek(7, now),
            Err(RetryAfter(Duration::from_secs(1)))
        );
    }

    #[test]
    fn a_refund_gives_back_one_token_and_no_more() {
        let limiter = per_second(1, 3);
        let now = Instant::from_secs_f64(5.0);
        assert_eq!(limiter.spend(7, now), Ok(()));
        assert_eq!(limiter.remaining(7, now), 2);
        limiter.refund(7);
        assert_eq!(limiter.remaining(7, now), 3);
        limiter.refund(7);
        assert_eq!(
            limiter.remaining(7, now),
            3,
            "a bucket is never fuller than full"
        );
    }

    #[test]
    fn keys_do_not_share_a_bucket() {
        let limiter = per_second(1, 1);
        assert_eq!(limiter.spend(0, Instant::ZERO), Ok(()));
        assert_eq!(limiter.spend(1, Instant::ZERO), Ok(()));
        assert!(limiter.spend(0, Instant::ZERO).is_err());
    }

    #[test]
    fn a_metered_key_is_admitted_only_after_it_was_quiet() {
        let metered = per_second(1, 5);
        let spent = per_second(1, 5);
        let (mut admitted_metered, mut admitted_spent) = (0, 0);
        for tenth in 0..1000 {
            let now = Instant::ZERO + Duration::from_millis(100 * tenth);
            admitted_metered += u32::from(metered.meter(7, now).is_ok());
            admitted_spent += u32::from(spent.spend(7, now).is_ok());
        }
        assert_eq!(
            admitted_metered, 5,
            "the first burst, and nothing of a loop at 10/s"
        );
        assert!(
            admitted_spent > 100,
            "the control: a token bucket admits its rate"
        );
        let quiet_for = Duration::from_secs(1);
        let last = Instant::ZERO + Duration::from_millis(99_900);
        assert_eq!(metered.meter(7, last + quiet_for), Ok(()));
    }

    #[test]
    fn what_is_drawn_is_paid_before_others_are_admitted() {
        let limiter = per_second(1, 2);
        let now = Instant::from_secs_f64(5.0);
        for _ in 0..3 {
            limiter.draw(7, now);
        }
        let wait = |seconds| Err(RetryAfter(Duration::from_secs(seconds)));
        assert_eq!(
            limiter.peek(7, now),
            wait(2),
            "one in debt, and one to spend"
        );
        for _ in 0..100 {
            limiter.draw(7, now);
        }
        assert_eq!(limiter.peek(7, now), wait(3), "debt is bounded by a burst");
    }

    #[test]
    fn the_largest_numbers_do_not_overflow() {
        let slow = Rate::new(1, Duration::MAX).unwrap();
        let limiter = Limiter::new(LimitSpec::new(slow, u32::MAX, usize::MAX));
        assert_eq!(limiter.spend(7, Instant::MAX), Ok(()));
        let daily = Rate::new(1, Duration::from_hours(24)).unwrap();
        let limiter = Limiter::new(LimitSpec::new(daily, u32::MAX, 1));
        assert_eq!(limiter.spend(7, Instant::ZERO), Ok(()));
        for rate in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let limiter = Limiter::new(LimitSpec::per_second(rate, 0, 0));
            assert_eq!(limiter.spend(7, Instant::ZERO), Ok(()), "{rate}");
        }
    }
}
