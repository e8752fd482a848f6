//! A world in virtual time: clients that send, a policy that decides as the proxy would, the detector.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test helper fails by panicking"
)]

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tidegate_engine::attribute::{AttributeId, AttributeKind, AttributeSpec, Schema, Side};
use tidegate_engine::detect::{DetectionSpec, Detector, Event, Happening, Stress};
use tidegate_engine::request::{HashKey, RequestFacts};
use tidegate_engine::rules::{Action, Condition, Mode, Rule, VersionCondition};
use tidegate_engine::time::Instant;
use tidegate_engine::traffic::{Arrival, Random, Recorder, Standing, Traffic};

pub(crate) const SERVICES: [&str; 3] = ["chat", "kb", "login"];

/// One client: a device with an address.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    pub(crate) address: Ipv4Addr,
    pub(crate) instance: Option<String>,
    pub(crate) sdk: &'static str,
    pub(crate) version: String,
    pub(crate) app: String,
    pub(crate) platform: &'static str,
    pub(crate) agent: String,
    /// Requests per second.
    pub(crate) rate: f64,
}

/// Clients that come besides the background.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    pub(crate) from: f64,
    pub(crate) until: f64,
    pub(crate) clients: Vec<Client>,
    /// Whether refusing them is right.
    pub(crate) bad: bool,
    /// Whether an operator allows them.
    pub(crate) exempt: bool,
    /// Whether each request has an instance of its own.
    pub(crate) forges: bool,
    pub(crate) service: Option<&'static str>,
}

/// What became of one group's requests.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Served {
    pub(crate) all: u32,
    pub(crate) refused: u32,
}

impl Served {
    pub(crate) fn refused_share(self) -> f64 {
        f64::from(self.refused) / f64::from(self.all.max(1))
    }
}

pub(crate) struct World {
    schema: Arc<Schema>,
    ids: HashMap<&'static str, AttributeId>,
    key: HashKey,
    pub(crate) random: Random,
    traffic: Traffic,
    recorders: Vec<Recorder>,
    pub(crate) detector: Detector,
    pub(crate) background: Vec<Client>,
    pub(crate) loads: Vec<Load>,
    /// Share of the background's requests that go to a service, in the order of [`SERVICES`].
    pub(crate) services: [f64; 3],
    pub(crate) stress: Stress,
    /// How often the detector is called.
    pub(crate) tick: Duration,
    pub(crate) now: f64,
    pub(crate) events: Vec<Event>,
    rules: Vec<Rule>,
    /// Whether the policy spares known instances.
    pub(crate) spares: bool,
    buckets: HashMap<String, Bucket>,
    /// Legitimate requests of others than the source under a rule, then those of the source itself.
    pub(crate) others: Served,
    pub(crate) honest: Served,
    pub(crate) bad: Served,
    /// The source of which `honest` counts the requests.
    pub(crate) source: Option<(&'static str, String, String)>,
    forged: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    tokens: f64,
    at: f64,
}

impl Bucket {
    fn spend(&mut self, rate: f64, burst: f64, now: f64) -> bool {
        self.tokens = (self.tokens + (now - self.at) * rate).min(burst);
        self.at = now;
        let may = self.tokens >= 1.0;
        if may {
            self.tokens -= 1.0;
        }
        may
    }

    /// Spends whether there is something or not.
    fn draw(&mut self, rate: f64, burst: f64, now: f64) {
        if !self.spend(rate, burst, now) {
            self.tokens -= 1.0;
        }
    }
}

impl World {
    /// A world whose detector may block after 20 s of calm traffic.
    pub(crate) fn new(seed: u64) -> Self {
        let spec = DetectionSpec {
            warmup: Duration::from_secs(20),
            ..DetectionSpec::default()
        };
        Self::with(seed, spec)
    }

    pub(crate) fn with(seed: u64, spec: DetectionSpec) -> Self {
        let mut schema = Schema::built_in();
        let mut ids = HashMap::from([
            ("user_agent", AttributeId::USER_AGENT),
            ("service", AttributeId::SERVICE),
            ("instance", AttributeId::INSTANCE),
            ("method", AttributeId::METHOD),
            ("route", AttributeId::ROUTE),
        ]);
        for name in ["app", "instance", "platform", "sdk", "sdk_version"] {
            let id = schema
                .add(AttributeSpec {
                    name: Arc::from(name),
                    kind: match name {
                        "sdk_version" => AttributeKind::Version,
                        _ => AttributeKind::Text,
                    },
                    side: Side::Who,
                    secret: name == "instance",
                })
                .unwrap();
            ids.insert(name, id);
        }
        let schema = Arc::new(schema);
        let traffic = Traffic::new(&schema, 2, seed);
        let mut random = Random::from_seed(seed ^ 0x77);
        let background = background(2000, 1.0, &mut random);
        Self {
            recorders: (0..2).map(|at| traffic.recorder(at).unwrap()).collect(),
            detector: Detector::new(Arc::clone(&schema), spec, seed),
            key: HashKey::from_seed(seed),
            schema,
            ids,
            random,
            traffic,
            background,
            loads: Vec::new(),
            services: [0.6, 0.3, 0.1],
            stress: Stress::none(),
            tick: Duration::from_millis(100),
            now: 1.0,
            events: Vec::new(),
            rules: Vec::new(),
            spares: true,
            buckets: HashMap::new(),
            others: Served::default(),
            honest: Served::default(),
            bad: Served::default(),
            source: None,
            forged: 0,
        }
    }

