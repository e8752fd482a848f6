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
    Action, Condition, DETECTED_PREFIX, DETECTED_TTL, Mode, Origin, RAMP_SUFFIX, Rule, Sparing,
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
pub(super) const THROTTLE_MIN: f64 = 5.0;

/// Share of a crowd's arrivals that a throttle lets through while the upstream suffers.
const CROWD_SHARE: f64 = 0.5;

/// How pure a source is at least before it is blocked: the share of its arrivals that were not
/// expected.
pub(super) const PURITY_MIN: f64 = 0.9;

/// How long it stays so.
const PURE_FOR: Duration = Duration::from_secs(1);

/// After so many judgements on end, one a second, a source that was unclear counts as a loop, one that
/// seemed to loop as one that does, and one that was a loop as a crowd.
const SURE_AFTER: u32 = 2;
const LIKELY_FOR: u32 = 5;
const CROWD_AFTER: u32 = 3;

/// How long a crowd that was blocked by mistake is throttled while no upstream suffers.
const EASED_FOR: Duration = Duration::from_secs(3);

/// Below which multiple of what was expected a source is calm.
const CALM_MAX: f64 = 1.5;

/// Share of instances for which a probing rule acts, and the share of the probe in which it leaves the
/// others alone: 1 % of the instances for a tenth of the time are 0.1 % of the source.
const PROBE_PERCENT: u8 = 99;
const PROBE_OPEN: u32 = 10;

/// How firmly a rule acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Throttle,
    /// The block comes over the throttle, step by step.
    Ramp {
        since: Instant,
    },
    Block,
    Probe {
        since: Instant,
    },
}

/// The steps by which a block comes, and from when on: the share of instances that it acts on; at 0 it
/// only counts. All others stay under the throttle meanwhile.
const RAMP: [(Duration, u8); 3] = [
    (Duration::ZERO, 0),
    (Duration::from_millis(200), 10),
    (Duration::from_millis(400), 50),
];

/// When it acts on all.
const RAMP_FOR: Duration = Duration::from_millis(600);

/// When a new rule is surely in force.
const IN_FORCE_AFTER: Duration = Duration::from_secs(1);

/// What became of a rule in a tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// The block acts on this share of the instances.
    Ramped(u8),
    Blocked,
    Eased,
    Probing,
    Released,
}

/// The rule for one source.
#[derive(Clone, Debug)]
pub(super) struct Measure {
    pub(super) incident: IncidentId,
    pub(super) name: Name,
    pub(super) pattern: Pattern,
    /// The services that most of its excess went to when it was found.
    pub(super) services: Vec<Arc<str>>,
    /// What an operator said about whether it acts, if one did.
    pub(super) said: Option<Mode>,
    /// The one address that the rule is about, inside `pattern`.
    pub(super) address: Option<IpAddr>,
    /// Whether the rule blames nobody: all clients of `pattern` share what the upstream can do.
    pub(super) shares: bool,
    pub(super) made: Instant,
    /// When the surge began.
    pub(super) began: Instant,
    pub(super) source: Source,
    pub(super) nature: Nature,
    /// What it was judged to be lately.
    pub(super) opinion: Opinion,
    /// Requests per second that are expected of the source.
    pub(super) expected: f64,
    /// Requests per second that are expected of the whole pattern, of which nothing is learnt.
    pub(super) held: f64,
    /// Requests per second above what is expected that are no surge of it.
    pub(super) floor: f64,
    pub(super) upper_bound: f64,
    pub(super) collateral: f64,
    pub(super) usual_per_instance: f64,
    pub(super) observed: f64,
    /// Requests per second that it offers now.
    pub(super) offered: f64,
    pub(super) ttl: Duration,
    pub(super) stage: Stage,
    /// The share of instances that the block acted on when that was last told.
    pub(super) ramped: u8,
    /// Whether it was blocked as a loop and turned out to be a crowd.
    pub(super) eased: bool,
    pub(super) pure_since: Option<Instant>,
    pub(super) calm_since: Option<Instant>,
    pub(super) renewed: Instant,
}

