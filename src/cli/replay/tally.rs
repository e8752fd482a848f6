//! Counts what became of the requests of a log, in bounded memory. Decides nothing and shows nothing.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;

use ahash::RandomState;
use tidegate_engine::attribute::AttributeId;
use tidegate_engine::policy::{LimitInForce, Policy, RuleInForce, Told};
use tidegate_engine::problem::Problem;
use tidegate_engine::request::RequestFacts;
use tidegate_engine::rules::{Action, DETECTED_PREFIX, Mode};
use tidegate_engine::verdict::Name;

use super::course::{Course, Slot};
use super::entry::{Format, Moment};
use super::frequent::Frequent;
use crate::cli::plain::Plain;
use crate::metrics::OUTCOMES;

/// Sources that all rules and limits together have room for, twice that before some are dropped; and
/// how many one of them has at least and at most. A source takes 64 B and its name: 2 × 65,536 ×
/// 320 B = 40 MiB, and 2 × 160,000 × 320 B = 98 MiB for 10,000 rules that all refuse many.
const SOURCES_TOTAL: usize = 1 << 16;
const SOURCES_MIN: usize = 16;
const SOURCES_MAX: usize = 4096;
/// The longest name of a source; the rest is cut.
const SOURCE_BYTES_MAX: usize = 256;

/// Unreadable lines that are shown.
const UNREADABLE_SHOWN: usize = 5;

/// The first two series of the course; after them comes one for each rule and limit.
pub(super) const SENT: usize = 0;
pub(super) const REFUSED: usize = 1;
const FIRST_CAUSE: usize = 2;

/// Everything that is counted.
#[derive(Debug)]
pub(super) struct Tally {
    pub(super) lines: LineCounts,
    /// By outcome, in the order of [`OUTCOMES`].
    pub(super) outcomes: [u64; OUTCOMES.len()],
    /// How the outcome differs from what the log says: from, to.
    pub(super) changes: [[u64; OUTCOMES.len()]; OUTCOMES.len()],
    /// Requests that a detected rule refused then and that are forwarded now.
    pub(super) freed_of_detected: u64,
    /// Requests for which the address stood in for a secret that the log does not have.
    pub(super) stood_in: u64,
    /// Lines that are older than one before them, and by how many nanoseconds at most.
    pub(super) out_of_order: (u64, u64),
    pub(super) span: Option<(Moment, Moment)>,
    pub(super) course: Course,
    pub(super) causes: Vec<Cause>,
    /// Attributes that rules and limits name and no request has had yet.
    pub(super) unseen: Vec<AttributeId>,
    by_name: HashMap<Name, usize, RandomState>,
    who: Vec<(AttributeId, Arc<str>)>,
}

/// What was read.
#[derive(Debug, Default)]
pub(super) struct LineCounts {
    pub(super) own: u64,
    pub(super) combined: u64,
    pub(super) common: u64,
    pub(super) unreadable: u64,
    /// The first of them.
    pub(super) shown: Vec<Problem>,
}

/// A rule or limit, and what it did.
#[derive(Debug)]
pub(super) struct Cause {
    pub(super) name: Name,
    pub(super) kind: &'static str,
    pub(super) action: &'static str,
    pub(super) mode: Mode,
    pub(super) percent: u8,
    pub(super) matched: u64,
    pub(super) refused: u64,
    /// What it would refuse if it were enforced for all.
    pub(super) refused_in_shadow: u64,
    /// Of those that it refused, or for a rule that refuses nothing, that it matched.
    pub(super) sources: Frequent,
    refuses: bool,
}

impl LineCounts {
    pub(super) fn read(&mut self, format: Format) {
        *match format {
            Format::Own => &mut self.own,
            Format::Combined => &mut self.combined,
            Format::Common => &mut self.common,
        } += 1;
    }

    /// Counts a line that cannot be read; the first are kept.
    pub(super) fn could_not_read(&mut self, why: impl FnOnce() -> Problem) {
        self.unreadable += 1;
        if self.shown.len() < UNREADABLE_SHOWN {
            self.shown.push(why());
        }
    }
}

impl Tally {
    /// Prepares to count under a policy; sources are told apart by `who`, or by their address.
    pub(super) fn new(policy: &Policy, who: Vec<AttributeId>, lines: LineCounts) -> Self {
        let count = policy.rules().count() + policy.limits().count();
        let places = (SOURCES_TOTAL / count.max(1)).clamp(SOURCES_MIN, SOURCES_MAX);
        let rules = policy.rules().map(|rule| {
            let rule = rule.rule();
            Cause {
                percent: rule.percent,
                refuses: !matches!(rule.action, Action::Allow | Action::Log),
                ..Cause::new(&rule.name, ("rule", rule.action.word()), rule.mode, places)
            }
        });
        let limits = policy.limits().map(|limit| {
            let limit = limit.limit();
            Cause::new(&limit.name, ("limit", "limit"), limit.mode, places)
        });
        let causes: Vec<Cause> = rules.chain(limits).collect();
        let names = causes.iter().map(|cause| cause.name.clone());
        let name = |id: AttributeId| (id, Arc::from(policy.schema().name(id)));
        Self {
            lines,
            outcomes: [0; OUTCOMES.len()],
            changes: [[0; OUTCOMES.len()]; OUTCOMES.len()],
            freed_of_detected: 0,
            stood_in: 0,
            out_of_order: (0, 0),
            span: None,
            course: Course::new(FIRST_CAUSE + causes.len()),
            by_name: names.zip(0..).collect(),
            unseen: named_attributes(policy),
            causes,
            who: who.into_iter().map(name).collect(),
        }
    }

