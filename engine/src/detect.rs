//! Finds the source of a surge and decides what is done about it. Time is an argument; sockets, files
//! and the request path are others' business.
//!
//! Once a tick (every 100 ms), in this order:
//!
//! 1. `window` takes what the workers counted ([`crate::traffic`]);
//! 2. `measures` carries the rules in force from throttle to block to release (`act`), and judges their
//!    sources again; `promise` narrows or withdraws those that refuse the wrong ones; `past` wakes those
//!    whose source is back;
//! 3. `gate` asks whether there is a surge, against what is normal (`reference`, `season`);
//! 4. if so, `watch` has `blame` say which sources explain it; `rise` tells one surge from the next;
//! 5. `nature` asks whether each is a loop or a crowd, against what clients usually send (`usual`);
//! 6. `respond` makes a rule where `room` has a place for it, and operators have a word in it (`operate`);
//! 7. and `learn` takes in what was calm, but for what `growth` holds back.
//!
//! `effect` tells what a rule has done, step by step. `operate` is what operators say of rules.
//! `snapshot` keeps what was learnt across a restart, `carried` the rules and incidents.
//!
//! Memory, bounded: 3.75 MiB of reference, 2.5 MiB of shares, 0.9 MiB of growth, 4.0 MiB of usual clients,
//! 11 MiB of window (when each request of the last seconds is a combination of its own), 5.5 MiB of
//! texts, 3 MiB of incidents: 30.6 MiB at worst, 51.6 MiB at 16 workers with [`crate::traffic`]. One step
//! at a time needs more for some milliseconds: adding up samples 8 MiB; blame 9.5 MiB of table (96,256
//! rows × 80 B and their index) and 2 MiB of row numbers: 63 MiB. A snapshot, once a minute while there
//! is no alarm, has 7 MiB.

mod act;
mod blame;
mod carried;
mod effect;
mod found;
mod gate;
mod growth;
mod incident;
mod learn;
mod measures;
mod nature;
mod operate;
mod past;
mod pattern;
mod promise;
mod reference;
mod respond;
mod rise;
mod room;
mod season;
mod snapshot;
mod usual;
mod watch;
mod window;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ahash::AHashMap;

use crate::attribute::{AttributeId, Schema};
use crate::rules::Rule;
use crate::source::Source;
use crate::time::Instant;
use crate::traffic::{Columns, Familiar, LeafKey, Names, Traffic};

pub use carried::Carried;
pub use effect::{Effect, Seen, UpstreamSigns};
pub use incident::{Event, Evidence, Happening, Incident, IncidentId, Moment, RejectedCandidate};
pub use nature::Nature;
pub use snapshot::{BYTES_MAX as SNAPSHOT_BYTES_MAX, RestoreError};

use act::Measure;
use gate::Gate;
use incident::Incidents;
use past::Past;
use pattern::{Literal, Pattern};
use reference::Reference;
use usual::{Length, Usual};
use watch::Suspicion;
use window::{CLIENTS_KEPT, SECOND, Window};

/// What the detector may do; the mildest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DetectionMode {
    /// Nothing.
    Off,
    /// Makes rules that only count, until an operator approves them.
    Suggest,
    /// Throttles at most.
    Throttle,
    /// Throttles and blocks.
    #[default]
    Auto,
}

impl DetectionMode {
    /// Returns the word for it in YAML and JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Suggest => "suggest",
            Self::Throttle => "throttle",
            Self::Auto => "auto",
        }
    }
}

/// How the detector is set.
#[derive(Clone, Debug, PartialEq)]
pub struct DetectionSpec {
    /// What it may do.
    pub mode: DetectionMode,
    /// What it may do where most of a source's excess goes to one of these services.
    pub services: Vec<(Arc<str>, DetectionMode)>,
    /// Share of normal traffic, 0 to 1, that a blocking rule may hit.
    pub collateral_max: f64,
    /// Share of normal traffic, 0 to 1, that all detected rules together may hit.
    pub budget: f64,
    /// How much normal traffic is learnt before a detected rule may block. Short ones also learn and
    /// forget faster.
    pub warmup: Duration,
    /// How long a blocked source is calm before it is let through again.
    pub calm: Duration,
    /// How long it is watched with hardly anything let through.
    pub probe: Duration,
    /// Requests per second above what was expected that are no surge yet.
    pub floor_per_second: f64,
}