    /// Puts a new process in place of the old one: nothing is kept but the key of the hashes.
    pub(crate) fn restart(&mut self) {
        let spec = DetectionSpec {
            warmup: Duration::from_secs(20),
            ..DetectionSpec::default()
        };
        self.traffic = Traffic::new(&self.schema, 2, 99);
        self.recorders = (0..2)
            .map(|at| self.traffic.recorder(at).unwrap())
            .collect();
        self.detector = Detector::new(Arc::clone(&self.schema), spec, 99);
        self.rules.clear();
        self.events.clear();
    }

    /// The same, `down` seconds later for the calendar: the new one has learnt what the old one had, and has
    /// what was in force and what was said, too, where it `carries` that. Returns how many rules it has.
    pub(crate) fn restart_later(&mut self, down: f64, carries: bool) -> usize {
        let at = |seconds: f64| SystemTime::UNIX_EPOCH + Duration::from_secs_f64(1e6 + seconds);
        let now = Instant::from_secs_f64(self.now);
        let snapshot = self.detector.snapshot();
        let kept = self.detector.carried(at(self.now), now);
        self.restart();
        self.detector.restore(&snapshot).unwrap();
        if !carries {
            return 0;
        }
        let wall = at(self.now + down);
        self.detector.carry_on(kept, "the tale is over", wall, now)
    }

    /// Lets time pass until `until`, in seconds.
    pub(crate) fn run(&mut self, until: f64) {
        let clients = std::mem::take(&mut self.background);
        let loads = std::mem::take(&mut self.loads);
        while self.now < until - 1e-6 {
            let now = self.now;
            let coming = loads
                .iter()
                .filter(|load| load.from <= now && now < load.until);
            let senders: Vec<(&Client, Option<&Load>)> = clients
                .iter()
                .map(|client| (client, None))
                .chain(coming.flat_map(|load| load.clients.iter().map(move |it| (it, Some(load)))))
                .collect();
            for (client, load) in self.requests_of(&senders) {
                self.request(client, load);
            }
            self.now += self.tick.as_secs_f64();
            let now = Instant::from_secs_f64(self.now);
            let tick = self.detector.tick(&self.traffic, &self.stress, now);
            self.events.extend(tick.events);
            if tick.rules_changed {
                self.rules = self.detector.rules(SystemTime::UNIX_EPOCH, now);
            }
        }
        self.background = clients;
        self.loads = loads;
    }

    /// Draws what is sent in one tick, a Poisson number of requests each, in any order.
    fn requests_of<'a>(
        &mut self,
        senders: &[(&'a Client, Option<&'a Load>)],
    ) -> Vec<(&'a Client, Option<&'a Load>)> {
        let mut requests = Vec::new();
        for sender in senders {
            let mut left = -sender.0.rate * self.tick.as_secs_f64();
            loop {
                left -= (1.0 - self.random.unit()).ln();
                if left > 0.0 {
                    break;
                }
                requests.push(*sender);
            }
        }
        for at in (1..requests.len()).rev() {
            requests.swap(at, self.random.bits() as usize % (at + 1));
        }
        requests
    }

    fn request(&mut self, client: &Client, load: Option<&Load>) {
        let service = load.and_then(|load| load.service).unwrap_or_else(|| {
            let at = self.random.unit();
            let [chat, kb, _] = self.services;
            SERVICES[usize::from(at > chat) + usize::from(at > chat + kb)]
        });
        let instance = if load.is_some_and(|load| load.forges) {
            self.forged += 1;
            Some(format!("forged {}", self.forged))
        } else {
            client.instance.clone()
        };
        let key = self.key.clone();
        let mut facts = RequestFacts::new(&key, IpAddr::V4(client.address));
        if let Some(instance) = instance {
            facts.set(AttributeId::INSTANCE, Cow::Owned(instance));
        }
        for (name, value) in [
            ("sdk", client.sdk),
            ("sdk_version", &client.version),
            ("app", &client.app),
            ("platform", client.platform),
            ("user_agent", &client.agent),
            ("service", service),
            ("method", "GET"),
            ("route", service),
        ] {
            if !value.is_empty() {
                facts.set(self.ids[name], Cow::Borrowed(value));
            }
        }
        // What an operator allows ends the decision before any detected rule is asked.
        let exempt = load.is_some_and(|load| load.exempt);
        let passes = exempt || self.decide(&facts);
        let standing = match passes {
            _ if exempt => Standing::Exempt,
            true => Standing::Passed,
            false => Standing::Refused,
        };
        let worker = (self.random.bits() & 1) as usize;
        self.recorders[worker].record(&facts, Arrival { standing });

        let of_source = self.source.as_ref().is_some_and(|(sdk, version, app)| {
            client.sdk == *sdk && client.version == *version && client.app == *app
        });
        let group = match (load.is_some_and(|load| load.bad), of_source) {
            (true, _) => &mut self.bad,
            (false, true) => &mut self.honest,
            (false, false) => &mut self.others,
        };
        group.all += 1;
        group.refused += u32::from(!passes);
    }

