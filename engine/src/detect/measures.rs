//! Carries the rules in force from tick to tick: what their sources offer, what those turn out to be,
//! and when they end.

use std::sync::Arc;
use std::time::Duration;

use super::act::{Change, Measure, Opinion, Situation, Stage};
use super::incident::{Evidence, Happening};
use super::nature::Nature;
use super::pattern::Pattern;
use super::window::SECOND;
use super::{DetectionMode, Detector, Stress, act};
use crate::rules::Mode;
use crate::time::Instant;

/// How often the source of a rule is judged again.
const JUDGE_EVERY: Duration = SECOND;

/// The most sources that are judged again in one tick: each costs a walk over all sampled clients.
const JUDGED_MAX: usize = 8;

/// Over which time a source that was released is looked at, to see whether it is back.
const WAKE_OVER: Duration = Duration::from_millis(300);

/// Share of what came unexplained from which on a source that was released is the cause. In a surge of
/// somebody else who has a value in common with it, it rises a little, too.
const WAKE_SHARE: f64 = 0.5;

impl Detector {
    /// Carries each rule one step on. Returns whether they must be published again.
    pub(super) fn step_measures(&mut self, stress: &Stress, now: Instant) -> bool {
        if self.measures.is_empty() {
            return false;
        }
        let is_warm = self.is_warm();
        let mut changed = self.judge_again(now);
        let offered: Vec<f64> = self
            .measures
            .iter()
            .map(|measure| self.offered(measure, SECOND, now))
            .collect();
        let mut released = Vec::new();
        let before = self.window.newest().map_or(now, |tick| tick.from);
        for (at, (measure, offered)) in self.measures.iter_mut().zip(offered).enumerate() {
            let percent = measure.percent(&self.spec, before);
            let situation = Situation {
                spec: &self.spec,
                is_warm,
                suffering: stress.concerns(&measure.source),
                now,
            };
            let change = measure.step(offered, &situation);
            changed |= change.is_some() || percent != measure.percent(&self.spec, now);
            let what = match change {
                Some(Change::Ramped(percent)) => {
                    let why: Arc<str> = if percent == 0 {
                        Arc::from("the block only counts yet")
                    } else {
                        Arc::from(format!(
                            "{percent} % of the instances; the others are throttled"
                        ))
                    };
                    let what = Happening::Ramped;
                    self.incidents
                        .happen_because(measure.incident, what, Some(why), now);
                    continue;
                }
                Some(Change::Blocked) if measure.mode(&self.spec) == Mode::Shadow => {
                    let why = Some(Arc::from("a block by now"));
                    let what = Happening::Suggested;
                    self.incidents
                        .happen_because(measure.incident, what, why, now);
                    continue;
                }
                Some(Change::Blocked) => Happening::Blocked,
                Some(Change::Eased) => Happening::Eased,
                Some(Change::Probing) => Happening::Probing,
                Some(Change::Released) => {
                    released.push(at);
                    continue;
                }
                None => continue,
            };
            self.incidents.happen(measure.incident, what, now);
        }
        for at in released.into_iter().rev() {
            self.end(at, Happening::Released, None, now);
        }
        changed
    }

    /// Returns the requests per second that came of a rule's source in the last `over`.
    pub(super) fn offered(&self, measure: &Measure, over: Duration, now: Instant) -> f64 {
        let from = now - over;
        let came = if let Some(address) = measure.address {
            self.window.requests_of_address(from, address)
        } else {
            // Who has a rule of his own is counted there, and not among all who share nor in a wider source.
            let has_own =
                |other: &&Measure| !other.shares && measure.shares || measure.contains(other);
            let own: Vec<&Pattern> = self
                .measures
                .iter()
                .filter(has_own)
                .map(|other| &other.pattern)
                .collect();
            self.window.requests_since(from, |key| {
                measure.pattern.matches(key) && !own.iter().any(|other| other.matches(key))
            })
        };
        came / self.window.seconds_since(from).max(f64::MIN_POSITIVE)
    }

    /// Judges again, once a second, what the sources under rules are: who was unclear may have become
    /// a loop, who was a loop may be a crowd by now.
    fn judge_again(&mut self, now: Instant) -> bool {
        let due: Vec<usize> = (0..self.measures.len())
            .filter(|at| {
                self.measures.get(*at).is_some_and(|measure| {
                    measure.address.is_none()
                        && !measure.shares
                        && now.since(measure.opinion.at) >= JUDGE_EVERY
                })
            })
            .take(JUDGED_MAX)
            .collect();
        let mut changed = false;
        let mut withdrawn = Vec::new();
        for at in due {
            let Some(measure) = self.measures.get(at) else {
                continue;
            };
            let finding = self.judge(&measure.pattern, measure.began, now);
            let seen = self.sightings(measure, now);
            let who = measure.pattern.who(&self.columns);
            let Some(measure) = self.measures.get_mut(at) else {
                continue;
            };
            seen.promise(&who).count(&mut measure.opinion);
            let narrower = self.narrower(at, &seen);
            if let Some(narrower) = narrower {
                self.narrow(at, narrower, now);
                changed = true;
                continue;
            }
            let Some(measure) = self.measures.get_mut(at) else {
                continue;
            };
            if measure.opinion.is_inverted() {
                withdrawn.push(at);
            } else if measure.hear(finding.nature, now) {
                let nature = measure.nature;
                changed = true;
                self.incidents.update(measure.incident, |incident| {
                    incident.nature = Some(nature);
                });
            }
        }
        for at in withdrawn.into_iter().rev() {
            changed = true;
            if let Some(measure) = self.measures.get(at) {
                self.past.withdraw(&measure.source, now, now);
            }
            let why = "most of what it refused came from known clients that sent less than twice what is usual";
            self.end(at, Happening::Withdrawn, Some(Arc::from(why)), now);
        }
        changed
    }

