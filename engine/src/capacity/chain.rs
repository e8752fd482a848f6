//! Doubly linked lists of small numbers: the places in somebody else's table. Knows nothing of what is
//! kept there.

/// Stands for no place at all.
const NOWHERE: u32 = u32::MAX;

/// The two neighbours of a place.
#[derive(Clone, Copy, Debug)]
struct Link {
    before: u32,
    after: u32,
}

/// One list: its two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chain {
    first: u32,
    last: u32,
}

impl Chain {
    /// A list of nothing.
    pub(super) const EMPTY: Self = Self {
        first: NOWHERE,
        last: NOWHERE,
    };

    /// Returns the place that was put in first.
    pub(super) fn first(self) -> Option<u32> {
        (self.first != NOWHERE).then_some(self.first)
    }

    /// Returns the place that was put in last.
    pub(super) fn last(self) -> Option<u32> {
        (self.last != NOWHERE).then_some(self.last)
    }
}

/// The links of all places: 8 B each. A place is in one list at a time; several lists may share the
/// links as long as that holds. Every step is O(1).
#[derive(Debug, Default)]
pub(super) struct Links(Vec<Link>);

impl Links {
    /// Puts a place at the end of a list. It must be in none.
    pub(super) fn append(&mut self, chain: &mut Chain, at: u32) {
        let link = Link {
            before: chain.last,
            after: NOWHERE,
        };
        let index = at as usize;
        if index >= self.0.len() {
            self.0.resize(index + 1, link);
        }
        if let Some(own) = self.0.get_mut(index) {
            *own = link;
        }
        match self.0.get_mut(chain.last as usize) {
            Some(last) if chain.last != NOWHERE => last.after = at,
            _ => chain.first = at,
        }
        chain.last = at;
    }

    /// Takes a place out of the list that it is in.
    pub(super) fn unlink(&mut self, chain: &mut Chain, at: u32) {
        let Some(Link { before, after }) = self.0.get(at as usize).copied() else {
            return;
        };
        match self.0.get_mut(before as usize) {
            Some(link) if before != NOWHERE => link.after = after,
            _ => chain.first = after,
        }
        match self.0.get_mut(after as usize) {
            Some(link) if after != NOWHERE => link.before = before,
            _ => chain.last = before,
        }
    }

    /// Returns the place behind this one in its list.
    pub(super) fn after(&self, at: u32) -> Option<u32> {
        let link = self.0.get(at as usize)?;
        (link.after != NOWHERE).then_some(link.after)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    fn walk(links: &Links, chain: Chain) -> Vec<u32> {
        std::iter::successors(chain.first(), |at| links.after(*at)).collect()
    }

    proptest! {
        /// Two lists over the same links; a place that is in one of them moves to the end of the other.
        #[test]
        fn lists_are_what_deques_are(moves in prop::collection::vec((0_u32..12, any::<bool>()), 0..80)) {
            let mut links = Links::default();
            let mut chains = [Chain::EMPTY; 2];
            let mut deques = [const { VecDeque::new() }; 2];
            for (at, to) in moves {
                for (chain, deque) in chains.iter_mut().zip(&mut deques) {
                    if let Some(found) = deque.iter().position(|other| *other == at) {
                        deque.remove(found);
                        links.unlink(chain, at);
                    }
                }
                deques[usize::from(to)].push_back(at);
                links.append(&mut chains[usize::from(to)], at);
                for (chain, deque) in chains.iter().zip(&deques) {
                    prop_assert_eq!(deque, &walk(&links, *chain));
                    prop_assert_eq!(chain.last(), deque.back().copied());
                }
            }
        }
    }
}
