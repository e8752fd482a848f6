//! One worker's connections to the upstream of one service: which endpoint a request goes to, and over
//! which connection.
//!
//! How many are in use at once is not bounded here: each is used by a request that has a place in its
//! service. How many may be open, [`Overload`] says.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use prometheus::IntGauge;
use tokio::time::{Instant, timeout_at};

use super::breaker::Permit;
use super::connect::connect;
use super::endpoint::Endpoint;
use super::lease::Lease;
use super::link::{Link, Open};
use super::seat::Stay;
use super::seats::Seats;
use super::{Endpoints, UpstreamError, chain};
use crate::metrics::{Metrics, UpstreamFailures};
use crate::overload::Overload;
use crate::settings::Upstream as UpstreamSpec;

/// The most endpoints that one request tries to connect to.
const CONNECT_TRIES_MAX: usize = 5;
/// How long it is not said again that connections cannot be made from here.
const TOLD_AGAIN_AFTER: Duration = Duration::from_mins(1);
/// How much longer or shorter than the age limit a connection may live, so that those that were made
/// together do not end together.
const AGE_JITTER: f64 = 0.1;

/// One worker's side of the upstream of one service.
#[derive(Debug)]
pub(crate) struct Upstream {
    /// What the operator wants of it for the service whose it is.
    pub(crate) spec: UpstreamSpec,
    /// What it failed to answer.
    pub(crate) failures: UpstreamFailures,
    overload: Arc<Overload>,
    pub(super) endpoints: Arc<Endpoints>,
    now: Rc<Cell<Instant>>,
    seats: RefCell<Seats>,
    /// Requests since everybody was told.
    sent: Cell<u64>,
    /// When it was said last that connections cannot be made from here.
    told_at: Cell<Option<Instant>>,
    random: RefCell<fastrand::Rng>,
    open: IntGauge,
}

/// An attempt to find out whether an unreachable upstream can be reached; given back where it ends
/// without an outcome.
struct Attempt<'a> {
    endpoints: &'a Endpoints,
    is_open: bool,
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if self.is_open {
            self.endpoints.give_permit_back();
        }
    }
}

impl Upstream {
    /// Begins without connections.
    ///
    /// `now` is the time, a tenth of a second late at most, kept up to date by the worker; `random` is
    /// different for each worker.
    pub(crate) fn new(
        spec: UpstreamSpec,
        endpoints: &Arc<Endpoints>,
        (overload, metrics): (&Arc<Overload>, &Metrics),
        now: Rc<Cell<Instant>>,
        random: u64,
    ) -> Rc<Self> {
        let open = &metrics.upstream_connections;
        let open = open.with_label_values(&[&*spec.name]);
        Rc::new(Self {
            failures: UpstreamFailures::new(metrics, &spec.name),
            spec,
            overload: Arc::clone(overload),
            endpoints: Arc::clone(endpoints),
            now,
            seats: RefCell::default(),
            sent: Cell::new(0),
            told_at: Cell::new(None),
            random: RefCell::new(fastrand::Rng::with_seed(random)),
            open,
        })
    }

    /// Returns whether this is the upstream of these settings, with these endpoints.
    pub(crate) fn is_of(&self, spec: &UpstreamSpec, endpoints: &Arc<Endpoints>) -> bool {
        self.spec == *spec && Arc::ptr_eq(&self.endpoints, endpoints)
    }

    pub(super) fn now(&self) -> Instant {
        self.now.get()
    }

    /// Chooses an endpoint and returns the connection to it that was used last, where one is free;
    /// otherwise what was chosen.
    pub(crate) fn idle_connection(self: &Rc<Self>) -> Result<Lease, Option<Stay>> {
        self.sent.set(self.sent.get() + 1);
        let stay = self.choose(&[]).ok_or(None)?;
        match stay.seat.take_idle() {
            Some(link) => Ok(Lease::new(link, true, stay, self)),
            None => Err(Some(stay)),
        }
    }

    /// Makes a connection to the endpoint that was chosen, or to another one.
    pub(crate) async fn connection(
        self: &Rc<Self>,
        chosen: Option<Stay>,
    ) -> Result<Lease, UpstreamError> {
        let deadline = Instant::now() + self.spec.connect_timeout;
        let stay = if let Some(stay) = chosen {
            stay
        } else {
            let found = timeout_at(deadline, self.endpoints.wait_for_any()).await;
            found.map_err(|_elapsed| UpstreamError::Unresolved)?;
            self.choose(&[]).ok_or(UpstreamError::Unavailable)?
        };
        let (link, stay) = self.connect_any(stay, deadline).await?;
        Ok(Lease::new(link, false, stay, self))
    }

