//! One worker's connections to the upstream of one service.
//!
//! A connection is driven by whoever uses it, in the task of the client's connection: a request that
//! wakes one task and not two costs less. Only while a request's body is still on its way when the
//! answer begins, the connection gets a task of its own, because then both directions must go on by
//! themselves.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use prometheus::IntGauge;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout, timeout_at};

use super::UpstreamError;
use crate::alarm::Alarm;
use crate::metrics::{Metrics, UpstreamFailures};
use crate::request::{HeadCopy, RequestBody};
use crate::settings::Upstream as UpstreamSpec;

/// The most connections of one worker to one upstream in use at once.
///
/// 512 × about 20 KiB of buffers = 10 MiB at worst.
const CONNECTIONS_MAX: usize = 512;
/// The most requests that wait for one of them.
const WAITERS_MAX: usize = 1024;
/// How long an unused connection is kept. Below the 5 s after which common servers close theirs, so
/// that a request seldom meets a connection that is being closed.
const IDLE_MAX: Duration = Duration::from_secs(4);
/// The largest response head, in bytes.
const RESPONSE_HEAD_BYTES_MAX: usize = 64 * 1024;

/// One worker's side of the upstream of one service.
#[derive(Debug)]
pub(crate) struct Upstream {
    /// What the operator wants.
    pub(crate) spec: UpstreamSpec,
    /// What it failed to answer.
    pub(crate) failures: UpstreamFailures,
    now: Rc<Cell<Instant>>,
    idle: RefCell<VecDeque<Idle>>,
    in_use: Cell<usize>,
    waiting: Cell<usize>,
    /// Wakes the one that has waited longest when a place becomes free.
    freed: Notify,
    next_endpoint: Cell<usize>,
    open: IntGauge,
}

#[derive(Debug)]
struct Idle {
    link: Box<Link>,
    /// A tenth of a second early at most.
    since: Instant,
}

/// An open connection, with what stays with it from one request to the next.
#[derive(Debug)]
struct Link {
    sender: SendRequest<RequestBody>,
    drive: Drive,
    alarm: Alarm,
    head_copy: HeadCopy,
}

/// A connection that is driven by its user.
struct Driven {
    connection: Box<http1::Connection<TokioIo<TcpStream>, RequestBody>>,
    _open: Open,
}

impl std::fmt::Debug for Driven {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Driven")
    }
}

impl Driven {
    /// Does what can be done on the connection. Ready when it has ended.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let ended = ready!(Pin::new(&mut *self.connection).poll(cx));
        if let Err(error) = ended {
            tracing::debug!(%error, "an upstream connection ended");
        }
        Poll::Ready(())
    }
}

/// Who drives a connection.
#[derive(Debug)]
enum Drive {
    /// Its user.
    InPlace(Driven),
    /// A task of its own.
    ByItself(#[expect(dead_code, reason = "ends the task when it is dropped")] Task),
    /// Nobody any more.
    Ended,
}

/// The task that drives a connection; ended with the last that could use the connection. Left to
/// itself it would wait for ever for an upstream that answered and does not read the rest of a body.
#[derive(Debug)]
struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Drive {
    /// Does what can be done on the connection.
    fn poll(&mut self, cx: &mut Context<'_>) {
        if let Self::InPlace(driven) = self
            && driven.poll(cx).is_ready()
        {
            *self = Self::Ended;
        }
    }
}

impl Link {
    /// Looks whether the connection was closed meanwhile.
    fn has_ended(&mut self) -> bool {
        self.drive.poll(&mut Context::from_waker(Waker::noop()));
        matches!(self.drive, Drive::Ended) || self.sender.is_closed()
    }
}

/// A connection, for one request. Dropped without being given back, it is closed.
#[derive(Debug)]
pub(crate) struct Lease {
    link: Box<Link>,
    /// Whether the connection carried requests before, and so may turn out closed.
    pub(crate) is_reused: bool,
    place: Place,
}

/// The right to use one connection, as long as it lives.
#[derive(Debug)]
struct Place(Rc<Upstream>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.in_use.set(self.0.in_use.get() - 1);
        if self.0.waiting.get() > 0 {
            self.0.freed.notify_one();
        }
    }
}

