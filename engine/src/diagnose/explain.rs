//! Why other sources were not named. Decides nothing.

use super::lattice::Candidate;
use super::table::{Leaves, Table};
use super::{Diagnosis, Literals, REJECTED_MAX, Rejected};

/// Values of one attribute that are told where nothing is localisable.
const LOOKED_AT: usize = 4;

/// Tells what is wrong with each source that names one value less than a cause.
pub(super) fn wider(table: &Table, cause: &Candidate, scores: &[f64], found: &mut Diagnosis) {
    let leaves = table.leaves();
    let Some(first) = cause.leaves.first().copied() else {
        return;
    };
    for without in &cause.attributes {
        let named: Vec<(usize, u32)> = cause
            .attributes
            .iter()
            .filter(|attribute| *attribute != without)
            .map(|attribute| (*attribute, leaves.code(*attribute, first)))
            .collect();
        if named.is_empty() || found.rejected.len() >= REJECTED_MAX {
            continue;
        }
        let Some(source) = named
            .iter()
            .map(|(attribute, code)| {
                Some((table.name(*attribute), table.value(*attribute, *code)?))
            })
            .collect::<Option<Literals>>()
        else {
            continue;
        };
        if found.rejected.iter().any(|known| known.source == source) {
            continue;
        }
        let (mut all, mut affected) = (0_u32, 0_u32);
        for (leaf, score) in (0_u32..).zip(scores) {
            if named
                .iter()
                .all(|(attribute, code)| leaves.code(*attribute, leaf) == *code)
            {
                all += 1;
                affected += u32::from(*score > 0.0);
            }
        }
        found.rejected.push(Rejected {
            source,
            why: format!(
                "more general than a cause: {affected} of its {all} leaves changed with it"
            ),
        });
    }
}

/// Tells of the values that changed most where no source explains anything.
pub(super) fn what_was_looked_at(table: &Table, found: &mut Diagnosis) {
    let leaves = table.leaves();
    let mut values: Vec<(f64, f64, usize, u32)> = Vec::new();
    for (attribute, codes) in leaves.codes.iter().enumerate() {
        values.extend(changes(leaves, attribute, codes));
    }
    values.sort_by(|a, b| {
        let change = |value: &(f64, f64, usize, u32)| (value.0 - value.1).abs();
        change(b)
            .total_cmp(&change(a))
            .then((a.2, a.3).cmp(&(b.2, b.3)))
    });
    let percent = 100.0 * found.noise.spread;
    for (observed, expected, attribute, code) in values.into_iter().take(LOOKED_AT) {
        let Some(value) = table.value(attribute, code) else {
            continue;
        };
        found.rejected.push(Rejected {
            source: Literals::from([(table.name(attribute), value)]),
            why: format!(
                "observed {observed:.0}, expected {expected:.0}, but its leaves stray no further \
                 than those of others do ({percent:.1} %), or too few of them do"
            ),
        });
    }
}

fn changes(leaves: &Leaves, attribute: usize, codes: &[u32]) -> Vec<(f64, f64, usize, u32)> {
    let count = leaves
        .cardinality
        .get(attribute)
        .copied()
        .unwrap_or_default();
    let mut sums = vec![(0.0, 0.0); count];
    for (code, (observed, expected)) in codes.iter().zip(leaves.counts()) {
        if let Some(sum) = sums.get_mut(*code as usize) {
            sum.0 += observed;
            sum.1 += expected;
        }
    }
    (0_u32..)
        .zip(sums)
        .map(|(code, (observed, expected))| (observed, expected, attribute, code))
        .collect()
}
