//! Which sources explain what changed in a table of observed and expected counts?
//!
//! Offline, on any table: many small causes at once, rises and falls. Surges in live traffic are
//! [`crate::detect`]'s, where a cause must be a large share of the excess.
//!
//! [`noise`] fits how far leaves stray that nothing happened to; [`scorer`] turns that into evidence
//! for each leaf and a price for each source; [`lattice`] walks the sources that can pay; [`cover`]
//! chooses those that together explain most for the least; [`ripple`] makes each as exact as its leaves
//! allow; [`explain`] says why others were not named. The description with the least length wins
//! (minimum description length), so there is no threshold on what an anomaly is.

mod cover;
mod explain;
mod lattice;
mod noise;
mod normal;
mod ripple;
mod scorer;
mod table;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use noise::Noise;
pub use scorer::{Direction, LeafEvidence, Scorer};
pub use table::{
    ATTRIBUTES_MAX, COUNT_MAX, Leaves, ROWS_MAX, Table, TableBuilder, TableError, VALUES_MAX,
};

use lattice::Candidate;

/// The most refused candidates that are kept for people.
const REJECTED_MAX: usize = 16;

/// The most causes of one direction. What takes more values to describe than that is nothing that people
/// would act on: a cause outside the table, which shows in all attributes a little.
const CAUSES_MAX: usize = 8;

/// Share of everything expected from which on causes separate nothing: where nineteen of twenty changed
/// alike, the change has no source among these attributes.
const EVERYTHING_MIN: f64 = 0.95;

/// Share of everything that changed from which on a single leaf is named by itself, and the evidence in
/// nats that something happened to it (twenty to one). Its description is no shorter than the leaf, but a
/// tenth of the change in one place is what people look for.
const LEAF_SHARE_MIN: f64 = 0.1;
const LEAF_SCORE_MIN: f64 = 3.0;

/// A set of attribute values, by attribute.
pub type Literals = BTreeMap<Arc<str>, Arc<str>>;

/// A source that explains part of the change.
#[derive(Clone, Debug, PartialEq)]
pub struct Cause {
    /// The values that its leaves have in common.
    pub source: Literals,
    /// Observed count of all its leaves.
    pub observed: f64,
    /// Expected count of all its leaves.
    pub expected: f64,
    /// Share of the change that it explains: of what all affected leaves changed.
    pub coverage: f64,
    /// Share of everything expected that it holds.
    pub collateral: f64,
    /// How much shorter it makes the description of the table, in nats.
    pub gain: f64,
}

/// A source that was considered and refused.
#[derive(Clone, Debug, PartialEq)]
pub struct Rejected {
    /// The values that its leaves have in common; none for everything alike.
    pub source: Literals,
    /// Why not.
    pub why: String,
}

/// What was found in a table.
#[derive(Clone, Debug, PartialEq)]
pub struct Diagnosis {
    /// The causes, most important first. None: not localisable.
    pub causes: Vec<Cause>,
    /// What else was considered.
    pub rejected: Vec<Rejected>,
    /// What strays without a cause.
    pub noise: Noise,
}

impl Diagnosis {
    /// Returns whether sources explain the change.
    pub fn is_localisable(&self) -> bool {
        !self.causes.is_empty()
    }
}

/// Finds the sources that explain what changed in a table.
pub fn diagnose(table: &Table) -> Diagnosis {
    let leaves = table.leaves();
    let noise = Noise::fit(leaves);
    let mut found = Diagnosis {
        causes: Vec::new(),
        rejected: Vec::new(),
        noise,
    };
    let sides =
        [Direction::Rise, Direction::Fall].map(|direction| Side::search(leaves, noise, direction));
    for side in &sides {
        side.tell(table, &mut found);
    }
    let change = |cause: &Cause| (cause.observed - cause.expected).abs();
    found.causes.sort_by(|a, b| change(b).total_cmp(&change(a)));
    if found.causes.is_empty() {
        explain::what_was_looked_at(table, &mut found);
    }
    for name in table.overflowing() {
        found.rejected.push(Rejected {
            source: Literals::from([(Arc::clone(name), Arc::from("*"))]),
            why: format!("more than {VALUES_MAX} values: those that came last are not told apart"),
        });
    }
    found.rejected.truncate(REJECTED_MAX);
    found
}

/// What was found in one direction.
struct Side {
    scores: Vec<f64>,
    candidates: Vec<Candidate>,
    chosen: Vec<usize>,
}

