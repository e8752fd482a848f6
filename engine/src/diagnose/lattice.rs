//! Finds the sources whose leaves speak for them: a walk through all conjunctions of up to
//! [`DEPTH_MAX`] attributes, each set of attributes (cuboid) once, from general to specific.
//!
//! Branch and bound: nothing inside a source can score more than its positive leaves come to, so a
//! source whose positive leaves do not pay its price is not looked into, and leaves outside such
//! sources are not touched again. Where every leaf speaks for a source, nothing inside it is better.

use super::scorer::Scorer;
use super::table::{Leaves, Numbering};

/// The most attributes of a source: more than four name a handful of leaves and no cause.
pub(super) const DEPTH_MAX: usize = 4;

/// The most places in the lists of leaves of all candidates: 32 Mi × 2 lists × 4 B = 256 MiB. When it
/// is full, the weaker half of the candidates goes.
const MEMBERSHIPS_MAX: usize = 1 << 25;

/// What a source must gain, in nats: the fit of the noise moves sums of evidence by as much.
const GAIN_MIN: f64 = 1.0;

/// A source that its leaves speak for.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    /// The attributes it names, ascending.
    pub(super) attributes: Vec<usize>,
    /// Its leaves, ascending.
    pub(super) leaves: Vec<u32>,
    /// What its leaves score, all together.
    pub(super) score: f64,
    /// What naming it costs.
    pub(super) price: f64,
}

impl Candidate {
    pub(super) fn gain(&self) -> f64 {
        self.score - self.price
    }
}

/// The leaves inside sources of one cuboid that may hold better ones.
struct Node {
    attributes: Vec<usize>,
    members: Vec<u32>,
    /// For each member, which source it is in.
    groups: Vec<u32>,
    count: usize,
}

#[derive(Clone, Copy, Default)]
struct Sum {
    score: f64,
    positive: f64,
    leaves: u32,
}

/// Returns every source that scores more than its price. `scores` has one number a leaf.
pub(super) fn candidates(leaves: &Leaves, scores: &[f64], judge: &impl Scorer) -> Vec<Candidate> {
    let members: Vec<u32> = (0_u32..)
        .zip(scores)
        .filter(|(_, score)| **score != 0.0)
        .map(|(leaf, _)| leaf)
        .collect();
    let mut walk = Walk {
        leaves,
        scores,
        judge,
        found: Vec::new(),
        memberships: 0,
    };
    let everybody = Node {
        attributes: Vec::new(),
        groups: vec![0; members.len()],
        members,
        count: 1,
    };
    walk.descend(&everybody);
    walk.found
}

struct Walk<'a, S> {
    leaves: &'a Leaves,
    scores: &'a [f64],
    judge: &'a S,
    found: Vec<Candidate>,
    memberships: usize,
}

impl<S: Scorer> Walk<'_, S> {
    fn score(&self, leaf: u32) -> f64 {
        self.scores.get(leaf as usize).copied().unwrap_or_default()
    }

    fn descend(&mut self, node: &Node) {
        if node.attributes.len() >= DEPTH_MAX {
            return;
        }
        let next = node.attributes.last().map_or(0, |last| last + 1);
        for attribute in next..self.leaves.codes.len() {
            if let Some(child) = self.split(node, attribute) {
                self.descend(&child);
            }
        }
    }

    /// Splits the sources of a node by one more attribute, keeps those that pay, and returns those
    /// worth looking into.
    fn split(&mut self, node: &Node, attribute: usize) -> Option<Node> {
        let codes = self.leaves.codes.get(attribute)?;
        let cardinality = *self.leaves.cardinality.get(attribute)?;
        let mut attributes = node.attributes.clone();
        attributes.push(attribute);
        let cardinalities: Vec<usize> = attributes
            .iter()
            .filter_map(|at| self.leaves.cardinality.get(*at).copied())
            .collect();
        let price = self.judge.price(&cardinalities);

        let mut numbering = Numbering::new(node.count, cardinality, node.members.len());
        let mut sums: Vec<Sum> = Vec::new();
        let mut groups: Vec<u32> = Vec::with_capacity(node.members.len());
        for (leaf, group) in node.members.iter().zip(&node.groups) {
            let code = codes.get(*leaf as usize).copied().unwrap_or_default();
            let number = numbering.number(*group, code);
            if number as usize >= sums.len() {
                sums.push(Sum::default());
            }
            if let Some(sum) = sums.get_mut(number as usize) {
                let score = self.score(*leaf);
                sum.score += score;
                sum.positive += score.max(0.0);
                sum.leaves += 1;
            }
            groups.push(number);
        }

        let mut pays: Vec<Option<Candidate>> = Vec::with_capacity(sums.len());
        let mut inside: Vec<Option<u32>> = Vec::with_capacity(sums.len());
        let mut count = 0;
        for sum in &sums {
            pays.push((sum.score > price + GAIN_MIN).then(|| Candidate {
                attributes: attributes.clone(),
                leaves: Vec::with_capacity(sum.leaves as usize),
                score: sum.score,
                price,
            }));
            let open = sum.positive > price && sum.positive > sum.score && sum.leaves > 1;
            inside.push(open.then(|| {
                count += 1;
                count - 1
            }));
        }
        let mut child = Node {
            attributes,
            members: Vec::new(),
            groups: Vec::new(),
            count: count as usize,
        };
        for (leaf, group) in node.members.iter().zip(&groups) {
            let at = *group as usize;
            if let Some(Some(candidate)) = pays.get_mut(at) {
                candidate.leaves.push(*leaf);
            }
            if let Some(Some(group)) = inside.get(at) {
                child.members.push(*leaf);
                child.groups.push(*group);
            }
        }
        for candidate in pays.into_iter().flatten() {
            self.add(candidate);
        }
        (count > 0).then_some(child)
    }

    fn add(&mut self, candidate: Candidate) {
        self.memberships += candidate.leaves.len();
        self.found.push(candidate);
        if self.memberships > MEMBERSHIPS_MAX {
            self.found.sort_by(|a, b| b.gain().total_cmp(&a.gain()));
            self.found.truncate(self.found.len() / 2);
            self.memberships = self.found.iter().map(|kept| kept.leaves.len()).sum();
        }
    }
}
