//! What is normal: how much, and who with which share. Learns what it is given; whether something may
//! be learnt is decided by [`super::Detector`].
//!
//! Who: two decayed sketches, of the last minutes and of the last day, from which the share of *any*
//! source can be had afterwards: 0.7 and 0.3 of what is expected, once a day was seen. How much: a level
//! that follows within two minutes, or what was usual at this time of day if that is more. What grows
//! faster than the rest is held back ([`super::growth`]).

use std::time::{Duration, SystemTime};

use ahash::AHashMap;

use super::growth::Growth;
use super::pattern::{Literal, Pattern};
use super::season::Season;

use super::window::Leaf;
use crate::time::{Instant, unix_seconds};
use crate::traffic::{CocoSketch, Columns, LeafKey, Random};

/// Buckets of the last minutes and of the day: (32,768 + 16,384) × 80 B = 3.75 MiB.
const BUCKETS: usize = 1 << 15;
const BUCKETS_OF_DAY: usize = 1 << 14;

/// How much of what is expected the last day says, once it was seen, and in which time it counts half.
const DAY_SHARE: f64 = 0.3;
const DAY_HALF_LIFE_S: f64 = 86_400.0;

/// How often the last minutes are added to the day, and growth is looked at.
const FOLD_EVERY_S: f64 = 60.0;

/// How many times the level the time of day may add at most.
const SEASON_MAX: f64 = 4.0;

/// After which time something counts half, at most.
const HALF_LIFE_MAX: Duration = Duration::from_mins(10);

/// Within which time the level follows, at most.
const LEVEL_TIME_MAX: Duration = Duration::from_mins(2);

/// How much above the level is learnt at most, so that a slow rise of an attack teaches little.
const GROWTH_MAX: f64 = 1.2;

/// Single values with a smaller share are not kept apart: at most 20,000 values an attribute, 15 ×
/// 20,000 × 8 B = 2.3 MiB.
const SHARE_MIN: f64 = 1.0 / 20_000.0;

/// Seconds of traffic after which there is something to compare with.
const SECONDS_MIN: f64 = 3.0;

/// Seconds until which the level is learnt even if more comes than it says: clients of a process that has
/// only just begun may take a while to come. An alarm ends that.
const YOUNG_SECONDS: f64 = 15.0;

/// The reference of normal traffic.
#[derive(Debug)]
pub(super) struct Reference {
    leaves: CocoSketch,
    day: CocoSketch,
    growth: Growth,
    season: Season,
    warmup: f64,
    half_life: f64,
    level_time: f64,
    /// Requests per second.
    level: f64,
    /// Requests per second that are usual at this time of day.
    usual_level: Option<f64>,
    /// Seconds learnt since the level was taken over from before a restart; it follows faster at first.
    followed: f64,
    /// Variance / mean of the requests of one tick: 1 for Poisson.
    dispersion: f64,
    /// Seconds learnt.
    trained: f64,
    /// Seconds learnt since the last [`Reference::settle`].
    unsettled: f64,
    /// Shares by column, in order of value.
    shares: Vec<Vec<(u32, f32)>>,
    random: Random,
}

impl Reference {
    /// Begins with nothing. A short warm-up learns, and forgets, faster.
    pub(super) fn new(warmup: Duration, columns: &Columns, seed: u64) -> Self {
        let scaled = |part: f64, most: Duration| {
            (warmup.as_secs_f64() * part).clamp(4.0, most.as_secs_f64())
        };
        Self {
            leaves: CocoSketch::new(BUCKETS),
            day: CocoSketch::new(BUCKETS_OF_DAY),
            growth: Growth::new(columns),
            season: Season::default(),
            warmup: warmup.as_secs_f64(),
            half_life: scaled(4.0, HALF_LIFE_MAX),
            level_time: scaled(0.5, LEVEL_TIME_MAX),
            level: 0.0,
            usual_level: None,
            followed: 0.0,
            dispersion: 2.0,
            trained: 0.0,
            unsettled: 0.0,
            shares: Vec::new(),
            random: Random::from_seed(seed),
        }
    }

    /// Takes over that it is `wall` at `now`.
    pub(super) fn set_clock(&mut self, wall: SystemTime, now: Instant) {
        self.season.set_clock(wall, now);
    }

