//! The rules in force, the incidents and what operators said, carried over a restart: in the middle of an
//! incident nothing is let go, and who is left alone stays so. What was learnt is [`super::snapshot`]'s
//! business.
//!
//! Instants do not outlive a process, so ages are carried, and the time of day says how long nothing ran.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::act::{Measure, Opinion, Stage};
use super::effect::Effect;
use super::incident::{Evidence, Happening, Incident, IncidentId, Moment};
use super::nature::Nature;
use super::pattern::{Literal, Pattern};
use super::room::MEASURES_MAX;
use super::snapshot::fingerprint;
use super::{Detector, act};
use crate::rules::Mode;
use crate::source::Source;
use crate::time::{Instant, unix_seconds};

/// The longest time without a process after which anything of an incident is still told.
const DOWN_MAX: Duration = Duration::from_hours(24);

/// What is carried over a restart. Values of attributes are keyed hashes, so it is of use only under
/// the same key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Carried {
    fingerprint: u64,
    /// When it was written, in seconds since 1970.
    at_unix_s: f64,
    last_incident: u64,
    rules: Vec<CarriedRule>,
    incidents: Vec<CarriedIncident>,
    recurring: Vec<(Source, f64, f64)>,
    /// Released rules that sleep until their source is back.
    #[serde(default)]
    sleeping: Vec<CarriedRule>,
    /// Sources whose rule refused the wrong ones, and how long ago that was.
    #[serde(default)]
    withdrawn: Vec<(Source, f64)>,
    #[serde(default)]
    left_alone: Vec<CarriedLeftAlone>,
}

/// Columns, and the keyed hashes of the values in them.
type CarriedPattern = Vec<(usize, u32)>;

/// A source whose rule an operator took back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct CarriedLeftAlone {
    source: Source,
    /// What matches it, and what is expected of that.
    seen: Option<(CarriedPattern, f64)>,
    age_s: f64,
}

