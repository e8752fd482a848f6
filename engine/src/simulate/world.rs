//! The world: traffic is drawn, judged by a policy, counted, looked at by the detector, and the
//! detector's rules become the next policy. Nothing here is special to simulations but the draws:
//! policy, recorders and detector are those of the proxy.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::background::{Mix, Moment, address_of, born, instance_of};
use super::course::Shape;
use super::draw::{below, poisson};
use super::load::{Stream, holds};
use super::outcome::Outcome;
use super::scenario::{Background, Draws, Instances, Kind, Scenario};
use super::score::{Score, Whose};
use super::table::Table;
use super::values::{Mask, Values};
use crate::attribute::{AttributeId, Schema};
use crate::detect::{Detector, Stress};
use crate::policy::{Policy, PolicyParts};
use crate::request::{HashKey, RequestFacts};
use crate::rules::Rules;
use crate::service::{Priority, ServiceSpec};
use crate::source::Source;
use crate::time::Instant;
use crate::traffic::{Arrival, Random, Recorder, Standing, Traffic};
use crate::verdict::Verdict;

/// How often the detector looks at the traffic: as in the proxy.
pub const TICK: Duration = Duration::from_millis(100);

/// Requests per second and worker, at most.
const WORKER_RATE: f64 = 100_000.0;
const WORKERS_MAX: usize = 16;

/// What a scenario needs that stands in other files.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// The background's table.
    pub table: Option<Table>,
    /// The background's shape.
    pub shape: Option<Shape>,
    /// Rules and limits in force.
    pub rules: Rules,
    /// The attributes that rules, table and scenario speak of.
    pub schema: Schema,
}

/// The queue in front of the upstream.
#[derive(Debug)]
struct Upstream {
    /// Requests per second; infinite where there is no bound.
    capacity: f64,
    waiting: f64,
    suffers: bool,
}

/// The upstream answers what waits no longer than this; the rest fails.
const WAIT_MAX_S: f64 = 1.0;

/// An upstream suffers when its answers take three times as long as the usual 50 ms.
const SUFFERING_S: f64 = 0.15;

impl Upstream {
    /// Takes what was let through in a tick; returns the share of it that fails.
    fn serve(&mut self, requests: f64, seconds: f64) -> f64 {
        self.waiting = (self.waiting + requests - self.capacity * seconds).max(0.0);
        let failed = (self.waiting - self.capacity * WAIT_MAX_S).max(0.0);
        self.waiting -= failed;
        self.suffers = self.waiting > self.capacity * SUFFERING_S;
        if requests > 0.0 {
            failed / requests
        } else {
            0.0
        }
    }
}

/// A scenario on its way.
///
/// Not `Clone`: its detector learns.
#[derive(Debug)]
pub struct Simulation {
    scenario: Scenario,
    schema: Arc<Schema>,
    services: Arc<[ServiceSpec]>,
    rules: Rules,
    values: Values,
    mix: Mix,
    /// One per event, in order.
    streams: Vec<Stream>,
    members: Vec<HashSet<u32>>,
    random: Random,
    traffic: Traffic,
    recorders: Vec<Recorder>,
    detector: Detector,
    policy: Policy,
    generation: u64,
    now: Instant,
    /// Seconds of the scenario; below zero while it is trained.
    t: f64,
    /// Per place of the background, when its client was first seen.
    first_seen: Vec<f32>,
    known_after: f64,
    upstream: Upstream,
    score: Score,
}

impl Simulation {
    /// Sets a scenario up.
    pub fn new(scenario: Scenario, inputs: Inputs) -> Self {
        let schema = Arc::new(inputs.schema);
        let sources: Vec<Source> = scenario
            .events
            .iter()
            .map(|event| event.source.clone())
            .collect();
        let mut values = Values::new(&schema, HashKey::from_seed(scenario.seed), sources);
        let mix = Mix::new(
            &scenario,
            &schema,
            &mut values,
            inputs.table.as_ref(),
            inputs.shape,
        );
        let mut streams = Vec::with_capacity(scenario.events.len());
        for (at, event) in scenario.events.iter().enumerate() {
            let normal: Vec<(AttributeId, String)> = event
                .source
                .iter()
                .filter_map(|(name, text)| Some((schema.id(name)?, text.to_owned())))
                .filter(|(id, text)| values.contains(*id, text))
                .collect();
            let mut stream = Stream::new(event, at, scenario.seed, &schema, &mut values);
            stream.set_normal(&normal, &schema);
            streams.push(stream);
        }
        for (bit, stream) in streams.iter_mut().enumerate() {
            stream.recruit(bit, &mix, &values);
        }
        let members = streams.iter().map(Stream::member_slots).collect();
        let peak: f64 =
            mix.moment(0.0).rate + scenario.events.iter().map(|event| event.rate).sum::<f64>();
        let workers = ((peak / WORKER_RATE) as usize + 2).min(WORKERS_MAX);
        let traffic = Traffic::new(&schema, workers, scenario.seed);
        let recorders = (0..workers).filter_map(|at| traffic.recorder(at)).collect();
        let detector = Detector::new(
            Arc::clone(&schema),
            scenario.detection.clone(),
            scenario.seed,
        );
        let services: Arc<[ServiceSpec]> = service_names(&scenario)
            .into_iter()
            .map(|name| ServiceSpec {
                name,
                matches: Vec::new(),
                priority: Priority::Normal,
            })
            .collect();
        let now = Instant::from_secs_f64(1.0);
        let parts = PolicyParts {
            schema: Arc::clone(&schema),
            services: Arc::clone(&services),
            rules: inputs.rules.rules.clone(),
            limits: inputs.rules.limits.clone(),
            generation: 1,
        };
        let trained = if scenario.cold {
            0.0
        } else {
            scenario.detection.warmup.as_secs_f64() + known_after(&scenario)
        };
        let slots = if scenario.events.is_empty() {
            0
        } else {
            mix.clients() as usize
        };
        Self {
            policy: Policy::compile(parts, None, now, wall(now)),
            random: Random::from_seed(scenario.seed ^ 0x51),
            score: Score::new(scenario.events.len()),
            upstream: Upstream {
                capacity: scenario.capacity.unwrap_or(f64::INFINITY),
                waiting: 0.0,
                suffers: false,
            },
            first_seen: vec![f32::INFINITY; slots],
            known_after: known_after(&scenario),
            t: -trained,
            generation: 1,
            rules: inputs.rules,
            scenario,
            schema,
            services,
            values,
            mix,
            streams,
            members,
            traffic,
            recorders,
            detector,
            now,
        }
    }

