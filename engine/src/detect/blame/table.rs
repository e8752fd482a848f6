//! Observed and expected requests per second of each combination: what blame works on.

use std::collections::BTreeMap;

use ahash::{AHashMap, AHashSet};

use crate::detect::pattern::{ABSENT, OTHER, Pattern};
use crate::traffic::LeafKey;

/// One combination.
#[derive(Clone, Copy, Debug)]
pub(in crate::detect) struct Row {
    pub(in crate::detect) key: LeafKey,
    /// Requests per second.
    pub(in crate::detect) observed: f64,
    /// Requests per second.
    pub(in crate::detect) expected: f64,
}

/// What several rows come to.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::detect) struct Sums {
    pub(in crate::detect) observed: f64,
    pub(in crate::detect) expected: f64,
}

impl Sums {
    pub(in crate::detect) fn excess(&self) -> f64 {
        self.observed - self.expected
    }

    /// Returns how many times what was expected came.
    pub(super) fn rise(&self) -> f64 {
        self.observed / self.expected.max(f64::MIN_POSITIVE)
    }

    pub(super) fn utility(&self, lambda: f64) -> f64 {
        self.excess() - lambda * self.expected
    }

    pub(super) fn add(&mut self, row: &Row) {
        self.observed += row.observed;
        self.expected += row.expected;
    }
}

/// All combinations, observed over `seconds`.
#[derive(Debug)]
pub(in crate::detect) struct Table {
    rows: Vec<Row>,
    places: AHashMap<u64, usize>,
    everybody: Sums,
    pub(in crate::detect) seconds: f64,
}

impl Table {
    /// Makes an empty table with room for `rows`: growing would leave up to as much again unused.
    pub(in crate::detect) fn new(seconds: f64, rows: usize) -> Self {
        Self {
            rows: Vec::with_capacity(rows),
            places: AHashMap::with_capacity(rows),
            everybody: Sums::default(),
            seconds,
        }
    }

    /// Adds requests per second to a combination.
    pub(in crate::detect) fn add(&mut self, key: &LeafKey, observed: f64, expected: f64) {
        let next = self.rows.len();
        let at = *self.places.entry(key.tag()).or_insert(next);
        let more = Row {
            key: *key,
            observed,
            expected,
        };
        self.everybody.add(&more);
        if let Some(row) = self.rows.get_mut(at) {
            row.observed += observed;
            row.expected += expected;
        } else {
            self.rows.push(more);
        }
    }

    pub(super) fn row(&self, at: u32) -> Option<&Row> {
        self.rows.get(at as usize)
    }

    pub(super) fn rows<'a>(&'a self, at: &'a [u32]) -> impl Iterator<Item = &'a Row> {
        at.iter().filter_map(|at| self.row(*at))
    }

    pub(super) fn pick(&self, belongs: impl Fn(&Row) -> bool) -> Vec<u32> {
        (0_u32..)
            .zip(&self.rows)
            .filter(|(_, row)| belongs(row))
            .map(|(at, _)| at)
            .collect()
    }

    pub(super) fn sum(&self, rows: &[u32]) -> Sums {
        let mut sums = Sums::default();
        for row in self.rows(rows) {
            sums.add(row);
        }
        sums
    }

    pub(super) fn sum_within(&self, rows: &[u32], pattern: &Pattern) -> Sums {
        let mut sums = Sums::default();
        for row in self.rows(rows).filter(|row| pattern.matches(&row.key)) {
            sums.add(row);
        }
        sums
    }

    pub(super) fn sum_of(&self, pattern: &Pattern) -> Sums {
        let mut sums = Sums::default();
        for row in self.rows.iter().filter(|row| pattern.matches(&row.key)) {
            sums.add(row);
        }
        sums
    }

    /// Adds up all rows by the value in a column.
    pub(super) fn by_value(&self, column: usize) -> AHashMap<u32, Sums> {
        let mut values: AHashMap<u32, Sums> = AHashMap::new();
        for row in &self.rows {
            values.entry(row.key.value(column)).or_default().add(row);
        }
        values
    }

    /// The same of the rows of one source.
    pub(super) fn by_value_within(&self, column: usize, source: &Pattern) -> BTreeMap<u32, Sums> {
        let mut values: BTreeMap<u32, Sums> = BTreeMap::new();
        for row in self.rows.iter().filter(|row| source.matches(&row.key)) {
            values.entry(row.key.value(column)).or_default().add(row);
        }
        values
    }

    /// Returns the table with every value but `majors` replaced by [`OTHER`]: as many rows as there are
    /// combinations of those, mostly a few hundred. Sums of sources that name only majors are the same.
    pub(super) fn condensed(&self, majors: &Majors, columns: usize) -> Self {
        let mut condensed = Self::new(self.seconds, CONDENSED_ROWS);
        for row in &self.rows {
            let value = |column| {
                let value = row.key.value(column);
                if value == ABSENT || majors.contains(column, value) {
                    value
                } else {
                    OTHER
                }
            };
            let key = LeafKey::of_values((0..columns).map(value));
            condensed.add(&key, row.observed, row.expected);
        }
        condensed
    }

    pub(super) fn everybody(&self) -> Sums {
        self.everybody
    }
}

/// Room for so many rows is made at once in a condensed table.
const CONDENSED_ROWS: usize = 1 << 10;

/// The most values of a column that are told apart in a condensed table.
const MAJORS_MAX: usize = 255;

/// The values, column by column, that may be part of a cause.
#[derive(Debug, Default)]
pub(super) struct Majors {
    columns: Vec<AHashSet<u32>>,
}

impl Majors {
    /// Picks the values whose rows alone have gained `least` within `rows`. No source has more excess
    /// than the rows that gain in it, nor than those of any of its values: no other can be named.
    pub(super) fn of(table: &Table, rows: &[u32], columns: usize, least: f64) -> Self {
        let mut gains: Vec<AHashMap<u32, f64>> = vec![AHashMap::new(); columns];
        for row in table.rows(rows) {
            let gain = row.observed - row.expected;
            if gain > 0.0 {
                for (column, gains) in gains.iter_mut().enumerate() {
                    *gains.entry(row.key.value(column)).or_default() += gain;
                }
            }
        }
        let major = |gains: AHashMap<u32, f64>| {
            let mut major: Vec<(u32, f64)> = gains
                .into_iter()
                .filter(|(_, gain)| *gain >= least)
                .collect();
            major.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            major.truncate(MAJORS_MAX);
            major.into_iter().map(|(value, _)| value).collect()
        };
        Self {
            columns: gains.into_iter().map(major).collect(),
        }
    }

    /// Adds the values of a source, so that it can be told from others.
    pub(super) fn add(&mut self, source: &Pattern) {
        for literal in source.literals() {
            if let Some(column) = self.columns.get_mut(literal.column) {
                column.insert(literal.value);
            }
        }
    }

    fn contains(&self, column: usize, value: u32) -> bool {
        self.columns
            .get(column)
            .is_some_and(|values| values.contains(&value))
    }
}
