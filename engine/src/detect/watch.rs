//! From an alarm to a rule, or to the knowledge that there should be none.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::blame::{self, Blame, Cause, Table, Terms};
use super::gate::Alarm;
use super::incident::{Evidence, Happening, IncidentId, RejectedCandidate};
use super::nature::{Finding, Judge, Nature};
use super::pattern::{Literal, Pattern};
use super::usual::Length;
use super::window::LEAVES_KEPT;
use super::{Detector, Measure, Stage, Stress, act};
use crate::source::Source;
use crate::time::Instant;

/// What blame looks at, at least.
const LOOK_BACK_MIN: Duration = Duration::from_millis(200);

/// How long every tick searches; later ones search at this interval.
const EAGER_FOR: Duration = Duration::from_secs(3);
const SEARCH_EVERY: Duration = Duration::from_millis(500);

/// How old a surge is before people are told that nothing explains it, and before a suffering
/// upstream justifies a throttle of who may be innocent.
const PATIENCE: Duration = Duration::from_secs(3);

/// How long without an alarm ends a surge.
const QUIET_FOR: Duration = Duration::from_secs(2);

/// How long nothing is learnt under an alarm of a whole service, and of a single value.
const FREEZE: Duration = Duration::from_secs(10);
const FREEZE_VALUE: Duration = Duration::from_secs(3);

/// The most rules at a time.
const MEASURES_MAX: usize = 64;

/// Share of a cause's excess from which on a single address is the cause.
const SINGLE_ADDRESS_MIN: f64 = 0.8;

/// A cause that is to be acted upon.
struct Found {
    cause: Cause,
    source: Source,
    address: Option<IpAddr>,
    held: f64,
    nature: Nature,
}

/// An alarm that is being looked into.
#[derive(Debug)]
pub(super) struct Suspicion {
    raised: Instant,
    began: Instant,
    alarmed: Instant,
    searched: Option<Instant>,
    /// Whether everybody or a whole service surges.
    wide: bool,
    incident: Option<IncidentId>,
    told: Option<Happening>,
    /// Causes that are no crowd and have no rule: nothing is learnt from them.
    suspects: Vec<Pattern>,
}

impl Suspicion {
    pub(super) fn suspects(&self) -> &[Pattern] {
        &self.suspects
    }

    fn new(began: Instant, now: Instant) -> Self {
        Self {
            raised: now,
            began,
            alarmed: now,
            searched: None,
            wide: false,
            incident: None,
            told: None,
            suspects: Vec::new(),
        }
    }

    fn is_frozen(&self, now: Instant) -> bool {
        now.since(self.raised) < if self.wide { FREEZE } else { FREEZE_VALUE }
    }
}

impl Detector {
    /// Returns whether what is seen now may become what is normal.
    pub(super) fn may_learn(&self, now: Instant) -> bool {
        match &self.suspicion {
            Some(suspicion) => !suspicion.is_frozen(now),
            None => !self.gate.is_uneasy(),
        }
    }

    /// Returns whether everybody or a whole service surges, without a rule against it yet.
    pub(super) fn is_alarmed(&self) -> bool {
        self.suspicion
            .as_ref()
            .is_some_and(|suspicion| suspicion.wide)
            || self.gate.is_uneasy()
    }

    /// Asks the gate, and looks into its alarms. Returns whether a rule was made.
    pub(super) fn watch(&mut self, stress: &Stress, now: Instant) -> bool {
        let alarms = self.alarms();
        let Some(began) = alarms.iter().map(|alarm| alarm.since).max() else {
            let quiet = |suspicion: &Suspicion| now.since(suspicion.alarmed) >= QUIET_FOR;
            if self.suspicion.as_ref().is_some_and(quiet) {
                self.end_suspicion(now);
            }
            return false;
        };
        let mut suspicion = match self.suspicion.take() {
            Some(suspicion) => suspicion,
            None => Suspicion::new(began, now),
        };
        suspicion.alarmed = now;
        let services: Vec<Literal> = alarms
            .iter()
            .filter_map(|alarm| alarm.scope)
            .filter(|literal| literal.column == self.service)
            .collect();
        let wide = !services.is_empty() || alarms.iter().any(|alarm| alarm.scope.is_none());
        if wide && !suspicion.wide {
            suspicion.wide = true;
            suspicion.raised = now;
            suspicion.began = began;
        }
        if suspicion.wide && suspicion.incident.is_none() {
            let evidence = rates_of(&alarms, self.service);
            suspicion.incident = Some(self.incidents.open(suspicion.began, evidence, now));
        }
        let due = now.since(suspicion.raised) < EAGER_FOR
            || suspicion
                .searched
                .is_none_or(|at| now.since(at) >= SEARCH_EVERY);
        let acted = due && {
            suspicion.searched = Some(now);
            self.look_into(&mut suspicion, &services, stress, now)
        };
        if acted {
            // What is left of the surge alarms again by itself.
            self.gate.reset();
        } else {
            self.suspicion = Some(suspicion);
        }
        acted
    }

