//! From an alarm to the sources that explain it. What is done about them is for [`super::respond`].

use std::sync::Arc;
use std::time::Duration;

use super::blame::{self, Blame, Cause, Table, Terms};
use super::gate::{Alarm, EFFECT_MIN, floor_of};
use super::incident::{Evidence, Happening, IncidentId, RejectedCandidate};
use super::nature::Nature;
use super::pattern::{Literal, Pattern};
use super::rise::Rise;
use super::window::{LEAVES_KEPT, SHORT};
use super::{Detector, Stress};
use crate::time::Instant;

/// What blame looks at, at least.
const LOOK_BACK_MIN: Duration = Duration::from_millis(200);

/// How often a surge without a rule is searched, by its age: at every tick while it is new, more seldom
/// the less it is likely that one more look tells more.
const SEARCHES: [(Duration, Duration); 3] = [
    (Duration::from_secs(1), Duration::ZERO),
    (Duration::from_secs(4), Duration::from_millis(200)),
    (Duration::from_secs(15), Duration::from_millis(500)),
];
const SEARCH_EVERY: Duration = Duration::from_secs(1);

/// How old a surge is before people are told that nothing explains it, and before a suffering
/// upstream justifies a throttle of who may be innocent.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);

/// Share of a surge from which on its sources explain it.
const EXPLAINED_MIN: f64 = 0.5;

/// By how much a surge may have begun earlier than the test can tell, where it rises slowly.
const BEGAN_ERROR: Duration = Duration::from_secs(10);

/// By how many standard deviations more must come than before for a surge of its own.
const LEAP_DEVIATIONS: f64 = 4.0;

/// How long without an alarm ends a surge.
const QUIET_FOR: Duration = Duration::from_secs(2);

/// How long nothing is learnt under an alarm of a whole service, and of a single value.
const FREEZE: Duration = Duration::from_secs(10);
const FREEZE_VALUE: Duration = Duration::from_secs(3);

/// How long nothing is learnt from a suspect that does no harm.
const SUSPECT_FOR: Duration = Duration::from_mins(5);

/// What was considered besides the causes that were found.
#[derive(Debug, Default)]
pub(super) struct Considered {
    pub(super) candidates: u32,
    pub(super) rejected: Vec<RejectedCandidate>,
}

/// An alarm that is being looked into.
#[derive(Debug)]
pub(super) struct Suspicion {
    pub(super) raised: Instant,
    pub(super) began: Instant,
    alarmed: Instant,
    searched: Option<Instant>,
    /// Whether everybody or a whole service surges.
    pub(super) wide: bool,
    pub(super) incident: Option<IncidentId>,
    pub(super) told: Option<Happening>,
    /// Whether a rule lets everybody share, in this surge's incident.
    pub(super) shared: bool,
    /// Causes that are no crowd and have no rule: nothing is learnt from them.
    pub(super) suspects: Vec<Pattern>,
    /// What was found to be most of the surge when that could last be told, whatever it is.
    explained: Vec<Pattern>,
    rise: Rise,
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
            shared: false,
            suspects: Vec::new(),
            explained: Vec::new(),
            rise: Rise::since(began),
        }
    }

    /// Returns whether it is so new that nothing may be learnt from those it is about. Who goes on for
    /// longer without harm, and without anybody knowing why, is how things are by now.
    pub(super) fn is_young(&self, now: Instant) -> bool {
        now.since(self.raised) < SUSPECT_FOR
    }

    fn is_frozen(&self, now: Instant) -> bool {
        now.since(self.raised) < if self.wide { FREEZE } else { FREEZE_VALUE }
    }
}

impl Detector {
    /// Returns whether what is seen now may become what is normal.
    pub(super) fn may_learn(&self, now: Instant) -> bool {
        // While all share, what comes is what they are let have.
        let shares = self.measures.iter().any(|measure| measure.shares);
        match &self.suspicion {
            _ if shares => false,
            Some(suspicion) => !suspicion.is_frozen(now),
            None => !self.gate.is_uneasy() || self.reference.is_young(),
        }
    }

