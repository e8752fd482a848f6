//! Finds the conjunction with the highest utility: excess − λ·expected.
//!
//! Utility adds up over rows, so no narrower source can have more than the sum of the rows that gain:
//! a branch whose bound is below the best found is cut (branch and bound over weighted relative
//! accuracy, Lavrač et al. 1999). A beam bounds the work where that does not suffice.

use std::collections::BTreeSet;

use ahash::AHashMap;

use super::table::{Sums, Table};
use super::{COVERAGE_MIN, is_who};
use crate::attribute::Side;
use crate::detect::pattern::{ABSENT, Literal, OTHER, Pattern};
use crate::traffic::{Column, Columns};

/// The most attributes of a conjunction.
const DEPTH_MAX: usize = 4;

/// The most candidates extended at each depth, and the most row numbers that they have together: two
/// depths × 262,144 × 4 B = 2 MiB. The best is extended in any case.
const BEAM: usize = 8;
const BEAM_ROWS_MAX: usize = 1 << 18;

/// What one more attribute must bring, as a share of the surge; what describes the request more than
/// what describes the client, so that the client is named where both fit.
const WHO_PRICE: f64 = 0.01;
const WHAT_PRICE: f64 = 0.02;

struct Node {
    pattern: Pattern,
    rows: Vec<u32>,
}

#[derive(Clone, Copy, Default)]
struct Sum {
    sums: Sums,
    bound: f64,
}

/// The most other candidates that are told of.
const OTHERS_MAX: usize = 6;

/// What a search came to.
#[derive(Debug, Default)]
pub(super) struct Searched {
    /// The best conjunction, or `None` where nothing is better than the root itself.
    pub(super) best: Option<Pattern>,
    /// The next best ones.
    pub(super) others: Vec<(Pattern, Sums)>,
    /// How many were considered.
    pub(super) considered: u32,
}

/// Returns the best conjunction within `root`.
pub(super) fn search(
    table: &Table,
    rows: &[u32],
    root: &Pattern,
    lambda: f64,
    columns: &Columns,
) -> Searched {
    let surge = table.sum(rows);
    let price = |pattern: &Pattern| {
        let share: f64 = pattern
            .literals()
            .iter()
            .filter(|literal| !root.names_column(literal.column))
            .map(|literal| {
                if is_who(columns, literal.column) && literal.value != ABSENT {
                    WHO_PRICE
                } else {
                    WHAT_PRICE
                }
            })
            .sum();
        share * surge.excess()
    };
    let mut best = (surge.utility(lambda).max(0.0), None);
    let mut beam = vec![Node {
        pattern: root.clone(),
        rows: rows.to_vec(),
    }];
    let mut met = BTreeSet::new();
    let mut others: Vec<(f64, Pattern, Sums)> = Vec::new();
    for _ in 0..DEPTH_MAX {
        let mut candidates: Vec<(f64, Pattern, usize, Literal)> = Vec::new();
        for (parent, node) in beam.iter().enumerate() {
            for column in (0..columns.len()).filter(|at| !node.pattern.names_column(*at)) {
                for (value, sum) in split(table, &node.rows, column, lambda) {
                    let literal = Literal { column, value };
                    if !may_be_named(literal, columns)
                        || sum.sums.excess() < COVERAGE_MIN * surge.excess()
                    {
                        continue;
                    }
                    let pattern = node.pattern.with(literal);
                    let price = price(&pattern);
                    if sum.bound - price <= best.0 || !met.insert(pattern.clone()) {
                        continue;
                    }
                    let score = sum.sums.utility(lambda) - price;
                    others.push((score, pattern.clone(), sum.sums));
                    candidates.push((score, pattern, parent, literal));
                }
            }
        }
        candidates.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
        if let Some((score, pattern, ..)) = candidates.first()
            && *score > best.0
        {
            best = (*score, Some(pattern.clone()));
        }
        candidates.truncate(BEAM);
        others.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
        others.truncate(OTHERS_MAX + 1);
        let mut left = BEAM_ROWS_MAX;
        beam = candidates
            .into_iter()
            .filter_map(|(_, pattern, parent, literal)| {
                let rows = beam.get(parent)?.rows.iter().copied();
                let matches =
                    |at: &u32| table.row(*at).is_some_and(|row| literal.matches(&row.key));
                Some(Node {
                    rows: rows.filter(matches).collect(),
                    pattern,
                })
            })
            .take_while(|node| {
                let fits = node.rows.len() <= left || left == BEAM_ROWS_MAX;
                left = left.saturating_sub(node.rows.len());
                fits
            })
            .collect();
        if beam.is_empty() {
            break;
        }
    }
    others.retain(|(_, pattern, _)| Some(pattern) != best.1.as_ref());
    Searched {
        best: best.1,
        others: others
            .into_iter()
            .take(OTHERS_MAX)
            .map(|(_, pattern, sums)| (pattern, sums))
            .collect(),
        considered: u32::try_from(met.len()).unwrap_or(u32::MAX),
    }
}

/// Returns whether a source may name a value. Of what nobody has to send, absence says nothing; of the
/// operator's own attributes of clients it says that this is none of his apps.
pub(super) fn may_be_named(literal: Literal, columns: &Columns) -> bool {
    let own = |column: &Column| column.own && column.side == Side::Who;
    literal.value != OTHER
        && (literal.value != ABSENT || columns.get(literal.column).is_some_and(own))
}

/// Adds up rows by the value in a column.
fn split(table: &Table, rows: &[u32], column: usize, lambda: f64) -> AHashMap<u32, Sum> {
    let mut sums: AHashMap<u32, Sum> = AHashMap::new();
    for row in table.rows(rows) {
        let sum = sums.entry(row.key.value(column)).or_default();
        sum.sums.add(row);
        let utility = row.observed - (1.0 + lambda) * row.expected;
        sum.bound += utility.max(0.0);
    }
    sums
}
