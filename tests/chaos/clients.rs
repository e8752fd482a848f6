//! Clients as an open loop: requests are due on a fixed schedule, whatever became of those before,
//! and latency counts from when a request was due. So no stall hides behind clients that wait for it.
//!
//! Times have a floor: the runtime's timers go in milliseconds, so a request goes out up to one late.

use std::cell::RefCell;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::background;
use crate::outcomes::{End, Outcome, Outcomes};
use crate::wire::Connection;

/// Writes the n-th request.
pub(crate) type Request = dyn Fn(u64) -> Vec<u8> + Send + Sync;

/// What clients send.
#[derive(Clone)]
pub(crate) struct Load {
    /// To whom.
    pub(crate) to: SocketAddr,
    /// From which addresses, in turn.
    pub(crate) from: Vec<Ipv4Addr>,
    /// Requests per second.
    pub(crate) per_second: f64,
    /// When the first one is due, and how long they come.
    pub(crate) begins: Duration,
    pub(crate) lasts: Duration,
    /// The most connections; a request that finds none free waits, and its latency tells.
    pub(crate) connections_max: usize,
    /// After how long an attempt is given up and its connection closed.
    pub(crate) patience: Duration,
    /// How often a request that failed is sent again, at once.
    pub(crate) retries: u8,
    /// Writes the requests.
    pub(crate) request: Arc<Request>,
    /// How far these clients stand back for others when the processors are busy.
    pub(crate) niceness: i32,
}

impl Load {
    /// Asks for one target, so many times a second, as one honest client would.
    pub(crate) fn get(to: SocketAddr, target: &str, per_second: f64) -> Self {
        let target = target.to_owned();
        let request = move |number| {
            format!("GET {target}?n={number} HTTP/1.1\r\nhost: chaos.test\r\n\r\n").into_bytes()
        };
        Self {
            to,
            from: vec![Ipv4Addr::LOCALHOST],
            per_second,
            begins: Duration::ZERO,
            lasts: Duration::ZERO,
            connections_max: 512,
            patience: Duration::from_secs(5),
            retries: 0,
            request: Arc::new(request),
            niceness: 0,
        }
    }

    /// Sends something else.
    pub(crate) fn sending(
        mut self,
        request: impl Fn(u64) -> Vec<u8> + Send + Sync + 'static,
    ) -> Self {
        self.request = Arc::new(request);
        self
    }

    /// Lasts so long from the beginning of the stage.
    pub(crate) fn lasting(mut self, lasts: Duration) -> Self {
        self.lasts = lasts;
        self
    }

    /// Lasts from here to there on the stage.
    pub(crate) fn during(mut self, begins: Duration, ends: Duration) -> Self {
        self.begins = begins;
        self.lasts = ends.saturating_sub(begins);
        self
    }

    /// Begins on a thread of its own; times count from `stage`.
    pub(crate) fn start(self, stage: std::time::Instant) -> Clients {
        Clients(background::run("clients", move || {
            drive(self, stage.into())
        }))
    }
}

/// Clients at work.
#[derive(Debug)]
pub(crate) struct Clients(JoinHandle<Outcomes>);

impl Clients {
    /// Waits until all requests have ended.
    #[track_caller]
    pub(crate) fn outcomes(self) -> Outcomes {
        self.0.join().expect("clients do not panic")
    }
}

/// What the requests of one load share.
struct Desk {
    load: Load,
    stage: Instant,
    places: Semaphore,
    /// Open and unused, by address.
    idle: Vec<RefCell<Vec<Connection>>>,
    outcomes: RefCell<Vec<Outcome>>,
}

async fn drive(load: Load, stage: Instant) -> Outcomes {
    if load.niceness > 0 {
        // Of this thread alone, on Linux. Without it the figures are noisier.
        rustix::process::setpriority_process(None, load.niceness).unwrap_or(());
    }
    let count = (load.per_second * load.lasts.as_secs_f64()).round() as u64;
    let period = 1.0 / load.per_second;
    let begins = stage + load.begins;
    let desk = Rc::new(Desk {
        stage,
        places: Semaphore::new(load.connections_max),
        idle: load.from.iter().map(|_| RefCell::default()).collect(),
        outcomes: RefCell::new(Vec::with_capacity(count as usize)),
        load,
    });
    let mut requests = JoinSet::new();
    for number in 0..count {
        let due = begins + Duration::from_secs_f64(period * number as f64);
        if due > Instant::now() {
            sleep_until(due).await;
        }
        let desk = Rc::clone(&desk);
        requests.spawn_local(async move { desk.one(number, due).await });
        while requests.try_join_next().is_some() {}
    }
    while requests.join_next().await.is_some() {}
    Outcomes::new(desk.outcomes.take())
}

impl Desk {
    /// Sends one request until it is answered well or the attempts are over.
    async fn one(&self, number: u64, due: Instant) {
        let request = (self.load.request)(number);
        let mut attempts = 0;
        let mut from = due;
        let end = loop {
            attempts += 1;
            let place = self.places.acquire().await;
            // What waits for a connection is not late by the proxy's doing, but it is late.
            let end = match timeout_at(from + self.load.patience, self.ask(number, &request)).await
            {
                Ok(end) => end,
                Err(_elapsed) => End::Silence,
            };
            drop(place);
            if end.is_good() || attempts > self.load.retries {
                break end;
            }
            from = Instant::now();
        };
        self.outcomes.borrow_mut().push(Outcome {
            due: due - self.stage,
            took: due.elapsed(),
            end,
            attempts,
        });
    }

    /// Asks; once more where the connection was kept and has been closed meanwhile, as all clients
    /// do.
    async fn ask(&self, number: u64, request: &[u8]) -> End {
        let source = number as usize % self.load.from.len().max(1);
        let (Some(address), Some(idle)) = (self.load.from.get(source), self.idle.get(source))
        else {
            return End::Broken;
        };
        let kept = idle.borrow_mut().pop();
        let was_kept = kept.is_some();
        let mut connection = match kept {
            Some(kept) => kept,
            None => match Connection::open(*address, self.load.to).await {
                Ok(open) => open,
                Err(_refused) => return End::Broken,
            },
        };
        let mut end = connection.ask(request).await;
        if end == End::Broken && was_kept && !connection.has_read() {
            connection = match Connection::open(*address, self.load.to).await {
                Ok(open) => open,
                Err(_refused) => return End::Broken,
            };
            end = connection.ask(request).await;
        }
        if connection.may_be_kept() {
            idle.borrow_mut().push(connection);
        }
        end
    }
}
