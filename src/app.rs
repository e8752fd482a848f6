//! Builds every part of the proxy from settings and runs it until it is drained. The one file that
//! knows all parts.

use std::cell::RefCell;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use ipnet::IpNet;
use tidegate_engine::detect::{DetectionSpec, Detector, Event};
use tidegate_engine::policy::{Policy, PolicyParts};
use tidegate_engine::recent::Recent;
use tidegate_engine::rules::Rules;
use tidegate_engine::traffic::Traffic;
use tokio::sync::{mpsc, watch};
use tokio::task::LocalSet;

use crate::access_log::{self, AccessLogWriter};
use crate::admin::Admin;
use crate::clock::Clock;
use crate::control::operator::OperatorRules;
use crate::control::{self, Control, ControlParts};
use crate::endpoint_board::EndpointBoard;
use crate::handover::{PolicyReader, handover};
use crate::metrics::Metrics;
use crate::reload::{self, ConfigFiles, Loaded, Reloader};
use crate::request::admit::Admission;
use crate::request::identify::Identify;
use crate::request::inflight::InflightBoard;
use crate::request::worker::{self, WorkerParts};
use crate::settings::{Settings, Workers};
use crate::state::{self, AuditFile, DetectedFile, DetectorFile, StateWriter};
use crate::upstream::{self, Endpoints};
use crate::vitals::Vitals;

/// How long a drain may take.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

/// What a proxy is started with.
#[derive(Debug)]
pub struct Start {
    /// Valid settings.
    pub settings: Settings,
    /// The files that they came from, to be watched; `None` for settings made in memory.
    pub files: Option<ConfigFiles>,
    /// The rules of its rules folder.
    pub rules: Rules,
    /// What the detector may do.
    pub detection: DetectionSpec,
    /// Whoever wants to hear of the detector's events.
    pub listeners: Vec<SyncSender<Event>>,
}

/// A proxy that runs.
#[derive(Debug)]
pub struct Running {
    /// Where clients connect, in the order of the settings; real ports where 0 was asked for.
    pub addresses: Vec<SocketAddr>,
    /// Where operators connect.
    pub admin_address: SocketAddr,
    /// All series.
    pub metrics: Arc<Metrics>,
    /// The policy in force.
    pub policy: PolicyReader,
    drain: watch::Sender<bool>,
    reloader: Option<Reloader>,
    /// Closed when the workers have ended, which ends the control side.
    ended: watch::Sender<()>,
    workers: Vec<JoinHandle<io::Result<()>>>,
    control: JoinHandle<anyhow::Result<()>>,
    access_log: Option<AccessLogWriter>,
}

impl Running {
    /// Begins the drain: no new connections, no new requests on old ones; what is under way may end.
    pub fn drain(&self) {
        self.drain.send_replace(true);
    }

    /// Has settings and rules read again though nobody saw a change. Settings made in memory stay.
    pub fn reload(&self) {
        if let Some(reloader) = &self.reloader {
            reloader.ask();
        }
    }

    /// Waits until all workers are drained and everything is written.
    ///
    /// # Errors
    ///
    /// A thread failed or panicked.
    pub fn join(self) -> anyhow::Result<()> {
        let mut result = Ok(());
        for worker in self.workers {
            match worker.join() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => result = Err(error).context("a worker failed"),
                Err(_panic) => result = Err(anyhow!("a worker panicked")),
            }
        }
        // Without senders, control and the writer come to their ends.
        drop(self.reloader);
        drop(self.ended);
        drop(self.drain);
        if self.control.join().is_err() {
            result = Err(anyhow!("the control thread panicked"));
        }
        if let Some(writer) = self.access_log {
            writer.join();
        }
        result
    }
}

