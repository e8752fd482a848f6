//! From throttle to block to release: the life of one detected rule. Knows nothing of how its source
//! was found.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::incident::IncidentId;
use super::nature::Nature;
use super::pattern::Pattern;
use super::{DetectionMode, DetectionSpec};
use crate::attribute::{AttributeKind, Schema};
use crate::rules::{
    Action, Condition, DETECTED_PREFIX, DETECTED_TTL, Mode, Origin, Rule, Sparing,
    VersionCondition, When,
};
use crate::source::Source;
use crate::time::Instant;
use crate::traffic::Familiar;
use crate::units::Rate;
use crate::verdict::Name;

/// What a throttle lets through, as a multiple of the upper bound of what was expected.
const THROTTLE_FACTOR: f64 = 1.2;

/// Requests per second that a throttle lets through at least.
const THROTTLE_MIN: f64 = 5.0;

/// Share of a crowd's arrivals that a throttle lets through while the upstream suffers.
const CROWD_SHARE: f64 = 0.5;

/// How pure a source is at least before it is blocked: the share of its arrivals that were not
/// expected.
const PURITY_MIN: f64 = 0.9;

/// How long it stays so.
const PURE_FOR: Duration = Duration::from_secs(1);

/// Below which multiple of what was expected a source is calm.
const CALM_MAX: f64 = 1.5;

/// The longest that a rule lives without its source offering more.
const TTL_MAX: Duration = Duration::from_hours(1);

/// After which time a source is a stranger again.
const FORGOTTEN_AFTER: Duration = Duration::from_hours(24);

/// The most sources whose recurrence is remembered.
const PAST_MAX: usize = 256;

/// Share of instances for which a probing rule acts, and the share of the probe in which it leaves the
/// others alone: 1 % of the instances for a tenth of the time are 0.1 % of the source.
const PROBE_PERCENT: u8 = 99;
const PROBE_OPEN: u32 = 10;

/// How firmly a rule acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Throttle,
    Block,
    Probe { since: Instant },
}

/// When a new rule is surely in force.
const IN_FORCE_AFTER: Duration = Duration::from_secs(1);

/// What became of a rule in a tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Blocked,
    Probing,
    Released,
}

/// The rule for one source.
#[derive(Debug)]
pub(super) struct Measure {
    pub(super) incident: IncidentId,
    pub(super) name: Name,
    pub(super) pattern: Pattern,
    /// The one address that the rule is about, inside `pattern`.
    pub(super) address: Option<IpAddr>,
    pub(super) made: Instant,
    pub(super) source: Source,
    pub(super) nature: Nature,
    /// Requests per second that are expected of the source.
    pub(super) expected: f64,
    /// Requests per second that are expected of the whole pattern, of which nothing is learnt.
    pub(super) held: f64,
    pub(super) upper_bound: f64,
    pub(super) collateral: f64,
    pub(super) usual_per_instance: f64,
    pub(super) observed: f64,
    pub(super) ttl: Duration,
    pub(super) stage: Stage,
    pub(super) pure_since: Option<Instant>,
    pub(super) calm_since: Option<Instant>,
    pub(super) renewed: Instant,
}

/// What one step of a measure depends on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Situation<'a> {
    pub(super) spec: &'a DetectionSpec,
    pub(super) is_warm: bool,
    pub(super) suffering: bool,
    pub(super) now: Instant,
}

impl Measure {
    /// Returns whether the requests of the pattern are no evidence for another rule. What one address sent inside the pattern cannot be told apart from the rest; it is
    /// marked as refused once the rule is in force, so only until then the whole pattern is hidden, or
    /// for as long as nothing is refused.
    pub(super) fn hides(&self, spec: &DetectionSpec, now: Instant) -> bool {
        self.address.is_none()
            || spec.mode == DetectionMode::Suggest
            || now.since(self.made) < IN_FORCE_AFTER
    }

    /// Goes one step on, given the requests per second that the source offers.
    pub(super) fn step(&mut self, offered: f64, situation: &Situation<'_>) -> Option<Change> {
        let now = situation.now;
        let spec = situation.spec;
        // A source of which nothing is expected is calm when what it offers is no surge.
        let calm = offered <= (CALM_MAX * self.expected).max(self.expected + spec.floor_per_second);
        // Where nobody is known to misbehave, only an upstream that suffers justifies a rule.
        let needed = match self.nature {
            Nature::Loop | Nature::ForgedInstances => !calm,
            Nature::Crowd | Nature::Unclear => !calm && situation.suffering,
        };
        let calm_for = if needed {
            self.calm_since = None;
            self.renewed = now;
            Duration::ZERO
        } else {
            now.since(*self.calm_since.get_or_insert(now))
        };
        let is_calm = !needed && calm_for >= self.calm_needed(spec);
        match self.stage {
            Stage::Throttle if is_calm => Some(Change::Released),
            Stage::Throttle => self.may_block(offered, situation).then(|| {
                self.stage = Stage::Block;
                Change::Blocked
            }),
            Stage::Block => is_calm.then(|| {
                self.stage = Stage::Probe { since: now };
                Change::Probing
            }),
            Stage::Probe { .. } if needed => {
                self.stage = Stage::Block;
                Some(Change::Blocked)
            }
            Stage::Probe { since } => (now.since(since) >= spec.probe).then_some(Change::Released),
        }
    }