impl Default for DetectionSpec {
    fn default() -> Self {
        Self {
            mode: DetectionMode::Auto,
            services: Vec::new(),
            collateral_max: 0.01,
            budget: 0.1,
            warmup: Duration::from_mins(10),
            calm: Duration::from_secs(15),
            probe: Duration::from_secs(5),
            floor_per_second: 20.0,
        }
    }
}

impl DetectionSpec {
    /// Returns what it may do about a source whose excess goes to these services: the mildest of their
    /// modes. Of no service, it is what it may do in general.
    pub fn mode_of(&self, services: &[Arc<str>]) -> DetectionMode {
        let of = |service: &Arc<str>| {
            let own = self.services.iter().find(|(name, _)| name == service);
            own.map_or(self.mode, |(_, mode)| *mode)
        };
        services.iter().map(of).min().unwrap_or(self.mode)
    }

    /// Returns whether it does nothing anywhere.
    fn is_off(&self) -> bool {
        let own = self.services.iter().map(|(_, mode)| *mode);
        own.chain([self.mode])
            .all(|mode| mode == DetectionMode::Off)
    }

    /// Returns how long an instance waits, twice, before it is known.
    pub fn settle_every(&self) -> Duration {
        (self.warmup / 4).clamp(Duration::from_secs(2), Duration::from_secs(30))
    }
}

/// Which services' upstreams suffer: errors, latency or requests in flight well above normal.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stress {
    services: Vec<Arc<str>>,
    signs: Vec<(Arc<str>, UpstreamSigns)>,
}

impl Stress {
    /// Nobody suffers.
    pub fn none() -> Self {
        Self::default()
    }

    /// These services suffer.
    pub fn on(services: Vec<Arc<str>>) -> Self {
        Self {
            services,
            signs: Vec::new(),
        }
    }

    /// And so the upstream of each service did in the last second; for the incidents alone.
    #[must_use]
    pub fn with_signs(self, signs: Vec<(Arc<str>, UpstreamSigns)>) -> Self {
        Self { signs, ..self }
    }

    /// Returns whether a source's traffic goes to a service that suffers.
    fn concerns(&self, source: &Source) -> bool {
        match source.get("service") {
            Some(service) => self.services.iter().any(|name| **name == *service),
            None => !self.services.is_empty(),
        }
    }
}

/// What came of a tick.
#[derive(Clone, Debug, Default, PartialEq)]
#[must_use]
pub struct Tick {
    /// What people should hear of, in order.
    pub events: Vec<Event>,
    /// Whether [`Detector::rules`] must be published again.
    pub rules_changed: bool,
}

/// How long texts are kept after they were last asked for by traffic: one to two of these.
const NAMES_KEPT: Duration = Duration::from_mins(1);

/// How often unchanged rules are published again, so that their `until` moves on: a quarter of the
/// shortest life.
const RENEW_EVERY: Duration = Duration::from_secs(15);

/// The least that an instance inside a source may send and still be spared, in requests per second.
const USUAL_PER_INSTANCE_MIN: f64 = 1.0;

/// When periodic work was last done.
#[derive(Clone, Copy, Debug, Default)]
struct Clock {
    settled: Instant,
    long: Instant,
    familiar: Instant,
    names: Instant,
    renewed: Instant,
}