/// What a source under a rule was judged to be, for how many judgements on end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Opinion {
    pub(super) at: Instant,
    nature: Nature,
    times: u32,
    /// Judgements on end by which more normal traffic was refused than promised.
    pub(super) broken: u32,
    /// Judgements on end by which mostly normal traffic was refused.
    pub(super) inverted: u32,
}

impl Opinion {
    pub(super) fn new(nature: Nature, at: Instant) -> Self {
        Self {
            at,
            nature,
            times: 1,
            broken: 0,
            inverted: 0,
        }
    }

    /// Takes a new judgement in; returns what the source counts as from now on.
    fn hear(&mut self, judged: Nature, current: Nature, at: Instant) -> Nature {
        self.at = at;
        self.times = if judged == self.nature {
            self.times.saturating_add(1)
        } else {
            1
        };
        self.nature = judged;
        let changes = match judged {
            // Under a rule, who is refused sends less or more than usual: what cannot be told now
            // does not undo what could be told before.
            Nature::Unclear => false,
            // A crowd that opens with a burst has looked like it for a moment; who goes on is none.
            Nature::LikelyLoop if self.times >= LIKELY_FOR && current != Nature::Crowd => {
                return if current.is_sure() {
                    current
                } else {
                    Nature::Loop
                };
            }
            Nature::LikelyLoop => current == Nature::Unclear,
            Nature::Loop | Nature::ForgedInstances => {
                !current.is_sure() && (self.times >= SURE_AFTER || current != Nature::Crowd)
            }
            Nature::Crowd => self.times >= CROWD_AFTER,
        };
        if changes { judged } else { current }
    }
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
    /// Returns whether the requests of the pattern are no evidence for another rule. What one address
    /// sent inside the pattern cannot be told apart from the rest; it is marked as refused once the
    /// rule is in force, so only until then the whole pattern is hidden, or for as long as nothing is
    /// refused. Who shares is not blamed, and may yet be.
    pub(super) fn hides(&self, spec: &DetectionSpec, now: Instant) -> bool {
        !self.shares
            && (self.address.is_none()
                || self.mode(spec) == Mode::Shadow
                || now.since(self.made) < IN_FORCE_AFTER)
    }

    /// Returns whether the rule acts, or waits for an operator to say so.
    pub(super) fn mode(&self, spec: &DetectionSpec) -> Mode {
        self.said
            .unwrap_or_else(|| match spec.mode_of(&self.services) {
                DetectionMode::Auto | DetectionMode::Throttle => Mode::Enforce,
                DetectionMode::Suggest | DetectionMode::Off => Mode::Shadow,
            })
    }

    /// Returns whether the other's source is a part of this one's. Of one address it cannot be told.
    pub(super) fn contains(&self, other: &Self) -> bool {
        let blames = |measure: &Self| !measure.shares && measure.address.is_none();
        blames(self) && blames(other) && other.pattern.is_part_of(&self.pattern)
    }

    /// Returns the requests per second that it offers above what is expected.
    pub(super) fn excess(&self) -> f64 {
        (self.offered - self.expected).max(0.0)
    }

    /// Returns whether so many requests per second are no surge. A source of which nothing is
    /// expected is calm when what it offers is less than the floor.
    pub(super) fn is_calm(&self, offered: f64) -> bool {
        offered <= (CALM_MAX * self.expected).max(self.expected + self.floor)
    }

    /// Takes in what the source was judged to be now. Returns whether what is done about it changes.
    pub(super) fn hear(&mut self, judged: Nature, now: Instant) -> bool {
        let nature = self.opinion.hear(judged, self.nature, now);
        // It was taken for what it is not, and is let go as soon as that is clear.
        self.eased |= nature == Nature::Crowd && self.nature.is_misbehaviour();
        std::mem::replace(&mut self.nature, nature) != nature
    }

