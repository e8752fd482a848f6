//! Finds the rules that match a request, in the order in which they are asked. Knows nothing of what
//! they do.
//!
//! Most rules name one value of some attribute (`app: acme`). Such a rule is *anchored* there, at the
//! value that the fewest other rules name: it is asked only about requests with that value, so ten
//! thousand rules about ten thousand apps cost a request one look-up and the few rules of its own
//! app. A rule that names no value but a network of client addresses hangs in a trie, and is asked about
//! addresses within. The others (ranges, regexes, lists) are asked always.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use ahash::RandomState;
use ipnet::IpNet;
use prefix_trie::joint::JointPrefixMap;

use super::RuleInForce;
use crate::attribute::{ATTRIBUTES_MAX, AttributeId};
use crate::request::RequestFacts;
use crate::time::Instant;

/// The most networks, one inside the other, that rules hang at; a rule at one that is deeper is asked
/// always.
const NESTED_MAX: usize = 8;

/// The lists that are merged: `always`, one an attribute, and one a network around the address.
const LISTS_MAX: usize = 1 + ATTRIBUTES_MAX + NESTED_MAX;

/// Rules by their anchors. Lists are of places in the policy's rules, ascending.
#[derive(Debug, Default)]
pub(super) struct Matcher {
    always: Vec<u32>,
    anchored: Vec<(AttributeId, ByValue)>,
    networks: JointPrefixMap<IpNet, Vec<u32>>,
}

/// The rules that are anchored at each value of one attribute.
type ByValue = HashMap<Arc<str>, Vec<u32>, RandomState>;

impl Matcher {
    pub(super) fn new(rules: &[RuleInForce]) -> Self {
        let mut rules_with: HashMap<_, u32, RandomState> = HashMap::default();
        for anchor in rules.iter().flat_map(|rule| rule.clauses().anchors()) {
            *rules_with.entry(anchor).or_default() += 1;
        }
        let mut matcher = Self::default();
        let mut within: Vec<(IpNet, u32)> = Vec::new();
        for (place, rule) in (0_u32..).zip(rules) {
            let anchors = rule.clauses().anchors();
            match anchors.min_by_key(|anchor| rules_with.get(anchor)) {
                Some((id, value)) => matcher.anchor(id, Arc::clone(value), place),
                None => match rule.clauses().network() {
                    Some(network) => within.push((network, place)),
                    None => matcher.always.push(place),
                },
            }
        }
        matcher.hang(within);
        matcher
    }

    /// Hangs rules at their networks, the widest first: so it is known how many are around each.
    fn hang(&mut self, mut within: Vec<(IpNet, u32)>) {
        within.sort_by_key(|(network, place)| (network.prefix_len(), *place));
        for (network, place) in within {
            if let Some(places) = self.networks.get_mut(&network) {
                places.push(place);
            } else if self.networks.cover(&network).count() < NESTED_MAX {
                self.networks.insert(network, vec![place]);
            } else {
                self.always.push(place);
            }
        }
        self.always.sort_unstable();
    }

    fn anchor(&mut self, id: AttributeId, value: Arc<str>, place: u32) {
        let at = self.anchored.iter().position(|(other, _)| *other == id);
        let at = at.unwrap_or_else(|| {
            self.anchored.push((id, ByValue::default()));
            self.anchored.len() - 1
        });
        if let Some((_, values)) = self.anchored.get_mut(at) {
            values.entry(value).or_default().push(place);
        }
    }

    /// Calls `visit` with each rule that matches and has not expired, in order, until it breaks.
    pub(super) fn visit<'p, B>(
        &self,
        rules: &'p [RuleInForce],
        facts: &RequestFacts<'_>,
        now: Instant,
        mut visit: impl FnMut(&'p RuleInForce) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        // Lists of which none is in two: they are merged.
        let mut lists: [&[u32]; LISTS_MAX] = [&[]; LISTS_MAX];
        let anchored = self.anchored.iter().filter_map(|(id, values)| {
            let places = values.get(facts.value(*id)?)?;
            Some(places.as_slice())
        });
        let around = (!self.networks.is_empty()).then(|| {
            let address = IpNet::from(facts.address());
            self.networks
                .cover(&address)
                .map(|(_, places)| places.as_slice())
        });
        let around = around.into_iter().flatten();
        let mut used = 0;
        for (list, places) in lists.iter_mut().zip(
            [self.always.as_slice()]
                .into_iter()
                .chain(anchored)
                .chain(around),
        ) {
            *list = places;
            used += 1;
        }
        let lists = lists.get_mut(..used).unwrap_or_default();
        while let Some(place) = pop_first(lists) {
            let Some(rule) = rules.get(place as usize) else {
                continue;
            };
            if rule.matches_now(facts, now) {
                visit(rule)?;
            }
        }
        ControlFlow::Continue(())
    }
}

/// Takes the smallest place off the ascending lists.
fn pop_first(lists: &mut [&[u32]]) -> Option<u32> {
    let list = lists
        .iter_mut()
        .filter(|list| !list.is_empty())
        .min_by_key(|list| list.first().copied())?;
    let (first, rest) = list.split_first()?;
    *list = rest;
    Some(*first)
}
