//! Rules by the prefix that a text must have: a binary search instead of one comparison each.

use super::matcher::NESTED_MAX;

/// Prefixes in order, each with the longest other one that it begins with.
///
/// The prefixes of a text that are in the table are among the last one that is not behind it and those
/// that this one begins with: whatever stands between a prefix and a text that begins with it begins
/// with it, too.
#[derive(Debug, Default)]
pub(super) struct Prefixes {
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    text: Box<str>,
    shorter: Option<usize>,
    places: Vec<u32>,
}

impl Prefixes {
    /// Makes a table of prefixes with a rule's place each. Returns the places, too, that hang too deep.
    pub(super) fn new(mut prefixes: Vec<(&str, u32)>) -> (Self, Vec<u32>) {
        prefixes.sort_unstable();
        let mut entries: Vec<Entry> = Vec::new();
        let mut too_deep = Vec::new();
        let mut around: Vec<usize> = Vec::new();
        for (text, place) in prefixes {
            let begins_with =
                |at: &usize| entries.get(*at).is_some_and(|e| text.starts_with(&*e.text));
            while around.last().is_some_and(|last| !begins_with(last)) {
                around.pop();
            }
            let shorter = around.last().copied();
            match entries.last_mut() {
                Some(last) if *last.text == *text => last.places.push(place),
                _ if around.len() >= NESTED_MAX => too_deep.push(place),
                _ => {
                    around.push(entries.len());
                    entries.push(Entry {
                        text: text.into(),
                        shorter,
                        places: vec![place],
                    });
                }
            }
        }
        (Self { entries }, too_deep)
    }

    /// Walks the places of the prefixes that a text has; at most [`NESTED_MAX`] lists, ascending each.
    pub(super) fn of(&self, text: &str) -> impl Iterator<Item = &[u32]> {
        let behind = self.entries.partition_point(|entry| *entry.text <= *text);
        let last = behind.checked_sub(1).and_then(|at| self.entries.get(at));
        std::iter::successors(last, |entry| self.entries.get(entry.shorter?))
            .filter(move |entry| text.starts_with(&*entry.text))
            .map(|entry| entry.places.as_slice())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_table_answers_as_a_walk_over_all_prefixes_does(
            prefixes in prop::collection::vec("[ab]{0,12}", 0..40),
            texts in prop::collection::vec("[abc]{0,16}", 1..20)
        ) {
            let placed: Vec<(&str, u32)> = prefixes.iter().map(|text| &**text).zip(0..).collect();
            let (table, too_deep) = Prefixes::new(placed.clone());
            for text in &texts {
                let mut found: Vec<u32> = table.of(text).flatten().copied().collect();
                prop_assert!(table.of(text).count() <= NESTED_MAX);
                found.extend(too_deep.iter().filter(|place| {
                    text.starts_with(&prefixes[**place as usize])
                }));
                found.sort_unstable();
                let walked: Vec<u32> = placed
                    .iter()
                    .filter(|(prefix, _)| text.starts_with(prefix))
                    .map(|(_, place)| *place)
                    .collect();
                prop_assert_eq!(found, walked);
            }
        }
    }
}
