//! Finds the rules that match a request, in the order in which they are asked. Knows nothing of what
//! they do.
//!
//! Most rules name values of some attribute (`app: acme`, `app: [a, b]`, a version, a prefix, a network).
//! Such a rule is *anchored* there, by the condition whose values the fewest other rules name: it is asked
//! only about requests that have one of them. So ten thousand rules about ten thousand apps cost a
//! request one look-up and the few rules of its own app. The others (regexes, `not`, `present`) are asked
//! always.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use ahash::RandomState;
use ipnet::IpNet;
use prefix_trie::joint::JointPrefixMap;
use semver::Version;

use super::RuleInForce;
use super::anchor::{Anchor, anchors, best};
use super::condition::address;
use super::lists::Lists;
use super::prefixes::Prefixes;
use super::ranges::{Ranges, Span};
use super::version::read_version;
use crate::attribute::AttributeId;
use crate::request::RequestFacts;
use crate::time::Instant;

/// The most networks, one inside the other, and prefixes, one the beginning of the other, that rules hang
/// at; a rule at one that is deeper is asked always.
pub(super) const NESTED_MAX: usize = 8;

/// Rules by their anchors. Lists are of places in the policy's rules, ascending. A rule may be found by
/// several.
#[derive(Debug, Default)]
pub(super) struct Matcher {
    always: Vec<u32>,
    texts: ByAttribute<HashMap<Arc<str>, Vec<u32>, RandomState>>,
    versions: ByAttribute<HashMap<Version, Vec<u32>, RandomState>>,
    ranges: ByAttribute<Ranges>,
    prefixes: ByAttribute<Prefixes>,
    networks: ByAttribute<JointPrefixMap<IpNet, Vec<u32>>>,
}

/// Something for each of some attributes, which are few.
type ByAttribute<T> = Vec<(AttributeId, T)>;

fn of<T: Default>(all: &mut ByAttribute<T>, id: AttributeId) -> Option<&mut T> {
    if !all.iter().any(|(other, _)| *other == id) {
        all.push((id, T::default()));
    }
    let found = all.iter_mut().find(|(other, _)| *other == id);
    found.map(|(_, one)| one)
}

/// Anchors that are put in order before rules hang at them.
#[derive(Default)]
struct Unhung<'r> {
    ranges: ByAttribute<Vec<(Span, u32)>>,
    prefixes: ByAttribute<Vec<(&'r str, u32)>>,
    networks: ByAttribute<Vec<(IpNet, u32)>>,
}

impl Matcher {
    pub(super) fn new(rules: &[RuleInForce]) -> Self {
        let of_rules: Vec<_> = rules.iter().map(|rule| anchors(&rule.rule.when)).collect();
        let mut rules_at: HashMap<Anchor<'_>, u32, RandomState> = HashMap::default();
        for anchor in of_rules.iter().flatten().flatten() {
            *rules_at.entry(*anchor).or_default() += 1;
        }
        let mut matcher = Self::default();
        let mut unhung = Unhung::default();
        for (place, of_conditions) in (0_u32..).zip(of_rules) {
            let count = |anchor: &Anchor<'_>| rules_at.get(anchor).copied().unwrap_or(0);
            match best(of_conditions, count) {
                Some(anchors) => {
                    for anchor in anchors {
                        matcher.anchor(anchor, place, &mut unhung);
                    }
                }
                None => matcher.always.push(place),
            }
        }
        matcher.hang(unhung);
        matcher
    }

