//! The control side: owns the policy in force and everything that may change it.
//!
//! One thread, ten times a second: collect the traffic, let the detector look at it, publish a policy
//! when something changed. Files are read by [`crate::reload`], on a thread of its own. Knows nothing of
//! [`crate::request`]: the two meet in the published policy and the traffic counters.

pub mod changes;
mod limits;
pub mod operator;
pub mod promote;
mod stress;
mod take;
mod tell;

use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::{Duration, SystemTime};

use tidegate_engine::attribute::Schema;
use tidegate_engine::detect::{Detector, Event, Happening, Incident};
use tidegate_engine::policy::{Policy, PolicyParts};
use tidegate_engine::recent::Recent;
use tidegate_engine::rules::Rules;
use tidegate_engine::service::ServiceSpec;
use tidegate_engine::time::{Instant, unix_seconds};
use tokio::sync::mpsc::Receiver;
use tokio::sync::watch;

use self::limits::Limits;
use self::operator::OperatorRules;
use self::promote::GivingWay;
use self::stress::StressWatch;
use self::take::Repeats;
use crate::clock::Clock;
use crate::faults::{self, Point};
use crate::handover::PolicyPublisher;
use crate::metrics::Metrics;
use crate::overload::Pressure;
use crate::reload::Loaded;
use crate::resources;
use crate::settings::Settings;
use crate::setup::{Ground, Setup};
use crate::state::{DetectedFile, StateWriter};

/// How often what the detector has learnt is kept, while there is no alarm.
const KEEP_EVERY: Duration = Duration::from_mins(1);

/// How often the detector's rules and the incidents are kept at most, when they change.
const DETECTED_KEPT_EVERY: Duration = Duration::from_millis(500);

/// How often the detector looks at the traffic.
pub const TICK: Duration = Duration::from_millis(100);

/// What the control side is made of.
#[derive(Debug)]
pub struct ControlParts {
    /// What all setups have in common.
    pub ground: Ground,
    /// What is in force of the settings.
    pub setup: Arc<Setup>,
    /// Hands it to the workers.
    pub setups: watch::Sender<Arc<Setup>>,
    /// The rules that are in force already.
    pub rules: Rules,
    /// The one right to publish.
    pub publisher: PolicyPublisher,
    /// The clock of the process.
    pub clock: Clock,
    /// Operators' rules.
    pub operator: OperatorRules,
    /// All series.
    pub metrics: Arc<Metrics>,
    /// Finds the sources of surges.
    pub detector: Detector,
    /// Where the detector's rules and the incidents are kept.
    pub detected_file: DetectedFile,
    /// Writes what is kept; `None` once all is over.
    pub state_writer: Option<StateWriter>,
    /// Whoever wants to hear of events; one that is behind misses some, one
    /// that is gone is forgotten.
    pub listeners: Vec<SyncSender<Event>>,
}

/// Where events go as JSON, one at a time.
pub type EventSender = tokio::sync::mpsc::Sender<Arc<str>>;

/// The most who listen to events over the admin API.
const STREAMS_MAX: usize = 16;

/// The control side.
///
/// Not `Clone`: there is one, and it publishes.
#[derive(Debug)]
pub struct Control {
    parts: ControlParts,
    stress: StressWatch,
    limits: Limits,
    streams: Vec<EventSender>,
    detected_changed: bool,
    detected_kept: Instant,
    generation: u64,
    reload: Reload,
    repeats: Repeats,
    /// Detected rules that are on their way into files, or not read from there yet.
    promoted: Vec<GivingWay>,
    published: SystemTime,
    kept: Instant,
    /// What the control groups allow, in bytes.
    memory_allowed: Option<u64>,
}

/// How the last reload went.
#[derive(Clone, Debug)]
pub struct Reload {
    /// When.
    pub at: SystemTime,
    /// What was wrong, one line each; empty where it was accepted.
    pub problems: Vec<String>,
}

