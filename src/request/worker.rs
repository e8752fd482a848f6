//! One worker: a thread with a runtime, listeners, connections and counters of its own.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use socket2::{Domain, Protocol, Socket, Type};
use tidegate_engine::capacity::Flows;
use tidegate_engine::recent::RecentRecorder;
use tidegate_engine::traffic::Recorder;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::LocalSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::accept::{OpenConnections, accept};
use super::address::TrustedProxies;
use super::body::BodyLimits;
use super::headers::RequestIds;
use super::observe::Observer;
use super::refuse::Refuse;
use super::serve::{Destination, Worker};
use super::service::Service;
use crate::clock::Clock;
use crate::faults::{self, Point};
use crate::metrics::Metrics;
use crate::overload::Overload;
use crate::setup::{Destined, Setup};
use crate::upstream::Upstream;

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
    /// What is in force of the settings.
    pub setups: watch::Receiver<Arc<Setup>>,
    /// All series.
    pub metrics: Arc<Metrics>,
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
    let mut setups = parts.setups;
    let first = Arc::clone(&setups.borrow_and_update());
    let bench = Rc::new(Workbench::new(
        parts.number,
        parts.clock,
        &parts.metrics,
        parts.random,
        &first,
    )?);
    // Setups hold the access log open, whose writer is waited for in the end.
    drop(first);
    let open = Rc::new(OpenConnections::default());
    for (listener, trusted) in parts.listeners {
        let listener = TcpListener::from_std(listener)?;
        let trusted = Arc::new(TrustedProxies::new(trusted));
        let (bench, open, drain) = (Rc::clone(&bench), Rc::clone(&open), parts.drain.clone());
        tokio::task::spawn_local(accept(listener, trusted, bench, open, drain));
    }
    keep_house(&bench, setups, &open, parts.drain, parts.drain_timeout).await;
    bench.flush();
    Ok(())
}

/// Where a worker stands: itself under the settings in force, and under those of before as long as
/// requests are under way that began with them.
#[derive(Debug)]
pub(crate) struct Workbench {
    number: usize,
    random: u64,
    /// The time, a tenth of a second late at most.
    pub(crate) now: Rc<Cell<Instant>>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) overload: Arc<Overload>,
    worker: RefCell<Rc<Worker>>,
    former: RefCell<Vec<Rc<Worker>>>,
}

impl Workbench {
    fn new(
        number: usize,
        clock: Clock,
        metrics: &Arc<Metrics>,
        random: u64,
        setup: &Setup,
    ) -> io::Result<Self> {
        let now = Rc::new(Cell::new(Instant::now()));
        let no_service = Service::new(&setup.no_service, &setup.overload, clock, number, metrics);
        let worker = Worker {
            clock,
            identify: Arc::clone(&setup.identify),
            policy: setup.policy.clone(),
            recorder: recorder(setup, number)?,
            recent: recent(setup, number)?,
            observer: observer(setup, clock, metrics),
            refuse: Rc::new(Refuse::new(random)),
            request_ids: Rc::new(RequestIds::new(random)),
            destinations: destinations(setup, &[], (number, clock, random), metrics, &now),
            flows: Flows::of(&setup.schema),
            no_service: Rc::new(no_service),
            metrics: Arc::clone(metrics),
            tarpit: Rc::default(),
        };
        Ok(Self {
            number,
            random,
            now,
            metrics: Arc::clone(metrics),
            overload: Arc::clone(&setup.overload),
            worker: RefCell::new(Rc::new(worker)),
            former: RefCell::default(),
        })
    }

    /// Returns the worker under the settings in force, for one request.
    pub(crate) fn worker(&self) -> Rc<Worker> {
        Rc::clone(&self.worker.borrow())
    }

    /// Puts another setup in force for every request that begins from now on.
    fn change_to(&self, setup: &Setup) -> io::Result<()> {
        let before = self.worker();
        let (number, metrics) = (self.number, &self.metrics);
        let worker = Worker {
            clock: before.clock,
            identify: Arc::clone(&setup.identify),
            policy: setup.policy.clone(),
            recorder: recorder(setup, number)?,
            recent: recent(setup, number)?,
            observer: observer(setup, before.clock, metrics),
            refuse: Rc::clone(&before.refuse),
            request_ids: Rc::clone(&before.request_ids),
            destinations: {
                let (known, own) = (&before.destinations, (number, before.clock, self.random));
                destinations(setup, known, own, metrics, &self.now)
            },
            flows: Flows::of(&setup.schema),
            no_service: Rc::clone(&before.no_service),
            metrics: Arc::clone(metrics),
            tarpit: Rc::clone(&before.tarpit),
        };
        *self.worker.borrow_mut() = Rc::new(worker);
        self.former.borrow_mut().push(before);
        Ok(())
    }

