//! What is done about a source that explains a surge: a rule, or a word to people why there is none.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::act::{Measure, Stage};
use super::blame::Cause;
use super::found::Found;
use super::incident::{Evidence, Happening, RejectedCandidate};
use super::nature::{Finding, Judge, Nature};
use super::pattern::{ABSENT, Literal, Pattern};
use super::usual::Length;
use super::watch::{Considered, PATIENCE, Suspicion, look_back};
use super::window::SECOND;
use super::{DetectionMode, Detector, Stress, act};
use crate::source::Source;
use crate::time::Instant;

/// Share of a cause's excess from which on a single address is the cause.
const SINGLE_ADDRESS_MIN: f64 = 0.8;

/// Share of a source's excess from which on a service has a say in what is done about it.
const SAY_MIN: f64 = 0.2;

impl Detector {
    /// Judges the clients of a source in a surge that began at `began`.
    ///
    /// Clients are told apart by who they are, not by what they ask for: so of a source that names
    /// both, all traffic of the clients is judged, against all that is expected of them.
    pub(super) fn judge(&self, source: &Pattern, began: Instant, now: Instant) -> Finding {
        let who = source.who(&self.columns);
        let others = self.measures.iter().filter(|measure| !measure.shares);
        let besides: Vec<Pattern> = others
            .filter(|measure| measure.address.is_none() && measure.pattern != *source)
            .map(|measure| measure.pattern.who(&self.columns))
            .filter(|other| !other.is_everybody() && *other != who)
            .collect();
        let expected = self.reference.expected_where(|key| {
            who.matches(key) && !besides.iter().any(|other| other.matches(key))
        });
        let judge = Judge {
            besides,
            window: &self.window,
            instances: &self.instances,
            addresses: &self.addresses,
            level: self.reference.level(),
            now,
        };
        judge.find(&who, expected, began)
    }

    /// Returns a cause together with the rules in force that are about a part of it, and the places of
    /// those, which give way to it, in descending order. A surge that rises slowly is often found by a
    /// part first.
    ///
    /// A part that is blocked stays where the whole may only be throttled, and all do where the whole
    /// would go beyond the budget: then the cause is the rest.
    fn with_parts(&self, cause: &Cause, now: Instant) -> (Cause, Vec<usize>) {
        let is_part = |measure: &Measure| {
            let blames = !measure.shares && measure.address.is_none();
            blames && measure.pattern.is_part_of(&cause.pattern)
        };
        let parts: Vec<usize> = (0..self.measures.len())
            .rev()
            .filter(|at| self.measures.get(*at).is_some_and(is_part))
            .collect();
        if parts.is_empty() {
            return (cause.clone(), parts);
        }
        let whole = self.measured(cause, cause.pattern.clone(), now);
        let blocks =
            |measure: &Measure| !matches!(measure.stage, Stage::Throttle | Stage::Ramp { .. });
        let weakens = whole.collateral > self.spec.collateral_max
            && parts
                .iter()
                .any(|at| self.measures.get(*at).is_some_and(blocks));
        let spent = self.spent_besides(&parts) + self.hit(whole.collateral);
        if weakens || spent > self.spec.budget {
            let rest = Cause {
                collateral: whole.collateral,
                collateral_of_service: whole.collateral_of_service,
                ..cause.clone()
            };
            return (rest, Vec::new());
        }
        (whole, parts)
    }

    /// Returns the figures of a cause for another, wider source: all of it, under rules or not.
    fn measured(&self, cause: &Cause, pattern: Pattern, now: Instant) -> Cause {
        let from = now - SECOND;
        let seconds = self.window.seconds_since(from).max(f64::MIN_POSITIVE);
        let came = self.window.requests_since(from, |key| pattern.matches(key));
        let expected = self.reference.expected_of_pattern(&pattern);
        let collateral = expected / self.reference.level().max(f64::MIN_POSITIVE);
        Cause {
            observed: came / seconds,
            expected,
            coverage: cause.coverage,
            collateral,
            collateral_of_service: cause.collateral_of_service.max(collateral),
            pattern,
        }
    }

