//! What is told to people: incidents, their evidence, and what happened when.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::effect::Effect;
use super::nature::Nature;
use crate::source::Source;
use crate::time::Instant;
use crate::verdict::Name;

/// The number of an incident, counted from 1 since the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct IncidentId(pub u64);

/// A source that was considered and not made a rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejectedCandidate {
    /// The source.
    pub when: Source,
    /// Why not.
    pub why: Arc<str>,
}

/// Why a source is believed to be the cause.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// Share of the surge that the source explains, 0 to 1.
    pub coverage: f64,
    /// Share of normal traffic that a rule for it hits, 0 to 1.
    pub collateral: f64,
    /// The same of the service that most of its requests go to.
    pub collateral_of_service: f64,
    /// Requests per second that the source sent when it was found.
    pub observed_rate: f64,
    /// Requests per second that were expected of it.
    pub expected_rate: f64,
    /// Instances of it that sent something within a second.
    pub instances: f64,
    /// Requests of each of those within that second.
    pub requests_per_instance: f64,
    /// How many sources were considered.
    pub candidates: u32,
    /// What was considered besides, and why it was not made a rule.
    pub rejected_candidates: Vec<RejectedCandidate>,
}

/// What an incident has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Happening {
    /// Arrivals are well above what was expected.
    Surge,
    /// The source was found, and gets what it usually sends.
    Throttled,
    /// The source was found; its rule only counts, until an operator approves it.
    Suggested,
    /// An operator has the rule act.
    Approved,
    /// An operator has the rule only count.
    Shadowed,
    /// A block comes: it only counts, or acts on the share of the source's instances that is told.
    Ramped,
    /// The source is blocked, but for its known and well-behaved instances.
    Blocked,
    /// Calm enough that a few blocked ones are let through to see what they do.
    Probing,
    /// The rule is gone.
    Released,
    /// More clients, each as usual: reported, not acted upon.
    Crowd,
    /// Nothing that separates good from bad explains the surge.
    NotLocalisable,
    /// Nothing explains it and the upstream suffers: all clients of the service share what it can do.
    Shared,
    /// What was blocked as a loop is a crowd: it is throttled, and only while the upstream suffers.
    Eased,
    /// Rules for single values of one attribute have become one rule.
    Merged,
    /// The rule gave way to one for a larger surge.
    Displaced,
    /// The rule refused more normal traffic than it promised; it is about a narrower source now.
    Narrowed,
    /// The rule refused more normal traffic than it promised, and nothing narrower would do.
    Withdrawn,
    /// An operator took the rule back; its source is left alone for a while.
    Revoked,
    /// The source is known, and nothing is done because an operator said so.
    LeftAlone,
    /// The surge went away by itself.
    Ended,
}

impl Happening {
    /// Returns whether it ends an incident.
    pub fn is_last(self) -> bool {
        matches!(
            self,
            Self::Released
                | Self::Ended
                | Self::Merged
                | Self::Displaced
                | Self::Withdrawn
                | Self::Revoked
        )
    }
}

/// One line of an incident's timeline.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Moment {
    /// What happened.
    pub what: Happening,
    /// When.
    #[serde(rename = "at_s", serialize_with = "seconds")]
    pub at: Instant,
    /// Why, where it does not go without saying.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<Arc<str>>,
    /// What was seen in the second before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub effect: Option<Effect>,
}

/// One surge of one source, from the first alarm to the release.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Incident {
    /// Its number.
    pub id: IncidentId,
    /// When the surge began, as far as the test can tell; seconds on the process's clock.
    #[serde(rename = "began_s", serialize_with = "seconds")]
    pub began: Instant,
    /// The source, once it is known.
    pub source: Option<Source>,
    /// Loop or crowd, once it is known.
    pub nature: Option<Nature>,
    /// The rule that was made.
    pub rule: Option<Name>,
    /// Why.
    pub evidence: Evidence,
    /// What happened when, oldest first.
    pub timeline: Vec<Moment>,
    /// Whether it goes on.
    pub active: bool,
}

