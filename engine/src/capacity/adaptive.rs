//! How many requests an upstream takes at once, found from how long its answers take. Knows nothing of
//! who is served; it is asked once a tick.
//!
//! The idea is that of TCP Vegas and of Netflix' Gradient2: more requests than an upstream has hands
//! only wait there, so answers take longer in proportion; where they take longer than usual, there are
//! too many. What is known to go wrong with it, and what is done about it here:
//!
//! - *The usual is learnt anew during an overload, and the limit climbs with it* (Netflix #88, #165;
//!   Envoy #11579). Here it is only learnt while the limit is not what holds requests back.
//! - *Requests are refused to measure* (Envoy pins the limit to a few every minute, #8337). Here the
//!   limit starts at its greatest, nothing is ever lowered to measure, and it is not lowered when so
//!   few are under way that it could not be they.
//! - *The fastest answer ever is taken for the usual one* (Netflix #37): one lucky moment, or one hit of
//!   a cache. Here it is a mean, and how far calm windows lie from it is learnt too and allowed for.
//! - *A slight overload lets the limit climb for ever*, because room for a queue is added whatever the
//!   latency says (Netflix #134). Here it is added only where answers are as quick as usual.
//! - *Answers that all fail after the same time look like a calm upstream* (Netflix #137). Here failures
//!   are no answers.
//! - *An upstream that has become slower for good is held down for ever* (Envoy #38338). Here a limit
//!   that was lowered without answers becoming quicker is recognised: it was not the number.

use std::time::Duration;

use crate::time::Instant;

/// A window ends with so many answers, or after [`WINDOW`] with [`ANSWERS_MIN`]: a mean of 500 answers
/// of exponential times is right within 9 % in 19 of 20 windows.
const ANSWERS: u64 = 500;
const WINDOW: Duration = Duration::from_secs(1);
const ANSWERS_MIN: u64 = 20;

/// Windows in which the usual latency is learnt before the limit is lowered at all.
const WINDOWS_MIN: u32 = 10;

/// How much longer than usual answers may take, apart from what they vary by: 15 %. The limit settles
/// at about so much more than the upstream has hands.
const TOLERANCE: f64 = 1.15;

/// How much of what calm windows vary by is allowed for, the most that they are taken to vary by, and
/// the time constant of learning it, in seconds.
const SPREADS: f64 = 2.0;
const SPREAD_MAX: f64 = 0.4;
const SPREAD_S: f64 = 60.0;

/// Time constants of the usual latency, in seconds: of calm windows and of those that are much quicker,
/// and where the limit was lowered in vain; and how long it must have been calm, or in vain.
const USUAL_S: f64 = 15.0;
const IN_VAIN_S: f64 = 5.0;
const CALM: Duration = Duration::from_secs(5);

/// What calm times need is not taken away: half more than the mean that is under way then, and four
/// standard deviations of a Poisson number above it.
const HEADROOM: f64 = 1.5;
const DEVIATIONS: f64 = 4.0;

/// Who is under way beyond half of the limit makes answers slow, or beyond three times what calm needs:
/// under a limit of 4,000 an overload that builds up slowly is not waited for until 2,000.
const UNUSUAL: f64 = 3.0;

/// Time constants of what calm times need, in seconds: up, down, and of how it is taken away after all
/// while answers stay slow (the upstream may have lost half its hands).
const NEED_UP_S: f64 = 5.0;
const NEED_DOWN_S: f64 = 60.0;
const SPARED_DOWN_S: f64 = 20.0;

/// Windows in a row that must be slow before the limit is lowered: one may be chance.
const SLOW_WINDOWS_MIN: u32 = 2;

/// The limit is lowered to no less than half at once, and by a tenth where requests fail.
const GRADIENT_MIN: f64 = 0.5;
const GRADIENT_FAILING: f64 = 0.9;

/// The longest that a lowered limit is waited for to show, which takes two latencies.
const SETTLE_MAX: Duration = Duration::from_secs(5);

/// How much fewer must be under way before it is said that this did not help.
const FEWER_MIN: f64 = 1.25;

/// No answer for so long, with requests under way: the upstream is frozen. Ten times the usual latency
/// if that is longer.
const FROZEN: Duration = Duration::from_secs(1);