    /// Returns whether everybody or a whole service surges, without a rule against it yet.
    pub(super) fn is_suspicious(&self, now: Instant) -> bool {
        match &self.suspicion {
            Some(suspicion) if !suspicion.is_young(now) => false,
            Some(suspicion) if suspicion.wide => true,
            _ => self.gate.is_uneasy(),
        }
    }

    /// Returns whether strangers that come now may become known: not while a surge is on of which it is
    /// not known whose it is. Those of its sources are left out in any case ([`Detector::unfamiliar`]).
    pub(super) fn may_get_to_know(&self, now: Instant) -> bool {
        match &self.suspicion {
            Some(suspicion) if !suspicion.is_young(now) => true,
            Some(suspicion) if suspicion.wide => !suspicion.explained.is_empty(),
            _ => !self.gate.is_uneasy(),
        }
    }

    /// Walks the sources of which nothing is learnt: those that have a rule, and those that an operator
    /// has left alone.
    pub(super) fn set_aside(&self) -> impl Iterator<Item = &Pattern> {
        let ruled = self.measures.iter().map(|measure| &measure.pattern);
        ruled.chain(self.past.left_alone().map(|(pattern, _)| pattern))
    }

    /// Returns the sources of which no stranger may become known: those that have a rule, and what the
    /// surge that is being looked into is about.
    pub(super) fn unfamiliar(&self) -> Vec<Pattern> {
        let suspicion = self.suspicion.as_ref();
        let explained = suspicion.map_or(&[][..], |suspicion| &suspicion.explained);
        self.set_aside().chain(explained).cloned().collect()
    }

    /// Asks the gate, and looks into its alarms. Returns whether a rule was made.
    pub(super) fn watch(&mut self, stress: &Stress, now: Instant) -> bool {
        let alarms = self.alarms();
        let leapt = self.leapt(now);
        let Some(began) = alarms.iter().map(|alarm| alarm.since).max() else {
            let quiet = |suspicion: &Suspicion| now.since(suspicion.alarmed) >= QUIET_FOR;
            if self.suspicion.as_ref().is_some_and(quiet) {
                self.end_suspicion(None, now);
            }
            return false;
        };
        if leapt.is_some() {
            self.end_suspicion(Some("a surge of its own came upon it"), now);
        }
        let mut suspicion = match self.suspicion.take() {
            Some(suspicion) => suspicion,
            None => Suspicion::new(leapt.unwrap_or(began), now),
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
        if suspicion.wide && suspicion.incident.is_none() && !suspicion.shared {
            let evidence = rates_of(&alarms, self.service);
            suspicion.incident = Some(self.incidents.open(suspicion.began, evidence, now));
        }
        let age = now.since(suspicion.raised);
        let every = SEARCHES
            .iter()
            .find(|(until, _)| age < *until)
            .map_or(SEARCH_EVERY, |(_, every)| *every);
        let due = suspicion.searched.is_none_or(|at| now.since(at) >= every);
        let rules = self.measures.len();
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
        acted || self.measures.len() != rules
    }

    /// Returns since when there is a surge of its own upon the one that is being looked into, if there is
    /// one: what was found out about the other, and how seldom it is searched by now, is not for this one.
    fn leapt(&mut self, now: Instant) -> Option<Instant> {
        let raised = self.suspicion.as_ref()?.raised;
        let excess = self.unexplained(now);
        let level = self.reference.level();
        // Where little comes, a third of a second says little: chance is no surge of its own.
        let came = self.reference.dispersion(1.0) * (level + excess) / SHORT.as_secs_f64();
        let more = ((EFFECT_MIN - 1.0) * level)
            .max(floor_of(level, self.spec.floor_per_second))
            .max(LEAP_DEVIATIONS * came.max(0.0).sqrt());
        let suspicion = self.suspicion.as_mut()?;
        if suspicion.told.is_some() {
            suspicion.rise.conclude(excess);
        }
        let since = suspicion.rise.hear(excess, more, now)?;
        (now.since(raised) >= PATIENCE).then_some(since)
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
            |scope, expected| match scope {
                Some(literal) if literal.column != self.service => self.spec.floor_per_second,
                _ => floor_of(expected, self.spec.floor_per_second),
            },
            self.is_evidence(),
            expected_of,
        );
        self.gate = gate;
        alarms
    }

