//! Ascending lists, merged into one.

/// Lists that are kept in place; a request that more rules' anchors hold for allocates.
/// 16 × 16 B on the stack.
const IN_PLACE: usize = 16;

/// Ascending lists of places, from which the smallest place is taken, once, however many have it.
#[derive(Debug, Default)]
pub(super) struct Lists<'m> {
    in_place: [&'m [u32]; IN_PLACE],
    used: usize,
    more: Vec<&'m [u32]>,
    last: Option<u32>,
}

impl<'m> Lists<'m> {
    /// Adds a list.
    #[inline]
    pub(super) fn push(&mut self, list: &'m [u32]) {
        if list.is_empty() {
            return;
        }
        match self.in_place.get_mut(self.used) {
            Some(slot) => {
                *slot = list;
                self.used += 1;
            }
            None => self.more.push(list),
        }
    }

    /// Takes the smallest place off the lists.
    #[inline]
    pub(super) fn pop_first(&mut self) -> Option<u32> {
        loop {
            let in_place = self.in_place.iter_mut().take(self.used);
            let list = in_place
                .chain(&mut self.more)
                .filter(|list| !list.is_empty())
                .min_by_key(|list| list.first().copied())?;
            let (first, rest) = list.split_first()?;
            *list = rest;
            if self.last != Some(*first) {
                self.last = Some(*first);
                return self.last;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn merged_lists_are_the_places_of_all_in_order(
            all in prop::collection::vec(prop::collection::btree_set(0_u32..50, 0..10), 0..40)
        ) {
            let all: Vec<Vec<u32>> = all
                .into_iter()
                .map(|places| places.into_iter().collect())
                .collect();
            let mut lists = Lists::default();
            for places in &all {
                lists.push(places);
            }
            let merged: Vec<u32> = std::iter::from_fn(|| lists.pop_first()).collect();
            let obvious: BTreeSet<u32> = all.iter().flatten().copied().collect();
            prop_assert_eq!(merged, obvious.into_iter().collect::<Vec<u32>>());
        }
    }
}