    /// Makes a rule against a cause, or says why there is none. Returns whether there is one.
    pub(super) fn deal_with(
        &mut self,
        suspicion: &mut Suspicion,
        cause: &Cause,
        considered: &Considered,
        stress: &Stress,
        now: Instant,
    ) -> bool {
        let Some(source) = cause
            .pattern
            .source(&self.schema, &self.columns, &self.names)
        else {
            suspicion.suspects.push(cause.pattern.clone());
            return false;
        };
        // Of what has no rule yet: a crowd does not become a loop by having one in it.
        let mut finding = self.judge(&cause.pattern, suspicion.began, now);
        if self.past.was_withdrawn(&source, now) {
            finding.nature = Nature::Unclear;
        }
        let single = if finding.nature.is_sure() {
            self.single_address(cause, suspicion, now)
        } else {
            None
        };
        let (source, (cause, parts), address) = match single {
            Some((address, narrowed)) => {
                let source = Source::everybody().with("ip", &text_of(address));
                (source, (narrowed, Vec::new()), Some(address))
            }
            None => (source, self.with_parts(cause, now), None),
        };
        let mut evidence = Evidence {
            coverage: cause.coverage,
            collateral: cause.collateral,
            collateral_of_service: cause.collateral_of_service,
            observed_rate: cause.observed,
            expected_rate: cause.expected,
            instances: finding.instances,
            requests_per_instance: finding.requests_per_instance,
            candidates: considered.candidates,
            rejected_candidates: considered.rejected.clone(),
        };
        let services = self.services_of(&cause.pattern, now);
        if let Some(why) = self.hands_off(&source, &services) {
            suspicion.suspects.push(cause.pattern.clone());
            evidence.rejected_candidates.push(RejectedCandidate {
                when: source.clone(),
                why: Arc::from(why),
            });
            let what = Happening::LeftAlone;
            self.tell(suspicion, what, finding.nature, Some(source), evidence, now);
            return false;
        }
        let patient = now.since(suspicion.raised) >= PATIENCE;
        let acts = finding.nature.is_misbehaviour() || patient && stress.concerns(&source);
        let suffers = stress.concerns(&source);
        if finding.nature != Nature::Crowd && (suffers || suspicion.is_young(now)) {
            suspicion.suspects.push(cause.pattern.clone());
        }
        if !acts {
            if finding.nature == Nature::Crowd && suspicion.wide {
                let what = Happening::Crowd;
                self.tell(suspicion, what, finding.nature, Some(source), evidence, now);
            }
            return false;
        }
        let found = Found {
            cause,
            source,
            services,
            address,
            shares: false,
            nature: finding.nature,
        };
        self.merge(parts, &found.source, now);
        let found = self.widened(found, now);
        match self.room_for(&found.cause) {
            Ok(room) => {
                for at in room.leaving {
                    let why = format!("{} is a larger surge", found.source);
                    self.end(at, Happening::Displaced, Some(Arc::from(why)), now);
                }
                self.throttle(suspicion, found, evidence, now);
                true
            }
            Err(why) => {
                evidence.rejected_candidates.push(RejectedCandidate {
                    when: found.source,
                    why: Arc::from(why),
                });
                if suspicion.incident.is_none() {
                    let opened = self.incidents.open(suspicion.began, evidence.clone(), now);
                    suspicion.incident = Some(opened);
                }
                let what = Happening::NotLocalisable;
                self.tell(suspicion, what, finding.nature, None, evidence, now);
                false
            }
        }
    }

    /// Returns the services that each hold a good part of a source's excess; the one that it names, where
    /// it does.
    pub(super) fn services_of(&self, pattern: &Pattern, now: Instant) -> Vec<Arc<str>> {
        let mut excess: BTreeMap<u32, f64> = BTreeMap::new();
        let from = now - SECOND;
        let seconds = self.window.seconds_since(from).max(f64::MIN_POSITIVE);
        let leaves = self.window.since(from).flat_map(|tick| &tick.leaves);
        for leaf in leaves.filter(|leaf| pattern.matches(&leaf.key)) {
            *excess.entry(leaf.key.value(self.service)).or_default() += leaf.requests / seconds;
        }
        for (key, expected) in self.reference.rows() {
            if pattern.matches(key) {
                *excess.entry(key.value(self.service)).or_default() -= expected;
            }
        }
        let all: f64 = excess.values().filter(|excess| **excess > 0.0).sum();
        excess
            .iter()
            .filter(|(value, excess)| {
                **value != ABSENT && **excess > 0.0 && **excess >= SAY_MIN * all
            })
            .filter_map(|(value, _)| self.names.text(self.service, *value).cloned())
            .collect()
    }