    /// Decides as the proxy does with detected rules: sparing first, then the rule.
    fn decide(&mut self, facts: &RequestFacts<'_>) -> bool {
        for rule in &self.rules {
            let matches = rule.when.conditions.iter().all(|(id, condition)| {
                let value = facts.value(*id);
                match condition {
                    Condition::Is(text)
                    | Condition::Version(VersionCondition::Exactly(text, _)) => value == Some(text),
                    Condition::Present(present) => value.is_some() == *present,
                    Condition::Network(network) => network.contains(&facts.address()),
                    other => panic!("a detected rule has the condition {other:?}"),
                }
            });
            if !matches || rule.mode == Mode::Shadow {
                continue;
            }
            let name = rule.name.to_string();
            let sparing = rule.sparing.as_ref().unwrap();
            let instance = facts.instance();
            if self.spares && sparing.familiar.contains(instance) {
                let usual = sparing.usual_per_instance_per_second;
                let expected = sparing.expected_per_second;
                let own = self
                    .buckets
                    .entry(format!("{name} {instance}"))
                    .or_default();
                if own.spend(usual, usual.max(3.0), self.now)
                    && self
                        .buckets
                        .entry(format!("{name} spared"))
                        .or_default()
                        .spend(expected, expected.max(1.0), self.now)
                {
                    if let Action::Throttle { rate, burst, .. } = &rule.action {
                        let bucket = self.buckets.entry(name).or_default();
                        bucket.draw(rate.per_second(), f64::from(*burst), self.now);
                    }
                    return true;
                }
            }
            return match &rule.action {
                Action::Throttle { rate, burst, .. } => self
                    .buckets
                    .entry(name)
                    .or_default()
                    .spend(rate.per_second(), f64::from(*burst), self.now),
                Action::Block { .. } => {
                    if rule.percent < 100 && self.random.unit() * 100.0 >= f64::from(rule.percent) {
                        continue;
                    }
                    false
                }
                other => panic!("a detected rule has the action {other:?}"),
            };
        }
        true
    }

    /// Returns when something first happened, in seconds.
    pub(crate) fn when(&self, what: Happening) -> Option<f64> {
        self.events
            .iter()
            .find(|event| event.what == what)
            .map(|event| event.at.as_secs_f64())
    }

    /// Returns the sources that got a rule, as text.
    pub(crate) fn ruled(&self) -> Vec<String> {
        self.events
            .iter()
            .filter(|event| event.what == Happening::Throttled)
            .map(|event| event.source.as_ref().unwrap().to_string())
            .collect()
    }

    pub(crate) fn rules(&self) -> &[Rule] {
        &self.rules
    }

    pub(crate) fn id(&self, name: &str) -> AttributeId {
        self.schema.id(name).unwrap()
    }
}

const SDKS: [(&str, &str, f64); 3] = [
    ("chat-android", "android", 0.45),
    ("chat-ios", "ios", 0.35),
    ("chat-web", "web", 0.20),
];

/// Clients of three SDKs, four versions of each, 50 apps by Zipf's law.
pub(crate) fn background(number: usize, rate: f64, random: &mut Random) -> Vec<Client> {
    (0..number).map(|_| honest(rate, random)).collect()
}

pub(crate) fn honest(rate: f64, random: &mut Random) -> Client {
    let at = random.unit();
    let (sdk, platform, _) = SDKS[usize::from(at > 0.45) + usize::from(at > 0.8)];
    let version = (random.unit().powi(2) * 4.0) as u32;
    let app = (50.0_f64.powf(random.unit())) as u32;
    device(
        (sdk, platform),
        &format!("{}.{version}.0", 3 + sdk.len() % 3),
        &format!("app-{app}"),
        rate,
        random,
    )
}

/// A device with an address and an instance of its own.
pub(crate) fn device(
    (sdk, platform): (&'static str, &'static str),
    version: &str,
    app: &str,
    rate: f64,
    random: &mut Random,
) -> Client {
    Client {
        address: Ipv4Addr::from_bits(random.bits() as u32),
        instance: Some(format!("device {:x}", random.bits())),
        sdk,
        version: version.to_owned(),
        app: app.to_owned(),
        platform,
        agent: format!("{platform} agent {}", random.bits() % 3),
        rate,
    }
}
