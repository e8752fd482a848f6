//! Keeps the score: what became of whose requests, which rules there were, and, at the end, which
//! rule met which surge.

mod judge;

use super::background::Mix;
use super::expect;
use super::load::Stream;
use super::outcome::{Outcome, RuleSeen, SurgeOutcome};
use super::scenario::{Kind, Scenario};
use super::values::{Mask, Values};
use crate::attribute::Schema;
use crate::detect::Incident;
use crate::rules::{Action, Mode, Rule, When};
use crate::source::Source;
use crate::time::Instant;

use judge::{Fit, HITS_MIN, Judge, best};

/// Share of a surge's requests from which on a rule is not false.
const TOUCHES_MIN: f64 = 0.01;

/// Whose request it was.
#[derive(Clone, Copy, Debug)]
pub(super) enum Whose {
    /// The background's: it fits these events' sources, and was known before these.
    Normal { mask: Mask, known: Mask },
    /// This surge's.
    Surge(usize),
    /// This crowd's: it fits these events' sources.
    Crowd { at: usize, mask: Mask },
}

#[derive(Clone, Copy, Debug, Default)]
struct Served {
    all: u64,
    refused: u64,
}

impl Served {
    fn add(&mut self, refused: bool) {
        self.all += 1;
        self.refused += u64::from(refused);
    }

    fn merge(&mut self, other: Self) {
        self.all += other.all;
        self.refused += other.refused;
    }

    fn refused_ratio(self) -> Option<f64> {
        (self.all > 0).then(|| self.refused as f64 / self.all as f64)
    }
}

#[derive(Clone, Debug, Default)]
struct EventTally {
    own: Served,
    /// From the first refusal on.
    met: Served,
    /// Whether it has ended and no rule from then is left.
    over: bool,
    source: Served,
    known: Served,
}

/// A detected rule, from its first publication on.
#[derive(Debug)]
struct Seen {
    name: String,
    when: When,
    text: Source,
    shadow: bool,
    since: f64,
    blocked: Option<f64>,
    gone: Option<f64>,
}

/// The score.
#[derive(Debug)]
pub(super) struct Score {
    events: Vec<EventTally>,
    legitimate: Served,
    legitimate_in_tick: u64,
    failed: f64,
    rules: Vec<Seen>,
    requests: u64,
    pub(super) trained: u64,
}

impl Score {
    pub(super) fn new(events: usize) -> Self {
        Self {
            events: vec![EventTally::default(); events],
            legitimate: Served::default(),
            legitimate_in_tick: 0,
            failed: 0.0,
            rules: Vec::new(),
            requests: 0,
            trained: 0,
        }
    }

    /// Counts one request. `affected` are the events whose sources suffer from them now.
    pub(super) fn count(&mut self, whose: Whose, refused: bool, affected: Mask) {
        self.requests += 1;
        let (mask, known) = match whose {
            Whose::Surge(at) => {
                self.count_own(at, refused);
                return;
            }
            Whose::Crowd { at, mask } => {
                self.count_own(at, refused);
                (mask, 0)
            }
            Whose::Normal { mask, known } => (mask, known),
        };
        self.legitimate_in_tick += u64::from(!refused);
        let of_source = mask & affected;
        if of_source == 0 {
            self.legitimate.add(refused);
            return;
        }
        for (at, event) in self.events.iter_mut().enumerate() {
            let bit = 1 << at;
            if of_source & bit != 0 {
                event.source.add(refused);
                if known & bit != 0 {
                    event.known.add(refused);
                }
            }
        }
    }

    fn count_own(&mut self, at: usize, refused: bool) {
        if let Some(event) = self.events.get_mut(at) {
            event.own.add(refused);
            if event.own.refused > 0 {
                event.met.add(refused);
            }
        }
    }

    /// Counts what the upstream failed of a tick's requests.
    pub(super) fn fail(&mut self, share: f64) {
        self.failed += share * self.legitimate_in_tick as f64;
        self.legitimate_in_tick = 0;
    }