    fn anchor<'r>(&mut self, anchor: Anchor<'r>, place: u32, unhung: &mut Unhung<'r>) {
        match anchor {
            Anchor::Text(id, text) => {
                if let Some(texts) = of(&mut self.texts, id) {
                    match texts.get_mut(text) {
                        Some(places) => put(places, place),
                        None => drop(texts.insert(Arc::from(text), vec![place])),
                    }
                }
            }
            Anchor::Version(id, version) => {
                if let Some(versions) = of(&mut self.versions, id) {
                    put(versions.entry(version.clone()).or_default(), place);
                }
            }
            Anchor::Range(id, span) => {
                if let Some(spans) = of(&mut unhung.ranges, id) {
                    spans.push((span, place));
                }
            }
            Anchor::Prefix(id, prefix) => {
                if let Some(prefixes) = of(&mut unhung.prefixes, id) {
                    prefixes.push((prefix, place));
                }
            }
            Anchor::Network(id, network) => {
                if let Some(networks) = of(&mut unhung.networks, id) {
                    networks.push((network, place));
                }
            }
        }
    }

    fn hang(&mut self, unhung: Unhung<'_>) {
        for (id, spans) in unhung.ranges {
            self.ranges.push((id, Ranges::new(&spans)));
        }
        for (id, prefixes) in unhung.prefixes {
            let (prefixes, too_deep) = Prefixes::new(prefixes);
            self.prefixes.push((id, prefixes));
            self.always.extend(too_deep);
        }
        for (id, networks) in unhung.networks {
            let trie = trie_of(networks, &mut self.always);
            self.networks.push((id, trie));
        }
        self.always.sort_unstable();
    }

    /// Calls `visit` with each rule that matches and has not expired, in order, until it breaks.
    pub(super) fn visit<'p, B>(
        &self,
        rules: &'p [RuleInForce],
        facts: &RequestFacts<'_>,
        now: Instant,
        mut visit: impl FnMut(&'p RuleInForce) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        let mut lists = self.lists(facts);
        while let Some(place) = lists.pop_first() {
            let Some(rule) = rules.get(place as usize) else {
                continue;
            };
            if rule.matches_now(facts, now) {
                visit(rule)?;
            }
        }
        ControlFlow::Continue(())
    }

    /// Returns the places of all rules that can match.
    fn lists(&self, facts: &RequestFacts<'_>) -> Lists<'_> {
        let mut lists = Lists::default();
        lists.push(&self.always);
        for (id, texts) in &self.texts {
            if let Some(places) = facts.value(*id).and_then(|value| texts.get(value)) {
                lists.push(places);
            }
        }
        for (id, versions) in &self.versions {
            let version = facts.value(*id).and_then(read_version);
            if let Some(places) = version.and_then(|version| versions.get(&version)) {
                lists.push(places);
            }
        }
        for (id, ranges) in &self.ranges {
            if let Some(version) = facts.value(*id).and_then(read_version) {
                ranges.of(&version).for_each(|places| lists.push(places));
            }
        }
        for (id, prefixes) in &self.prefixes {
            if let Some(value) = facts.whole_value(*id) {
                prefixes.of(value).for_each(|places| lists.push(places));
            }
        }
        for (id, networks) in &self.networks {
            if let Some(address) = address(*id, facts) {
                let around = networks.cover(&IpNet::from(address));
                around.for_each(|(_, places)| lists.push(places));
            }
        }
        lists
    }
}

/// Hangs rules at their networks, the widest first: so it is known how many are around each. Those that
/// hang too deep are asked always.
fn trie_of(
    mut networks: Vec<(IpNet, u32)>,
    always: &mut Vec<u32>,
) -> JointPrefixMap<IpNet, Vec<u32>> {
    let mut trie: JointPrefixMap<IpNet, Vec<u32>> = JointPrefixMap::new();
    networks.sort_by_key(|(network, place)| (network.prefix_len(), *place));
    for (network, place) in networks {
        if let Some(places) = trie.get_mut(&network) {
            put(places, place);
        } else if trie.cover(&network).count() < NESTED_MAX {
            trie.insert(network, vec![place]);
        } else {
            always.push(place);
        }
    }
    trie
}

/// Adds a rule's place behind the others; once, though its list may name a value twice.
fn put(places: &mut Vec<u32>, place: u32) {
    if places.last() != Some(&place) {
        places.push(place);
    }
}