    /// Puts a line in its place in time. One that is older than the line before it counts as that
    /// old.
    pub(super) fn arrived(&mut self, at: Moment) -> (Moment, Slot) {
        let (_, latest) = self.span.get_or_insert((at, at));
        if at < *latest {
            self.out_of_order.0 += 1;
            self.out_of_order.1 = self.out_of_order.1.max(latest.0 - at.0);
        }
        *latest = at.max(*latest);
        let at = *latest;
        (at, self.course.slot(at))
    }

    /// Notes what a request has of what rules and limits name.
    pub(super) fn saw(&mut self, facts: &RequestFacts<'_>) {
        if !self.unseen.is_empty() {
            self.unseen.retain(|id| !facts.is_present(*id));
        }
    }

    /// Counts what one rule or limit did.
    pub(super) fn told(&mut self, told: Told<'_>, facts: &RequestFacts<'_>, slot: Slot) {
        let Some(at) = self.by_name.get(told.name) else {
            return;
        };
        let Some(cause) = self.causes.get_mut(*at) else {
            return;
        };
        cause.matched += 1;
        if told.refused {
            *(if told.enforced {
                &mut cause.refused
            } else {
                &mut cause.refused_in_shadow
            }) += 1;
        }
        if told.refused || !cause.refuses {
            self.course.add(FIRST_CAUSE + at, slot);
            let hash = self.who.iter().fold(0_u64, |hash, (id, _)| {
                hash.rotate_left(5).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ facts.hash(*id)
            });
            if hash == 0 {
                let by_address = || source(facts, &[(AttributeId::IP, "ip".into())]);
                cause.sources.add(facts.hash(AttributeId::IP), by_address);
            } else {
                cause.sources.add(hash, || source(facts, &self.who));
            }
        }
    }

    /// Counts what became of a request, and what had become of it, with the rule that decided then.
    pub(super) fn ended(
        &mut self,
        outcome: &str,
        logged: Option<(&str, Option<&str>)>,
        slot: Slot,
    ) {
        let place = |word: &str| OUTCOMES.iter().position(|one| *one == word);
        let Some(to) = place(outcome) else {
            return;
        };
        if let Some(count) = self.outcomes.get_mut(to) {
            *count += 1;
        }
        self.course.add(SENT, slot);
        if is_refusal(outcome) {
            self.course.add(REFUSED, slot);
        }
        let Some((word, rule)) = logged else {
            return;
        };
        let change = place(word).and_then(|from| self.changes.get_mut(from)?.get_mut(to));
        if let Some(change) = change {
            *change += 1;
        }
        let was_detected = rule.is_some_and(|rule| rule.starts_with(DETECTED_PREFIX));
        if was_detected && is_refusal(word) && outcome == "forward" {
            self.freed_of_detected += 1;
        }
    }

    /// Returns the course's series of a rule or limit, by its place in `causes`.
    pub(super) fn series_of(cause: usize) -> usize {
        FIRST_CAUSE + cause
    }
}

impl Cause {
    fn new(
        name: &Name,
        (kind, action): (&'static str, &'static str),
        mode: Mode,
        places: usize,
    ) -> Self {
        Self {
            name: name.clone(),
            kind,
            action,
            mode,
            percent: 100,
            matched: 0,
            refused: 0,
            refused_in_shadow: 0,
            sources: Frequent::new(places),
            refuses: true,
        }
    }
}

/// Returns whether an outcome is a refusal by a rule or a limit.
pub(super) fn is_refusal(outcome: &str) -> bool {
    matches!(outcome, "limit" | "throttle" | "block" | "tarpit" | "drop")
}

/// Returns the attributes that rules and limits name, each once.
fn named_attributes(policy: &Policy) -> Vec<AttributeId> {
    let mut named: Vec<AttributeId> = Vec::new();
    for rule in policy.rules().map(RuleInForce::rule) {
        named.extend(rule.when.conditions.iter().map(|(id, _)| *id));
        if let Action::Throttle { per, .. } = &rule.action {
            named.extend(per);
        }
    }
    for limit in policy.limits().map(LimitInForce::limit) {
        named.extend(limit.when.conditions.iter().map(|(id, _)| *id));
        named.extend(&limit.key);
    }
    named.sort_unstable();
    named.dedup();
    named
}

/// Names a source by those of the attributes that it has.
fn source(facts: &RequestFacts<'_>, who: &[(AttributeId, Arc<str>)]) -> Box<str> {
    let mut text = String::new();
    for (id, name) in who {
        if let Some(value) = facts.text(*id) {
            let comma = if text.is_empty() { "" } else { ", " };
            // Writing to a string cannot fail.
            text.write_fmt(format_args!("{comma}{name}={}", Plain(&value)))
                .unwrap_or_default();
        }
    }
    if text.len() > SOURCE_BYTES_MAX {
        text.truncate(text.floor_char_boundary(SOURCE_BYTES_MAX));
        text.push('…');
    }
    text.into()
}
