//! Who is met most often, in bounded memory. Knows nothing of what a source is.
//!
//! # Accuracy
//!
//! Exact while there are no more than twice `places` sources. Beyond that each count is too low by at
//! most [`Frequent::short_by`], which is at most the number of all requests counted divided by
//! `places`: every time that the table is full, the median is taken off all counts, and at least half
//! of the sources, those with no more than that, are dropped (Misra and Gries 1982; with the median,
//! Anderson et al. 2017, "A High-Performance Algorithm for Identifying Frequent Items in Data
//! Streams"). What is shown never depends on the order in which the map is walked.

use std::collections::HashMap;

use ahash::RandomState;

/// The sources that were met most often.
#[derive(Debug)]
pub(super) struct Frequent {
    places: usize,
    counted: HashMap<u64, Counted, RandomState>,
    total: u64,
    short_by: u64,
}

/// One source.
#[derive(Clone, Debug)]
struct Counted {
    name: Box<str>,
    requests: u64,
}

impl Frequent {
    /// Makes room for twice `places` sources, when they come.
    pub(super) fn new(places: usize) -> Self {
        Self {
            places: places.max(1),
            counted: HashMap::default(),
            total: 0,
            short_by: 0,
        }
    }

    /// Counts a request of the source of this hash; it is named when it is new.
    pub(super) fn add(&mut self, hash: u64, name: impl FnOnce() -> Box<str>) {
        self.total += 1;
        if let Some(counted) = self.counted.get_mut(&hash) {
            counted.requests += 1;
            return;
        }
        if self.counted.len() >= 2 * self.places {
            self.thin_out();
        }
        let (name, requests) = (name(), 1);
        self.counted.insert(hash, Counted { name, requests });
    }

    fn thin_out(&mut self) {
        let mut counts: Vec<u64> = self.counted.values().map(|one| one.requests).collect();
        let middle = counts.len() / 2;
        let (_, median, _) = counts.select_nth_unstable(middle);
        let median = *median;
        self.short_by += median;
        self.counted.retain(|_, one| {
            one.requests = one.requests.saturating_sub(median);
            one.requests > 0
        });
    }

    /// Returns the most frequent sources, most frequent first, and the requests of all others.
    pub(super) fn top(&self, most: usize) -> (Vec<(&str, u64)>, u64) {
        let mut top: Vec<(&str, u64)> = self
            .counted
            .values()
            .map(|one| (&*one.name, one.requests))
            .collect();
        top.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(b.0)));
        top.truncate(most.min(self.places));
        let shown: u64 = top.iter().map(|(_, requests)| requests).sum();
        (top, self.total.saturating_sub(shown))
    }

    /// Returns by how much a count may be too low; 0 where all are exact.
    pub(super) fn short_by(&self) -> u64 {
        self.short_by
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Beside a table that keeps everything.
        #[test]
        fn counts_are_low_by_no_more_than_is_said(sources in proptest::collection::vec(0..60_u64, 0..2000), places in 1..40_usize) {
            let mut frequent = Frequent::new(places);
            let mut all: BTreeMap<String, u64> = BTreeMap::new();
            for source in &sources {
                let source = source * source / 60;
                frequent.add(source, || source.to_string().into());
                *all.entry(source.to_string()).or_default() += 1;
            }
            let short_by = frequent.short_by();
            prop_assert!(short_by <= sources.len() as u64 / places as u64);
            prop_assert!(frequent.counted.len() <= 2 * places);
            let (top, other) = frequent.top(usize::MAX);
            for (name, requests) in &top {
                let truth = all[*name];
                prop_assert!(*requests <= truth && truth <= requests + short_by);
            }
            let shown: u64 = top.iter().map(|(_, requests)| requests).sum();
            prop_assert_eq!(shown + other, sources.len() as u64);
        }
    }
}
