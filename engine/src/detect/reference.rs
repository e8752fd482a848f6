//! What is normal: how much, and who with which share. Learns what it is given; whether something may
//! be learnt is decided by [`super::Detector`].

use std::time::Duration;

use ahash::AHashMap;

use super::pattern::{Literal, Pattern};
use super::window::Leaf;
use crate::traffic::{CocoSketch, LeafKey, Random};

/// Buckets of the reference: 65,536 × 80 B = 5 MiB.
const BUCKETS: usize = 1 << 16;

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

/// The reference of normal traffic.
#[derive(Debug)]
pub(super) struct Reference {
    leaves: CocoSketch,
    half_life: f64,
    level_time: f64,
    /// Requests per second.
    level: f64,
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
    pub(super) fn new(warmup: Duration, seed: u64) -> Self {
        let scaled = |part: f64, most: Duration| {
            (warmup.as_secs_f64() * part).clamp(4.0, most.as_secs_f64())
        };
        Self {
            leaves: CocoSketch::new(BUCKETS),
            half_life: scaled(4.0, HALF_LIFE_MAX),
            level_time: scaled(0.5, LEVEL_TIME_MAX),
            level: 0.0,
            dispersion: 2.0,
            trained: 0.0,
            unsettled: 0.0,
            shares: Vec::new(),
            random: Random::from_seed(seed),
        }
    }

    /// Learns what came in `seconds`; `held` requests per second more are expected of sources under
    /// rules, of which nothing is learnt.
    pub(super) fn learn<'a>(
        &mut self,
        leaves: impl Iterator<Item = &'a Leaf> + Clone,
        seconds: f64,
        held: f64,
    ) {
        if seconds <= 0.0 {
            return;
        }
        let came = leaves.clone().map(|leaf| leaf.requests).sum::<f64>() + held * seconds;
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
        self.unsettled += seconds;
        let follow = seconds / self.level_time.min(self.trained);
        self.level += (came.min(most) / seconds - self.level) * follow;
        let weight = if came > most { most / came } else { 1.0 };
        for leaf in leaves {
            let requests = leaf.requests * weight;
            self.leaves
                .add(leaf.key.tag(), &leaf.key, requests, &mut self.random);
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
            for (_, key, count) in self.leaves.iter() {
                *sums.entry(key.value(column)).or_default() += count;
            }
            let kept = |sum: &f64| sum / total >= SHARE_MIN;
            let mut shares = Vec::with_capacity(sums.values().filter(|sum| kept(sum)).count());
            let large = sums.iter().filter(|(_, sum)| kept(sum));
            shares.extend(large.map(|(value, sum)| (*value, (sum / total) as f32)));
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
        self.trained >= SECONDS_MIN
    }

    /// Returns how much normal traffic was learnt.
    pub(super) fn trained(&self) -> Duration {
        Duration::from_secs_f64(self.trained)
    }

    /// Returns the requests per second that are expected of everybody.
    pub(super) fn level(&self) -> f64 {
        self.level
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
            .map_or(0.0, |(_, share)| f64::from(*share) * self.level)
    }

    /// Returns the requests per second that are expected of a source.
    pub(super) fn expected_of_pattern(&self, pattern: &Pattern) -> f64 {
        if pattern.is_everybody() {
            return self.level;
        }
        self.rows()
            .filter(|(key, _)| pattern.matches(key))
            .map(|(_, expected)| expected)
            .sum()
    }

    /// Returns an upper bound of what a source with this expected rate sends in a second (2 standard
    /// deviations).
    pub(super) fn upper_bound(&self, expected: f64) -> f64 {
        let share = if self.level > 0.0 {
            expected / self.level
        } else {
            0.0
        };
        expected + 2.0 * (self.dispersion(share) * expected).sqrt()
    }

    /// Walks the expected requests per second of each combination.
    pub(super) fn rows(&self) -> impl Iterator<Item = (&LeafKey, f64)> {
        let total = self.leaves.total().max(f64::MIN_POSITIVE);
        let level = self.level;
        self.leaves
            .iter()
            .map(move |(_, key, count)| (key, count / total * level))
    }
}