/// Starts a proxy: opens everything first, so that what cannot be opened is said at once, then starts
/// the threads.
///
/// # Errors
///
/// A port is in use, a file cannot be opened; with what, where and the way out.
#[expect(
    clippy::too_many_lines,
    reason = "the list of all parts, read top to bottom"
)]
pub fn start(start: Start) -> anyhow::Result<Running> {
    let Start {
        settings,
        files,
        rules,
        detection,
        listeners,
    } = start;
    let settings = Arc::new(settings);
    let workers = worker_count(settings.workers);
    let clock = Clock::start();
    let metrics = Arc::new(Metrics::new());
    metrics.count_panics();
    let schema = Arc::new(settings.schema.clone());
    let key = state::identity_key(&settings.state)
        .with_context(|| at(&settings.state, "`state`: the folder cannot be used"))?;
    if let Err(error) = state::remove_drafts(&settings.state) {
        tracing::warn!(%error, "drafts under the state folder could not be removed");
    }
    let (addresses, mut worker_listeners) = open_listeners(&settings, workers)?;
    let admin_listener = open_admin(&settings)?;
    let admin_address = admin_listener
        .local_addr()
        .context("read the admin address")?;
    let token = match &settings.admin.token_file {
        Some(path) => Some(
            Admin::read_token(path)
                .with_context(|| at(path, "`admin.token_file` cannot be used"))?,
        ),
        None => None,
    };
    let (access_log, access_log_writer) = access_log::open(&settings.access_log, &metrics)
        .context("`access_log` cannot be opened; name a file in a folder that can be written")?;

    let specs = settings
        .services
        .iter()
        .map(|service| service.spec.clone())
        .collect();
    let mut vocabulary = settings.vocabulary();
    let operator = OperatorRules::load(&settings.state, &mut vocabulary, &rules);
    let parts = PolicyParts {
        schema: Arc::clone(&schema),
        services: specs,
        rules: rules
            .rules
            .iter()
            .chain(operator.rules())
            .cloned()
            .collect(),
        limits: rules.limits.clone(),
        generation: 1,
    };
    let (publisher, policy) = handover(Policy::compile(parts, None, clock.now(), clock.wall()));
    let seed = state::random_u64().context("draw a random number")?;
    let traffic = Arc::new(Traffic::new(&schema, workers, seed));
    let left_out = traffic.columns().left_out(&schema);
    if !left_out.is_empty() {
        tracing::warn!(
            attributes = left_out.join(", "),
            "these attributes take no part in detection, for there is room for nine of your own; name \
             what tells sources apart first in `identity.attributes`"
        );
    }
    let recent = Arc::new(Recent::new(workers, seed));
    let services = settings.services.len();
    let vitals = Vitals::new(services);
    let admission = Admission::new(settings.services.iter().map(|s| s.concurrency.max));
    let inflight = InflightBoard::new(workers, services);
    let (drain, draining) = watch::channel(false);
    let (ended, ends) = watch::channel(());
    let (reloader, loads) = match files {
        Some(files) => {
            let (reloader, loads) =
                reload::start(files).context("start the thread that reads files")?;
            (Some(reloader), Some(loads))
        }
        None => (None, None),
    };
    let detector_file = DetectorFile::new(&settings.state, &key);
    let mut detector = Detector::new(Arc::clone(&schema), detection, seed);
    detector.set_clock(clock.wall(), clock.now());
    detector_file.restore(&mut detector);
    let detected_file = DetectedFile::new(&settings.state, &key);
    detected_file.restore(&mut detector, clock.wall(), clock.now());
    let state_writer = StateWriter::start(detector_file, AuditFile::new(&settings.state), &metrics)
        .context("start the thread that keeps state")?;
    let identify = Arc::new(Identify::new(Arc::clone(&schema), key, &settings.identity));

    let upstreams = settings
        .upstreams
        .iter()
        .map(|spec| {
            Endpoints::open(spec.clone(), None, &metrics, clock)
                .with_context(|| format!("upstream `{}`: `tls` cannot be used", spec.name))
        })
        .collect::<anyhow::Result<Vec<_>>>()?;

    let control = ControlParts {
        settings: Arc::clone(&settings),
        rules,
        operator,
        recent: Arc::clone(&recent),
        publisher,
        clock,
        metrics: Arc::clone(&metrics),
        traffic: Arc::clone(&traffic),
        vitals: Arc::clone(&vitals),
        detector,
        detected_file,
        state_writer: Some(state_writer),
        listeners,
    };
    let board = Arc::clone(&inflight);
    let admin_identify = Arc::clone(&identify);
    let admin_drain = draining.clone();
    let cared_for = upstreams.clone();
    let endpoint_board = Arc::new(EndpointBoard::default());
    let control = std::thread::Builder::new()
        .name("control".into())
        .spawn(move || {
            let admin = |control| Admin {
                control,
                inflight: board,
                endpoints: Arc::clone(&endpoint_board),
                drain: admin_drain,
                identify: admin_identify,
                token,
                workers,
            };
            run_control(
                control,
                admin,
                admin_listener,
                (cared_for, &endpoint_board),
                (loads, ends),
            )
        })
        .context("start the control thread")?;

    let mut threads = Vec::with_capacity(workers);
    for number in 0..workers {
        let parts = WorkerParts {
            number,
            listeners: worker_listeners.pop().unwrap_or_default(),
            clock,
            identify: Arc::clone(&identify),
            policy: policy.clone(),
            recorder: traffic
                .recorder(number)
                .context("a worker has no counters")?,
            recent: recent.recorder(number).context("a worker has no sample")?,
            upstreams: upstreams.clone(),
            services: settings
                .services
                .iter()
                .map(|s| Arc::clone(&s.spec.name))
                .collect(),
            service_upstreams: service_upstreams(&settings),
            metrics: Arc::clone(&metrics),
            vitals: Arc::clone(&vitals),
            admission: Arc::clone(&admission),
            inflight: Arc::clone(&inflight),
            access_log: access_log.clone(),
            random: state::random_u64().context("draw a random number")?,
            drain: draining.clone(),
            drain_timeout: DRAIN_TIMEOUT,
        };
        let thread = std::thread::Builder::new().name(format!("worker-{number}"));
        threads.push(
            thread
                .spawn(move || worker::run(parts))
                .context("start a worker thread")?,
        );
    }
    Ok(Running {
        addresses,
        admin_address,
        metrics,
        policy,
        drain,
        reloader,
        ended,
        workers: threads,
        control,
        access_log: access_log_writer,
    })
}