    /// What is expected of the sources that are no evidence: under rules, or left alone.
    pub(super) fn held(&self, belongs: impl Fn(&Pattern) -> bool) -> f64 {
        let now = self
            .window
            .newest()
            .map_or(Instant::ZERO, |tick| tick.until);
        let ruled = self
            .measures
            .iter()
            .filter(|measure| measure.hides(&self.spec, now))
            .map(|measure| (&measure.pattern, measure.held));
        ruled
            .chain(self.past.left_alone())
            .filter(|(pattern, _)| belongs(pattern))
            .map(|(_, held)| held)
            .sum()
    }

    /// Returns what is expected of a source besides what is under a rule already.
    pub(super) fn unheld(&self, source: &Pattern) -> f64 {
        let ruled: Vec<&Pattern> = self
            .measures
            .iter()
            .filter(|measure| !measure.shares)
            .map(|measure| &measure.pattern)
            .collect();
        self.reference.expected_where(|key| {
            source.matches(key) && !ruled.iter().any(|ruled| ruled.matches(key))
        })
    }

    fn end_suspicion(&mut self, why: Option<&str>, now: Instant) {
        if let Some(incident) = self
            .suspicion
            .take()
            .and_then(|suspicion| suspicion.incident)
        {
            let why = why.map(Arc::from);
            self.incidents
                .happen_because(incident, Happening::Ended, why, now);
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
        let considered = Considered {
            candidates: blame.considered,
            rejected: self.rejected(&blame),
        };
        suspicion.suspects.clear();
        let mut acted = false;
        let causes = std::mem::take(&mut blame.causes);
        let none = causes.is_empty();
        self.take_note(suspicion, &causes);
        for cause in causes {
            acted |= self.deal_with(suspicion, &cause, &considered, stress, now);
        }
        if none && suspicion.wide && now.since(suspicion.raised) >= PATIENCE {
            let finding = self.judge(&Pattern::default(), suspicion.began, now);
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
                candidates: considered.candidates,
                rejected_candidates: considered.rejected,
                ..Evidence::default()
            };
            self.tell(suspicion, what, finding.nature, None, evidence.clone(), now);
            self.share(suspicion, services, finding.nature, evidence, stress, now);
        }
        acted
    }

    /// Notes what a surge is about, if that is most of it; a search that finds less changes nothing. Who
    /// came with it before that was known for the first time is forgotten.
    fn take_note(&self, suspicion: &mut Suspicion, causes: &[Cause]) {
        let covered: f64 = causes.iter().map(|cause| cause.coverage).sum();
        if covered < EXPLAINED_MIN {
            return;
        }
        if suspicion.wide && suspicion.explained.is_empty() {
            self.forget_strangers(suspicion.began);
        }
        suspicion.explained = causes.iter().map(|cause| cause.pattern.clone()).collect();
    }

    /// Forgets who is not known yet and may have come with a surge that began then: those who cool came
    /// before the last settling, and only go where that was not well before it.
    pub(super) fn forget_strangers(&self, began: Instant) {
        if began < self.clock.familiar + BEGAN_ERROR {
            self.familiar.discard();
        } else {
            self.familiar.discard_pending();
        }
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
        let is_evidence = self.is_evidence();
        for leaf in self.window.since(from).flat_map(|tick| &tick.leaves) {
            if is_evidence(&leaf.key) {
                table.add(&leaf.key, leaf.requests / seconds, 0.0);
            }
        }
        for (key, expected) in self.reference.rows() {
            if is_evidence(key) {
                table.add(key, 0.0, expected);
            }
        }
        let terms = Terms {
            columns: &self.columns,
            floor_per_second: self.spec.floor_per_second,
            dispersion: self.reference.dispersion(1.0),
            service: self.service,
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
pub(super) fn look_back(began: Instant, now: Instant) -> Instant {
    began.max(now - LEAVES_KEPT).min(now - LOOK_BACK_MIN)
}