    /// Connects to the endpoint that was chosen or, where that fails, to others; each gets its share
    /// of the time.
    async fn connect_any(
        &self,
        first: Stay,
        deadline: Instant,
    ) -> Result<(Box<Link>, Stay), UpstreamError> {
        let mut attempt = match self.endpoints.permit() {
            Permit::Refused => return Err(UpstreamError::Unavailable),
            permit => Attempt {
                endpoints: &self.endpoints,
                is_open: permit == Permit::Probe,
            },
        };
        let tries = self.seats.borrow().len().clamp(1, CONNECT_TRIES_MAX);
        let share = self.spec.connect_timeout / tries as u32;
        let mut stay = first;
        let mut failed: Vec<Arc<Endpoint>> = Vec::new();
        loop {
            let until = deadline.min(Instant::now() + share);
            let error = match timeout_at(until, self.connect(&stay.seat.endpoint)).await {
                Ok(Ok(link)) => {
                    attempt.is_open = false;
                    self.endpoints.connected(&stay.seat.endpoint);
                    return Ok((link, stay));
                }
                Ok(Err(error)) => error,
                Err(_elapsed) => UpstreamError::ConnectTimeout(share),
            };
            self.connect_failed(&stay, &error);
            failed.push(Arc::clone(&stay.seat.endpoint));
            // It ends before the next begins: who has failed has nothing under way.
            drop(stay);
            let next = (failed.len() < tries)
                .then(|| self.choose(&failed))
                .flatten();
            let Some(next) = next else {
                if std::mem::take(&mut attempt.is_open) {
                    self.endpoints.still_unreachable(self.unit());
                }
                return Err(error);
            };
            stay = next;
        }
    }

    /// Notes why a connection could not be made.
    fn connect_failed(&self, stay: &Stay, error: &UpstreamError) {
        if error.is_our_own_fault() {
            // Towards another endpoint there may be a port.
            let now = self.now();
            if self
                .told_at
                .get()
                .is_none_or(|at| now - at >= TOLD_AGAIN_AFTER)
            {
                self.told_at.set(Some(now));
                tracing::warn!(error = %chain(error), upstream = %self.spec.name, "no connection can be made from here");
            }
            return;
        }
        let is_certain = !matches!(error, UpstreamError::ConnectTimeout(_));
        stay.has_told();
        self.endpoints
            .connect_failed(&stay.seat.endpoint, is_certain, self.unit());
    }

    async fn connect(&self, endpoint: &Endpoint) -> Result<Box<Link>, UpstreamError> {
        let own = || usize::try_from(self.open.get()).unwrap_or(0);
        let descriptor = self.overload.open_upstream(own);
        let descriptor = descriptor.ok_or(UpstreamError::NoDescriptor)?;
        // From here on: one that does not come about holds its descriptor just as long as it tries.
        let open = Open::begin(&self.open, descriptor);
        let stream = connect(&self.endpoints, endpoint).await?;
        let retires = Instant::now() + self.age_limit();
        Link::begin(stream, open, retires).await
    }

    /// Returns how long the next connection may live.
    fn age_limit(&self) -> Duration {
        let factor = 1.0 - AGE_JITTER + 2.0 * AGE_JITTER * self.unit();
        self.spec.max_age.mul_f64(factor)
    }

    /// Chooses an endpoint that was not tried.
    fn choose(&self, tried: &[Arc<Endpoint>]) -> Option<Stay> {
        let random = || self.random.borrow_mut().u64(..);
        let mut seats = self.seats.borrow_mut();
        seats.choose(&self.endpoints, tried, random)
    }

    /// Returns a random number from 0 to 1.
    fn unit(&self) -> f64 {
        self.random.borrow_mut().f64()
    }

    /// Asks whether a request may be sent again that may have been worked on.
    pub(crate) fn may_repeat(&self) -> bool {
        self.endpoints.spend_retry()
    }

    /// Closes connections that were not used for a while, and tells everybody what was counted. Called
    /// ten times a second.
    pub(crate) fn sweep(&self) {
        self.failures.flush();
        let now = Instant::now();
        let answers = self.seats.borrow_mut().sweep(&self.endpoints, now);
        let sent = self.sent.take();
        if sent > 0 || answers {
            self.endpoints.count(sent, answers);
        }
    }
}