/// Runs the control side and the admin API on the calling thread until the process is drained.
fn run_control(
    parts: ControlParts,
    admin: impl FnOnce(Rc<RefCell<Control>>) -> Admin,
    listener: StdListener,
    (upstreams, board): (Vec<Arc<Endpoints>>, &Arc<EndpointBoard>),
    (loads, mut ends): (Option<mpsc::Receiver<Loaded>>, watch::Receiver<()>),
) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let ended = LocalSet::new().block_on(&runtime, async move {
        let control = Rc::new(RefCell::new(Control::new(parts)));
        tokio::task::spawn_local(control::run(Rc::clone(&control)));
        tokio::task::spawn_local(admin(Rc::clone(&control)).serve(listener));
        for endpoints in upstreams {
            tokio::task::spawn_local(upstream::care::run(endpoints, Arc::clone(board)));
        }
        if let Some(loads) = loads {
            tokio::task::spawn_local(control::take_all(Rc::clone(&control), loads));
        }
        // Nothing is ever sent: the other end is dropped.
        while ends.changed().await.is_ok() {}
        control.borrow_mut().finish();
        Ok(())
    });
    // A name server that hangs must not hold up the end.
    runtime.shutdown_background();
    ended
}

fn worker_count(workers: Workers) -> usize {
    match workers {
        Workers::Exactly(count) => count,
        Workers::Auto => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
    }
}

fn service_upstreams(settings: &Settings) -> Vec<usize> {
    let of = |name: &str| {
        settings
            .upstreams
            .iter()
            .position(|upstream| *upstream.name == *name)
    };
    settings
        .services
        .iter()
        .map(|service| of(&service.upstream).unwrap_or(usize::MAX))
        .collect()
}

type Listeners = Vec<(StdListener, Vec<IpNet>)>;

/// Opens each listener once per worker. Returns the addresses and the workers' shares.
fn open_listeners(
    settings: &Settings,
    workers: usize,
) -> anyhow::Result<(Vec<SocketAddr>, Vec<Listeners>)> {
    let mut addresses = Vec::new();
    let mut shares: Vec<Listeners> = (0..workers).map(|_| Vec::new()).collect();
    for listener in &settings.listeners {
        let mut address = listener.address;
        for (number, share) in shares.iter_mut().enumerate() {
            let opened =
                worker::listen(address, number == 0).with_context(|| cannot_listen(address))?;
            // Port 0 means any: the first one decides for the others.
            address = opened.local_addr().context("read a listener's address")?;
            share.push((opened, listener.trusted_proxies.clone()));
        }
        addresses.push(address);
    }
    Ok((addresses, shares))
}

fn open_admin(settings: &Settings) -> anyhow::Result<StdListener> {
    let address = settings.admin.address;
    let listener = StdListener::bind(address)
        .with_context(|| format!("`admin.address`: {}", cannot_listen(address)))?;
    listener
        .set_nonblocking(true)
        .context("set the admin listener to non-blocking")?;
    Ok(listener)
}

fn cannot_listen(address: SocketAddr) -> String {
    format!(
        "cannot listen on {address}; stop what uses it (`ss -ltnp 'sport = :{}'`) or choose another \
         address",
        address.port()
    )
}

fn at(path: &Path, what: &str) -> String {
    format!("{}: {what}", path.display())
}