    /// A source that came back is watched for longer, as its `ttl` grows.
    fn calm_needed(&self, spec: &DetectionSpec) -> Duration {
        spec.calm * (self.ttl.as_secs() / DETECTED_TTL.as_secs().max(1)).max(1) as u32
    }

    fn may_block(&mut self, offered: f64, situation: &Situation<'_>) -> bool {
        let now = situation.now;
        let purity = (offered - self.expected) / offered.max(f64::MIN_POSITIVE);
        if purity < PURITY_MIN {
            self.pure_since = None;
            return false;
        }
        let since = *self.pure_since.get_or_insert(now);
        let may = match situation.spec.mode {
            DetectionMode::Auto | DetectionMode::Suggest => true,
            DetectionMode::Off | DetectionMode::Throttle => false,
        };
        may && now.since(since) >= PURE_FOR
            && situation.is_warm
            && self.collateral <= situation.spec.collateral_max
            && matches!(self.nature, Nature::Loop | Nature::ForgedInstances)
    }

    /// Returns the share of instances for which the rule acts.
    pub(super) fn percent(&self, spec: &DetectionSpec, now: Instant) -> u8 {
        match self.stage {
            Stage::Probe { since } if now.since(since) < spec.probe / PROBE_OPEN => PROBE_PERCENT,
            _ => 100,
        }
    }

    /// Returns requests per second that a throttle lets through.
    fn throttle_rate(&self) -> f64 {
        let usual = (THROTTLE_FACTOR * self.upper_bound).max(THROTTLE_MIN);
        match self.nature {
            Nature::Loop | Nature::ForgedInstances => usual,
            Nature::Crowd | Nature::Unclear => usual.max(CROWD_SHARE * self.observed),
        }
    }

    /// Returns the rule in force, or `None` if the source has a value of an attribute that is not in
    /// the schema.
    pub(super) fn rule(
        &self,
        schema: &Schema,
        spec: &DetectionSpec,
        familiar: &Arc<Familiar>,
        wall: SystemTime,
        now: Instant,
    ) -> Option<Rule> {
        let mut when = When::default();
        for (attribute, value) in self.source.iter() {
            let id = schema.id(attribute)?;
            let text: Arc<str> = Arc::from(value);
            let condition = match schema.spec(id)?.kind {
                AttributeKind::Version => Condition::Version(VersionCondition::Exactly(text, None)),
                AttributeKind::Text => Condition::Is(text),
                AttributeKind::Address => Condition::Network(network(value)?),
            };
            when.conditions.push((id, condition));
        }
        let action = match self.stage {
            Stage::Throttle => {
                let rate = self.throttle_rate().ceil().clamp(1.0, f64::from(u32::MAX)) as u32;
                Action::Throttle {
                    rate: Rate::new(rate, Duration::from_secs(1))?,
                    burst: rate,
                    per: Vec::new(),
                }
            }
            Stage::Block | Stage::Probe { .. } => Action::Block { status: 403 },
        };
        let left = self.ttl.saturating_sub(now.since(self.renewed));
        Some(Rule {
            name: self.name.clone(),
            when,
            when_text: self.source.clone(),
            action,
            mode: match spec.mode {
                DetectionMode::Auto | DetectionMode::Throttle => Mode::Enforce,
                DetectionMode::Suggest | DetectionMode::Off => Mode::Shadow,
            },
            percent: self.percent(spec, now),
            until: wall.checked_add(left.max(Duration::from_secs(1))),
            reason: Some(Arc::from(format!(
                "incident {}: {:.0} requests a second where {:.0} were expected",
                self.incident.0, self.observed, self.expected
            ))),
            origin: Origin::Detected,
            sparing: Some(Sparing {
                expected_per_second: self.upper_bound,
                usual_per_instance_per_second: self.usual_per_instance,
                familiar: Arc::clone(familiar),
            }),
        })
    }
}

fn network(value: &str) -> Option<ipnet::IpNet> {
    value
        .parse()
        .or_else(|_| value.parse::<IpAddr>().map(ipnet::IpNet::from))
        .ok()
}

/// Which sources had a rule before, for how long the next one lives.
#[derive(Debug, Default)]
pub(super) struct Past(Vec<(Source, Duration, Instant)>);

impl Past {
    /// Returns how long a rule for the source lives: twice as long as the last one.
    pub(super) fn ttl(&self, source: &Source, now: Instant) -> Duration {
        self.0
            .iter()
            .find(|(past, _, at)| past == source && now.since(*at) < FORGOTTEN_AFTER)
            .map_or(DETECTED_TTL, |(_, ttl, _)| (*ttl * 2).min(TTL_MAX))
    }

    /// Remembers a released rule.
    pub(super) fn remember(&mut self, source: &Source, ttl: Duration, now: Instant) {
        self.0
            .retain(|(past, _, at)| past != source && now.since(*at) < FORGOTTEN_AFTER);
        if self.0.len() >= PAST_MAX {
            self.0.remove(0);
        }
        self.0.push((source.clone(), ttl, now));
    }
}

/// Names a rule. The name is a metric's label, so nothing that a client chose is in it; who is meant
/// stands in `when`.
pub(super) fn name_of(incident: IncidentId) -> Name {
    Name::new(&format!("{DETECTED_PREFIX}{}", incident.0))
}