/// What was seen of one upstream in one tick.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WindowSample {
    /// Answers that came and were no failures.
    pub count: u64,
    /// What they took from when they were sent, together.
    pub latency_sum: Duration,
    /// The most that were under way at once.
    pub in_flight_max: u64,
    /// Requests that failed: no connection, no answer in time, an answer that says "overloaded".
    pub failed: u64,
    /// Requests that found the limit reached: refused, or made to wait.
    pub refused: u64,
}

/// The limit of one upstream.
///
/// # Accuracy
///
/// It settles between the number of hands and 1.3 times that; 1.6 times where the overload built up over
/// seconds, for then the usual latency followed it by up to 15 %. Requests that others send to the same
/// upstream are taken for the upstream being slow: the limit gives way to them and then accepts it.
#[derive(Clone, Debug)]
pub struct AdaptiveLimit {
    min: f64,
    max: f64,
    limit: f64,
    /// The window that is open: since when, and what it holds.
    begun: Instant,
    window: WindowSample,
    /// The usual latency in seconds, and of how many windows it is made.
    usual: f64,
    learnt: u32,
    /// By how much the means of calm windows differ from it, as a share of it.
    spread: f64,
    /// How many are under way in the mean in calm.
    need: f64,
    /// The share of that which is not taken away.
    spared: f64,
    /// Slow windows in a row.
    slow_windows: u32,
    calm_since: Option<Instant>,
    overload: Option<Overload>,
    /// Until when windows are not looked at: the limit was lowered, and it takes time to show.
    settled_at: Instant,
    answered_at: Instant,
    /// Answers to come of requests that were under way while the upstream was frozen.
    thawing: u64,
}

/// What is remembered of answers being slow, until they are quick again.
#[derive(Clone, Copy, Debug)]
struct Overload {
    /// The limit before it was lowered; it is given back if that was in vain.
    limit: f64,
    /// The most that were under way in the mean, and the latency then.
    in_flight: f64,
    latency: f64,
    /// Since when lowering the limit has been seen not to help.
    in_vain_since: Option<Instant>,
}

impl Overload {
    /// Returns whether lowering the limit has not helped for long enough to believe it.
    fn was_in_vain(&self, now: Instant) -> bool {
        self.in_vain_since
            .is_some_and(|since| now.since(since) >= CALM)
    }
}

/// One window that is over.
#[derive(Clone, Copy, Debug)]
struct Reading {
    latency: f64,
    /// The most that were under way at once, and the mean by Little's law: what all answers took, over
    /// how long the window took.
    in_flight: f64,
    in_flight_mean: f64,
    /// How long it took, in seconds.
    took: f64,
    begun: Instant,
    /// Whether the limit held requests back.
    reached: bool,
    failing: bool,
}

impl AdaptiveLimit {
    /// Makes a limit between `min` and `max`. It starts at `max`; both are at least 1.
    pub fn new(min: usize, max: usize) -> Self {
        let max = max.max(1) as f64;
        Self {
            min: (min.max(1) as f64).min(max),
            max,
            limit: max,
            begun: Instant::ZERO,
            window: WindowSample::default(),
            usual: 0.0,
            learnt: 0,
            spread: 0.0,
            need: 0.0,
            spared: 1.0,
            slow_windows: 0,
            calm_since: None,
            overload: None,
            settled_at: Instant::ZERO,
            answered_at: Instant::ZERO,
            thawing: 0,
        }
    }

    /// Returns the limit.
    pub fn limit(&self) -> usize {
        self.limit as usize
    }

    /// Returns the usual latency, once enough was seen of it.
    pub fn usual_latency(&self) -> Option<Duration> {
        (self.learnt >= WINDOWS_MIN).then(|| Duration::from_secs_f64(self.usual))
    }

    /// Changes the bounds; what was learnt stays. A limit that was at its greatest still is.
    pub fn set_bounds(&mut self, min: usize, max: usize) {
        let max = max.max(1) as f64;
        let was_open = self.limit >= self.max;
        (self.min, self.max) = ((min.max(1) as f64).min(max), max);
        self.limit = if was_open { max } else { self.limit };
        self.limit = self.limit.clamp(self.min, self.max);
    }