    /// Trains the detector, plays the scenario and says what came of it. `progress` is told the share
    /// that is done after each second of virtual time.
    pub fn play(mut self, mut progress: impl FnMut(f64)) -> Outcome {
        let tick = TICK.as_secs_f64();
        let ticks_trained = (-self.t / tick).round() as i64;
        let ticks = (self.scenario.duration.as_secs_f64() / tick).round() as i64;
        for at in -ticks_trained..ticks {
            self.t = at as f64 * tick;
            self.tick();
            if at % 10 == 0 {
                let done = (at + ticks_trained) as f64 / (ticks + ticks_trained).max(1) as f64;
                progress(done);
            }
        }
        self.t = ticks as f64 * tick;
        self.finish()
    }

    fn finish(self) -> Outcome {
        self.score.outcome(
            &self.scenario,
            &self.streams,
            &self.mix,
            &self.values,
            self.detector.incidents(),
            &self.schema,
            self.now,
            self.t,
        )
    }

    /// One tick: its requests, then the detector.
    fn tick(&mut self) {
        let seconds = TICK.as_secs_f64();
        let moment = self.mix.moment(self.t + seconds / 2.0);
        let passed = self.send(&moment);
        let failed = self.upstream.serve(passed, seconds);
        self.score.fail(failed);
        self.now = self.now + TICK;
        let stress = if self.upstream.suffers {
            Stress::on(
                self.services
                    .iter()
                    .map(|it| Arc::clone(&it.name))
                    .collect(),
            )
        } else {
            Stress::none()
        };
        let tick = self.detector.tick(&self.traffic, &stress, self.now);
        let t = self.t + seconds;
        if tick.rules_changed {
            let detected = self.detector.rules(wall(self.now), self.now);
            self.score.note(&detected, t);
            self.generation += 1;
            let mut rules = self.rules.rules.clone();
            rules.extend(detected);
            let parts = PolicyParts {
                schema: Arc::clone(&self.schema),
                services: Arc::clone(&self.services),
                rules,
                limits: self.rules.limits.clone(),
                generation: self.generation,
            };
            self.policy = Policy::compile(parts, Some(&self.policy), self.now, wall(self.now));
        }
    }

