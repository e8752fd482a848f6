//! The world: traffic is drawn, judged by a policy, counted, looked at by the detector, and the
//! detector's rules become the next policy. Nothing here is special to simulations but the draws:
//! policy, recorders and detector are those of the proxy.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::background::{Mix, Moment};
use super::course::Shape;
use super::draw::below;
use super::load::Stream;
use super::outcome::Outcome;
use super::scenario::{Background, Draws, Scenario};
use super::score::Score;
use super::sending::Sending;
use super::table::Table;
use super::upstream::Upstream;
use super::values::Values;
use crate::attribute::{AttributeId, Schema};
use crate::detect::{Detector, Stress};
use crate::policy::{Policy, PolicyParts};
use crate::request::HashKey;
use crate::rules::{RAMP_SUFFIX, Rule, Rules};
use crate::service::{Priority, ServiceSpec};
use crate::source::Source;
use crate::time::Instant;
use crate::traffic::{Arrival, Random, Recorder, Standing, Traffic};
use crate::verdict::Verdict;

/// How often the detector looks at the traffic: as in the proxy.
pub const TICK: Duration = Duration::from_millis(100);

/// Requests per second and worker, at most.
const WORKER_RATE: f64 = 80_000.0;
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
        let workers = ((peak / WORKER_RATE) as usize + 1).min(WORKERS_MAX);
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
            upstream: Upstream::new(scenario.capacity),
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
        let stress = if self.upstream.suffers() {
            Stress::on(
                self.services
                    .iter()
                    .map(|service| Arc::clone(&service.name))
                    .collect(),
            )
        } else {
            Stress::none()
        };
        let tick = self.detector.tick(&self.traffic, &stress, self.now);
        if tick.rules_changed {
            self.publish();
        }
    }

    /// Puts the rules of the folder and the detector's in force.
    fn publish(&mut self) {
        let detected = self.detector.rules(wall(self.now), self.now);
        // A block on its way is no rule of its own: there is one for each source.
        let is_whole = |rule: &&Rule| !rule.name.as_str().ends_with(RAMP_SUFFIX);
        let whole: Vec<Rule> = detected.iter().filter(is_whole).cloned().collect();
        self.score.note(&whole, self.t + TICK.as_secs_f64());
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

    /// Sends all requests of a tick, evenly over its time. Returns how many were let through.
    fn send(&mut self, moment: &Moment) -> f64 {
        let middle = self.t + TICK.as_secs_f64() / 2.0;
        let sending = Sending {
            values: &self.values,
            mix: &self.mix,
            streams: &self.streams,
            members: &self.members,
            moment,
            middle,
            affected: self.score.affected(&self.streams, middle),
            known_after: self.known_after,
        };
        let judged = self.policy.rules().next().is_some() || self.policy.limits().next().is_some();
        let is_played = self.t > -1e-9;
        let mut facts = sending.facts();
        let mut lots = sending.lots(TICK.as_secs_f64(), &mut self.random);
        let all = lots.left();
        let mut passed = 0_u64;
        for at in 0..all {
            let (facts, whose) = match lots.draw(&mut self.random) {
                0 => sending.of_background(&mut facts, &mut self.first_seen, &mut self.random),
                event => sending.of_event(event - 1, &mut facts, &mut self.random),
            };
            let Some(facts) = facts else { continue };
            let instant = self.now + TICK.mul_f64(at as f64 / all as f64);
            let standing = match judged.then(|| self.policy.decide(facts, instant)) {
                None | Some(Verdict::Forward) => Standing::Passed,
                Some(Verdict::Allow { .. }) => Standing::Exempt,
                Some(_) => Standing::Refused,
            };
            let worker = below(self.random.bits(), self.recorders.len());
            if let Some(recorder) = self.recorders.get(worker) {
                recorder.record(facts, Arrival { standing });
            }
            let refused = standing == Standing::Refused;
            passed += u64::from(!refused);
            if is_played {
                self.score.count(whose, refused, sending.affected);
            } else {
                self.score.trained += 1;
            }
        }
        passed as f64
    }
}

/// Returns after how many seconds an instance counts as known, at the latest.
fn known_after(scenario: &Scenario) -> f64 {
    2.0 * scenario.detection.settle_every().as_secs_f64()
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