impl Control {
    /// Takes over. The first policy has been published already.
    pub fn new(parts: ControlParts) -> Self {
        let (began, now) = (parts.clock.now(), parts.clock.wall());
        let mut control = Self {
            parts,
            stress: StressWatch::default(),
            limits: Limits::default(),
            streams: Vec::new(),
            detected_changed: false,
            detected_kept: began,
            generation: 1,
            reload: Reload {
                at: now,
                problems: Vec::new(),
            },
            repeats: Repeats::default(),
            promoted: Vec::new(),
            published: now,
            kept: began,
            memory_allowed: resources::memory_allowed(),
        };
        let metrics = &control.parts.metrics;
        metrics.reload_last_successful.set(1);
        metrics
            .policy_published_timestamp_seconds
            .set(unix_seconds(now));
        tell::begin_counting(&control.parts.metrics);
        // What was in force before a restart is so from the first request on.
        control.publish();
        control
    }

    /// Lets the detector look at what arrived since the last tick, and acts on what it says.
    pub fn tick(&mut self) {
        let began = self.parts.clock.now();
        faults::point(Point::Tick);
        self.parts.publisher.let_go();
        self.parts.setup.recent.gather(began);
        self.watch_memory();
        let setup = &self.parts.setup;
        self.limits
            .tick(&setup.settings.services, &setup.services, began);
        let stress = self.stress.tick(&self.parts.setup.services);
        let traffic = &self.parts.setup.traffic;
        let tick = self.parts.detector.tick(traffic, &stress, began);
        if tick.rules_changed {
            self.publish();
        }
        for event in &tick.events {
            self.tell(event);
        }
        self.detected_changed |= tick.rules_changed || !tick.events.is_empty();
        if self.detected_changed && began.since(self.detected_kept) >= DETECTED_KEPT_EVERY {
            // Nobody waits for it; whether it came to the disk is seen in the metrics.
            drop(self.keep_detected());
        }
        if began.since(self.kept) >= KEEP_EVERY && !self.parts.detector.is_alarmed() {
            self.kept = began;
            let detector = &mut self.parts.detector;
            detector.set_clock(self.parts.clock.wall(), began);
            if let Some(writer) = &self.parts.state_writer {
                writer.snapshot(|| detector.snapshot());
            }
        }
        self.measure(began);
    }

    /// Judges how short memory is, for who is served then.
    fn watch_memory(&mut self) {
        let overload = &self.parts.ground.overload;
        let ceiling = self.settings().overload.memory_max.or(self.memory_allowed);
        let gauge = &self.parts.metrics.memory_ceiling_bytes;
        gauge.set(ceiling.map_or(0, |bytes| i64::try_from(bytes).unwrap_or(i64::MAX)));
        let resident = resources::memory_resident();
        let before = overload.pressure();
        let now = match resident.zip(ceiling) {
            Some((resident, ceiling)) => Pressure::of(resident, ceiling, before),
            // Nothing bounds it, or nobody says what is used.
            None => Pressure::None,
        };
        if now == before {
            return;
        }
        overload.set_pressure(now);
        self.parts.metrics.memory_pressure.set(now as i64);
        if now > before {
            tracing::warn!(
                resident,
                ceiling,
                pressure = now as u8,
                "memory is short; requests of low priority are refused first"
            );
        } else {
            tracing::info!(
                resident,
                ceiling,
                pressure = now as u8,
                "memory is less short"
            );
        }
    }

    /// Keeps what the detector has learnt, for the next start.
    pub fn finish(&mut self) {
        drop(self.keep_detected());
        if let Some(writer) = self.parts.state_writer.take() {
            writer.finish(self.parts.detector.snapshot());
        }
    }

    /// Puts the rules of all origins in force.
    fn publish(&mut self) {
        let setup = Arc::clone(&self.parts.setup);
        let services = Arc::clone(self.policy().services());
        let policy = self.compile(&setup.schema, services);
        self.parts.publisher.publish(policy);
        self.note_published();
    }

    /// Makes a policy of the rules of all origins.
    fn compile(&mut self, schema: &Arc<Schema>, services: Arc<[ServiceSpec]>) -> Policy {
        self.generation += 1;
        let (now, wall) = (self.parts.clock.now(), self.parts.clock.wall());
        let mut rules = self.parts.rules.rules.clone();
        rules.extend(self.parts.operator.rules().cloned());
        rules.extend(self.parts.detector.rules(wall, now));
        let previous = self.parts.publisher.current();
        // Under other attributes, what was counted under the old ones means nothing.
        let is_kin = **schema == **previous.schema();
        let parts = PolicyParts {
            schema: Arc::clone(schema),
            services,
            rules,
            limits: self.parts.rules.limits.clone(),
            generation: self.generation,
        };
        Policy::compile(parts, is_kin.then_some(&*previous), now, wall)
    }

