//! Which flow takes the most of the queue. Knows nothing of who waits.

use std::cmp::Reverse;

/// How much a flow takes, and on a tie whose oldest waiter came first.
pub(super) type Weight = (u128, Reverse<u64>);

/// Stands for a flow that is not in the heap.
const OUTSIDE: u32 = u32::MAX;

/// A binary heap of flows, the heaviest on top, that knows where each of them is: to change a weight
/// costs O(log flows), eight steps among 256.
#[derive(Debug, Default)]
pub(super) struct Longest {
    heap: Vec<(Weight, u32)>,
    /// Where each flow is in the heap.
    at: Vec<u32>,
}

impl Longest {
    /// Returns the heaviest flow with its weight.
    pub(super) fn top(&self) -> Option<(Weight, u32)> {
        self.heap.first().copied()
    }

    /// Returns all flows that have one.
    pub(super) fn flows(&self) -> Vec<u32> {
        self.heap.iter().map(|(_, flow)| *flow).collect()
    }

    /// Gives a flow its weight, whether it had one or not.
    pub(super) fn set(&mut self, flow: u32, weight: Weight) {
        let index = flow as usize;
        if index >= self.at.len() {
            self.at.resize(index + 1, OUTSIDE);
        }
        let at = self.place_of(flow);
        if at.is_none() {
            self.heap.push((weight, flow));
        }
        self.settle(at.unwrap_or(self.heap.len() - 1), (weight, flow));
    }

    /// Takes a flow out.
    pub(super) fn remove(&mut self, flow: u32) {
        let Some(at) = self.place_of(flow) else {
            return;
        };
        if let Some(place) = self.at.get_mut(flow as usize) {
            *place = OUTSIDE;
        }
        if let Some(last) = self.heap.pop()
            && at < self.heap.len()
        {
            self.settle(at, last);
        }
    }

    fn place_of(&self, flow: u32) -> Option<usize> {
        let at = *self.at.get(flow as usize)?;
        (at != OUTSIDE).then_some(at as usize)
    }

    /// Finds the place of an entry that begins its way at the gap `at`, up or down.
    fn settle(&mut self, mut at: usize, entry: (Weight, u32)) {
        while at > 0
            && let Some(parent) = self.heap.get((at - 1) / 2).copied()
            && parent.0 < entry.0
        {
            self.put(at, parent);
            at = (at - 1) / 2;
        }
        while let Some(child) = self.heavier_child(at)
            && let Some(below) = self.heap.get(child).copied()
            && below.0 > entry.0
        {
            self.put(at, below);
            at = child;
        }
        self.put(at, entry);
    }

    fn heavier_child(&self, at: usize) -> Option<usize> {
        let left = self.heap.get(2 * at + 1)?;
        let right = self.heap.get(2 * at + 2);
        let is_right = right.is_some_and(|right| right.0 > left.0);
        Some(2 * at + 1 + usize::from(is_right))
    }

    fn put(&mut self, at: usize, entry: (Weight, u32)) {
        if let Some(place) = self.heap.get_mut(at) {
            *place = entry;
        }
        if let Some(place) = self.at.get_mut(entry.1 as usize) {
            *place = at as u32;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_top_is_the_heaviest_of_all(
            changes in prop::collection::vec((0_u32..20, prop::option::of((0_u128..9, 0_u64..4))), 0..200)
        ) {
            let mut longest = Longest::default();
            let mut all = BTreeMap::new();
            for (flow, change) in changes {
                if let Some((share, oldest)) = change {
                    longest.set(flow, (share, Reverse(oldest)));
                    all.insert(flow, (share, Reverse(oldest)));
                } else {
                    longest.remove(flow);
                    all.remove(&flow);
                }
                let heaviest = all.values().max().copied();
                prop_assert_eq!(longest.top().map(|(weight, _)| weight), heaviest);
                if let Some((weight, flow)) = longest.top() {
                    prop_assert_eq!(all.get(&flow), Some(&weight));
                }
                prop_assert_eq!(longest.heap.len(), all.len());
            }
        }
    }
}