    /// Takes what was seen in the last tick and returns the limit until the next.
    pub fn tick(&mut self, sample: &WindowSample, now: Instant) -> usize {
        if self.is_told_by(sample, now) {
            let window = &mut self.window;
            window.count += sample.count;
            window.latency_sum += sample.latency_sum;
            window.in_flight_max = window.in_flight_max.max(sample.in_flight_max);
            window.failed += sample.failed;
            window.refused += sample.refused;
            let old = now.since(self.begun) >= WINDOW && window.count >= ANSWERS_MIN;
            if old || window.count >= ANSWERS {
                let reading = self.read(now);
                self.learn(&reading, now);
                self.judge(&reading, now);
                self.open(now);
            }
        } else {
            self.open(now);
        }
        self.limit()
    }

    fn open(&mut self, now: Instant) {
        self.window = WindowSample::default();
        self.begun = now;
    }

    /// Returns whether a tick says how the upstream does under this limit: not while it is frozen, nor
    /// by the answers that it owes from then, nor shortly after the limit was lowered.
    fn is_told_by(&mut self, sample: &WindowSample, now: Instant) -> bool {
        if sample.in_flight_max == 0 || sample.count > 0 {
            let quiet = now.since(self.answered_at);
            self.answered_at = now;
            if sample.count > 0 && self.thawing > 0 {
                self.thawing = self.thawing.saturating_sub(sample.count + sample.failed);
                return false;
            }
            // Nothing was under way for long: what the window holds is of another time.
            return now >= self.settled_at && quiet < WINDOW * 10;
        }
        let usual = Duration::from_secs_f64(10.0 * self.usual);
        if now.since(self.answered_at) >= FROZEN.max(usual) {
            self.thawing = sample.in_flight_max;
        }
        now >= self.settled_at && self.thawing == 0
    }

    fn read(&self, now: Instant) -> Reading {
        let window = &self.window;
        let in_flight = window.in_flight_max as f64;
        let took = now.since(self.begun).as_secs_f64();
        Reading {
            // Never zero: it is divided by.
            latency: (window.latency_sum.as_secs_f64() / window.count as f64).max(1e-9),
            in_flight,
            in_flight_mean: window.latency_sum.as_secs_f64() / took.max(1e-9),
            took,
            begun: self.begun,
            reached: window.refused > 0 || in_flight >= self.limit.floor(),
            failing: window.failed * 10 > window.count + window.failed,
        }
    }

    /// Returns how much longer than usual answers may take.
    fn tolerance(&self) -> f64 {
        TOLERANCE + SPREADS * self.spread
    }

    /// Returns whether answers come as quickly as usual: they take up half of the tolerance at most.
    fn is_easy(&self, reading: &Reading) -> bool {
        !reading.failing && self.room(reading) > 0.0
    }

    /// Returns how much of that half is left, from 1 down to 0 and below.
    fn room(&self, reading: &Reading) -> f64 {
        let half = (self.tolerance() - 1.0) / 2.0;
        let more = reading.latency / self.usual.max(1e-9) - 1.0;
        (1.0 - more / half).min(1.0)
    }

    /// Learns what is usual, where this is the upstream's doing and not the limit's or the crowd's.
    fn learn(&mut self, reading: &Reading, now: Instant) {
        let Reading { latency, took, .. } = *reading;
        if self.learnt < WINDOWS_MIN {
            if !reading.reached && !reading.failing {
                self.learnt += 1;
                let part = 1.0 / f64::from(self.learnt);
                self.usual += part * (latency - self.usual);
                self.vary(latency, part);
                self.need += part * (reading.in_flight_mean - self.need);
            }
            return;
        }
        let is_calm = !reading.reached
            && !reading.failing
            && (!self.is_used(reading) || self.is_easy(reading));
        if is_calm {
            self.vary(latency, toward(took, SPREAD_S));
        }
        let calm_since = *self.calm_since.get_or_insert(reading.begun);
        if !is_calm {
            self.calm_since = None;
        }
        // One window counts as twice the usual at most.
        let more = latency.min(2.0 * self.usual) - self.usual;
        let is_much_less = latency * self.tolerance() < self.usual && !reading.failing;
        if is_much_less || is_calm && now.since(calm_since) >= CALM {
            self.usual += toward(took, USUAL_S) * more;
        } else if self
            .overload
            .is_some_and(|overload| overload.was_in_vain(now))
        {
            self.usual += toward(took, IN_VAIN_S) * more;
        }
    }