    fn alarms(&mut self) -> Vec<Alarm> {
        let mut gate = std::mem::replace(&mut self.gate, super::Gate::new());
        let expected_of = |scope: Option<Literal>| {
            let (all, held) = match scope {
                None => (self.reference.level(), self.held(|_| true)),
                Some(literal) => (
                    self.reference.expected_of(literal),
                    self.held(|pattern| pattern.literals().contains(&literal)),
                ),
            };
            (all - held).max(0.0)
        };
        let alarms = gate.step(
            &self.window,
            &self.reference,
            self.columns.len(),
            self.spec.floor_per_second,
            |key| self.is_evidence(key),
            expected_of,
        );
        self.gate = gate;
        alarms
    }

    /// What is expected of the sources under rules, which are no evidence.
    fn held(&self, belongs: impl Fn(&Pattern) -> bool) -> f64 {
        let now = self
            .window
            .newest()
            .map_or(Instant::ZERO, |tick| tick.until);
        self.measures
            .iter()
            .filter(|measure| measure.hides(&self.spec, now) && belongs(&measure.pattern))
            .map(|measure| measure.held)
            .sum()
    }

    fn end_suspicion(&mut self, now: Instant) {
        if let Some(incident) = self
            .suspicion
            .take()
            .and_then(|suspicion| suspicion.incident)
        {
            self.incidents.happen(incident, Happening::Ended, now);
        }
    }

    /// Searches for causes and deals with each. Returns whether a rule was made.
    fn look_into(
        &mut self,
        suspicion: &mut Suspicion,
        services: &[Literal],
        stress: &Stress,
        now: Instant,
    ) -> bool {
        let mut blame = self.blame(suspicion.began, services, now);
        let rejected = self.rejected(&blame);
        suspicion.suspects.clear();
        let mut acted = false;
        let causes = std::mem::take(&mut blame.causes);
        let none = causes.is_empty();
        for cause in causes {
            acted |= self.deal_with(suspicion, &cause, &rejected, stress, now);
        }
        if none && suspicion.wide && now.since(suspicion.raised) >= PATIENCE {
            let finding = self.judge(&Pattern::default(), self.reference.level(), suspicion, now);
            let what = match finding.nature {
                Nature::Crowd => Happening::Crowd,
                _ => Happening::NotLocalisable,
            };
            let evidence = Evidence {
                coverage: 1.0,
                collateral: 1.0,
                expected_rate: self.reference.level(),
                instances: finding.instances,
                requests_per_instance: finding.requests_per_instance,
                rejected_candidates: rejected,
                ..Evidence::default()
            };
            self.tell(suspicion, what, finding.nature, None, evidence, now);
        }
        acted
    }

    /// Compares what came since the surge began with what is normal.
    fn blame(&self, began: Instant, services: &[Literal], now: Instant) -> Blame {
        let from = look_back(began, now);
        let seconds = self.window.seconds_since(from);
        if seconds <= 0.0 {
            return Blame::default();
        }
        let leaves = self.window.since(from).map(|tick| tick.leaves.len());
        let rows = leaves.sum::<usize>() + self.reference.rows().count();
        let mut table = Table::new(seconds, rows);
        for leaf in self.window.since(from).flat_map(|tick| &tick.leaves) {
            if self.is_evidence(&leaf.key) {
                table.add(&leaf.key, leaf.requests / seconds, 0.0);
            }
        }
        for (key, expected) in self.reference.rows() {
            if self.is_evidence(key) {
                table.add(key, 0.0, expected);
            }
        }
        let terms = Terms {
            columns: &self.columns,
            floor_per_second: self.spec.floor_per_second,
            dispersion: self.reference.dispersion(1.0),
        };
        blame::blame(&table, services, &terms)
    }

    fn rejected(&self, blame: &Blame) -> Vec<RejectedCandidate> {
        let named = |refused: &blame::Refused| {
            let when = refused
                .pattern
                .source(&self.schema, &self.columns, &self.names)?;
            let why = Arc::from(refused.why.as_str());
            Some(RejectedCandidate { when, why })
        };
        blame.refused.iter().filter_map(named).collect()
    }

    fn judge(
        &self,
        source: &Pattern,
        expected: f64,
        suspicion: &Suspicion,
        now: Instant,
    ) -> Finding {
        let judge = Judge {
            window: &self.window,
            columns: &self.columns,
            instances: &self.instances,
            addresses: &self.addresses,
            level: self.reference.level(),
            now,
        };
        judge.find(source, expected, suspicion.began)
    }