    /// Returns the surges that go on, or since whose end there always was a rule.
    pub(super) fn affected(&mut self, streams: &[Stream], t: f64) -> Mask {
        let is_ruled = self.rules.iter().any(|rule| rule.gone.is_none());
        let mut mask = 0;
        for (at, (stream, tally)) in streams.iter().zip(&mut self.events).enumerate() {
            let event = &stream.event;
            tally.over |= t >= event.until.as_secs_f64() && !is_ruled;
            if event.kind == Kind::Surge && t >= event.from.as_secs_f64() && !tally.over {
                mask |= 1 << at;
            }
        }
        mask
    }

    /// Takes note of the detected rules in force from `t` on.
    pub(super) fn note(&mut self, rules: &[Rule], t: f64) {
        for seen in &mut self.rules {
            let is_there = rules.iter().any(|rule| rule.name.as_str() == seen.name);
            if !is_there && seen.gone.is_none() {
                seen.gone = Some(t);
            }
        }
        for rule in rules {
            let blocks = matches!(rule.action, Action::Block { .. });
            let at = self
                .rules
                .iter()
                .position(|seen| seen.name == rule.name.as_str() && seen.gone.is_none());
            match at.and_then(|at| self.rules.get_mut(at)) {
                Some(seen) => {
                    if blocks && seen.blocked.is_none() {
                        seen.blocked = Some(t);
                    }
                    seen.when = rule.when.clone();
                    seen.text = rule.when_text.clone();
                }
                None => self.rules.push(Seen {
                    name: rule.name.as_str().to_owned(),
                    when: rule.when.clone(),
                    text: rule.when_text.clone(),
                    shadow: rule.mode == Mode::Shadow,
                    since: t,
                    blocked: blocks.then_some(t),
                    gone: None,
                }),
            }
        }
    }