/// Finds the sources of surges and keeps the rules against them.
///
/// Not `Clone`: it learns, and two that learn from one traffic would take it from one another.
#[derive(Debug)]
pub struct Detector {
    schema: Arc<Schema>,
    spec: DetectionSpec,
    columns: Columns,
    service: usize,
    names: Names,
    window: Window,
    reference: Reference,
    instances: Usual,
    addresses: Usual,
    gate: Gate,
    suspicion: Option<Suspicion>,
    measures: Vec<Measure>,
    past: Past,
    incidents: Incidents,
    familiar: Arc<Familiar>,
    /// The sources that the workers were told to get to know nobody of.
    suspected: Vec<Pattern>,
    /// Whether an operator changed something that is not published yet.
    unpublished: bool,
    clock: Clock,
}

impl Detector {
    /// Makes a detector that knows nothing yet. Equal seeds and traffic give equal decisions.
    pub fn new(schema: Arc<Schema>, spec: DetectionSpec, seed: u64) -> Self {
        let columns = Columns::of(&schema);
        Self {
            service: columns
                .of_attribute(AttributeId::SERVICE)
                .unwrap_or(usize::MAX),
            reference: Reference::new(spec.warmup, &columns, seed ^ 1),
            window: Window::new(seed ^ 2),
            instances: Usual::new(spec.warmup),
            addresses: Usual::new(spec.warmup),
            schema,
            spec,
            columns,
            names: Names::default(),
            gate: Gate::new(),
            suspicion: None,
            measures: Vec::new(),
            past: Past::default(),
            incidents: Incidents::default(),
            familiar: Arc::default(),
            suspected: Vec::new(),
            unpublished: false,
            clock: Clock::default(),
        }
    }

    /// Tells what time of day it is: `wall` at `now`. To be called at the start, and again now and then,
    /// for clocks are set. Without it nothing is known of times of day.
    pub fn set_clock(&mut self, wall: SystemTime, now: Instant) {
        self.reference.set_clock(wall, now);
    }

    /// Looks at what came since the last tick. To be called every 100 ms; a longer gap is one long
    /// tick.
    pub fn tick(&mut self, traffic: &Traffic, stress: &Stress, now: Instant) -> Tick {
        if !Arc::ptr_eq(&self.familiar, traffic.familiar()) {
            // Who is known from before a restart stays so.
            traffic.familiar().adopt(&self.familiar);
            self.familiar = Arc::clone(traffic.familiar());
            self.suspected.clear();
        }
        self.window.collect(traffic, &mut self.names, now);
        self.past.forget_left_alone(now);
        let mut rules_changed = std::mem::take(&mut self.unpublished);
        rules_changed |= self.step_measures(stress, now);
        if !self.spec.is_off() {
            rules_changed |= self.wake(now);
            rules_changed |= self.watch(stress, now);
        }
        self.learn(now);
        let unfamiliar = self.unfamiliar();
        if unfamiliar != self.suspected {
            traffic.suspect(unfamiliar.iter().map(Pattern::mask).collect());
            self.suspected = unfamiliar;
        }
        if !self.measures.is_empty() && now.since(self.clock.renewed) >= RENEW_EVERY {
            rules_changed = true;
        }
        if rules_changed {
            self.clock.renewed = now;
        }
        let mut events = self.incidents.take_events();
        self.measure_effects(&mut events, stress, now);
        Tick {
            events,
            rules_changed,
        }
    }

    /// Returns the detected rules in force. `wall` is the time of day at `now`.
    pub fn rules(&self, wall: SystemTime, now: Instant) -> Vec<Rule> {
        self.measures
            .iter()
            .flat_map(|measure| measure.rules(&self.schema, &self.spec, &self.familiar, wall, now))
            .collect()
    }

    /// Returns the last incidents, oldest first.
    pub fn incidents(&self) -> &[Incident] {
        self.incidents.all()
    }

    /// Returns whether enough normal traffic was learnt for a rule to block.
    pub fn is_warm(&self) -> bool {
        self.reference.trained() >= self.spec.warmup
    }

    /// Returns how the detector is set.
    pub fn spec(&self) -> &DetectionSpec {
        &self.spec
    }

