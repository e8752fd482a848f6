//! Puts a cause that was found under a rule, and tells people of it. Knows nothing of whether that is right.

use std::net::IpAddr;
use std::sync::Arc;

use super::act::{Measure, Opinion, Stage};
use super::blame::Cause;
use super::gate::floor_of;
use super::incident::{Evidence, Happening};
use super::nature::Nature;
use super::watch::Suspicion;
use super::{Detector, act};
use crate::rules::Mode;
use crate::source::Source;
use crate::time::Instant;

/// A source under a rule is calm at the latest when it offers less than this share of the excess
/// that it was found with.
const FLOOR_SHARE: f64 = 0.5;

/// A cause that is to be acted upon.
pub(super) struct Found {
    pub(super) cause: Cause,
    pub(super) source: Source,
    pub(super) services: Vec<Arc<str>>,
    pub(super) address: Option<IpAddr>,
    pub(super) shares: bool,
    pub(super) nature: Nature,
}

impl Detector {
    /// Makes a rule against a cause that was found.
    pub(super) fn throttle(
        &mut self,
        suspicion: &mut Suspicion,
        found: Found,
        evidence: Evidence,
        now: Instant,
    ) {
        let Found {
            cause,
            source,
            services,
            address,
            shares,
            nature,
        } = found;
        let incident = suspicion
            .incident
            .take()
            .unwrap_or_else(|| self.incidents.open(suspicion.began, evidence.clone(), now));
        let name = act::name_of(incident);
        let who = cause.pattern.who(&self.columns);
        let held = if shares {
            0.0
        } else {
            self.unheld(&cause.pattern)
        };
        // Of the whole source: whom a rule for a part of it spares comes by here, too.
        let all_expected = match address {
            Some(_) => cause.expected,
            None => self.reference.expected_of_pattern(&cause.pattern),
        };
        self.past.supersede(&source);
        let measure = Measure {
            incident,
            name: name.clone(),
            pattern: cause.pattern,
            services,
            said: None,
            address,
            shares,
            made: now,
            began: suspicion.began,
            source: source.clone(),
            nature,
            opinion: Opinion::new(nature, now),
            expected: cause.expected,
            held,
            floor: floor_of(self.reference.level(), self.spec.floor_per_second)
                .min((cause.observed - cause.expected) * FLOOR_SHARE)
                .max(act::THROTTLE_MIN),
            upper_bound: self.reference.upper_bound(all_expected),
            collateral: cause.collateral,
            usual_per_instance: self.usual_per_instance(&who),
            observed: cause.observed,
            offered: cause.observed,
            ttl: self.past.ttl(&source, now),
            stage: Stage::Throttle,
            ramped: 0,
            eased: false,
            pure_since: None,
            calm_since: None,
            renewed: now,
        };
        let what = match measure.mode(&self.spec) {
            Mode::Shadow => Happening::Suggested,
            Mode::Enforce if shares => Happening::Shared,
            Mode::Enforce => Happening::Throttled,
        };
        self.measures.push(measure);
        self.forget_strangers(suspicion.began);
        self.incidents.update(incident, |incident| {
            incident.source = Some(source);
            incident.nature = Some(nature);
            incident.rule = Some(name);
            incident.evidence = evidence;
        });
        self.incidents.happen(incident, what, now);
    }

    /// Tells people once, and again only when what could not be explained turns out to be a crowd or
    /// somebody who is left alone.
    pub(super) fn tell(
        &mut self,
        suspicion: &mut Suspicion,
        what: Happening,
        nature: Nature,
        source: Option<Source>,
        evidence: Evidence,
        now: Instant,
    ) {
        let Some(incident) = suspicion.incident else {
            return;
        };
        let is_final = |told| matches!(told, Happening::Crowd | Happening::LeftAlone);
        if suspicion.told == Some(what) || suspicion.told.is_some_and(is_final) {
            return;
        }
        suspicion.told = Some(what);
        self.incidents.update(incident, |incident| {
            incident.source = source;
            incident.nature = Some(nature);
            incident.evidence = evidence;
        });
        self.incidents.happen(incident, what, now);
    }
}
