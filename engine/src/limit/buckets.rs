//! Where the buckets of one limit live: a table of fixed size, and behind it a memory of what was
//! pushed out. Knows nothing of rates; a bucket is the instant at which it is full again.
//!
//! # Memory
//!
//! A set is 7 places of 16 B and a lock, 128 B: two cache lines, 18.3 B a key. The default of 500,000
//! keys is 71,428 sets = 8.7 MiB. Sets come in segments of 1,024 (128 KiB), each allocated when its
//! first key arrives; the memory of pushed-out keys is 1 MiB, allocated at the first that must be
//! remembered. A limit with no traffic costs 24 B a segment.
//!
//! # Accuracy
//!
//! A key has its place in one set only. When the seven are taken, the fullest bucket gives way: the
//! one that loses least. If it was full, nothing is lost. If not, the instant at which it would be
//! full is remembered in two rows of 65,536 cells, each cell keeping the latest; a key without a
//! place starts from the earlier of its two cells. So
//! - a key that was pushed out never comes back with more than it left with;
//! - a key that was never seen may start with less than a full bucket, if *both* its cells were
//!   raised by others: with `n` keys remembered and not yet full, with a chance of
//!   (1 − e^(−n/65,536))², which is 2 % at 10,000 and 0.02 % at 1,000.
//!
//! Keys spread over the sets unevenly: with live keys for half the table 1 key in 85 finds its set
//! taken, with live keys for 80 % of it 1 in 13 (the tail of a Poisson distribution). An operator
//! who needs exactness gives `keys_max` twice the keys that are live at once.
//!
//! # What an attacker can do at worst
//!
//! Someone with more addresses than the table has places can fill it with spent buckets, and after
//! that the cells: a stranger then starts about as empty as the *least* spent bucket of the
//! attacker's in the stranger's set was. To lock strangers out for one interval he must spend the
//! whole burst of every key of his, more than 500,000 of them, and again for every window: then the
//! limit as a whole is under a load of `keys_max` × rate, and it is for the detector to say who that
//! is. He cannot lock anybody out for longer than one window, cannot choose whom, and never gains a
//! request by it.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use governor::nanos::Nanos;
use governor::state::StateStore;
use parking_lot::Mutex;

/// Places in a set: 7 × 16 B + the lock fit two cache lines.
const PLACES: usize = 7;

/// Sets in a segment: 1,024 × 128 B = 128 KiB.
const SEGMENT_SETS: usize = 1024;

/// Cells in a row of the memory: 2 rows × 65,536 × 8 B = 1 MiB.
const CELLS: usize = 1 << 16;

/// One look at a bucket.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Visit {
    pub(super) key: u64,
    pub(super) now_nanos: u64,
    pub(super) purpose: Purpose,
}

/// Whether what was measured is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Purpose {
    /// Kept.
    Spend,
    /// Not kept.
    Peek,
}

/// The buckets of one limit, by key.
#[derive(Debug)]
pub(super) struct Buckets {
    segments: Box<[OnceLock<Box<[Set]>>]>,
    sets: usize,
    /// Places used in a set; fewer than [`PLACES`] only where the whole table has fewer.
    places: usize,
    taken: AtomicUsize,
    /// `None`: what is pushed out is forgotten.
    pushed_out: Option<PushedOut>,
}

/// One set; aligned so that no two share a cache line.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Set(Mutex<[Place; PLACES]>);

/// One bucket. `full_at == 0` is a free place: a full bucket needs none.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    key: u64,
    full_at: u64,
}

impl Buckets {
    /// Makes a table of at most `keys_max` places, at least one.
    pub(super) fn new(keys_max: usize) -> Self {
        Self {
            pushed_out: Some(PushedOut::default()),
            ..Self::forgetful(keys_max)
        }
    }

