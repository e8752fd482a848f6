//! Which instances were there before the trouble. Asked on the request path, kept by the control side.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bits of one filter: 2²³ = 1 MiB.
const BITS: usize = 1 << 23;
const WORDS: usize = BITS / 64;

/// Words of the two generations that are known.
pub(crate) const KNOWN_WORDS: usize = 2 * WORDS;

/// Words of one block, a cache line: all bits of an instance are in one.
const BLOCK: usize = 8;

/// A set of instances, approximate: a blocked Bloom filter with four bits an instance.
struct Filter(Vec<AtomicU64>);

impl fmt::Debug for Filter {
    /// Without its million bytes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Filter").finish_non_exhaustive()
    }
}

/// The instances that were seen before: a bounded, approximate set.
///
/// An instance that is met waits in `pending`, then in `cooling`, and becomes known when the control
/// side settles it: after one to two settle periods. When a surge begins both are thrown away, and of a
/// source under suspicion nobody is met, so who only came with a flood never becomes known.
///
/// # Accuracy
///
/// Who is known is always found. A stranger is taken for known with a probability of at most 6.3 %
/// per generation (half of the bits set, about 1.4 million instances), 0.04 % at 300,000 instances;
/// the older of two generations is forgotten when the younger is half full. The worst that follows:
/// that stranger is served at the usual rate of one instance.
#[derive(Debug)]
pub struct Familiar {
    pending: Filter,
    cooling: Filter,
    known: Filter,
    before: Filter,
}

impl Default for Familiar {
    fn default() -> Self {
        Self {
            pending: Filter::new(),
            cooling: Filter::new(),
            known: Filter::new(),
            before: Filter::new(),
        }
    }
}

impl Familiar {
    /// Returns whether the instance was seen long enough ago to be known.
    pub fn contains(&self, instance: u64) -> bool {
        self.known.contains(instance) || self.before.contains(instance)
    }

    /// Notes that an instance was let through, unless it is of a source that is under suspicion: that is
    /// asked of strangers only.
    pub fn meet(&self, instance: u64, is_suspect: impl FnOnce() -> bool) {
        if !self.known.contains(instance) && !is_suspect() {
            self.pending.insert(instance);
        }
    }

    /// Moves everybody one stage on: who cooled is known, who was pending cools.
    pub fn settle(&self) {
        if self.known.add(&self.cooling) * 2 > BITS as u32 {
            self.before.replace(&self.known);
            self.known.replace(&self.cooling);
        }
        self.cooling.replace(&self.pending);
        self.pending.clear();
    }

    /// Takes over who is known to another one.
    pub(crate) fn adopt(&self, other: &Self) {
        self.known.add(&other.known);
        self.before.add(&other.before);
    }

    /// Walks the words of the two generations that are known, for keeping across a restart. They tell
    /// whether somebody is known who has the identity and the key; nobody's identity is in them.
    pub(crate) fn words(&self) -> impl Iterator<Item = u64> {
        let filters = [&self.known, &self.before];
        let words = filters.into_iter().flat_map(|filter| &filter.0);
        words.map(|word| word.load(Ordering::Relaxed))
    }

    /// Takes those words back.
    pub(crate) fn restore(&self, words: impl Iterator<Item = u64>) {
        let filters = [&self.known, &self.before];
        let places = filters.into_iter().flat_map(|filter| &filter.0);
        for (place, word) in places.zip(words) {
            place.store(word, Ordering::Relaxed);
        }
    }

    /// Forgets who is not known yet.
    pub fn discard(&self) {
        self.pending.clear();
        self.cooling.clear();
    }

    /// Forgets who was met since the last settling and is not known yet.
    pub fn discard_pending(&self) {
        self.pending.clear();
    }
}

impl Filter {
    fn new() -> Self {
        Self(
            std::iter::repeat_with(AtomicU64::default)
                .take(WORDS)
                .collect(),
        )
    }

    /// The four words and bits of an instance, within one block.
    fn places(instance: u64) -> [(usize, u64); 4] {
        let mixed = (instance ^ (instance >> 31)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
        let block = (mixed >> 40) as usize % (WORDS / BLOCK) * BLOCK;
        [0, 9, 18, 27].map(|from| {
            let bits = mixed >> from;
            (
                block + (bits as usize & (BLOCK - 1)),
                1 << ((bits >> 3) & 63),
            )
        })
    }

    fn contains(&self, instance: u64) -> bool {
        Self::places(instance).into_iter().all(|(word, bit)| {
            self.0
                .get(word)
                .is_some_and(|word| word.load(Ordering::Relaxed) & bit != 0)
        })
    }

    fn insert(&self, instance: u64) {
        for (word, bit) in Self::places(instance) {
            if let Some(word) = self.0.get(word)
                && word.load(Ordering::Relaxed) & bit == 0
            {
                word.fetch_or(bit, Ordering::Relaxed);
            }
        }
    }

    /// Adds another filter; returns how many bits are set then.
    fn add(&self, other: &Self) -> u32 {
        let mut ones = 0;
        for (word, other) in self.0.iter().zip(&other.0) {
            let other = other.load(Ordering::Relaxed);
            ones += (word.fetch_or(other, Ordering::Relaxed) | other).count_ones();
        }
        ones
    }

    fn replace(&self, other: &Self) {
        for (word, other) in self.0.iter().zip(&other.0) {
            word.store(other.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    fn clear(&self) {
        for word in &self.0 {
            word.store(0, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traffic::Random;

    #[test]
    fn who_came_with_a_flood_never_becomes_known() {
        let familiar = Familiar::default();
        familiar.meet(1, || false);
        familiar.settle();
        familiar.settle();
        assert!(familiar.contains(1));
        familiar.meet(2, || false);
        familiar.settle();
        familiar.discard();
        familiar.settle();
        familiar.settle();
        assert!(!familiar.contains(2));
        familiar.meet(3, || true);
        familiar.settle();
        familiar.settle();
        assert!(!familiar.contains(3));
    }

    #[test]
    fn strangers_are_taken_for_known_as_rarely_as_documented() {
        let familiar = Familiar::default();
        let mut random = Random::from_seed(9);
        for _ in 0..300_000 {
            familiar.meet(random.bits(), || false);
        }
        familiar.settle();
        familiar.settle();
        let wrong = (0..200_000)
            .filter(|_| familiar.contains(random.bits()))
            .count();
        assert!(wrong < 200_000 / 1000, "{wrong} of 200000");
    }
}
