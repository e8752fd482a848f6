//! Whether a condition holds for a request. What conditions there are is [`crate::rules`]'.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use ahash::RandomState;

use super::networks::Networks;
use super::version::read_version;
use crate::attribute::AttributeId;
use crate::request::RequestFacts;
use crate::rules::{Condition, VersionCondition, When};

/// A list of at least so many texts or networks is asked as a set; below, comparing is faster.
const SET_MIN: usize = 8;

impl Condition {
    /// Returns whether the condition holds for attribute `id` of the request.
    ///
    /// An absent attribute matches only `Present(false)` and `Not`. Text conditions on an address
    /// are about the text that the address counts as; they alone allocate.
    pub fn holds(&self, id: AttributeId, facts: &RequestFacts<'_>) -> bool {
        // Parts of a value are looked for in all of it: padding must not hide a client from them.
        let (value, whole) = (facts.value(id), facts.whole_value(id));
        let holds_for =
            |value, holds: &dyn Fn(&str) -> bool| holds_for_text(id, facts, value, holds);
        match self {
            Self::Is(text) => holds_for(value, &|value| value == &**text),
            Self::Prefix(prefix) => holds_for(whole, &|value| value.starts_with(&**prefix)),
            Self::Regex(regex) => holds_for(whole, &|value| regex.is_match(value)),
            Self::Version(version) => holds_for(value, &|value| version.holds(value)),
            Self::Network(network) => {
                address(id, facts).is_some_and(|address| network.contains(&address))
            }
            Self::Present(present) => facts.is_present(id) == *present,
            Self::Not(condition) => !condition.holds(id, facts),
            Self::AnyOf(conditions) => conditions.iter().any(|any| any.holds(id, facts)),
        }
    }
}

impl VersionCondition {
    fn holds(&self, value: &str) -> bool {
        match self {
            Self::Exactly(text, _) if **text == *value => true,
            Self::Exactly(_, version) => {
                version.is_some() && read_version(value).as_ref() == version.as_ref()
            }
            Self::Range(range) => read_version(value).is_some_and(|value| range.matches(&value)),
        }
    }
}

/// Asks a text condition: of an address's text as it counts, else of the value that is given.
fn holds_for_text(
    id: AttributeId,
    facts: &RequestFacts<'_>,
    value: Option<&str>,
    holds: impl FnOnce(&str) -> bool,
) -> bool {
    if id.is_address() {
        facts.text(id).is_some_and(|text| holds(&text))
    } else {
        value.is_some_and(holds)
    }
}

/// The client's address, or the one that an attribute of the operator's holds.
pub(super) fn address(id: AttributeId, facts: &RequestFacts<'_>) -> Option<IpAddr> {
    if id.is_address() {
        Some(facts.address())
    } else {
        let address: IpAddr = facts.value(id)?.parse().ok()?;
        Some(address.to_canonical())
    }
}

/// All conditions of a rule or limit, made ready to be asked often: long lists are sets, and what is
/// cheap is asked first.
#[derive(Debug, Default)]
pub(super) struct Clauses(Vec<Clause>);

#[derive(Debug)]
struct Clause {
    id: AttributeId,
    test: Test,
}

/// A condition, or something that answers as the condition would, faster.
#[derive(Debug)]
enum Test {
    One(Condition),
    AnyText(HashSet<Arc<str>, RandomState>),
    AnyNetwork(Box<Networks>),
    Not(Box<Self>),
}

impl Clauses {
    pub(super) fn new(when: &When) -> Self {
        let mut clauses: Vec<Clause> = when
            .conditions
            .iter()
            .map(|(id, condition)| Clause {
                id: *id,
                test: Test::new(condition),
            })
            .collect();
        clauses.sort_by_key(|clause| clause.test.cost());
        Self(clauses)
    }

    /// Returns whether all conditions hold.
    pub(super) fn hold(&self, facts: &RequestFacts<'_>) -> bool {
        self.0
            .iter()
            .all(|clause| clause.test.holds(clause.id, facts))
    }
}

impl Test {
    fn new(condition: &Condition) -> Self {
        match condition {
            Condition::Not(inner) => Self::Not(Box::new(Self::new(inner))),
            Condition::AnyOf(all) if all.len() >= SET_MIN => {
                let networks = all.iter().map(|one| match one {
                    Condition::Network(network) => Some(*network),
                    _ => None,
                });
                let texts = all.iter().map(|one| match one {
                    Condition::Is(text) => Some(Arc::clone(text)),
                    _ => None,
                });
                None.or_else(|| {
                    networks
                        .collect::<Option<Networks>>()
                        .map(|set| Self::AnyNetwork(Box::new(set)))
                })
                .or_else(|| texts.collect::<Option<_>>().map(Self::AnyText))
                .unwrap_or_else(|| Self::One(condition.clone()))
            }
            _ => Self::One(condition.clone()),
        }
    }

    fn holds(&self, id: AttributeId, facts: &RequestFacts<'_>) -> bool {
        match self {
            Self::One(condition) => condition.holds(id, facts),
            Self::AnyText(texts) => {
                holds_for_text(id, facts, facts.value(id), |value| texts.contains(value))
            }
            Self::AnyNetwork(networks) => {
                address(id, facts).is_some_and(|address| networks.contains(address))
            }
            Self::Not(test) => !test.holds(id, facts),
        }
    }

    /// Cheap before dear: a comparison, a hash, a walk, a parse, a regex.
    fn cost(&self) -> u8 {
        match self {
            Self::One(Condition::Is(_) | Condition::Present(_) | Condition::Prefix(_)) => 0,
            Self::One(Condition::Network(_)) => 1,
            Self::AnyText(_) => 2,
            Self::AnyNetwork(_) => 3,
            Self::One(Condition::Version(_)) => 4,
            Self::One(Condition::AnyOf(_) | Condition::Not(_)) => 5,
            Self::One(Condition::Regex(_)) => 6,
            Self::Not(test) => test.cost(),
        }
    }
}
