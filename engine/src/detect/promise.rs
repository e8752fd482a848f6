//! Holds rules to what they promised. What a rule refuses of known clients that send less than twice what is
//! usual is normal traffic; where that is more than its collateral said, the rule is narrowed to what only the
//! others send, or withdrawn.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::act::{Measure, Opinion};
use super::blame::{self, Table};
use super::incident::{Happening, RejectedCandidate};
use super::nature::{LOOP_MIN, Nature};
use super::pattern::{Literal, Pattern};
use super::usual::Length;
use super::window::{ClientKind, SECOND};
use super::{Detector, Source};
use crate::time::Instant;
use crate::traffic::LeafKey;

/// After so many judgements on end, one a second, by which a rule breaks its promise, it is narrowed, and
/// after so many by which it mostly refuses the harmless, it goes.
const BROKEN_MAX: u32 = 3;

/// Share of what is refused from which on it comes from the wrong ones.
const HARMLESS_SHARE: f64 = 0.5;

/// Share below which it may be the flood's own clients that have only just come, or are about to go.
const STRAY_SHARE: f64 = 0.05;

/// How many requests of the sample it takes to say so.
const SAMPLED_MIN: f64 = 30.0;

/// How a rule keeps its promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Promise {
    Kept,
    /// It hits more normal traffic than it said.
    Broken,
    /// Most of what it refuses is normal traffic.
    Inverted,
}

impl Promise {
    /// Adds it to the judgements on end.
    pub(super) fn count(self, opinion: &mut Opinion) {
        let next = |is: bool, times: u32| if is { times.saturating_add(1) } else { 0 };
        opinion.broken = next(self != Self::Kept, opinion.broken);
        opinion.inverted = next(self == Self::Inverted, opinion.inverted);
    }
}

impl Opinion {
    /// Returns whether the rule has refused mostly the harmless for long enough to go.
    pub(super) fn is_inverted(&self) -> bool {
        self.inverted >= BROKEN_MAX
    }
}

/// Requests of one sampled client with one set of values.
#[derive(Debug)]
struct Sent {
    key: LeafKey,
    requests: f64,
    /// Whether the client is known and sends less than twice what is usual.
    harmless: bool,
}

/// What came of a rule's source in the last seconds, from a sample of its clients.
#[derive(Debug, Default)]
pub(super) struct Sightings {
    sent: Vec<Sent>,
    /// How many requests per second one of the sample stands for.
    weight: f64,
    /// Requests per second of normal traffic that the rule said it would hit.
    promised: f64,
}

/// A narrower source for a rule.
#[derive(Debug)]
pub(super) struct Narrower {
    pattern: Pattern,
    source: Source,
    /// Requests per second of the harmless that the rule refuses.
    hit: f64,
    promised: f64,
    /// Share of what the others send that it keeps.
    kept: f64,
}

impl Sightings {
    /// Returns how a rule for the part `who` of the source keeps the promise of the whole.
    pub(super) fn promise(&self, who: &Pattern) -> Promise {
        let refused = || {
            let sent = self.sent.iter();
            sent.filter(|sent| sent.key.refused() && who.matches(&sent.key))
        };
        let all: f64 = refused().map(|sent| sent.requests).sum();
        let harmless = refused().filter(|sent| sent.harmless);
        let harmless: f64 = harmless.map(|sent| sent.requests).sum();
        if all >= SAMPLED_MIN && harmless >= HARMLESS_SHARE * all {
            Promise::Inverted
        } else if harmless >= SAMPLED_MIN.max(STRAY_SHARE * all)
            && harmless * self.weight > self.promised
        {
            Promise::Broken
        } else {
            Promise::Kept
        }
    }

    /// Returns the requests per second that the harmless of the source were refused.
    fn hit(&self) -> f64 {
        let refused = self.sent.iter().filter(|sent| sent.key.refused());
        let harmless = refused.filter(|sent| sent.harmless);
        self.weight * harmless.map(|sent| sent.requests).sum::<f64>()
    }

    /// Returns what came as blame sees it: what the harmless send is what was to be expected.
    fn table(&self, columns: usize) -> Table {
        let mut table = Table::new(1.0, self.sent.len());
        for sent in &self.sent {
            let came = sent.requests * self.weight;
            let normal = if sent.harmless { came } else { 0.0 };
            let key = LeafKey::of_values((0..columns).map(|column| sent.key.value(column)));
            table.add(&key, came, normal);
        }
        table
    }
}

impl Detector {
    /// Looks at what came of a rule's source, and at what of it was refused. Nothing is said of forged
    /// instances: they always look harmless.
    pub(super) fn sightings(&self, measure: &Measure, now: Instant) -> Sightings {
        let who = measure.pattern.who(&self.columns);
        let usual = self.instances.of(&who, Length::Long);
        let (Some(usual), true) = (usual, measure.nature != Nature::ForgedInstances) else {
            return Sightings::default();
        };
        // What parts of it with rules of their own refuse is theirs to answer for.
        let others = self.measures.iter();
        let parts: Vec<Pattern> = others
            .filter(|other| measure.contains(other))
            .map(|other| other.pattern.who(&self.columns))
            .filter(|part| *part != who)
            .collect();
        let from = now - Length::Long.duration();
        let clients = self
            .window
            .clients_since(ClientKind::Instance, from, |key| {
                who.matches(key) && !parts.iter().any(|part| part.matches(key))
            });
        let mut all: BTreeMap<u64, f64> = BTreeMap::new();
        for row in &clients.rows {
            *all.entry(row.client).or_default() += f64::from(row.requests);
        }
        let most = LOOP_MIN * usual.mean();
        let is_harmless = |client| {
            let sent = all.get(&client).copied().unwrap_or_default();
            sent <= most && self.familiar.contains(client)
        };
        let seconds = self.window.seconds_since(from).max(f64::MIN_POSITIVE);
        let weight = f64::from(clients.shift).exp2() / seconds;
        Sightings {
            sent: clients
                .rows
                .into_iter()
                .map(|row| Sent {
                    key: row.who,
                    requests: f64::from(row.requests),
                    harmless: is_harmless(row.client),
                })
                .collect(),
            weight,
            promised: self
                .reference
                .upper_bound(measure.collateral * self.reference.level()),
        }
    }