    /// Puts rules in force again whose source is back before their time was over.
    pub(super) fn wake(&mut self, now: Instant) -> bool {
        if !self.past.has_sleepers() {
            return false;
        }
        let mut past = std::mem::take(&mut self.past);
        let unexplained = self.unexplained(now);
        let back = past.wake(now, |measure| {
            let offered = self.unruled(measure, now);
            if unexplained < measure.floor || measure.is_calm(offered) {
                return 0.0;
            }
            // What is normal may have changed since it was let go.
            let expected = match measure.address {
                Some(_) => measure.expected,
                None => self.reference.expected_of_pattern(&measure.pattern),
            };
            let is_it = offered - expected.max(measure.expected) >= WAKE_SHARE * unexplained;
            if is_it { offered } else { 0.0 }
        });
        self.past = past;
        let mut woke = false;
        for measure in back {
            let same = |other: &Measure| other.source == measure.source;
            let is_off = self.spec.mode_of(&measure.services) == DetectionMode::Off;
            if is_off || self.measures.iter().any(same) {
                continue;
            }
            let cause = super::blame::Cause {
                pattern: measure.pattern.clone(),
                observed: measure.offered,
                expected: measure.expected,
                coverage: 1.0,
                collateral: measure.collateral,
                collateral_of_service: measure.collateral,
            };
            let room = self.room_for(&cause);
            if !room.is_ok_and(|room| room.leaving.is_empty()) {
                self.past.put_back(measure);
                continue;
            }
            // It did so before; whether it does again is told within seconds.
            let nature = match measure.address {
                Some(_) => measure.nature,
                None => match self.judge(&measure.pattern, now - WAKE_OVER, now).nature {
                    Nature::Crowd => continue,
                    Nature::Unclear => Nature::LikelyLoop,
                    known => known,
                },
            };
            woke = true;
            self.reinstate(Measure { nature, ..measure }, now);
        }
        woke
    }

    /// Returns the requests per second of a sleeping rule's source that no rule in force answers for.
    fn unruled(&self, measure: &Measure, now: Instant) -> f64 {
        if measure.address.is_some() {
            return self.offered(measure, WAKE_OVER, now);
        }
        let is_evidence = self.is_evidence();
        let from = now - WAKE_OVER;
        let came = self
            .window
            .requests_since(from, |key| measure.pattern.matches(key) && is_evidence(key));
        came / self.window.seconds_since(from).max(f64::MIN_POSITIVE)
    }

    /// Returns how many requests per second came of everybody above what is expected, besides those
    /// that a rule in force answers for.
    pub(super) fn unexplained(&self, now: Instant) -> f64 {
        let from = now - WAKE_OVER;
        let came = self.window.requests_since(from, self.is_evidence());
        let seconds = self.window.seconds_since(from).max(f64::MIN_POSITIVE);
        let expected = self.reference.level() - self.held(|_| true);
        (came / seconds - expected.max(0.0)).max(0.0)
    }

    fn reinstate(&mut self, measure: Measure, now: Instant) {
        let evidence = Evidence {
            coverage: 1.0,
            collateral: measure.collateral,
            observed_rate: measure.offered,
            expected_rate: measure.expected,
            ..Evidence::default()
        };
        let began = now - WAKE_OVER;
        let incident = self.incidents.open(began, evidence, now);
        let blocks = act::may_ever_block(self.spec.mode_of(&measure.services))
            && measure.nature.is_sure()
            && self.is_warm()
            && measure.collateral <= self.spec.collateral_max;
        let name = act::name_of(incident);
        self.incidents.update(incident, |incident| {
            incident.source = Some(measure.source.clone());
            incident.nature = Some(measure.nature);
            incident.rule = Some(name.clone());
        });
        let why: Option<Arc<str>> = Some(Arc::from("it is back before its rule was forgotten"));
        let happen = match measure.mode(&self.spec) {
            Mode::Enforce => Happening::Throttled,
            Mode::Shadow => Happening::Suggested,
        };
        self.incidents
            .happen_because(incident, happen, why.clone(), now);
        if blocks {
            let happen = Happening::Blocked;
            self.incidents.happen_because(incident, happen, why, now);
        }
        self.forget_strangers(began);
        self.measures.push(Measure {
            incident,
            name,
            made: now,
            began,
            opinion: Opinion::new(measure.nature, now),
            observed: measure.offered,
            ttl: self.past.ttl(&measure.source, now),
            stage: if blocks {
                Stage::Block
            } else {
                Stage::Throttle
            },
            eased: false,
            pure_since: None,
            calm_since: None,
            renewed: now,
            ..measure
        });
        self.gate.reset();
    }

    /// Ends a rule.
    pub(super) fn end(&mut self, at: usize, what: Happening, why: Option<Arc<str>>, now: Instant) {
        if at >= self.measures.len() {
            return;
        }
        let measure = self.measures.remove(at);
        // What it answered for is the business of the wider ones from now on.
        let wider = |other: &&mut Measure| other.contains(&measure);
        for wider in self.measures.iter_mut().filter(wider) {
            wider.expected += measure.expected;
            wider.held += measure.held;
        }
        self.incidents
            .happen_because(measure.incident, what, why, now);
        if matches!(what, Happening::Released) {
            self.past.remember(measure, now);
        }
        self.gate.reset();
    }
}