/// One rule; ages and times in seconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct CarriedRule {
    incident: u64,
    source: Source,
    pattern: CarriedPattern,
    services: Vec<Arc<str>>,
    shadow: Option<bool>,
    address: Option<IpAddr>,
    shares: bool,
    blocks: bool,
    nature: Nature,
    eased: bool,
    made_s: f64,
    began_s: f64,
    renewed_s: f64,
    ttl_s: f64,
    expected: f64,
    held: f64,
    floor: f64,
    upper_bound: f64,
    collateral: f64,
    usual_per_instance: f64,
    observed: f64,
    offered: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct CarriedIncident {
    id: u64,
    began_s: f64,
    source: Option<Source>,
    nature: Option<Nature>,
    has_rule: bool,
    evidence: Evidence,
    timeline: Vec<CarriedMoment>,
    active: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct CarriedMoment {
    what: Happening,
    age_s: f64,
    why: Option<Arc<str>>,
    effect: Option<Effect>,
}

impl Detector {
    /// Returns the rules in force and the incidents, for [`Detector::carry_on`]. `wall` is the time of day
    /// at `now`.
    pub fn carried(&self, wall: SystemTime, now: Instant) -> Carried {
        let age = |at: Instant| now.since(at).as_secs_f64();
        let incident = |incident: &Incident| CarriedIncident {
            id: incident.id.0,
            began_s: age(incident.began),
            source: incident.source.clone(),
            nature: incident.nature,
            has_rule: incident.rule.is_some(),
            evidence: incident.evidence.clone(),
            timeline: incident
                .timeline
                .iter()
                .map(|moment| CarriedMoment {
                    what: moment.what,
                    age_s: age(moment.at),
                    why: moment.why.clone(),
                    effect: moment.effect,
                })
                .collect(),
            active: incident.active,
        };
        let rule = |measure: &Measure| CarriedRule::of(measure, age);
        let recurring = self.past.recurring();
        let (withdrawn, left_alone) = (self.past.withdrawn(), self.past.all_left_alone());
        Carried {
            fingerprint: fingerprint(&self.schema, &self.columns),
            at_unix_s: unix_seconds(wall),
            last_incident: self.incidents.last(),
            rules: self.measures.iter().map(rule).collect(),
            sleeping: self.past.sleeping().map(rule).collect(),
            withdrawn: withdrawn
                .map(|(source, at)| (source.clone(), age(at)))
                .collect(),
            left_alone: left_alone
                .map(|(source, seen, since)| CarriedLeftAlone {
                    source: source.clone(),
                    seen: seen.map(|(pattern, held)| (carried_pattern(pattern), *held)),
                    age_s: age(since),
                })
                .collect(),
            incidents: self.incidents.all().iter().map(incident).collect(),
            recurring: recurring
                .map(|(source, ttl, at)| (source.clone(), ttl.as_secs_f64(), age(at)))
                .collect(),
        }
    }

    /// Takes over what [`Detector::carried`] returned; to be called before the first tick. Rules whose
    /// `ttl` ran out while nothing ran are over, and so are all if the attributes are others now; `why`
    /// says so in their incidents. Returns how many rules are in force again.
    pub fn carry_on(
        &mut self,
        carried: Carried,
        why: &str,
        wall: SystemTime,
        now: Instant,
    ) -> usize {
        let down = Duration::try_from_secs_f64(unix_seconds(wall) - carried.at_unix_s);
        let down = down.unwrap_or_default();
        if down > DOWN_MAX {
            self.incidents.go_on_from(carried.last_incident);
            return 0;
        }
        let at = |age: f64| now - down - seconds(age);
        let fits = carried.fingerprint == fingerprint(&self.schema, &self.columns);
        for rule in carried.rules.into_iter().take(MEASURES_MAX) {
            let renewed = at(rule.renewed_s);
            let ttl = seconds(rule.ttl_s);
            if fits && down + seconds(rule.renewed_s) < ttl {
                self.measures.push(rule.measure(now, at, renewed, ttl));
            }
        }
        let in_force: Vec<IncidentId> = self.measures.iter().map(|rule| rule.incident).collect();
        for incident in carried.incidents {
            let id = IncidentId(incident.id);
            let is_in_force = in_force.contains(&id);
            let mut timeline: Vec<Moment> = incident
                .timeline
                .into_iter()
                .map(|moment| Moment {
                    what: moment.what,
                    at: at(moment.age_s),
                    why: moment.why,
                    effect: moment.effect,
                })
                .collect();
            if incident.active && !is_in_force {
                timeline.push(Moment {
                    what: Happening::Ended,
                    at: now,
                    why: Some(Arc::from(why)),
                    effect: None,
                });
            }
            self.incidents.take_over(Incident {
                id,
                began: at(incident.began_s),
                source: incident.source,
                nature: incident.nature,
                rule: incident.has_rule.then(|| act::name_of(id)),
                evidence: incident.evidence,
                timeline,
                active: incident.active && is_in_force,
            });
        }
        self.incidents.go_on_from(carried.last_incident);
        for (source, ttl, age) in carried.recurring {
            self.past.recur(source, seconds(ttl), at(age));
        }
        for rule in carried.sleeping {
            let (renewed, ttl) = (at(rule.renewed_s), seconds(rule.ttl_s));
            if fits {
                self.past.put_back(rule.measure(now, at, renewed, ttl));
            }
        }
        for (source, age) in carried.withdrawn {
            self.past.withdraw(&source, at(age), now);
        }
        for past in carried.left_alone {
            // Of other attributes it is not known who that is, but what is said of them stays said.
            let seen = past.seen.filter(|_| fits);
            let seen = seen.map(|(literals, held)| (pattern(literals), held));
            self.past
                .go_on_leaving_alone(past.source, seen, at(past.age_s));
        }
        self.past.forget_left_alone(now);
        self.unpublished = true;
        self.measures.len()
    }
}

impl CarriedRule {
    fn of(measure: &Measure, age: impl Fn(Instant) -> f64) -> Self {
        Self {
            incident: measure.incident.0,
            source: measure.source.clone(),
            pattern: carried_pattern(&measure.pattern),
            services: measure.services.clone(),
            shadow: measure.said.map(|mode| mode == Mode::Shadow),
            address: measure.address,
            shares: measure.shares,
            blocks: matches!(measure.stage, Stage::Block | Stage::Probe { .. }),
            nature: measure.nature,
            eased: measure.eased,
            made_s: age(measure.made),
            began_s: age(measure.began),
            renewed_s: age(measure.renewed),
            ttl_s: measure.ttl.as_secs_f64(),
            expected: measure.expected,
            held: measure.held,
            floor: measure.floor,
            upper_bound: measure.upper_bound,
            collateral: measure.collateral,
            usual_per_instance: measure.usual_per_instance,
            observed: measure.observed,
            offered: measure.offered,
        }
    }

    fn measure(
        self,
        now: Instant,
        at: impl Fn(f64) -> Instant,
        renewed: Instant,
        ttl: Duration,
    ) -> Measure {
        let incident = IncidentId(self.incident);
        Measure {
            incident,
            name: act::name_of(incident),
            pattern: pattern(self.pattern),
            services: self.services,
            said: self
                .shadow
                .map(|shadow| if shadow { Mode::Shadow } else { Mode::Enforce }),
            address: self.address,
            shares: self.shares,
            made: at(self.made_s),
            began: at(self.began_s),
            source: self.source,
            nature: self.nature,
            opinion: Opinion::new(self.nature, now),
            expected: self.expected,
            held: self.held,
            floor: self.floor,
            upper_bound: self.upper_bound,
            collateral: self.collateral,
            usual_per_instance: self.usual_per_instance,
            observed: self.observed,
            offered: self.offered,
            ttl,
            // Who was on probation proves himself again.
            stage: if self.blocks {
                Stage::Block
            } else {
                Stage::Throttle
            },
            ramped: 0,
            eased: self.eased,
            pure_since: None,
            calm_since: None,
            renewed,
        }
    }
}

fn carried_pattern(pattern: &Pattern) -> CarriedPattern {
    let literals = pattern.literals().iter();
    literals
        .map(|literal| (literal.column, literal.value))
        .collect()
}

fn pattern(literals: CarriedPattern) -> Pattern {
    let literals = literals.into_iter();
    literals.fold(Pattern::default(), |pattern, (column, value)| {
        pattern.with(Literal { column, value })
    })
}

/// Returns a time that was carried; nonsense is none.
fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attribute::Schema;
    use crate::detect::DetectionSpec;

    /// Whether it is known that a source's rule was withdrawn, and that it is left alone, each said a
    /// minute before the process ended; `later` seconds into the next one, `down` seconds after that.
    fn known(down: u64, later: u64) -> (bool, bool) {
        let schema = Arc::new(Schema::built_in());
        let detector = || Detector::new(Arc::clone(&schema), DetectionSpec::default(), 1);
        let source = Source::everybody().with("host", "a.example");
        let of = |seconds| Duration::from_secs(seconds);
        let wall = SystemTime::UNIX_EPOCH + of(1_000_000);
        let now = Instant::from_secs_f64(1e6);
        let mut before = detector();
        before.past.withdraw(&source, now - of(60), now);
        let everybody = (Pattern::default(), 1.0);
        let past = &mut before.past;
        past.go_on_leaving_alone(source.clone(), Some(everybody), now - of(60));
        let carried = before.carried(wall, now);
        let mut after = detector();
        let began = Instant::from_secs_f64(2e6);
        after.carry_on(carried, "restarted", wall + of(down), began);
        let now = began + of(later);
        after.past.forget_left_alone(now);
        let is_seen = after.past.left_alone().count() == 1;
        assert_eq!(after.past.is_left_alone(&source), is_seen);
        (after.past.was_withdrawn(&source, now), is_seen)
    }

    #[test]
    fn what_was_said_holds_for_as_long_as_without_a_restart() {
        assert_eq!(known(0, 0), (true, true));
        assert_eq!(known(60, 170), (true, true));
        assert_eq!(known(60, 190), (false, true));
        assert_eq!(known(250, 0), (false, true));
        assert_eq!(known(250, 280), (false, true));
        assert_eq!(known(250, 300), (false, false));
        assert_eq!(known(560, 0), (false, false));
    }
}