    /// Returns the narrower source that takes the place of a rule's, where it has broken its promise for
    /// long enough and there is one.
    pub(super) fn narrower(&self, at: usize, seen: &Sightings) -> Option<Narrower> {
        let broken = |measure: &&Measure| measure.opinion.broken >= BROKEN_MAX;
        let measure = self.measures.get(at).filter(broken)?;
        let who = measure.pattern.who(&self.columns);
        let table = seen.table(self.columns.len());
        let narrower = blame::narrower(&table, &who, &self.columns);
        narrower.into_iter().find_map(|(literal, kept)| {
            let pattern = measure.pattern.with(literal);
            let source = pattern.source(&self.schema, &self.columns, &self.names)?;
            let is_free = !self.past.is_left_alone(&source)
                && self.measures.iter().all(|other| other.pattern != pattern);
            let keeps = seen.promise(&who.with(literal)) == Promise::Kept;
            (is_free && keeps).then(|| Narrower {
                pattern,
                source,
                hit: seen.hit(),
                promised: seen.promised,
                kept,
            })
        })
    }

    /// Puts a narrower source in the place of a rule's. How firmly the rule acts stays: nothing is refused
    /// that was not before.
    pub(super) fn narrow(&mut self, at: usize, narrower: Narrower, now: Instant) {
        if at >= self.measures.len() {
            return;
        }
        let Narrower {
            pattern,
            source,
            hit,
            promised,
            kept,
        } = narrower;
        let before = self.measures.remove(at);
        let others = self.measures.iter();
        let parts: Vec<Pattern> = others
            .filter(|other| before.contains(other))
            .map(|other| other.pattern.clone())
            .collect();
        let expected = self.reference.expected_where(|key| {
            pattern.matches(key) && !parts.iter().any(|part| part.matches(key))
        });
        let all_expected = self.reference.expected_of_pattern(&pattern);
        let level = self.reference.level().max(f64::MIN_POSITIVE);
        let mut after = Measure {
            source: source.clone(),
            expected: expected.min(before.expected),
            held: self.unheld(&pattern).min(before.held),
            upper_bound: self.reference.upper_bound(all_expected),
            collateral: (all_expected / level).min(before.collateral),
            usual_per_instance: self.usual_per_instance(&pattern.who(&self.columns)),
            opinion: Opinion::new(before.nature, now),
            pure_since: None,
            pattern,
            ..before.clone()
        };
        // What it answered for is the business of the wider ones from now on.
        let wider = |other: &&mut Measure| other.contains(&before);
        for wider in self.measures.iter_mut().filter(wider) {
            wider.expected += before.expected - after.expected;
            wider.held += before.held - after.held;
        }
        after.offered = self.offered(&after, SECOND, now);
        after.observed = after.offered;
        let of_service = self.collateral_of_service(&after.pattern, now);
        let why: Arc<str> = Arc::from(format!(
            "{hit:.0} of the requests that {} had refused a second came from known clients that sent less \
             than twice what is usual, where {promised:.0} were promised; this has {:.0} % of what the others send",
            before.source,
            100.0 * kept,
        ));
        self.incidents.update(before.incident, |incident| {
            incident.source = Some(source.clone());
            let evidence = &mut incident.evidence;
            evidence.coverage *= kept;
            evidence.collateral = after.collateral;
            evidence.collateral_of_service = of_service;
            evidence.observed_rate = after.observed;
            evidence.expected_rate = after.expected;
            evidence
                .rejected_candidates
                .truncate(blame::REJECTED_MAX - 1);
            evidence.rejected_candidates.insert(
                0,
                RejectedCandidate {
                    when: before.source.clone(),
                    why: Arc::from("it hit more of normal traffic than it promised"),
                },
            );
        });
        self.incidents
            .happen_because(before.incident, Happening::Narrowed, Some(why), now);
        self.past.supersede(&source);
        self.measures.insert(at, after);
        self.gate.reset();
    }

    /// Returns the share of its busiest service's normal traffic that a source has.
    fn collateral_of_service(&self, pattern: &Pattern, now: Instant) -> f64 {
        let mut came: BTreeMap<u32, f64> = BTreeMap::new();
        let leaves = self
            .window
            .since(now - SECOND)
            .flat_map(|tick| &tick.leaves);
        for leaf in leaves.filter(|leaf| pattern.matches(&leaf.key)) {
            *came.entry(leaf.key.value(self.service)).or_default() += leaf.requests;
        }
        let Some((value, _)) = came.into_iter().max_by(|a, b| a.1.total_cmp(&b.1)) else {
            return 0.0;
        };
        let service = Literal {
            column: self.service,
            value,
        };
        let both = self
            .reference
            .expected_where(|key| pattern.matches(key) && service.matches(key));
        let all = self.reference.expected_of(service);
        both / all.max(f64::MIN_POSITIVE).max(both)
    }
}
