//! Rules by the range that a version must be in: one walk up a tree of segments (Bentley, 1977) instead
//! of one comparison each.

use semver::{Comparator, Op, Version, VersionReq};

/// Major, minor and patch number of a version.
type Numbers = (u64, u64, u64);

/// The numbers that versions of a range have at least and at most. A version with such numbers need not
/// be in the range: pre-releases are left out of account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Span {
    least: Numbers,
    most: Numbers,
}

impl Span {
    /// Returns the span of a range, or `None` where no version is in it.
    pub(super) fn of(range: &VersionReq) -> Option<Self> {
        let all = Self {
            least: (0, 0, 0),
            most: (u64::MAX, u64::MAX, u64::MAX),
        };
        let comparators = range.comparators.iter();
        let span = comparators.fold(all, |span, comparator| {
            let of_one = Self::of_comparator(comparator);
            Self {
                least: span.least.max(of_one.least),
                most: span.most.min(of_one.most),
            }
        });
        (span.least <= span.most).then_some(span)
    }

    fn of_comparator(comparator: &Comparator) -> Self {
        let major = comparator.major;
        let (minor, patch) = (comparator.minor, comparator.patch);
        let lowest = (major, minor.unwrap_or(0), patch.unwrap_or(0));
        let highest = (major, minor.unwrap_or(u64::MAX), patch.unwrap_or(u64::MAX));
        let (least, most) = match comparator.op {
            Op::Exact | Op::Wildcard => (lowest, highest),
            Op::Greater | Op::GreaterEq => (lowest, (u64::MAX, u64::MAX, u64::MAX)),
            Op::Less | Op::LessEq => ((0, 0, 0), highest),
            Op::Tilde => (lowest, (highest.0, highest.1, u64::MAX)),
            Op::Caret => (lowest, (major, u64::MAX, u64::MAX)),
            _ => ((0, 0, 0), (u64::MAX, u64::MAX, u64::MAX)),
        };
        Self { least, most }
    }
}

/// Places of rules by the span of their range. The ends of all spans cut the versions into segments; each
/// span is cut into at most 2 log₂ of them, and a version is in at most log₂ of those.
///
/// 10,000 rules with 20,000 different ends: 80,000 nodes × 24 B and 10,000 × 30 × 4 B = 3 MiB at worst.
#[derive(Debug, Default)]
pub(super) struct Ranges {
    ends: Vec<Numbers>,
    /// A tree in an array: the parent of node `n` is `n / 2`, the leaves are the second half.
    nodes: Vec<Vec<u32>>,
}

impl Ranges {
    /// Makes a tree of spans with a rule's place each, which must ascend.
    pub(super) fn new(spans: &[(Span, u32)]) -> Self {
        let ends = spans.iter().flat_map(|(span, _)| [span.least, span.most]);
        let mut ends: Vec<Numbers> = ends.collect();
        ends.sort_unstable();
        ends.dedup();
        let mut ranges = Self {
            nodes: vec![Vec::new(); 2 * (2 * ends.len() + 1)],
            ends,
        };
        for (span, place) in spans {
            let mut from = ranges.leaf(span.least);
            let mut until = ranges.leaf(span.most) + 1;
            while from < until {
                if from % 2 == 1 {
                    ranges.put(from, *place);
                    from += 1;
                }
                if until % 2 == 1 {
                    until -= 1;
                    ranges.put(until, *place);
                }
                from /= 2;
                until /= 2;
            }
        }
        ranges
    }

    /// Walks the places of the spans that a version is in; lists, ascending each.
    pub(super) fn of(&self, version: &Version) -> impl Iterator<Item = &[u32]> {
        let leaf = self.leaf((version.major, version.minor, version.patch));
        std::iter::successors(Some(leaf), |node| Some(node / 2).filter(|node| *node > 0))
            .filter_map(|node| self.nodes.get(node))
            .filter(|places| !places.is_empty())
            .map(Vec::as_slice)
    }

    /// Returns the leaf of the segment that holds these numbers: each end is one, and what lies between two.
    fn leaf(&self, numbers: Numbers) -> usize {
        let segment = match self.ends.binary_search(&numbers) {
            Ok(at) => 2 * at + 1,
            Err(at) => 2 * at,
        };
        self.nodes.len() / 2 + segment
    }

    fn put(&mut self, node: usize, place: u32) {
        if let Some(places) = self.nodes.get_mut(node)
            && places.last() != Some(&place)
        {
            places.push(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Ranges as people write them, of few numbers, so that versions are in them and at their ends.
    fn range() -> impl Strategy<Value = VersionReq> {
        let numbers = prop_oneof![
            (0_u64..3).prop_map(|a| format!("{a}")),
            (0_u64..3, 0_u64..3).prop_map(|(a, b)| format!("{a}.{b}")),
            (0_u64..3, 0_u64..3, 0_u64..3).prop_map(|(a, b, c)| format!("{a}.{b}.{c}")),
            (0_u64..3, 0_u64..3, 0_u64..3).prop_map(|(a, b, c)| format!("{a}.{b}.{c}-rc.1")),
        ];
        let one = (
            prop::sample::select(&["<", "<=", "=", ">", ">=", "^", "~"][..]),
            numbers,
        )
            .prop_map(|(op, numbers)| format!("{op}{numbers}"));
        let any = prop_oneof![
            8 => prop::collection::vec(one, 1..3).prop_map(|all| all.join(", ")),
            1 => Just("*".to_owned()),
            1 => Just("1.*".to_owned()),
        ];
        any.prop_map(|text| text.parse().expect("a range"))
    }

    fn version() -> impl Strategy<Value = Version> {
        (
            0_u64..4,
            0_u64..4,
            0_u64..4,
            prop::sample::select(&["", "-beta", "-rc.1", "-rc.2"][..]),
        )
            .prop_map(|(a, b, c, pre)| format!("{a}.{b}.{c}{pre}").parse().expect("a version"))
    }

    proptest! {
        #[test]
        fn a_range_that_holds_a_version_is_found_by_it(
            ranges in prop::collection::vec(range(), 0..40),
            versions in prop::collection::vec(version(), 1..40)
        ) {
            let spans: Vec<(Span, u32)> = ranges
                .iter()
                .zip(0..)
                .filter_map(|(range, place)| Some((Span::of(range)?, place)))
                .collect();
            let tree = Ranges::new(&spans);
            for version in &versions {
                let numbers = (version.major, version.minor, version.patch);
                let mut found: Vec<u32> = tree.of(version).flatten().copied().collect();
                found.sort_unstable();
                let walked: Vec<u32> = spans
                    .iter()
                    .filter(|(span, _)| span.least <= numbers && numbers <= span.most)
                    .map(|(_, place)| *place)
                    .collect();
                prop_assert_eq!(&found, &walked);
                for (range, place) in ranges.iter().zip(0..) {
                    prop_assert!(
                        !range.matches(version) || found.contains(&place),
                        "{} is in {}", version, range
                    );
                }
            }
        }
    }
}