    /// The same without memory of what was pushed out.
    pub(super) fn forgetful(keys_max: usize) -> Self {
        // 2^32 places would be 73 GiB; segments are allocated as keys come, their list at once.
        let keys_max = keys_max.clamp(1, 1 << 32);
        let places = keys_max.min(PLACES);
        let sets = keys_max / places;
        let segments = sets.div_ceil(SEGMENT_SETS);
        Self {
            segments: (0..segments).map(|_| OnceLock::new()).collect(),
            sets,
            places,
            taken: AtomicUsize::new(0),
            pushed_out: None,
        }
    }

    /// Returns how many places are taken.
    pub(super) fn len(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    /// Returns when a key's bucket is full, in nanoseconds; `None` where nothing is known of it.
    pub(super) fn full_at(&self, key: u64) -> Option<u64> {
        let key = spread(key);
        let place = self.set_if_allocated(key).and_then(|set| {
            let places = set.0.lock();
            places.iter().find(|place| place.is_of(key)).copied()
        });
        match place {
            Some(place) => Some(place.full_at),
            None => self.remembered(key),
        }
    }

    /// Changes the bucket of a key that has a place; does nothing for others.
    pub(super) fn adjust(&self, key: u64, change: impl FnOnce(u64) -> u64) {
        let key = spread(key);
        if let Some(set) = self.set_if_allocated(key) {
            let mut places = set.0.lock();
            if let Some(place) = places.iter_mut().find(|place| place.is_of(key)) {
                place.full_at = change(place.full_at);
                if place.full_at == 0 {
                    self.taken.fetch_sub(1, Ordering::Relaxed);
                }
            }
        }
    }

    /// Makes a bucket full not before `full_at`, wherever it is kept.
    pub(super) fn raise(&self, key: u64, full_at: u64) {
        let key = spread(key);
        if let Some(set) = self.set_if_allocated(key) {
            let mut places = set.0.lock();
            if let Some(place) = places.iter_mut().find(|place| place.is_of(key)) {
                place.full_at = place.full_at.max(full_at);
                return;
            }
        }
        if let Some(memory) = &self.pushed_out {
            memory.remember(Place { key, full_at });
        }
    }

    /// Measures the bucket of `visit.key` by `measure`, which is given when it is full and answers
    /// with when it will be, and keeps that if the visit is for spending.
    fn visit<T, E>(
        &self,
        visit: &Visit,
        measure: impl FnOnce(Option<u64>) -> Result<(T, u64), E>,
    ) -> Result<T, E> {
        let key = spread(visit.key);
        let set = match visit.purpose {
            Purpose::Spend => self.set(key),
            Purpose::Peek => self.set_if_allocated(key),
        };
        let Some(set) = set else {
            return measure(self.remembered(key)).map(|(answer, _)| answer);
        };
        let mut places = set.0.lock();
        if let Some(place) = places.iter_mut().find(|place| place.is_of(key)) {
            let (answer, full_at) = measure(Some(place.full_at))?;
            if visit.purpose == Purpose::Spend {
                place.full_at = full_at;
            }
            return Ok(answer);
        }
        let (answer, full_at) = measure(self.remembered(key))?;
        if visit.purpose == Purpose::Spend {
            self.settle(&mut places, Place { key, full_at }, visit.now_nanos);
        }
        Ok(answer)
    }

    /// Gives a bucket the place of the fullest one in its set, free ones first.
    fn settle(&self, places: &mut [Place; PLACES], newcomer: Place, now_nanos: u64) {
        let in_use = places.iter_mut().take(self.places);
        let Some(place) = in_use.min_by_key(|place| place.full_at) else {
            return;
        };
        if place.full_at == 0 {
            self.taken.fetch_add(1, Ordering::Relaxed);
        } else if place.full_at > now_nanos
            && let Some(memory) = &self.pushed_out
        {
            memory.remember(*place);
        }
        *place = newcomer;
    }

    fn remembered(&self, key: u64) -> Option<u64> {
        self.pushed_out.as_ref()?.recall(key)
    }

    fn set(&self, key: u64) -> Option<&Set> {
        let at = self.set_index(key);
        let segment = self.segments.get(at / SEGMENT_SETS)?;
        let first = at - at % SEGMENT_SETS;
        let length = (self.sets - first).min(SEGMENT_SETS);
        segment
            .get_or_init(|| (0..length).map(|_| Set::default()).collect())
            .get(at % SEGMENT_SETS)
    }

    fn set_if_allocated(&self, key: u64) -> Option<&Set> {
        let at = self.set_index(key);
        let segment = self.segments.get(at / SEGMENT_SETS)?;
        segment.get()?.get(at % SEGMENT_SETS)
    }

    /// Scales the key to a set: its high bits decide, the low ones are for the memory's cells.
    fn set_index(&self, key: u64) -> usize {
        ((u128::from(key) * self.sets as u128) >> 64) as usize
    }
}

impl StateStore for &Buckets {
    type Key = Visit;