/// Something that people should hear of.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Event {
    /// Which incident.
    pub incident: IncidentId,
    /// What happened.
    pub what: Happening,
    /// When.
    #[serde(rename = "at_s", serialize_with = "seconds")]
    pub at: Instant,
    /// The source, where it is known.
    pub source: Option<Source>,
    /// The rule, where there is one.
    pub rule: Option<Name>,
    /// Why it is believed to be the cause.
    pub evidence: Evidence,
    /// Why this happened, where it does not go without saying.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<Arc<str>>,
    /// What was seen in the second before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub effect: Option<Effect>,
}

/// The most incidents and moments of each that are remembered: 128 × about 4 KiB, at worst (16 refused
/// candidates of 4 values of 256 B each) 128 × 24 KiB = 3 MiB.
const INCIDENTS_MAX: usize = 128;
const MOMENTS_MAX: usize = 64;

/// All incidents, oldest first, and the events of the current tick.
#[derive(Debug, Default)]
pub(super) struct Incidents {
    last: u64,
    all: Vec<Incident>,
    events: Vec<Event>,
}

impl Incidents {
    /// Returns the number of the newest incident.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// Goes on counting from there.
    pub(super) fn go_on_from(&mut self, last: u64) {
        self.last = self.last.max(last);
    }

    /// Takes over an incident of before a restart, told already.
    pub(super) fn take_over(&mut self, mut incident: Incident) {
        if self.all.len() < INCIDENTS_MAX {
            incident.timeline.truncate(MOMENTS_MAX);
            self.all.push(incident);
        }
    }

    pub(super) fn all(&self) -> &[Incident] {
        &self.all
    }

    pub(super) fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// Opens an incident with the moment of its alarm and the rates that raised it.
    pub(super) fn open(&mut self, began: Instant, evidence: Evidence, now: Instant) -> IncidentId {
        if self.all.len() >= INCIDENTS_MAX {
            let oldest = self.all.iter().position(|incident| !incident.active);
            self.all.remove(oldest.unwrap_or(0));
        }
        self.last += 1;
        let id = IncidentId(self.last);
        self.all.push(Incident {
            id,
            began,
            source: None,
            nature: None,
            rule: None,
            evidence,
            timeline: Vec::new(),
            active: true,
        });
        self.happen(id, Happening::Surge, now);
        id
    }

    /// Changes an incident.
    pub(super) fn update(&mut self, id: IncidentId, change: impl FnOnce(&mut Incident)) {
        if let Some(incident) = self.all.iter_mut().find(|incident| incident.id == id) {
            change(incident);
        }
    }

    /// Returns whether an incident has, or had, a rule.
    pub(super) fn has_rule(&self, id: IncidentId) -> bool {
        let mut incidents = self.all().iter();
        incidents.any(|incident| incident.id == id && incident.rule.is_some())
    }

    /// Notes what was seen before what happened at that moment.
    pub(super) fn note_effect(&mut self, id: IncidentId, at: Instant, effect: Effect) {
        self.update(id, |incident| {
            let moments = incident.timeline.iter_mut().rev();
            for moment in moments.take_while(|moment| moment.at == at) {
                moment.effect = Some(effect);
            }
        });
    }

    /// Adds a moment to an incident, and tells it.
    pub(super) fn happen(&mut self, id: IncidentId, what: Happening, at: Instant) {
        self.happen_because(id, what, None, at);
    }

    /// The same with a reason.
    pub(super) fn happen_because(
        &mut self,
        id: IncidentId,
        what: Happening,
        why: Option<Arc<str>>,
        at: Instant,
    ) {
        let Some(incident) = self.all.iter_mut().find(|incident| incident.id == id) else {
            return;
        };
        if incident.timeline.len() < MOMENTS_MAX {
            incident.timeline.push(Moment {
                what,
                at,
                why: why.clone(),
                effect: None,
            });
        }
        if what.is_last() {
            incident.active = false;
        }
        self.events.push(Event {
            incident: id,
            what,
            at,
            source: incident.source.clone(),
            rule: incident.rule.clone(),
            evidence: incident.evidence.clone(),
            why,
            effect: None,
        });
    }
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde calls it with a reference"
)]
fn seconds<S: serde::Serializer>(at: &Instant, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(at.as_secs_f64())
}
