//! The experiments of the chaos programme, and what several of them share.

pub(crate) mod fairness;
pub(crate) mod overload;
pub(crate) mod resources;
pub(crate) mod upstreams;

use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::clients::{Clients, Load};
use crate::outcomes::Outcomes;
use crate::proxy::Proxy;
use crate::settings::Service;
use crate::stage::{Phase, Stage};
use crate::table::{Figure, Scale, Table};
use crate::upstream::{Capacity, Upstream};

/// An experiment: measures and adds its figures.
pub(crate) type Experiment = fn(Scale, &mut Table);

/// Every one, with its name and what is done in it.
pub(crate) const EXPERIMENTS: &[(&str, &str, Experiment)] = &[
    ("U1", "an upstream accepts and never answers", upstreams::u1),
    ("U2", "an upstream reads no request bodies", upstreams::u2),
    ("U3", "an upstream resets", upstreams::u3),
    (
        "U4",
        "connections to an upstream go dead in silence",
        upstreams::u4,
    ),
    ("U5", "answers drip and clients read nothing", upstreams::u5),
    ("U6", "an upstream answers garbage", upstreams::u6),
    (
        "U7",
        "an upstream closes connections as they are used",
        upstreams::u7,
    ),
    ("U8", "an upstream refuses connections", upstreams::u8),
    ("U9", "what a wire can do to an answer", upstreams::u9),
    ("M1", "ten times the knee", overload::m1),
    ("M2", "a trigger, and clients that send again", overload::m2),
    ("M3", "a broken SDK on thousands of addresses", overload::m3),
    ("M4", "everybody reconnects at once", overload::m4),
    ("M5", "large bodies beside small calls", overload::m5),
    (
        "FAIR",
        "one source at 50 times the capacity, detector off",
        fairness::share,
    ),
    (
        "F1",
        "128 descriptors, ten times the connections",
        resources::f1,
    ),
    (
        "F2",
        "a ceiling of 128 MiB and attacks on memory",
        resources::f2,
    ),
    ("F3", "no ports left towards the upstream", resources::f3),
    ("F4", "a panic", resources::f4),
];

/// What a request that waits may cost, in bytes.
pub(crate) const WAITING_BYTES_MAX: u64 = 64 * 1024;
/// What is not to be had more exactly from outside: the allocator keeps pages for later.
pub(crate) const MEMORY_NOISE_BYTES: u64 = 2 * 1024 * 1024;
/// Sockets of clients, upstreams and fault proxies in this process, at worst.
const OPEN_FILES: u64 = 16_000;

/// Allows this process the files that it needs, where the system lets it.
pub(crate) fn prepare() {
    let limit = getrlimit(Resource::Nofile);
    let maximum = limit.maximum.unwrap_or(OPEN_FILES);
    let wanted = Rlimit {
        current: Some(OPEN_FILES.min(maximum)),
        maximum: limit.maximum,
    };
    setrlimit(Resource::Nofile, wanted).expect("up to the hard limit everybody may");
}

/// Formats a time.
pub(crate) fn ms(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

/// Formats how long something took to be well, if it ever was.
pub(crate) fn until_well(time: Option<Duration>) -> String {
    match time {
        Some(time) => format!("{:.1} s", time.as_secs_f64()),
        None => "never".to_owned(),
    }
}

/// Formats a number of bytes.
pub(crate) fn kib(bytes: u64) -> String {
    format!("{} KiB", bytes / 1024)
}

/// Formats a share.
pub(crate) fn percent(share: f64) -> String {
    format!("{:.2} %", share * 100.0)
}

/// Returns by how much the second is longer than the first.
pub(crate) fn ratio(before: Duration, during: Duration) -> f64 {
    during.as_secs_f64() / before.as_secs_f64().max(0.000_1)
}

/// Two services with nothing wrong, beside the one that suffers.
#[derive(Debug)]
pub(crate) struct Neighbours {
    kb: Upstream,
    login: Upstream,
}

impl Neighbours {
    pub(crate) fn start() -> Self {
        let capacity = Capacity {
            places: 256,
            service_time: Duration::from_millis(5),
        };
        Self {
            kb: Upstream::start(capacity),
            login: Upstream::start(capacity),
        }
    }

    /// Returns them as the proxy knows them, behind another service.
    pub(crate) fn beside(&self, service: Service) -> Vec<Service> {
        vec![
            service,
            Service::new("kb", "/kb/", self.kb.address),
            Service::new("login", "/login/", self.login.address),
        ]
    }

    /// Starts their clients: so many requests per second for each.
    pub(crate) fn clients(proxy: &Proxy, stage: &Stage, per_second: f64) -> [Clients; 2] {
        ["/kb/article", "/login/session"].map(|target| {
            let load = Load::get(proxy.address, target, per_second).lasting(stage.ends());
            load.start(stage.began)
        })
    }

    /// Waits for what became of both.
    pub(crate) fn outcomes(clients: [Clients; 2]) -> Outcomes {
        let [kb, login] = clients.map(Clients::outcomes);
        kb.with(&login)
    }

    /// Adds the figures that are promised for them, whatever happens to the other service. The
    /// machine's: how much slower they are where the fault is there and the proxy has no part in it.
    pub(crate) fn figures(
        table: &mut Table,
        stage: &Stage,
        all: &Outcomes,
        slower_at_most: f64,
        control: Option<(String, bool)>,
        machine: Option<(&str, f64)>,
    ) {
        let [before, during, after] = stage.phases_of(all);
        let errors = before.errors() + during.errors() + after.errors();
        let figure = Figure::fact("errors of KB and login", 0).phases(
            before.ends(),
            during.ends(),
            after.ends(),
        );
        let figure = match control {
            Some((without, misses)) => figure.control(without, misses),
            None => figure,
        };
        table.add(figure.held(errors == 0));
        let [before, during, after] = stage.p99s(all);
        let figure = Figure::time(
            "p99 of KB and login",
            format_args!("<= {slower_at_most} x before"),
        );
        let figure = figure.phases(
            ms(before),
            format_args!("{} ({:.2} x)", ms(during), ratio(before, during)),
            ms(after),
        );
        let figure = match machine {
            Some((how, slower)) => figure.beside(format_args!("{how}: {slower:.2} x")),
            None => figure,
        };
        table.add(figure.held(ratio(before, during) <= slower_at_most));
    }
}

impl Stage {
    /// Returns the outcomes of each phase.
    pub(crate) fn phases_of(&self, outcomes: &Outcomes) -> [Outcomes; 3] {
        [Phase::Before, Phase::During, Phase::After].map(|phase| self.all(outcomes, phase))
    }

    /// Returns the 99th percentile of each phase.
    pub(crate) fn p99s(&self, outcomes: &Outcomes) -> [Duration; 3] {
        [Phase::Before, Phase::During, Phase::After].map(|phase| self.p99(outcomes, phase))
    }
}
