//! One worker: a thread with a runtime, listeners, connections and counters of its own.

use std::cell::Cell;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use socket2::{Domain, Protocol, Socket, Type};
use tidegate_engine::recent::RecentRecorder;
use tidegate_engine::traffic::Recorder;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::LocalSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::accept::{OpenConnections, accept};
use super::address::TrustedProxies;
use super::admit::Admission;
use super::headers::RequestIds;
use super::identify::Identify;
use super::inflight::{Inflight, InflightBoard};
use super::observe::Observer;
use super::refuse::Refuse;
use super::serve::Worker;
use crate::access_log::AccessLogSender;
use crate::clock::Clock;
use crate::handover::PolicyReader;
use crate::metrics::{Metrics, WorkerMetrics};
use crate::upstream::{Endpoints, Upstream};
use crate::vitals::Vitals;

/// How often a worker hands over what it counted and closes what it no longer needs.
const HOUSEKEEPING_INTERVAL: Duration = Duration::from_millis(100);
/// Connections that the kernel holds for one listener until they are accepted.
const BACKLOG: i32 = 4096;

/// How long a start waits for the port of a process that has been killed.
const PREDECESSOR_TIMEOUT: Duration = Duration::from_secs(1);

/// Everything that a worker is made of. `Send`; the worker's own parts are made on its thread.
#[derive(Debug)]
pub struct WorkerParts {
    /// Its number, from 0.
    pub number: usize,
    /// Its listeners, with the addresses that each believes.
    pub listeners: Vec<(StdListener, Vec<IpNet>)>,
    /// The clock of the process.
    pub clock: Clock,
    /// Who is who.
    pub identify: Arc<Identify>,
    /// What is in force.
    pub policy: PolicyReader,
    /// Where arrivals are counted.
    pub recorder: Recorder,
    /// Its part of the sample of recent requests.
    pub recent: RecentRecorder,
    /// All upstreams.
    pub upstreams: Vec<Arc<Endpoints>>,
    /// Names of all services.
    pub services: Vec<Arc<str>>,
    /// For each service its upstream.
    pub service_upstreams: Vec<usize>,
    /// All series.
    pub metrics: Arc<Metrics>,
    /// How the upstreams do.
    pub vitals: Arc<Vitals>,
    /// How many may be in each service.
    pub admission: Arc<Admission>,
    /// Who is in flight.
    pub inflight: Arc<InflightBoard>,
    /// Where log lines go.
    pub access_log: AccessLogSender,
    /// A random number, different for each worker.
    pub random: u64,
    /// Turns true when the drain begins.
    pub drain: watch::Receiver<bool>,
    /// How long the drain may take.
    pub drain_timeout: Duration,
}

/// Opens a listener that several workers can share, without blocking.
///
/// # Errors
///
/// The address is in use, or may not be used.
pub fn listen(address: SocketAddr, is_first: bool) -> io::Result<StdListener> {
    if is_first && address.port() != 0 {
        // With SO_REUSEPORT alone, a second Tidegate would share the port without a word and take
        // half of the connections. Without it, the kernel says that the port is taken.
        drop(bind_patiently(address)?);
    }
    let socket = bind(address, true)?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Binds alone. A process that was killed a moment ago may still be on its way out.
fn bind_patiently(address: SocketAddr) -> io::Result<Socket> {
    let deadline = std::time::Instant::now() + PREDECESSOR_TIMEOUT;
    loop {
        match bind(address, false) {
            Err(error)
                if error.kind() == io::ErrorKind::AddrInUse
                    && std::time::Instant::now() < deadline =>
            {
                std::thread::sleep(PREDECESSOR_TIMEOUT / 20);
            }
            bound => return bound,
        }
    }
}

fn bind(address: SocketAddr, is_shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(is_shared)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Runs a worker on the calling thread until it is drained.
///
/// # Errors
///
/// The runtime or a listener cannot be set up.
pub fn run(parts: WorkerParts) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let local = LocalSet::new();
    runtime.block_on(local.run_until(work(parts)))
}

async fn work(parts: WorkerParts) -> io::Result<()> {
    let mut listeners = Vec::new();
    for (listener, trusted) in parts.listeners {
        listeners.push((
            TcpListener::from_std(listener)?,
            Arc::new(TrustedProxies::new(trusted)),
        ));
    }
    let upstream_names: Vec<Arc<str>> = parts
        .upstreams
        .iter()
        .map(|endpoints| Arc::clone(&endpoints.spec.name))
        .collect();
    let metrics = Arc::clone(&parts.metrics);
    let observer = Rc::new(Observer::new(
        parts.clock,
        Arc::clone(parts.identify.schema()),
        WorkerMetrics::new(&metrics, &parts.services, &upstream_names),
        parts.vitals,
        parts.admission,
        Inflight::new(parts.inflight, parts.number),
        parts.access_log.worker(&metrics),
    ));
    // Only the workers' senders may be left, or the writer would wait for ever for this one.
    drop(parts.access_log);
    let now = Rc::new(Cell::new(Instant::now()));
    let upstreams = parts
        .upstreams
        .into_iter()
        .enumerate()
        .map(|(index, endpoints)| {
            let open = metrics
                .upstream_connections
                .with_label_values(&[&*endpoints.spec.name]);
            Upstream::new(endpoints, index, open, Rc::clone(&now), parts.random)
        });
    let upstreams = upstreams.collect();
    let worker = Rc::new(Worker {
        clock: parts.clock,
        now,
        identify: parts.identify,
        policy: parts.policy,
        recorder: parts.recorder,
        recent: parts.recent,
        observer,
        refuse: Refuse::new(parts.random),
        request_ids: RequestIds::new(parts.random),
        upstreams,
        service_upstreams: parts.service_upstreams,
        metrics,
        tarpitted: Cell::new(0),
    });
    let open = Rc::new(OpenConnections::default());
    for (listener, trusted) in listeners {
        let (worker, open, drain) = (Rc::clone(&worker), Rc::clone(&open), parts.drain.clone());
        tokio::task::spawn_local(accept(listener, trusted, worker, open, drain));
    }
    keep_house(&worker, &open, parts.drain, parts.drain_timeout).await;
    worker.observer.flush();
    Ok(())
}

/// Does what must be done now and then, until the worker is drained or out of time.
async fn keep_house(
    worker: &Worker,
    open: &OpenConnections,
    mut drain: watch::Receiver<bool>,
    drain_timeout: Duration,
) {
    let mut ticks = interval(HOUSEKEEPING_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut deadline: Option<Instant> = None;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = drain.wait_for(|begun| *begun), if deadline.is_none() => {
                deadline = Some(Instant::now() + drain_timeout);
            }
        }
        worker.now.set(Instant::now());
        worker.observer.flush();
        for upstream in &worker.upstreams {
            upstream.sweep();
        }
        let Some(deadline) = deadline else { continue };
        if open.count() == 0 {
            return;
        }
        if Instant::now() >= deadline {
            let requests = worker.observer.inflight.borrow().count();
            tracing::warn!(
                connections = open.count(),
                requests,
                "the drain ran out of time"
            );
            return;
        }
    }
}