impl Lease {
    fn new(link: Box<Link>, is_reused: bool, place: Place) -> Self {
        Self {
            link,
            is_reused,
            place,
        }
    }

    /// Sends a request; [`Self::drive`] gets it and its answer through.
    pub(crate) fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> impl Future<Output = Result<Response<Incoming>, TrySendError<Request<RequestBody>>>> + use<>
    {
        self.link.sender.try_send_request(request)
    }

    /// Does what can be done on the connection; to be called whenever its user is polled.
    pub(crate) fn drive(&mut self, cx: &mut Context<'_>) {
        self.link.drive.poll(cx);
    }

    /// Ready when `deadline` has passed.
    pub(crate) fn poll_until(&mut self, deadline: Instant, cx: &mut Context<'_>) -> Poll<()> {
        self.link.alarm.poll_until(deadline, cx)
    }

    /// The place for the copy of the head of the request that is being sent.
    pub(crate) fn head_copy(&mut self) -> &mut HeadCopy {
        &mut self.link.head_copy
    }

    /// Returns whether the connection cannot be used again.
    pub(crate) fn is_closed(&self) -> bool {
        self.link.sender.is_closed()
    }

    /// Lets the connection go on by itself: it must not depend on how fast its user is.
    pub(crate) fn detach(&mut self) {
        let drive = &mut self.link.drive;
        *drive = match std::mem::replace(drive, Drive::Ended) {
            Drive::InPlace(mut driven) => {
                let task =
                    tokio::task::spawn_local(async move { poll_fn(|cx| driven.poll(cx)).await });
                Drive::ByItself(Task(task.abort_handle()))
            }
            other => other,
        };
    }

    /// Returns the upstream of the connection.
    pub(crate) fn upstream(&self) -> &Upstream {
        &self.place.0
    }

    /// Gives the connection back after the answer's last byte was read.
    pub(crate) fn give_back(self) {
        let Self { link, place, .. } = self;
        if !link.sender.is_closed() {
            let since = place.0.now.get();
            place.0.idle.borrow_mut().push_back(Idle { link, since });
        }
    }
}

/// Counts one waiter as long as it lives, however its future ends.
struct Waiter<'a>(&'a Cell<usize>);