    /// Learns what came in `seconds` until `now`; `held` requests per second more are expected of
    /// sources under rules, of which nothing is learnt.
    pub(super) fn learn<'a>(
        &mut self,
        leaves: impl Iterator<Item = &'a Leaf> + Clone,
        seconds: f64,
        held: f64,
        now: Instant,
    ) {
        // A process is there before its clients: of the silence before the first of them nothing is learnt.
        let begins = self.trained > 0.0 || leaves.clone().next().is_some();
        if seconds <= 0.0 || !begins {
            return;
        }
        self.growth.count(leaves.clone(), seconds);
        let growth = &self.growth;
        let leaves = leaves.map(|leaf| (&leaf.key, leaf.requests * growth.weight(&leaf.key)));
        let came = leaves.clone().map(|(_, requests)| requests).sum::<f64>() + held * seconds;
        let expected = self.level * seconds;
        let noise = (self.dispersion * expected).sqrt();
        let most = if self.is_usable() {
            GROWTH_MAX * expected + 3.0 * noise + 1.0
        } else {
            f64::INFINITY
        };
        if self.is_usable() && expected > 0.0 {
            let residual = (came - expected).powi(2).min(16.0 * noise * noise + 1.0) / expected;
            self.dispersion += (residual - self.dispersion) * (seconds / 30.0).min(0.1);
            self.dispersion = self.dispersion.clamp(1.0, 100.0);
        }
        self.trained += seconds;
        self.followed += seconds;
        self.unsettled += seconds;
        let follow = (seconds / self.level_time.min(self.followed)).min(1.0);
        self.level += (came.min(most) / seconds - self.level) * follow;
        let weight = if came > most { most / came } else { 1.0 };
        for (key, requests) in leaves {
            if requests > 0.0 {
                self.leaves
                    .add(key.tag(), key, requests * weight, &mut self.random);
            }
        }
        self.season.learn(self.level, seconds, now);
        self.usual_level = self.season.level(now);
        if self.growth.seconds() >= FOLD_EVERY_S {
            self.fold();
        }
    }

    /// Adds the last minutes to the day, and looks at who grows.
    fn fold(&mut self) {
        let seconds = self.growth.seconds();
        self.growth.settle(self.trained <= self.warmup);
        let faded = (-seconds / DAY_HALF_LIFE_S).exp2();
        self.day.scale(|_| faded);
        let total = self.leaves.total();
        if total <= 0.0 {
            return;
        }
        for (tag, key, count) in self.leaves.iter() {
            let requests = count / total * self.level * seconds;
            if requests > 0.0 {
                self.day.add(tag, key, requests, &mut self.random);
            }
        }
    }

    /// Lets time pass over what was learnt, but for what `held` picks, and takes stock of single
    /// values. Once a second.
    pub(super) fn settle(&mut self, columns: usize, held: impl Fn(&LeafKey) -> bool) {
        let faded = self.fading(Duration::from_secs_f64(self.unsettled));
        self.unsettled = 0.0;
        self.leaves.scale(|key| if held(key) { 1.0 } else { faded });
        self.shares.clear();
        let total = self.leaves.total();
        if total <= 0.0 {
            return;
        }
        let mut sums: AHashMap<u32, f64> = AHashMap::new();
        for column in 0..columns {
            sums.clear();
            for (key, share) in shares_of(&self.leaves, &self.day, self.trained) {
                *sums.entry(key.value(column)).or_default() += share;
            }
            let kept = |sum: &f64| *sum >= SHARE_MIN;
            let mut shares = Vec::with_capacity(sums.values().filter(|sum| kept(sum)).count());
            let large = sums.iter().filter(|(_, sum)| kept(sum));
            shares.extend(large.map(|(value, sum)| (*value, *sum as f32)));
            shares.sort_unstable_by_key(|(value, _)| *value);
            self.shares.push(shares);
        }
    }

    /// Returns the factor by which what was learnt counts less after some time.
    pub(super) fn fading(&self, time: Duration) -> f64 {
        (-time.as_secs_f64() / self.half_life).exp2()
    }

    /// Returns whether enough was seen to compare with.
    pub(super) fn is_usable(&self) -> bool {
        self.trained >= SECONDS_MIN && self.followed >= SECONDS_MIN
    }

    /// Returns whether the level is that of so few seconds that it may well be wrong.
    pub(super) fn is_young(&self) -> bool {
        self.followed < YOUNG_SECONDS
    }

    /// Returns how much normal traffic was learnt.
    pub(super) fn trained(&self) -> Duration {
        Duration::from_secs_f64(self.trained)
    }

    /// Returns the requests per second that are expected of everybody.
    pub(super) fn level(&self) -> f64 {
        let usual = self.usual_level.unwrap_or(0.0);
        self.level.max(usual.min(SEASON_MAX * self.level))
    }

    /// Returns variance / mean of counts with the given share of everything: a part shares the
    /// swings of the whole only as far as it is large.
    pub(super) fn dispersion(&self, share: f64) -> f64 {
        1.0 + (self.dispersion - 1.0) * share.clamp(0.0, 1.0)
    }

    /// Returns the requests per second that are expected of one value, as of the last second.
    pub(super) fn expected_of(&self, literal: Literal) -> f64 {
        let shares = self
            .shares
            .get(literal.column)
            .map_or(&[][..], Vec::as_slice);
        shares
            .binary_search_by_key(&literal.value, |(value, _)| *value)
            .ok()
            .and_then(|at| shares.get(at))
            .map_or(0.0, |(_, share)| f64::from(*share) * self.level())
    }

    /// Returns the requests per second that are expected of a source.
    pub(super) fn expected_of_pattern(&self, pattern: &Pattern) -> f64 {
        if pattern.is_everybody() {
            return self.level();
        }
        self.expected_where(|key| pattern.matches(key))
    }

    /// Returns the requests per second that are expected of the combinations that `belongs` picks.
    pub(super) fn expected_where(&self, belongs: impl Fn(&LeafKey) -> bool) -> f64 {
        self.rows()
            .filter(|(key, _)| belongs(key))
            .map(|(_, expected)| expected)
            .sum()
    }

    /// Returns an upper bound of what a source with this expected rate sends in a second (2 standard
    /// deviations).
    pub(super) fn upper_bound(&self, expected: f64) -> f64 {
        let level = self.level();
        let share = if level > 0.0 { expected / level } else { 0.0 };
        expected + 2.0 * (self.dispersion(share) * expected).sqrt()
    }

    /// Returns what is kept across a restart besides the sketches: level, dispersion, seconds learnt.
    pub(super) fn numbers(&self) -> [f64; 3] {
        [self.level, self.dispersion, self.trained]
    }

    pub(super) fn set_numbers(&mut self, [level, dispersion, trained]: [f64; 3]) {
        let sane = |number: f64| {
            if number.is_finite() {
                number.clamp(0.0, 1e9)
            } else {
                0.0
            }
        };
        self.level = sane(level);
        self.dispersion = sane(dispersion).clamp(1.0, 100.0);
        self.trained = sane(trained);
    }

    /// Returns the last minutes and the day.
    pub(super) fn sketches(&self) -> [&CocoSketch; 2] {
        [&self.leaves, &self.day]
    }

    /// Adds to the last minutes or to the day what was kept of them.
    pub(super) fn remember(&mut self, key: &LeafKey, count: f64, day: bool) {
        let sketch = if day { &mut self.day } else { &mut self.leaves };
        if count > 0.0 {
            sketch.add(key.tag(), key, count, &mut self.random);
        }
    }

    pub(super) fn season(&self) -> &Season {
        &self.season
    }

    pub(super) fn season_mut(&mut self) -> &mut Season {
        &mut self.season
    }

    pub(super) fn growth(&self) -> &Growth {
        &self.growth
    }

    pub(super) fn growth_mut(&mut self) -> &mut Growth {
        &mut self.growth
    }

    /// Takes over the clock of another one.
    pub(super) fn take_clock(&mut self, other: &Self) {
        self.season.take_clock(&other.season);
    }

    /// Goes on after a restart with what was `written` in that second since 1970. An older level counts
    /// no more: the time of day says what to expect, or else the first seconds do.
    pub(super) fn resume(&mut self, written: f64, level_kept: Duration, columns: usize) {
        let now = self.season.set_at();
        let wall = self.season.wall(now).map(unix_seconds);
        let is_fresh = wall.is_none_or(|wall| wall - written <= level_kept.as_secs_f64());
        self.followed = self.trained;
        if !is_fresh {
            match self.season.level(now) {
                Some(level) => self.level = level,
                None => self.followed = 0.0,
            }
        }
        self.settle(columns, |_| true);
    }

    /// Walks the expected requests per second of combinations; one may come twice.
    pub(super) fn rows(&self) -> impl Iterator<Item = (&LeafKey, f64)> {
        let level = self.level();
        shares_of(&self.leaves, &self.day, self.trained)
            .map(move |(key, share)| (key, share * level))
    }
}

/// Walks the shares of combinations, as the last minutes and the last day together say.
fn shares_of<'a>(
    leaves: &'a CocoSketch,
    day: &'a CocoSketch,
    trained: f64,
) -> impl Iterator<Item = (&'a LeafKey, f64)> {
    let seen = (trained / DAY_HALF_LIFE_S).min(1.0);
    let of_day = if day.total() > 0.0 {
        DAY_SHARE * seen
    } else {
        0.0
    };
    let [total, day_total] = [leaves, day].map(|sketch| sketch.total().max(f64::MIN_POSITIVE));
    let leaves = leaves
        .iter()
        .map(move |(_, key, count)| (key, (1.0 - of_day) * count / total));
    let day = day
        .iter()
        .map(move |(_, key, count)| (key, of_day * count / day_total));
    leaves.chain(day.filter(|(_, share)| *share > 0.0))
}

#[cfg(test)]
mod tests;