    /// Shifts between governor's numbers, which count from now, and ours, which are absolute.
    fn measure_and_replace<T, F, E>(&self, visit: &Visit, measure: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let now = visit.now_nanos;
        self.visit(visit, |full_at| {
            let until_full = full_at.map(|full_at| Nanos::new(full_at.saturating_sub(now)));
            let (answer, until_full) = measure(until_full)?;
            Ok((answer, now.saturating_add(until_full.as_u64())))
        })
    }
}

impl Place {
    fn is_of(&self, key: u64) -> bool {
        self.key == key && self.full_at != 0
    }
}

/// When the buckets that were pushed out are full again: never too early, sometimes too late.
///
/// A count-min sketch (Cormode and Muthukrishnan, 2005) of maxima instead of sums. It needs no
/// clearing: an instant that has passed says "full".
#[derive(Debug, Default)]
struct PushedOut {
    cells: OnceLock<Box<[AtomicU64]>>,
}

impl PushedOut {
    fn remember(&self, place: Place) {
        let cells = self
            .cells
            .get_or_init(|| (0..2 * CELLS).map(|_| AtomicU64::new(0)).collect());
        for at in Self::places(place.key) {
            if let Some(cell) = cells.get(at) {
                cell.fetch_max(place.full_at, Ordering::Relaxed);
            }
        }
    }

    fn recall(&self, key: u64) -> Option<u64> {
        let cells = self.cells.get()?;
        Self::places(key)
            .into_iter()
            .filter_map(|at| cells.get(at))
            .map(|cell| cell.load(Ordering::Relaxed))
            .min()
    }

    /// One cell in each row.
    fn places(key: u64) -> [usize; 2] {
        let (low, next) = (key as usize, (key >> 16) as usize);
        [low % CELLS, CELLS + next % CELLS]
    }
}

/// Spreads a key over all 64 bits, one to one (the finaliser of MurmurHash3): callers may use small
/// numbers as keys.
fn spread(key: u64) -> u64 {
    let key = (key ^ (key >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let key = (key ^ (key >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    key ^ (key >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_two_cache_lines() {
        assert_eq!(size_of::<Set>(), 128);
    }

    #[test]
    fn an_unused_table_has_allocated_no_set() {
        let buckets = Buckets::new(500_000);
        assert!(
            buckets
                .segments
                .iter()
                .all(|segment| segment.get().is_none())
        );
        assert_eq!(buckets.segments.len(), 70);
    }

    #[test]
    fn there_are_never_more_places_than_keys_max() {
        for keys_max in [1, 2, 6, 7, 8, 100, 8000] {
            let buckets = Buckets::new(keys_max);
            for key in 0..20_000 {
                let visit = Visit {
                    key,
                    now_nanos: 0,
                    purpose: Purpose::Spend,
                };
                buckets.visit(&visit, |_| Ok::<_, ()>(((), 1))).unwrap();
            }
            assert!(buckets.len() <= keys_max, "{} of {keys_max}", buckets.len());
            assert!(
                buckets.len() * 2 >= keys_max,
                "{} of {keys_max}",
                buckets.len()
            );
        }
    }
}