impl<'a> Waiter<'a> {
    fn join(waiting: &'a Cell<usize>) -> Option<Self> {
        if waiting.get() >= WAITERS_MAX {
            return None;
        }
        waiting.set(waiting.get() + 1);
        Some(Self(waiting))
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Counts one open connection as long as it lives.
#[derive(Debug)]
struct Open(IntGauge);

impl Open {
    fn begin(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Upstream {
    /// Begins without connections.
    ///
    /// `now` is the time, a tenth of a second late at most, kept up to date by the worker.
    pub(crate) fn new(spec: UpstreamSpec, metrics: &Metrics, now: Rc<Cell<Instant>>) -> Rc<Self> {
        let open = metrics
            .upstream_connections
            .with_label_values(&[&*spec.name]);
        Rc::new(Self {
            failures: UpstreamFailures::new(metrics, &spec.name),
            spec,
            now,
            idle: RefCell::default(),
            in_use: Cell::new(0),
            waiting: Cell::new(0),
            freed: Notify::new(),
            next_endpoint: Cell::new(0),
            open,
        })
    }

    /// Returns the connection that was used last, where one is free at once. It is the least likely to
    /// have been closed meanwhile.
    pub(crate) fn idle_connection(self: &Rc<Self>) -> Option<Lease> {
        if self.waiting.get() > 0 {
            return None;
        }
        let place = self.take_place()?;
        self.take_idle().map(|link| Lease::new(link, true, place))
    }

    /// Returns a connection: an idle one that became free while waiting for a place, or a new one;
    /// always a new one where `fresh` is asked for.
    pub(crate) async fn connection(self: &Rc<Self>, fresh: bool) -> Result<Lease, UpstreamError> {
        let deadline = Instant::now() + self.spec.connect_timeout;
        let place = self.place(deadline).await?;
        if !fresh && let Some(link) = self.take_idle() {
            return Ok(Lease::new(link, true, place));
        }
        let link = match timeout_at(deadline, self.connect()).await {
            Ok(connected) => connected?,
            Err(_elapsed) => return Err(UpstreamError::ConnectTimeout(self.spec.connect_timeout)),
        };
        Ok(Lease::new(link, false, place))
    }

    fn take_idle(&self) -> Option<Box<Link>> {
        let mut busy = Vec::new();
        let found = loop {
            let Some(mut idle) = self.pop_idle() else {
                break None;
            };
            // A ready connection is looked at when it is used: it is read from before the request is
            // written, and a request that was not written goes to another connection.
            if idle.link.sender.is_ready() {
                break Some(idle.link);
            }
            if idle.link.has_ended() {
                continue;
            }
            if idle.link.sender.is_ready() {
                break Some(idle.link);
            }
            // Driven by a task that has not come round to it yet.
            busy.push(idle);
        };
        self.idle.borrow_mut().extend(busy);
        found
    }

    /// Closes connections that were not used for a while, and hands over what was counted. Called ten
    /// times a second.
    pub(crate) fn sweep(&self) {
        self.failures.flush();
        let now = Instant::now();
        self.idle
            .borrow_mut()
            .retain_mut(|idle| now - idle.since <= IDLE_MAX && !idle.link.has_ended());
    }

    fn pop_idle(&self) -> Option<Idle> {
        self.idle.borrow_mut().pop_back()
    }

    fn take_place(self: &Rc<Self>) -> Option<Place> {
        let in_use = self.in_use.get();
        (in_use < CONNECTIONS_MAX).then(|| {
            self.in_use.set(in_use + 1);
            Place(Rc::clone(self))
        })
    }

    /// Waits for the right to use a connection, behind those who wait already.
    async fn place(self: &Rc<Self>, deadline: Instant) -> Result<Place, UpstreamError> {
        if self.waiting.get() == 0
            && let Some(place) = self.take_place()
        {
            return Ok(place);
        }
        let _waiter = Waiter::join(&self.waiting).ok_or(UpstreamError::ConnectionLimit)?;
        loop {
            if timeout_at(deadline, self.freed.notified()).await.is_err() {
                return Err(UpstreamError::ConnectionLimit);
            }
            if let Some(place) = self.take_place() {
                return Ok(place);
            }
        }
    }

    async fn connect(&self) -> Result<Box<Link>, UpstreamError> {
        let stream = self.connect_any().await?;
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY could not be set");
        }
        let (sender, connection) = http1::Builder::new()
            .max_header_size(RESPONSE_HEAD_BYTES_MAX)
            // Most requests are one small piece, for which a plain write costs less.
            .writev(false)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(UpstreamError::Protocol)?;
        let driven = Driven {
            connection: Box::new(connection),
            _open: Open::begin(&self.open),
        };
        Ok(Box::new(Link {
            sender,
            drive: Drive::InPlace(driven),
            alarm: Alarm::default(),
            head_copy: HeadCopy::default(),
        }))
    }

    /// Connects to the endpoints in turn; each is tried once, the first with the others' share of
    /// the time left to them.
    async fn connect_any(&self) -> Result<TcpStream, UpstreamError> {
        let count = self.spec.endpoints.len();
        let first = self.next_endpoint.get();
        self.next_endpoint.set(first.wrapping_add(1));
        let share = self.spec.connect_timeout / count.max(1) as u32;
        let mut last = UpstreamError::ConnectTimeout(self.spec.connect_timeout);
        for turn in 0..count {
            let Some(endpoint) = self.spec.endpoints.get(first.wrapping_add(turn) % count) else {
                break;
            };
            match timeout(share, TcpStream::connect(&**endpoint)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => last = UpstreamError::Connect(error),
                Err(_elapsed) => last = UpstreamError::ConnectTimeout(share),
            }
        }
        Err(last)
    }
}
