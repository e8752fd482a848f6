//! Chooses the sources that together explain a table best: the sum of the scores of the leaves that
//! they cover, each leaf once, less their prices. Weighted coverage with prices is hard in general;
//! greedy choice, then exchange: each chosen source in turn, and each pair, is taken back and the gap
//! filled anew, until nothing gets better.

use super::CAUSES_MAX;
use super::lattice::Candidate;

/// The most rounds of exchange.
const ROUNDS_MAX: usize = 8;

/// Less than this many nats is no improvement but rounding.
const EPSILON: f64 = 1e-6;

/// Returns the places of the chosen candidates: one more than [`CAUSES_MAX`] where more would pay.
pub(super) fn choose(candidates: &[Candidate], scores: &[f64]) -> Vec<usize> {
    let mut cover = Cover::new(candidates, scores);
    cover.fill(&[]);
    for _ in 0..ROUNDS_MAX {
        let singles = (0..cover.chosen.len()).map(|at| vec![at]);
        let pairs =
            (0..cover.chosen.len()).flat_map(|one| (0..one).map(move |other| vec![one, other]));
        let exchanges: Vec<Vec<usize>> = singles.chain(pairs).collect();
        let better = exchanges.into_iter().any(|places| cover.exchange(&places));
        if !better {
            break;
        }
    }
    cover.chosen
}

struct Cover<'a> {
    candidates: &'a [Candidate],
    scores: &'a [f64],
    /// For each leaf, where its candidates begin in `of_leaves`.
    begins: Vec<u32>,
    of_leaves: Vec<u32>,
    /// How many chosen sources cover each leaf.
    covered: Vec<u32>,
    /// What each candidate would add: the scores of its leaves that nothing covers.
    open: Vec<f64>,
    chosen: Vec<usize>,
    total: f64,
}

impl<'a> Cover<'a> {
    fn new(candidates: &'a [Candidate], scores: &'a [f64]) -> Self {
        let mut begins = vec![0_u32; scores.len() + 1];
        for leaf in candidates.iter().flat_map(|candidate| &candidate.leaves) {
            if let Some(count) = begins.get_mut(*leaf as usize + 1) {
                *count += 1;
            }
        }
        let mut sum = 0;
        for begin in &mut begins {
            sum += *begin;
            *begin = sum;
        }
        let mut next = begins.clone();
        let mut of_leaves = vec![0_u32; sum as usize];
        for (place, candidate) in (0_u32..).zip(candidates) {
            for leaf in &candidate.leaves {
                if let Some(at) = next.get_mut(*leaf as usize) {
                    if let Some(slot) = of_leaves.get_mut(*at as usize) {
                        *slot = place;
                    }
                    *at += 1;
                }
            }
        }
        Self {
            candidates,
            scores,
            begins,
            of_leaves,
            covered: vec![0; scores.len()],
            open: candidates.iter().map(|candidate| candidate.score).collect(),
            chosen: Vec::new(),
            total: 0.0,
        }
    }

    fn candidates_of(&self, leaf: u32) -> std::ops::Range<usize> {
        let at = |leaf: usize| self.begins.get(leaf).copied().unwrap_or_default() as usize;
        at(leaf as usize)..at(leaf as usize + 1)
    }

    fn add_open(&mut self, leaf: u32, by: f64) {
        let range = self.candidates_of(leaf);
        for place in self.of_leaves.get(range).unwrap_or_default() {
            if let Some(open) = self.open.get_mut(*place as usize) {
                *open += by;
            }
        }
    }

    fn score(&self, leaf: u32) -> f64 {
        self.scores.get(leaf as usize).copied().unwrap_or_default()
    }

    fn take(&mut self, place: usize) {
        self.cover(place, true);
        self.chosen.push(place);
    }

    fn give_back(&mut self, place: usize) {
        self.cover(place, false);
        self.chosen.retain(|chosen| *chosen != place);
    }

    /// Covers the leaves of a candidate once more, or once less. A leaf counts while it is covered.
    fn cover(&mut self, place: usize, more: bool) {
        let candidates = self.candidates;
        let Some(candidate) = candidates.get(place) else {
            return;
        };
        let sign = if more { 1.0 } else { -1.0 };
        for leaf in &candidate.leaves {
            let Some(covered) = self.covered.get_mut(*leaf as usize) else {
                continue;
            };
            let was_covered = *covered > 0;
            if more {
                *covered += 1;
            } else {
                *covered -= 1;
            }
            if (*covered > 0) != was_covered {
                let score = sign * self.score(*leaf);
                self.total += score;
                self.add_open(*leaf, -score);
            }
        }
        self.total -= sign * candidate.price;
    }

    /// Returns the candidate that would add most; of equals the first, which is the more general.
    fn best(&self, without: &[usize]) -> Option<usize> {
        let mut best: Option<(f64, usize)> = None;
        for ((place, candidate), open) in self.candidates.iter().enumerate().zip(&self.open) {
            let gain = open - candidate.price;
            let most = best.map_or(0.0, |(most, _)| most);
            if gain > most + EPSILON && !without.contains(&place) {
                best = Some((gain, place));
            }
        }
        best.map(|(_, place)| place)
    }

    /// Takes the best candidate until none adds anything.
    fn fill(&mut self, without: &[usize]) {
        while self.chosen.len() <= CAUSES_MAX {
            let Some(place) = self.best(without) else {
                break;
            };
            self.take(place);
        }
    }

    /// Takes the chosen ones at these places back and fills the gap anew, if that is better.
    fn exchange(&mut self, places: &[usize]) -> bool {
        let before = self.chosen.clone();
        let total = self.total;
        let back: Vec<usize> = places
            .iter()
            .filter_map(|at| before.get(*at).copied())
            .collect();
        for place in &back {
            self.give_back(*place);
        }
        // The same again would be the first choice: see what there is without it, then with it.
        self.fill(&back);
        self.fill(&[]);
        if self.total > total + EPSILON {
            return true;
        }
        for place in self.chosen.clone() {
            if back.contains(&place) || !before.contains(&place) {
                self.give_back(place);
            }
        }
        for place in back {
            self.take(place);
        }
        self.chosen = before;
        false
    }
}