    fn note_published(&mut self) {
        self.published = self.parts.clock.wall();
        let metrics = &self.parts.metrics;
        let published = &metrics.policy_published_timestamp_seconds;
        published.set(unix_seconds(self.published));
    }

    /// Tells people what happened: the log, the metrics, and whoever listens.
    fn tell(&mut self, event: &Event) {
        tell::log(event);
        tell::count(event, &self.parts.metrics);
        if event.what == Happening::Throttled
            && let Some(incident) = self
                .incidents()
                .iter()
                .find(|incident| incident.id == event.incident)
        {
            let wait = event.at.since(incident.began).as_secs_f64();
            self.parts
                .metrics
                .incident_time_to_rule_seconds
                .observe(wait);
        }
        if !self.streams.is_empty() {
            let text: Arc<str> = serde_json::to_string(event).unwrap_or_default().into();
            // Who does not read gets no more: it must ask again, and sees that it missed something.
            self.streams
                .retain(|stream| stream.try_send(Arc::clone(&text)).is_ok());
        }
        self.parts.listeners.retain(|listener| {
            !matches!(
                listener.try_send(event.clone()),
                Err(TrySendError::Disconnected(_))
            )
        });
    }

    fn measure(&self, began: Instant) {
        let metrics = &self.parts.metrics;
        let active = self
            .incidents()
            .iter()
            .filter(|incident| incident.active)
            .count();
        metrics.incident_active.set(active as i64);
        metrics
            .detector_trained_seconds
            .set(self.parts.detector.trained().as_secs_f64());
        metrics
            .detector_tick_seconds
            .observe(self.parts.clock.now().since(began).as_secs_f64());
    }

    /// Returns the incidents, oldest first.
    pub fn incidents(&self) -> &[Incident] {
        self.parts.detector.incidents()
    }

    /// Returns the detector.
    pub fn detector(&self) -> &Detector {
        &self.parts.detector
    }

    /// Returns the policy in force.
    pub fn policy(&self) -> Arc<Policy> {
        self.parts.publisher.current()
    }

    /// Returns when it was published.
    pub fn published(&self) -> SystemTime {
        self.published
    }

    /// Returns how the last reload went.
    pub fn last_reload(&self) -> &Reload {
        &self.reload
    }

    /// Returns the settings in force.
    pub fn settings(&self) -> &Settings {
        &self.parts.setup.settings
    }

    /// Returns what is in force of them.
    pub fn setup(&self) -> &Setup {
        &self.parts.setup
    }

    /// Returns the recent requests.
    pub fn recent(&self) -> &Arc<Recent> {
        &self.parts.setup.recent
    }

    /// Has the next events sent as JSON, until whoever listens is gone or behind.
    pub fn listen(&mut self, listener: EventSender) -> bool {
        self.streams.retain(|stream| !stream.is_closed());
        let has_room = self.streams.len() < STREAMS_MAX;
        if has_room {
            self.streams.push(listener);
        }
        has_room
    }

    /// Returns all series.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.parts.metrics
    }

    /// Returns the clock of the process.
    pub fn clock(&self) -> Clock {
        self.parts.clock
    }
}

/// Ticks for ever. Runs on the control thread, beside the admin API.
pub async fn run(control: Rc<std::cell::RefCell<Control>>) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        // A panic is a bug of ours and counted as one. Traffic and metrics go on, so must detection.
        let tick = std::panic::AssertUnwindSafe(|| control.borrow_mut().tick());
        if std::panic::catch_unwind(tick).is_err() {
            tracing::error!(
                "a tick of the detector failed; the next one is made as if nothing was"
            );
        }
    }
}

/// Takes over what is found in the files, for ever. Runs on the control thread, beside the tick.
pub async fn take_all(control: Rc<std::cell::RefCell<Control>>, mut loads: Receiver<Loaded>) {
    while let Some(loaded) = loads.recv().await {
        let take = std::panic::AssertUnwindSafe(|| control.borrow_mut().take(loaded));
        if std::panic::catch_unwind(take).is_err() {
            tracing::error!("a reload failed; what was published last stays in force");
        }
    }
}