    /// Returns in words why nothing is done about a source, if that is an operator's will.
    fn hands_off(&self, source: &Source, services: &[Arc<str>]) -> Option<&'static str> {
        if self.past.is_left_alone(source) {
            return Some("an operator took its rule back less than ten minutes ago");
        }
        let is_off = self.spec.mode_of(services) == DetectionMode::Off;
        is_off.then_some("detection is off for a service that it goes to")
    }

    /// Returns the wider source in place of a cause of which several kinds have rules already, and
    /// ends those; the cause itself where that would hit too much.
    fn widened(&mut self, found: Found, now: Instant) -> Found {
        if found.address.is_some() || !found.nature.is_misbehaviour() {
            return found;
        }
        let Some((wider, places)) = self.siblings(&found.cause.pattern) else {
            return found;
        };
        let cause = self.measured(&found.cause, wider, now);
        let collateral = cause.collateral;
        let purity = (cause.observed - cause.expected) / cause.observed.max(f64::MIN_POSITIVE);
        let source = cause
            .pattern
            .source(&self.schema, &self.columns, &self.names);
        let fits = purity >= act::PURITY_MIN
            && collateral <= self.spec.collateral_max
            && self.spent_besides(&places) + collateral <= self.spec.budget;
        let (Some(source), true) = (source, fits) else {
            return found;
        };
        self.merge(places, &source, now);
        Found {
            cause,
            source,
            ..found
        }
    }

    /// Ends rules that are about a part of a source which gets one of its own.
    fn merge(&mut self, places: Vec<usize>, source: &Source, now: Instant) {
        for at in places {
            let why = Arc::from(format!("part of {source}"));
            self.end(at, Happening::Merged, Some(why), now);
        }
    }

    /// Lets all clients of the services that surge share what their upstream can do, once nothing
    /// better is known and it suffers.
    pub(super) fn share(
        &mut self,
        suspicion: &mut Suspicion,
        services: &[Literal],
        nature: Nature,
        evidence: Evidence,
        stress: &Stress,
        now: Instant,
    ) {
        let everybody = Pattern::default();
        let mut scopes: Vec<Pattern> = services
            .iter()
            .map(|service| everybody.with(*service))
            .collect();
        if scopes.is_empty() {
            scopes.push(everybody);
        }
        let has_one = |pattern: &Pattern| {
            let same = |measure: &Measure| measure.shares && measure.pattern == *pattern;
            self.measures.iter().any(same)
        };
        let suffers = |pattern: Pattern| {
            let source = pattern.source(&self.schema, &self.columns, &self.names)?;
            let services = self.services_of(&pattern, now);
            let may = self.hands_off(&source, &services).is_none();
            (may && stress.concerns(&source) && !has_one(&pattern))
                .then_some((pattern, source, services))
        };
        let Some((pattern, source, services)) = scopes.into_iter().find_map(suffers) else {
            return;
        };
        let from = now - SECOND;
        let seconds = self.window.seconds_since(from).max(f64::MIN_POSITIVE);
        let came = self.window.requests_since(from, |key| pattern.matches(key));
        let expected = self.reference.expected_of_pattern(&pattern);
        let found = Found {
            cause: Cause {
                observed: came / seconds,
                expected,
                coverage: 1.0,
                collateral: 0.0,
                collateral_of_service: 0.0,
                pattern,
            },
            source,
            services,
            address: None,
            shares: true,
            nature: match nature {
                Nature::Crowd => Nature::Crowd,
                _ => Nature::Unclear,
            },
        };
        self.throttle(suspicion, found, evidence, now);
        suspicion.shared = true;
    }

    /// Returns the one address that explains a cause, with what it explains; the cause's other clients
    /// need not suffer for it.
    fn single_address(
        &self,
        cause: &Cause,
        suspicion: &Suspicion,
        now: Instant,
    ) -> Option<(IpAddr, Cause)> {
        let from = look_back(suspicion.began, now);
        let has_none = |address| {
            let has = |measure: &Measure| measure.address == Some(address);
            !self.measures.iter().any(has)
        };
        // A gateway of many honest clients that always is as busy as the cause must not be taken for
        // it, by chance or because somebody aimed at that: what counts is the rise.
        let (address, rise, before) = self.window.risen_most(from, suspicion.began, has_none)?;
        let excess = cause.observed - cause.expected;
        if rise < SINGLE_ADDRESS_MIN * excess || rise > excess / SINGLE_ADDRESS_MIN {
            return None;
        }
        let who = cause.pattern.who(&self.columns);
        // What was there before, behind a gateway, is as normal as what addresses usually send.
        let usual = self.addresses.of(&who, Length::Second)?.mean().max(before);
        let narrowed = Cause {
            observed: before + rise,
            expected: usual,
            coverage: cause.coverage * (rise / excess).min(1.0),
            collateral: usual / self.reference.level().max(usual),
            collateral_of_service: usual / self.reference.level().max(usual),
            pattern: cause.pattern.clone(),
        };
        Some((address, narrowed))
    }
}

/// Returns an address as a condition on `ip` is written: IPv6 counts as its /64.
fn text_of(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("{address}/64"),
    }
}
