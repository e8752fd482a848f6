//! Finds the rules that match a request, in the order in which they are asked. Knows nothing of what
//! they do.
//!
//! Most rules name one value of some attribute (`app: acme`). Such a rule is *anchored* there, at the
//! value that the fewest other rules name: it is asked only about requests with that value, so ten
//! thousand rules about ten thousand apps cost a request one look-up and the few rules of its own
//! app. The others (ranges, regexes, networks) are asked always.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use ahash::RandomState;

use super::RuleInForce;
use crate::attribute::{ATTRIBUTES_MAX, AttributeId};
use crate::request::RequestFacts;
use crate::time::Instant;

/// Rules by their anchors. Lists are of places in the policy's rules, ascending.
#[derive(Debug, Default)]
pub(super) struct Matcher {
    always: Vec<u32>,
    anchored: Vec<(AttributeId, ByValue)>,
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
        for (place, rule) in (0_u32..).zip(rules) {
            let anchors = rule.clauses().anchors();
            match anchors.min_by_key(|anchor| rules_with.get(anchor)) {
                Some((id, value)) => matcher.anchor(id, Arc::clone(value), place),
                None => matcher.always.push(place),
            }
        }
        matcher
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
        // One list for `always` and one per attribute, of which none has two lists: they are merged.
        let mut lists: [&[u32]; ATTRIBUTES_MAX + 1] = [&[]; ATTRIBUTES_MAX + 1];
        let anchored = self.anchored.iter().filter_map(|(id, values)| {
            let places = values.get(facts.value(*id)?)?;
            Some(places.as_slice())
        });
        let mut used = 0;
        for (list, places) in lists
            .iter_mut()
            .zip([self.always.as_slice()].into_iter().chain(anchored))
        {
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