    /// Sets what the detector may do from now on. Rules in force follow; what was learnt stays, and is
    /// learnt and forgotten as fast as before.
    pub fn set_spec(&mut self, spec: DetectionSpec) {
        self.spec = spec;
        self.unpublished = true;
    }

    /// Returns what the detector may do.
    pub fn mode(&self) -> DetectionMode {
        self.spec.mode
    }

    /// Returns whether a surge is being looked into.
    pub fn is_alarmed(&self) -> bool {
        let newest = self.window.newest();
        newest.is_some_and(|tick| self.is_suspicious(tick.until))
    }

    /// Returns how much normal traffic was learnt from.
    pub fn trained(&self) -> Duration {
        self.reference.trained()
    }

    /// Returns the requests per second of everybody in the last second, refused ones included.
    pub fn observed_per_second(&self) -> f64 {
        let Some(newest) = self.window.newest() else {
            return 0.0;
        };
        let from = newest.until - SECOND;
        let seconds = self.window.seconds_since(from).max(0.1);
        self.window.requests_since(from, |_| true) / seconds
    }

    /// Returns the requests per second that are expected of everybody.
    pub fn expected_per_second(&self) -> f64 {
        self.reference.level()
    }

    /// Returns the `n` sources with the most requests per second over the last second, by the given
    /// attributes; addresses, the instance and secret attributes are left out.
    pub fn top_sources(&self, by: &[AttributeId], n: usize) -> Vec<(Source, f64)> {
        let by: Vec<usize> = by
            .iter()
            .filter_map(|id| self.columns.of_attribute(*id))
            .collect();
        let Some(newest) = self.window.newest() else {
            return Vec::new();
        };
        let from = newest.until - SECOND;
        let seconds = self.window.seconds_since(from);
        let mut sums: AHashMap<Pattern, f64> = AHashMap::new();
        for leaf in self.window.since(from).flat_map(|tick| &tick.leaves) {
            let pattern = by.iter().fold(Pattern::default(), |pattern, column| {
                match leaf.key.value(*column) {
                    0 => pattern,
                    value => pattern.with(Literal {
                        column: *column,
                        value,
                    }),
                }
            });
            *sums.entry(pattern).or_default() += leaf.requests;
        }
        let mut sums: Vec<(Pattern, f64)> = sums.into_iter().collect();
        sums.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        sums.into_iter()
            .filter_map(|(pattern, requests)| {
                let source = pattern.source(&self.schema, &self.columns, &self.names)?;
                Some((source, requests / seconds))
            })
            .take(n)
            .collect()
    }

    /// Returns whether requests of a key are evidence: let through, under no detected rule, and not left
    /// alone by an operator. While all share, what that refuses is evidence, too: it is nobody's fault yet.
    fn is_evidence(&self) -> impl Fn(&LeafKey) -> bool {
        let now = self
            .window
            .newest()
            .map_or(Instant::ZERO, |tick| tick.until);
        let hidden: Vec<&Pattern> = self
            .measures
            .iter()
            .filter(|measure| measure.hides(&self.spec, now))
            .map(|measure| &measure.pattern)
            .chain(self.past.left_alone().map(|(pattern, _)| pattern))
            .collect();
        let shares = self.measures.iter().any(|measure| measure.shares);
        move |key| (shares || !key.refused()) && !hidden.iter().any(|pattern| pattern.matches(key))
    }

    fn usual_per_instance(&self, who: &Pattern) -> f64 {
        let long = self
            .instances
            .of(who, Length::Long)
            .map(|tally| tally.upper_bound() / CLIENTS_KEPT.as_secs_f64());
        let second = || {
            self.instances
                .of(who, Length::Second)
                .map(|tally| tally.upper_bound())
        };
        long.or_else(second)
            .unwrap_or(USUAL_PER_INSTANCE_MIN)
            .max(USUAL_PER_INSTANCE_MIN)
    }
}