    /// Sums up.
    #[expect(
        clippy::too_many_arguments,
        reason = "called once, with all that there is"
    )]
    pub(super) fn outcome(
        &self,
        scenario: &Scenario,
        streams: &[Stream],
        mix: &Mix,
        values: &Values,
        incidents: &[Incident],
        schema: &Schema,
        now: Instant,
        t: f64,
    ) -> Outcome {
        let judge = Judge {
            mix,
            values,
            schema,
            begun: now.as_secs_f64() - t,
            streams,
            shares: streams
                .iter()
                .map(|stream| mix.share(values, &stream.when))
                .collect(),
        };
        let fits: Vec<Vec<Fit>> = self.rules.iter().map(|rule| judge.fits(rule, t)).collect();
        let surges: Vec<SurgeOutcome> = (0..streams.len())
            .filter_map(|at| self.surge(at, &judge, &fits, incidents, t))
            .collect();
        let rules: Vec<RuleSeen> = self
            .rules
            .iter()
            .zip(&fits)
            .map(|(rule, fits)| RuleSeen {
                name: rule.name.clone(),
                when: rule.text.clone(),
                throttled_at_s: rule.since,
                blocked_at_s: rule.blocked,
                released_at_s: rule.gone,
                surge: best(fits).and_then(|at| Some(streams.get(at)?.event.name.clone())),
                normal_share: mix.share(values, &rule.when),
                shadow: rule.shadow,
            })
            .collect();
        let is_false = |(rule, fits): &(&Seen, &Vec<Fit>)| {
            !fits.iter().zip(streams).any(|(fit, stream)| {
                // Capacity may be shared inside a crowd, but nobody in it blocked.
                let may = match stream.event.kind {
                    Kind::Surge => true,
                    Kind::Crowd => rule.blocked.is_none(),
                    Kind::Rollout => false,
                };
                may && fit.matched >= TOUCHES_MIN
            })
        };
        let false_rules = self.rules.iter().zip(&fits).filter(is_false).count();
        let mut source = Served::default();
        let mut known = Served::default();
        for event in &self.events {
            source.merge(event.source);
            known.merge(event.known);
        }
        let legitimate = (self.legitimate.all - self.legitimate.refused).max(1) as f64;
        let mut outcome = Outcome {
            name: scenario.name.clone(),
            seed: scenario.seed,
            duration_s: scenario.duration.as_secs_f64(),
            surges,
            legitimate_refused_ratio: self.legitimate.refused_ratio().unwrap_or(0.0),
            source_legitimate_refused_ratio: source.refused_ratio(),
            known_source_legitimate_served_ratio: known.refused_ratio().map(|ratio| 1.0 - ratio),
            legitimate_failed_ratio: self.failed / legitimate,
            rules_installed: rules.len(),
            false_rules,
            rules,
            incidents: incidents.to_vec(),
            requests: self.requests,
            requests_trained: self.trained,
            ..Outcome::default()
        };
        outcome.expectations = expect::check(&scenario.expect, &outcome);
        outcome.met = outcome.expectations.iter().all(|checked| checked.met);
        outcome
    }

    fn surge(
        &self,
        at: usize,
        judge: &Judge<'_>,
        fits: &[Vec<Fit>],
        incidents: &[Incident],
        end: f64,
    ) -> Option<SurgeOutcome> {
        let stream = judge.streams.get(at)?;
        let tally = self.events.get(at)?;
        let event = &stream.event;
        let counted = judge.counted_from(stream);
        let (from, until) = (event.from.as_secs_f64(), event.until.as_secs_f64());
        let overlap = |rule: &Seen| rule.gone.unwrap_or(end).min(until) - rule.since.max(from);
        // The rules that hold this event back; of those, if there are such, the ones that are about it
        // rather than about another one.
        let holding: Vec<(&Seen, &Vec<Fit>)> = self
            .rules
            .iter()
            .zip(fits)
            .filter(|(rule, _)| rule.since <= until && rule.gone.is_none_or(|gone| gone > from))
            .filter(|(rule, _)| !rule.shadow)
            .filter(|(_, fits)| fits.get(at).is_some_and(|fit| fit.matched >= HITS_MIN))
            .collect();
        let is_own = |fits: &[Fit]| best(fits) == Some(at);
        let has_own = holding.iter().any(|(_, fits)| is_own(fits));
        let about: Vec<(&Seen, &Fit)> = holding
            .into_iter()
            .filter(|(_, fits)| !has_own || is_own(fits))
            .filter_map(|(rule, fits)| Some((rule, fits.get(at)?)))
            .collect();
        let best = about
            .iter()
            .max_by(|a, b| {
                let of = |(rule, fit): &(&Seen, &Fit)| (fit.exact, overlap(rule));
                let (a, b) = (of(a), of(b));
                a.0.cmp(&b.0).then(a.1.total_cmp(&b.1))
            })
            .copied();
        let after = |moment: Option<f64>| moment.map(|moment| (moment - counted).max(0.0));
        let first = |moments: &mut dyn Iterator<Item = f64>| moments.min_by(f64::total_cmp);
        let gone = about.iter().map(|(rule, _)| rule.gone);
        let released = if about.is_empty() || gone.clone().any(|gone| gone.is_none()) {
            None
        } else {
            gone.flatten().max_by(f64::total_cmp)
        };
        let detected = judge.detected(at, incidents, until);
        let throttled = first(&mut about.iter().map(|(rule, _)| rule.since.max(from)));
        Some(SurgeOutcome {
            name: event.name.clone(),
            kind: event.kind,
            source: event.source.clone(),
            counted_from_s: counted,
            detected_after_s: after(detected.or(throttled)),
            throttled_after_s: after(throttled),
            blocked_after_s: after(first(
                &mut about.iter().filter_map(|(rule, _)| rule.blocked),
            )),
            released_after_s: after(released),
            released_after_end_s: released.map(|released| (released - until).max(0.0)),
            source_found: best.map(|(rule, _)| rule.text.clone()),
            rule: best.map(|(rule, _)| rule.name.clone()),
            matched_ratio: best.map(|(_, fit)| fit.matched),
            normal_share: judge.shares.get(at).copied().unwrap_or(0.0),
            rule_normal_share: best.map(|(_, fit)| fit.normal),
            exact: best.is_some_and(|(_, fit)| fit.exact),
            requests: tally.own.all,
            bad_refused_ratio: tally.own.refused_ratio().unwrap_or(0.0),
            refused_since_first_ratio: tally.met.refused_ratio(),
            source_legitimate_requests: tally.source.all,
            source_legitimate_refused_ratio: tally.source.refused_ratio(),
            known_source_legitimate_served_ratio: tally
                .known
                .refused_ratio()
                .map(|ratio| 1.0 - ratio),
        })
    }
}