impl Side {
    fn search(leaves: &Leaves, noise: Noise, direction: Direction) -> Self {
        let evidence = LeafEvidence::new(leaves, noise, direction);
        let scores: Vec<f64> = leaves
            .counts()
            .map(|(observed, expected)| evidence.score(observed, expected))
            .collect();
        let mut candidates = lattice::candidates(leaves, &scores, &evidence);
        // Of equals the more general is taken.
        candidates.sort_by_key(|candidate| candidate.attributes.len());
        let chosen = cover::choose(&candidates, &scores);
        let chosen = ripple::refine(leaves, noise, &candidates, chosen);
        let mut side = Self {
            scores,
            candidates,
            chosen,
        };
        side.add_heavy_leaves(leaves);
        side
    }

    /// Names leaves that no source explains and that hold a good part of the change by themselves.
    fn add_heavy_leaves(&mut self, leaves: &Leaves) {
        let change = |(observed, expected): (f64, f64)| (observed - expected).abs();
        let least = LEAF_SHARE_MIN * leaves.counts().map(change).sum::<f64>();
        let mut covered = vec![false; leaves.len()];
        let chosen = self.chosen.iter().filter_map(|at| self.candidates.get(*at));
        for leaf in chosen.flat_map(|cause| &cause.leaves) {
            if let Some(covered) = covered.get_mut(*leaf as usize) {
                *covered = true;
            }
        }
        let counts = leaves.counts().zip(&self.scores).zip(covered);
        for (leaf, ((counts, score), covered)) in (0_u32..).zip(counts) {
            if !covered && *score >= LEAF_SCORE_MIN && change(counts) >= least {
                self.chosen.push(self.candidates.len());
                self.candidates.push(Candidate {
                    attributes: (0..leaves.codes.len()).collect(),
                    leaves: vec![leaf],
                    score: *score,
                    price: 0.0,
                });
            }
        }
    }

    fn tell(&self, table: &Table, found: &mut Diagnosis) {
        let leaves = table.leaves();
        let chosen = || self.chosen.iter().filter_map(|at| self.candidates.get(*at));
        let everything: f64 = leaves.expected.iter().sum();
        let mut covered: Vec<u32> = chosen().flat_map(|cause| cause.leaves.clone()).collect();
        covered.sort_unstable();
        covered.dedup();
        let expected: f64 = covered.iter().map(|leaf| leaves.count(*leaf).1).sum();
        if everything > 0.0 && expected >= EVERYTHING_MIN * everything {
            let share = 100.0 * expected / everything;
            found.rejected.push(Rejected {
                source: Literals::new(),
                why: format!(
                    "{share:.1} % of what was expected changed alike: no value tells it from the rest"
                ),
            });
            return;
        }
        if self.chosen.len() > CAUSES_MAX {
            found.rejected.push(Rejected {
                source: Literals::new(),
                why: format!(
                    "it would take more than {CAUSES_MAX} sources to describe the change: its cause \
                     is no value of these attributes"
                ),
            });
            return;
        }
        let change = |leaf: u32| {
            let (observed, expected) = leaves.count(leaf);
            (observed - expected).abs()
        };
        let changed: f64 = (0_u32..)
            .zip(&self.scores)
            .filter(|(_, score)| **score > 0.0)
            .map(|(leaf, _)| change(leaf))
            .sum();
        for cause in chosen() {
            let Some(source) = literals(table, cause) else {
                continue;
            };
            let (mut observed, mut expected) = (0.0, 0.0);
            for leaf in &cause.leaves {
                let (o, e) = leaves.count(*leaf);
                observed += o;
                expected += e;
            }
            found.causes.push(Cause {
                source,
                observed,
                expected,
                coverage: ((observed - expected).abs() / changed.max(f64::MIN_POSITIVE)).min(1.0),
                collateral: (expected / everything.max(f64::MIN_POSITIVE)).min(1.0),
                gain: cause.gain(),
            });
            explain::wider(table, cause, &self.scores, found);
        }
    }
}

/// Returns the source of a candidate; `None` where a value has no name.
fn literals(table: &Table, candidate: &Candidate) -> Option<Literals> {
    let first = *candidate.leaves.first()?;
    candidate
        .attributes
        .iter()
        .map(|attribute| {
            let code = table.leaves().code(*attribute, first);
            Some((table.name(*attribute), table.value(*attribute, code)?))
        })
        .collect()
}
