//! Where a rule can be found: what a request must have if a condition holds. Knows nothing of the order
//! of rules.

use ipnet::IpNet;
use semver::Version;

use super::ranges::Span;
use super::version::read_version;
use crate::attribute::AttributeId;
use crate::rules::{Condition, VersionCondition, When};

/// The most anchors of one condition. A longer list is a set that its rule is asked for, one look-up of
/// about 0.1 µs a request: few rules have one, and at each of its values they would be found once more.
const LISTED_MAX: usize = 4096;

/// What a request has of which a condition holds, so that rules are found by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Anchor<'r> {
    /// Exactly this text.
    Text(AttributeId, &'r str),
    /// A text that reads as this version.
    Version(AttributeId, &'r Version),
    /// An address in this network.
    Network(AttributeId, IpNet),
    /// A text that begins with this one, however long it is.
    Prefix(AttributeId, &'r str),
    /// A text that reads as a version of these numbers.
    Range(AttributeId, Span),
}

impl Anchor<'_> {
    /// Returns how dear it is to find a rule there. Ranges overlap, so any number of rules may be found by
    /// one of them.
    pub(super) fn cost(&self) -> u8 {
        match self {
            Self::Text(..) => 0,
            Self::Version(..) => 1,
            Self::Network(..) => 2,
            Self::Prefix(..) => 3,
            Self::Range(..) => 4,
        }
    }

    fn is_range(&self) -> bool {
        matches!(self, Self::Range(..))
    }
}

/// Returns the anchors of each condition that has some. If all conditions hold, the request has one of
/// each.
pub(super) fn anchors(when: &When) -> Vec<Vec<Anchor<'_>>> {
    let conditions = when.conditions.iter();
    conditions
        .filter_map(|(id, condition)| {
            let mut all = Vec::new();
            collect(*id, condition, &mut all).then_some(all)
        })
        .collect()
}

/// Returns the condition's anchors at which the fewest rules are found; ranges only where there is
/// nothing else. `rules_at` says how many rules there are at an anchor.
pub(super) fn best<'r>(
    of_conditions: Vec<Vec<Anchor<'r>>>,
    rules_at: impl Fn(&Anchor<'r>) -> u32,
) -> Option<Vec<Anchor<'r>>> {
    of_conditions.into_iter().min_by_key(|anchors| {
        let most = anchors.iter().map(&rules_at).max();
        let cost = anchors.iter().map(Anchor::cost).max();
        (
            anchors.iter().any(Anchor::is_range),
            most,
            cost,
            anchors.len(),
        )
    })
}

/// Adds anchors of which a request has one if the condition holds. Returns whether there are such.
fn collect<'r>(id: AttributeId, condition: &'r Condition, all: &mut Vec<Anchor<'r>>) -> bool {
    match condition {
        Condition::AnyOf(any) => return any.iter().all(|one| collect(id, one, all)),
        Condition::Network(network) => all.push(Anchor::Network(whose(id), network.trunc())),
        // Other conditions on an address are about a text that only they make.
        _ if id.is_address() => return false,
        Condition::Is(text) => all.push(Anchor::Text(id, text)),
        Condition::Prefix(prefix) => all.push(Anchor::Prefix(id, prefix)),
        Condition::Version(VersionCondition::Exactly(text, version)) => {
            if let Some(version) = version {
                all.push(Anchor::Version(id, version));
            }
            if version.is_none() || read_version(text) != *version {
                all.push(Anchor::Text(id, text));
            }
        }
        Condition::Version(VersionCondition::Range(range)) => {
            if let Some(span) = Span::of(range) {
                all.push(Anchor::Range(id, span));
            }
        }
        Condition::Regex(_) | Condition::Present(_) | Condition::Not(_) => return false,
    }
    all.len() <= LISTED_MAX
}

/// The address and its network are both asked for the address.
fn whose(id: AttributeId) -> AttributeId {
    if id.is_address() { AttributeId::IP } else { id }
}