    /// Returns how many may be under way at once in calm.
    fn calm_most(&self) -> f64 {
        (HEADROOM * self.need).max(self.need + DEVIATIONS * self.need.sqrt())
    }

    /// Returns whether so many are under way that it may be they who make answers slow.
    fn is_used(&self, reading: &Reading) -> bool {
        reading.in_flight > (self.limit / 2.0).min(UNUSUAL * self.calm_most())
    }

    fn vary(&mut self, latency: f64, part: f64) {
        let off = (latency / self.usual.max(1e-9) - 1.0).abs().min(SPREAD_MAX);
        self.spread += part * (off - self.spread);
    }

    /// Raises or lowers the limit.
    fn judge(&mut self, reading: &Reading, now: Instant) {
        if self.learnt < WINDOWS_MIN {
            return;
        }
        let is_used = self.is_used(reading);
        if self.is_easy(reading) {
            self.slow_windows = 0;
            if let Some(overload) = self.overload.take()
                && overload.was_in_vain(now)
            {
                self.limit = self.limit.max(overload.limit.min(self.max));
            }
            if !reading.reached {
                let more = reading.in_flight_mean - self.need;
                let constant = if more > 0.0 { NEED_UP_S } else { NEED_DOWN_S };
                self.need += toward(reading.took, constant) * more;
                self.spared += toward(reading.took, NEED_UP_S) * (1.0 - self.spared);
            }
            if is_used {
                let more = self.limit.sqrt() * self.room(reading);
                self.limit = (self.limit + more).min(self.max);
            }
            return;
        }
        let gradient = self.gradient(reading);
        if gradient >= 1.0 || !is_used {
            self.slow_windows = 0;
            return;
        }
        self.slow_windows += 1;
        if self.slow_windows < SLOW_WINDOWS_MIN {
            return;
        }
        self.spared *= 1.0 - toward(reading.took, SPARED_DOWN_S);
        if self.is_in_vain(reading, now) {
            return;
        }
        let least = self.min.max(self.spared * self.calm_most()).min(self.limit);
        self.limit = (self.limit * gradient).max(least);
        let settles = Duration::from_secs_f64(2.0 * reading.latency).min(SETTLE_MAX);
        self.settled_at = now + settles;
    }

    fn gradient(&self, reading: &Reading) -> f64 {
        let most = if reading.failing {
            GRADIENT_FAILING
        } else {
            1.0
        };
        (self.tolerance() * self.usual / reading.latency).clamp(GRADIENT_MIN, most)
    }

    /// Returns whether fewer are under way and answers became hardly quicker: by less than half
    /// of what they would in an overload, where latency goes with the number.
    ///
    /// The number is the mean by Little's law, which is of the same requests as the latency, however
    /// late they are.
    fn is_in_vain(&mut self, reading: &Reading, now: Instant) -> bool {
        let (in_flight, latency) = (reading.in_flight_mean, reading.latency);
        let overload = self.overload.get_or_insert(Overload {
            limit: self.limit,
            in_flight,
            latency,
            in_vain_since: None,
        });
        if in_flight >= overload.in_flight {
            (overload.in_flight, overload.latency) = (in_flight, latency);
        }
        let fewer = overload.in_flight / in_flight.max(1e-9);
        let quicker = overload.latency / latency.max(1e-9);
        let in_vain = fewer >= FEWER_MIN && quicker - 1.0 < (fewer - 1.0) / 2.0 && !reading.failing;
        overload.in_vain_since = if in_vain {
            overload.in_vain_since.or(Some(now))
        } else {
            None
        };
        in_vain
    }
}

/// Returns how far an average of a time constant goes toward what it was told for some time.
fn toward(took: f64, constant: f64) -> f64 {
    took / (took + constant)
}