    /// Makes a rule against a cause, or says why there is none.
    fn deal_with(
        &mut self,
        suspicion: &mut Suspicion,
        cause: &Cause,
        rejected: &[RejectedCandidate],
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
        if self.measures.len() >= MEASURES_MAX {
            return false;
        }
        let finding = self.judge(&cause.pattern, cause.expected, suspicion, now);
        let single = match finding.nature {
            Nature::Loop | Nature::ForgedInstances => self.single_address(cause, suspicion, now),
            Nature::Crowd | Nature::Unclear => None,
        };
        let held = cause.expected;
        let (source, cause, address) = match single {
            Some((address, narrowed)) => {
                let source = Source::everybody().with("ip", &text_of(address));
                (source, narrowed, Some(address))
            }
            None => (source, cause.clone(), None),
        };
        let mut evidence = Evidence {
            coverage: cause.coverage,
            collateral: cause.collateral,
            observed_rate: cause.observed,
            expected_rate: cause.expected,
            instances: finding.instances,
            requests_per_instance: finding.requests_per_instance,
            rejected_candidates: rejected.to_vec(),
        };
        let patient = now.since(suspicion.raised) >= PATIENCE;
        let acts = match finding.nature {
            Nature::Loop | Nature::ForgedInstances => true,
            Nature::Crowd | Nature::Unclear => patient && stress.concerns(&source),
        };
        if finding.nature != Nature::Crowd {
            suspicion.suspects.push(cause.pattern.clone());
        }
        let spent: f64 = self.measures.iter().map(|measure| measure.collateral).sum();
        if acts && spent + cause.collateral > self.spec.budget {
            evidence.rejected_candidates.push(RejectedCandidate {
                when: source,
                why: Arc::from(format!(
                    "all detected rules together would hit {:.1} % of normal traffic, more than \
                     the budget",
                    100.0 * (spent + cause.collateral)
                )),
            });
            let what = Happening::NotLocalisable;
            self.tell(suspicion, what, finding.nature, None, evidence, now);
            return false;
        }
        if acts {
            let found = Found {
                cause,
                source,
                address,
                held,
                nature: finding.nature,
            };
            self.throttle(suspicion, found, evidence, now);
        } else if finding.nature == Nature::Crowd && suspicion.wide {
            let what = Happening::Crowd;
            self.tell(suspicion, what, finding.nature, Some(source), evidence, now);
        }
        acts
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
        let (address, observed) = self.window.risen_most(from, suspicion.began, has_none)?;
        let excess = cause.observed - cause.expected;
        if observed < SINGLE_ADDRESS_MIN * excess || observed > excess / SINGLE_ADDRESS_MIN {
            return None;
        }
        let who = cause.pattern.who(&self.columns);
        let usual = self.addresses.of(&who, Length::Second)?.mean();
        let narrowed = Cause {
            observed,
            expected: usual,
            coverage: cause.coverage * (observed / excess).min(1.0),
            collateral: usual / self.reference.level().max(usual),
            pattern: cause.pattern.clone(),
        };
        Some((address, narrowed))
    }

    fn throttle(
        &mut self,
        suspicion: &mut Suspicion,
        found: Found,
        evidence: Evidence,
        now: Instant,
    ) {
        let Found {
            cause,
            source,
            address,
            held,
            nature,
        } = found;
        let incident = suspicion
            .incident
            .take()
            .unwrap_or_else(|| self.incidents.open(suspicion.began, evidence.clone(), now));
        let name = act::name_of(incident);
        let who = cause.pattern.who(&self.columns);
        self.measures.push(Measure {
            incident,
            name: name.clone(),
            pattern: cause.pattern,
            address,
            made: now,
            source: source.clone(),
            nature,
            expected: cause.expected,
            held,
            upper_bound: self.reference.upper_bound(cause.expected),
            collateral: cause.collateral,
            usual_per_instance: self.usual_per_instance(&who),
            observed: cause.observed,
            ttl: self.past.ttl(&source, now),
            stage: Stage::Throttle,
            pure_since: None,
            calm_since: None,
            renewed: now,
        });
        self.familiar.discard();
        self.incidents.update(incident, |incident| {
            incident.source = Some(source);
            incident.nature = Some(nature);
            incident.rule = Some(name);
            incident.evidence = evidence;
        });
        self.incidents.happen(incident, Happening::Throttled, now);
    }

    /// Tells people once, and again only when what could not be explained turns out to be a crowd.
    fn tell(
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
        if suspicion.told == Some(what) || suspicion.told == Some(Happening::Crowd) {
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

/// Returns the rates of the widest scope that surges: everybody, or the busiest service.
fn rates_of(alarms: &[Alarm], service: usize) -> Evidence {
    let is_wide = |alarm: &&Alarm| alarm.scope.is_none_or(|literal| literal.column == service);
    let widest = alarms.iter().filter(is_wide).max_by(|a, b| {
        let everybody = a.scope.is_none().cmp(&b.scope.is_none());
        everybody.then(a.observed.total_cmp(&b.observed))
    });
    widest.map_or_else(Evidence::default, |alarm| Evidence {
        observed_rate: alarm.observed,
        expected_rate: alarm.expected,
        ..Evidence::default()
    })
}

/// From when on blame looks at what came.
fn look_back(began: Instant, now: Instant) -> Instant {
    began.max(now - LEAVES_KEPT).min(now - LOOK_BACK_MIN)
}

/// Returns an address as a condition on `ip` is written: IPv6 counts as its /64.
fn text_of(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("{address}/64"),
    }
}