    /// Goes one step on, given the requests per second that the source offers.
    pub(super) fn step(&mut self, offered: f64, situation: &Situation<'_>) -> Option<Change> {
        let now = situation.now;
        let spec = situation.spec;
        self.offered = offered;
        let calm = self.is_calm(offered);
        // Where nobody is known to misbehave, only an upstream that suffers justifies a rule.
        let needed = !calm && (self.nature.is_misbehaviour() || situation.suffering);
        let calm_for = if needed {
            self.calm_since = None;
            self.renewed = now;
            Duration::ZERO
        } else {
            now.since(*self.calm_since.get_or_insert(now))
        };
        let is_calm = !needed && calm_for >= self.calm_needed(spec);
        match self.stage {
            Stage::Ramp { .. } | Stage::Block | Stage::Probe { .. }
                if !self.nature.is_misbehaviour() =>
            {
                self.stage = Stage::Throttle;
                self.eased = true;
                self.observed = offered;
                Some(Change::Eased)
            }
            Stage::Throttle | Stage::Ramp { .. } if is_calm => Some(Change::Released),
            // A rule that only counts has nothing to be ramped.
            Stage::Throttle if self.mode(spec) == Mode::Shadow => {
                self.may_block(offered, situation).then(|| {
                    self.stage = Stage::Block;
                    Change::Blocked
                })
            }
            Stage::Throttle => self.may_block(offered, situation).then(|| {
                self.stage = Stage::Ramp { since: now };
                self.ramped = 0;
                Change::Ramped(0)
            }),
            Stage::Ramp { since } if now.since(since) >= RAMP_FOR => {
                self.stage = Stage::Block;
                Some(Change::Blocked)
            }
            Stage::Ramp { since } => {
                let step = ramp_percent(now.since(since));
                let is_new = std::mem::replace(&mut self.ramped, step) != step;
                is_new.then_some(Change::Ramped(step))
            }
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
        if self.eased {
            return spec.calm.min(EASED_FOR);
        }
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
        may_ever_block(situation.spec.mode_of(&self.services))
            && now.since(since) >= PURE_FOR
            && situation.is_warm
            && self.collateral <= situation.spec.collateral_max
            && self.nature.is_sure()
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
        if self.nature.is_misbehaviour() {
            usual
        } else {
            usual.max(CROWD_SHARE * self.observed)
        }
    }

    /// Returns the rules in force: one, or two while a block comes over the throttle; none if the source has a value of an attribute that is not in
    /// the schema.
    pub(super) fn rules(
        &self,
        schema: &Schema,
        spec: &DetectionSpec,
        familiar: &Arc<Familiar>,
        wall: SystemTime,
        now: Instant,
    ) -> Vec<Rule> {
        let Some(rule) = self.rule(schema, spec, familiar, wall, now) else {
            return Vec::new();
        };
        let Stage::Ramp { since } = self.stage else {
            return vec![rule];
        };
        let percent = ramp_percent(now.since(since));
        let ramp = Rule {
            name: Name::new(&format!("{}{RAMP_SUFFIX}", self.name)),
            action: Action::Block { status: 403 },
            mode: if percent == 0 {
                Mode::Shadow
            } else {
                rule.mode
            },
            percent: percent.max(1),
            ..rule.clone()
        };
        vec![ramp, rule]
    }

    fn rule(
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
        for attribute in self.source.absent() {
            let id = schema.id(attribute)?;
            when.conditions.push((id, Condition::Present(false)));
        }
        let action = match self.stage {
            Stage::Throttle | Stage::Ramp { .. } => {
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
            mode: self.mode(spec),
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

/// Returns the share of instances that a block acts on which has been coming for so long.
fn ramp_percent(age: Duration) -> u8 {
    let steps = RAMP.iter().rev();
    let step = steps
        .map(|(from, percent)| (*from, *percent))
        .find(|(from, _)| age >= *from);
    step.map_or(0, |(_, percent)| percent)
}

/// Returns whether a rule may block under a mode, at once or when it is approved.
pub(super) fn may_ever_block(mode: DetectionMode) -> bool {
    matches!(mode, DetectionMode::Auto | DetectionMode::Suggest)
}

fn network(value: &str) -> Option<ipnet::IpNet> {
    value
        .parse()
        .or_else(|_| value.parse::<IpAddr>().map(ipnet::IpNet::from))
        .ok()
}

/// Names a rule. The name is a metric's label, so nothing that a client chose is in it; who is meant
/// stands in `when`.
pub(super) fn name_of(incident: IncidentId) -> Name {
    Name::new(&format!("{DETECTED_PREFIX}{}", incident.0))
}