    /// Sends all requests of a tick, in random order, evenly over its time. Returns how many were let
    /// through.
    fn send(&mut self, moment: &Moment) -> f64 {
        let Self {
            values,
            mix,
            streams,
            members,
            random,
            recorders,
            policy,
            first_seen,
            known_after,
            score,
            now,
            t,
            ..
        } = self;
        let (values, mix, streams) = (&*values, &*mix, &*streams);
        let seconds = TICK.as_secs_f64();
        let middle = *t + seconds / 2.0;
        let mut left: Vec<usize> = vec![poisson(moment.rate * seconds, random) as usize];
        for stream in streams {
            let rate = if stream.event.kind == Kind::Rollout {
                0.0
            } else {
                stream.event.rate_at(middle)
            };
            left.push(poisson(rate * seconds, random) as usize);
        }
        let all: usize = left.iter().sum();
        let nowhere = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let mut normal = RequestFacts::new(values.key(), nowhere);
        let mut of_streams: Vec<RequestFacts<'_>> = streams
            .iter()
            .map(|_| RequestFacts::new(values.key(), nowhere))
            .collect();
        let judged = policy.rules().next().is_some() || policy.limits().next().is_some();
        let affected = score.affected(streams, middle);
        let rollouts: Vec<usize> = (0..streams.len())
            .filter(|at| {
                streams
                    .get(*at)
                    .is_some_and(|stream| stream.event.kind == Kind::Rollout)
            })
            .collect();
        let mut passed = 0_u64;
        for at in 0..all {
            let mut drawn = below(random.bits(), all - at);
            let mut which = 0;
            for (place, left) in left.iter_mut().enumerate() {
                if drawn < *left {
                    *left -= 1;
                    which = place;
                    break;
                }
                drawn -= *left;
            }
            let (facts, whose): (&RequestFacts<'_>, Whose) = if which == 0 {
                let client = mix.client(moment, random);
                let mut mask = mix.dress(values, &client, random, &mut normal);
                let moved = rollouts
                    .iter()
                    .filter_map(|at| streams.get(*at))
                    .find(|stream| stream.takes_part(&normal) && stream.has_moved(&client, middle));
                let place = moved.and_then(|moved| {
                    streams
                        .iter()
                        .position(|stream| std::ptr::eq(stream, moved))
                });
                let facts = match (moved, place.and_then(|at| of_streams.get_mut(at))) {
                    (Some(moved), Some(facts)) => {
                        mix.dress(values, &client, random, facts);
                        moved.convert(values, facts);
                        mask = fitting(streams, affected, facts);
                        facts
                    }
                    _ => &mut normal,
                };
                facts.come_from(address_of(&client));
                facts.set_secret(AttributeId::INSTANCE, &instance_of(&client, middle));
                let mut whose = Whose::Normal { mask, known: 0 };
                if mask != 0
                    && let Some(slot) = client.slot
                    && let Some(first) = first_seen.get_mut(slot as usize)
                {
                    if !first.is_finite() || f64::from(*first) < born(&client, middle) {
                        *first = middle as f32;
                    }
                    whose = Whose::Normal {
                        mask,
                        known: known(streams, *first, *known_after),
                    };
                    let loops = |at: &usize| {
                        members.get(*at).is_some_and(|slots| slots.contains(&slot))
                            && streams.get(*at).is_some_and(|stream| {
                                stream.event.instances == Instances::Known
                                    && stream.event.kind == Kind::Surge
                                    && stream.event.rate_at(middle) > 0.0
                            })
                    };
                    if let Some(at) = (0..streams.len()).find(loops) {
                        whose = Whose::Surge(at);
                    }
                }
                (facts, whose)
            } else {
                let at = which - 1;
                let (Some(stream), Some(facts)) = (streams.get(at), of_streams.get_mut(at)) else {
                    continue;
                };
                stream.request(mix, values, moment, middle, random, facts);
                let whose = if stream.event.kind == Kind::Surge {
                    Whose::Surge(at)
                } else {
                    let mask = fitting(streams, affected, facts);
                    Whose::Crowd { at, mask }
                };
                (facts, whose)
            };
            let instant = *now + TICK.mul_f64(at as f64 / all as f64);
            let standing = if judged {
                match policy.decide(facts, instant) {
                    Verdict::Forward => Standing::Passed,
                    Verdict::Allow { .. } => Standing::Exempt,
                    _ => Standing::Refused,
                }
            } else {
                Standing::Passed
            };
            let worker = below(random.bits(), recorders.len());
            if let Some(recorder) = recorders.get(worker) {
                recorder.record(facts, Arrival { standing });
            }
            let refused = standing == Standing::Refused;
            passed += u64::from(!refused);
            if *t >= -1e-9 {
                score.count(whose, refused, affected);
            } else {
                score.trained += 1;
            }
        }
        passed as f64
    }
}

/// Returns which of the events in `affected` have a source that fits a request.
fn fitting(streams: &[Stream], affected: Mask, facts: &RequestFacts<'_>) -> Mask {
    let mut mask = 0;
    for (at, stream) in streams.iter().enumerate() {
        if affected & (1 << at) != 0 && holds(&stream.when, facts) {
            mask |= 1 << at;
        }
    }
    mask
}

/// Returns after how many seconds an instance counts as known: the detector takes it for that after
/// one to two settle periods, which are 2 s to 30 s by the warm-up.
fn known_after(scenario: &Scenario) -> f64 {
    2.0 * (scenario.detection.warmup.as_secs_f64() / 4.0).clamp(2.0, 30.0)
}

/// Returns the events before which an instance was known that was first seen at `first` seconds.
fn known(streams: &[Stream], first: f32, known_after: f64) -> Mask {
    let mut mask = 0;
    for (at, stream) in streams.iter().enumerate() {
        if f64::from(first) + known_after <= stream.event.from.as_secs_f64() {
            mask |= 1 << at;
        }
    }
    mask
}

/// The time of day at an instant of the simulation.
fn wall(now: Instant) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_nanos(now.as_nanos())
}

fn service_names(scenario: &Scenario) -> Vec<Arc<str>> {
    if let Background::Drawn(drawn) = &scenario.background {
        let service = drawn
            .attributes
            .iter()
            .find(|(name, _)| &**name == "service");
        if let Some((_, Draws::Weights(weights))) = service {
            return weights.iter().map(|(name, _)| Arc::clone(name)).collect();
        }
    }
    let services = scenario.services.iter();
    services.map(|(name, _)| Arc::clone(name)).collect()
}
