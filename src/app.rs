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
use tidegate_engine::rules::Rules;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinSet, LocalSet};

use crate::access_log::AccessLogs;
use crate::admin::Admin;
use crate::clock::Clock;
use crate::control::operator::OperatorRules;
use crate::control::{self, Control, ControlParts};
use crate::endpoint_board::EndpointBoard;
use crate::handover::{PolicyReader, handover};
use crate::metrics::Metrics;
use crate::overload::Overload;
use crate::reload::{self, ConfigFiles, Loaded, Reloader};
use crate::request::worker::{self, WorkerParts};
use crate::resources;
use crate::settings::{Settings, Workers};
use crate::setup::{Ground, Setup, service_specs};
use crate::state::{self, AuditFile, DetectedFile, DetectorFile, StateWriter};
use crate::upstream::{self, Endpoints};

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
    /// The policy in force under the settings of the start.
    pub policy: PolicyReader,
    drain: watch::Sender<bool>,
    reloader: Option<Reloader>,
    /// Closed when the workers have ended, which ends the control side.
    ended: watch::Sender<()>,
    workers: Vec<JoinHandle<io::Result<()>>>,
    control: JoinHandle<anyhow::Result<()>>,
    access_logs: AccessLogs,
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
        self.access_logs.join();
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
    let workers = worker_count(settings.workers);
    let clock = Clock::start();
    let metrics = Arc::new(Metrics::new());
    metrics.count_panics();
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
    let seed = state::random_u64().context("draw a random number")?;
    let ground = Ground {
        workers,
        seed,
        key: key.clone(),
        metrics: Arc::clone(&metrics),
        access_logs: AccessLogs::new(&metrics),
        overload: Overload::new(resources::raise_descriptors(), workers),
        clock,
    };
    let access_logs = ground.access_logs.clone();
    let opened = ground.open(&settings, None)?;

    let mut vocabulary = settings.vocabulary();
    let operator = OperatorRules::load(&settings.state, &mut vocabulary, &rules, clock.wall());
    let parts = PolicyParts {
        schema: Arc::new(settings.schema.clone()),
        services: service_specs(&settings),
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
    let state_folder = settings.state.clone();
    let setup = Arc::new(ground.setup(settings, policy, opened, None));
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
    let detector_file = DetectorFile::new(&state_folder, &key);
    let mut detector = Detector::new(Arc::clone(&setup.schema), detection, seed);
    detector.set_clock(clock.wall(), clock.now());
    detector_file.restore(&mut detector);
    let detected_file = DetectedFile::new(&state_folder, &key);
    detected_file.restore(&mut detector, clock.wall(), clock.now());
    let state_writer = StateWriter::start(detector_file, AuditFile::new(&state_folder), &metrics)
        .context("start the thread that keeps state")?;
    let (setups, setups_here) = watch::channel(Arc::clone(&setup));
    let first_policy = setup.policy.clone();

    let control = ControlParts {
        ground,
        setup,
        setups,
        rules,
        operator,
        publisher,
        clock,
        metrics: Arc::clone(&metrics),
        detector,
        detected_file,
        state_writer: Some(state_writer),
        listeners,
    };
    let admin_drain = draining.clone();
    let cared_for = setups_here.clone();
    let endpoint_board = Arc::new(EndpointBoard::default());
    let control = std::thread::Builder::new()
        .name("control".into())
        .spawn(move || {
            let admin = |control| Admin {
                control,
                endpoints: Arc::clone(&endpoint_board),
                drain: admin_drain,
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
            setups: setups_here.clone(),
            metrics: Arc::clone(&metrics),
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
        policy: first_policy,
        drain,
        reloader,
        ended,
        workers: threads,
        control,
        access_logs,
    })
}

/// Runs the control side and the admin API on the calling thread until the process is drained.
fn run_control(
    parts: ControlParts,
    admin: impl FnOnce(Rc<RefCell<Control>>) -> Admin,
    listener: StdListener,
    (setups, board): (watch::Receiver<Arc<Setup>>, &Arc<EndpointBoard>),
    (loads, mut ends): (Option<mpsc::Receiver<Loaded>>, watch::Receiver<()>),
) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let ended = LocalSet::new().block_on(&runtime, async move {
        let control = Rc::new(RefCell::new(Control::new(parts)));
        tokio::task::spawn_local(control::run(Rc::clone(&control)));
        tokio::task::spawn_local(admin(Rc::clone(&control)).serve(listener));
        tokio::task::spawn_local(look_after_upstreams(setups, Arc::clone(board)));
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

/// Looks after the upstreams of the setup in force, for ever.
async fn look_after_upstreams(mut setups: watch::Receiver<Arc<Setup>>, board: Arc<EndpointBoard>) {
    let mut cared_for: Vec<(Arc<Endpoints>, JoinSet<()>)> = Vec::new();
    loop {
        let setup = Arc::clone(&setups.borrow_and_update());
        let is_there = |one: &Arc<Endpoints>| setup.upstreams.iter().any(|a| Arc::ptr_eq(a, one));
        // Dropped, a set ends its task.
        cared_for.retain(|(endpoints, _)| is_there(endpoints));
        for endpoints in &setup.upstreams {
            if !cared_for.iter().any(|(one, _)| Arc::ptr_eq(one, endpoints)) {
                let mut care = JoinSet::new();
                care.spawn_local(upstream::care::run(
                    Arc::clone(endpoints),
                    Arc::clone(&board),
                ));
                cared_for.push((Arc::clone(endpoints), care));
            }
        }
        drop(setup);
        if setups.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

fn worker_count(workers: Workers) -> usize {
    match workers {
        Workers::Exactly(count) => count,
        Workers::Auto => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
    }
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

#[cfg(test)]
mod tests;