    /// Hands over what was counted, and closes what is no longer needed.
    fn flush(&self) {
        self.worker().flush();
        self.former.borrow_mut().retain(|worker| {
            worker.flush();
            Rc::strong_count(worker) > 1 || worker.is_busy()
        });
    }

    /// Returns how many requests are in flight.
    fn in_flight(&self) -> u64 {
        self.worker().in_flight()
    }
}

fn recorder(setup: &Setup, number: usize) -> io::Result<Recorder> {
    let recorder = setup.traffic.recorder(number);
    recorder.ok_or_else(|| io::Error::other("a worker has no counters"))
}

fn recent(setup: &Setup, number: usize) -> io::Result<RecentRecorder> {
    let recorder = setup.recent.recorder(number);
    recorder.ok_or_else(|| io::Error::other("a worker has no sample"))
}

fn observer(setup: &Setup, clock: Clock, metrics: &Arc<Metrics>) -> Rc<Observer> {
    let access_log = setup.access_log.worker(metrics);
    let decisions = metrics.decision_seconds.local();
    let schema = Arc::clone(&setup.schema);
    Rc::new(Observer::new(clock, schema, decisions, access_log))
}

/// Returns where requests go under a setup; services and upstreams of `before` that are still the same go
/// on.
fn destinations(
    setup: &Setup,
    before: &[Rc<Destination>],
    (number, clock, random): (usize, Clock, u64),
    metrics: &Metrics,
    now: &Rc<Cell<Instant>>,
) -> Vec<Rc<Destination>> {
    let made = setup.destinations().enumerate().map(|(at, destined)| {
        let Destined {
            service: settings,
            shared,
            upstream: spec,
            endpoints,
        } = destined;
        let mut known = before.iter();
        let known = known.find(|known| Arc::ptr_eq(&known.service.shared, shared));
        let service = match known {
            Some(known) => Rc::clone(&known.service),
            None => Rc::new(Service::new(
                shared,
                &setup.overload,
                clock,
                number,
                metrics,
            )),
        };
        service.priority.set(settings.spec.priority);
        let upstream = match known {
            Some(known) if known.upstream.is_of(&spec, endpoints) => Rc::clone(&known.upstream),
            _ => {
                let common = (&setup.overload, metrics);
                let random = random.wrapping_add(at as u64);
                Upstream::new(spec, endpoints, common, Rc::clone(now), random)
            }
        };
        let bodies = BodyLimits {
            max: settings.bodies.max,
            large: settings.bodies.large,
            queue_timeout: settings.concurrency.queue_timeout,
            idle_timeout: upstream.spec.idle_timeout,
        };
        Rc::new(Destination {
            service,
            upstream,
            bodies,
        })
    });
    made.collect()
}

/// Does something that must not end the worker, whose clients have nothing to do with it. A panic is a
/// bug of ours and counted as one.
fn unharmed(what: &str, act: impl FnOnce()) {
    if std::panic::catch_unwind(std::panic::AssertUnwindSafe(act)).is_err() {
        tracing::error!("a worker failed to {what}; it goes on");
    }
}

/// Does what must be done now and then, until the worker is drained or out of time.
async fn keep_house(
    bench: &Workbench,
    mut setups: watch::Receiver<Arc<Setup>>,
    open: &OpenConnections,
    mut drain: watch::Receiver<bool>,
    drain_timeout: Duration,
) {
    let mut ticks = interval(HOUSEKEEPING_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut deadline: Option<Instant> = None;
    let mut has_news = true;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = drain.wait_for(|begun| *begun), if deadline.is_none() => {
                deadline = Some(Instant::now() + drain_timeout);
            }
            changed = setups.changed(), if has_news => match changed {
                Ok(()) => {
                    let setup = Arc::clone(&setups.borrow_and_update());
                    unharmed("take the new settings over", || {
                        if let Err(error) = bench.change_to(&setup) {
                            tracing::error!(%error, "a worker cannot take the new settings over");
                        }
                    });
                }
                // The control side has ended; what is in force stays.
                Err(_gone) => has_news = false,
            },
        }
        bench.now.set(Instant::now());
        unharmed("tell what it counted", || {
            faults::point(Point::Housekeeping);
            bench.flush();
        });
        let Some(deadline) = deadline else { continue };
        if open.count() == 0 {
            return;
        }
        if Instant::now() >= deadline {
            tracing::warn!(
                connections = open.count(),
                requests = bench.in_flight(),
                "the drain ran out of time"
            );
            return;
        }
    }
}
