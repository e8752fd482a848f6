//! Bodies on their way through: streamed, never held, ended when they make no progress.

mod upload;

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, sleep};

use super::admit::{Place, Shed};
use super::guard::ConnectionState;
use super::observe::Observation;
use crate::alarm::Alarm;
use crate::metrics::Side;
use crate::upstream::Lease;

pub(crate) use upload::RequestBody;

/// Fields that must not arrive after a body: they decide how a message is framed, routed or
/// believed, and whoever merges trailers into headers would be fooled (RFC 9110, 6.5.1).
const FORBIDDEN_TRAILERS: [&str; 10] = [
    "transfer-encoding",
    "content-length",
    "host",
    "authorization",
    "content-type",
    "content-encoding",
    "trailer",
    "te",
    "cookie",
    "x-forwarded-for",
];

/// How often it is looked whether a body gets on that is sent after its answer.
const UPLOAD_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// What went wrong with a body.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    /// The other side failed or broke off.
    #[error("the body broke off")]
    Broken(#[source] hyper::Error),
    /// Too few bytes came for too long.
    #[error("the body made no progress for {0:?}")]
    Stalled(Duration),
    /// There are more bytes than may be.
    #[error("the body is longer than {0} bytes")]
    TooLarge(u64),
    /// It is large, and there is no place for it.
    #[error("there is no place for another large body")]
    Shed,
}

/// What a request's body may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BodyLimits {
    /// How long it is at most; in bytes.
    pub(crate) max: u64,
    /// From how many bytes on it travels in the lane of large ones.
    pub(crate) large: u64,
    /// How long it may wait for a place there.
    pub(crate) queue_timeout: Duration,
    /// How long it may make no progress.
    pub(crate) idle_timeout: Duration,
}

/// Why a request's body did not come to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BodyFault {
    /// The client broke off.
    Broken,
    /// The client stalled.
    Stalled,
    /// The client sent more than may be.
    TooLarge,
    /// It turned out large, and got no place among the large ones.
    Shed(Shed),
}

impl BodyFault {
    /// Returns the status that says so.
    pub(crate) fn status(self) -> u16 {
        match self {
            Self::Broken => 400,
            Self::Stalled => 408,
            Self::TooLarge => 413,
            Self::Shed(_) => 503,
        }
    }

    /// Returns whether the client let nothing move.
    pub(crate) fn is_stall(self) -> bool {
        self == Self::Stalled
    }
}

/// What is known of a request's body while the upstream reads it.
#[derive(Debug)]
pub(crate) struct BodyProgress {
    /// Why it will not come to its end.
    pub(crate) fault: Cell<Option<BodyFault>>,
    began: Instant,
    /// How long it took to its last byte, once that was read.
    took: Cell<Option<Duration>>,
    /// When the last of it was read.
    read_at: Cell<Instant>,
    /// Whether nobody reads it any more.
    is_dropped: Cell<bool>,
    /// The client's connection, where the answer was complete before the body.
    answered: RefCell<Option<Rc<ConnectionState>>>,
    /// The request's place, which changes where the body turns out large.
    place: RefCell<Option<Place>>,
}

thread_local! {
    /// The progress of all requests without a body: there is nothing to tell one from another.
    static NO_BODY: Rc<BodyProgress> = {
        let nothing = BodyProgress::begin(None);
        nothing.took.set(Some(Duration::ZERO));
        Rc::new(nothing)
    };
}

impl BodyProgress {
    /// Begins to follow a request's body, whose place it takes over if there is one.
    pub(crate) fn of(body: &Incoming, place: &mut Option<Place>) -> Rc<Self> {
        if body.is_end_stream() {
            NO_BODY.with(Rc::clone)
        } else {
            Rc::new(Self::begin(place.take()))
        }
    }

    fn begin(place: Option<Place>) -> Self {
        let began = Instant::now();
        Self {
            fault: Cell::new(None),
            began,
            took: Cell::new(None),
            read_at: Cell::new(began),
            is_dropped: Cell::new(false),
            answered: RefCell::new(None),
            place: RefCell::new(place),
        }
    }

    /// Returns whether the last byte was read.
    pub(crate) fn is_done(&self) -> bool {
        self.took.get().is_some()
    }

    /// Returns whether more of it is to come, for which somebody waits.
    pub(crate) fn is_awaited(&self) -> bool {
        !self.is_done() && !self.is_dropped.get()
    }

    /// Returns when the last of it was read.
    pub(crate) fn read_at(&self) -> Instant {
        self.read_at.get()
    }

    /// Returns how long it took to the last byte, once that was read.
    pub(crate) fn took(&self) -> Option<Duration> {
        self.took.get()
    }

    /// Notes that the last byte was read.
    fn done(&self) {
        if !self.is_done() {
            self.took.set(Some(self.began.elapsed()));
        }
        self.end();
    }

    /// Notes why the body ends here, and returns the error for the upstream's side.
    fn fail(
        &self,
        fault: BodyFault,
        error: BodyError,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.fault.set(Some(fault));
        Poll::Ready(Some(Err(error)))
    }

    /// Notes that the body is over: its last byte was read, or nobody reads it any more.
    fn end(&self) {
        if let Some(connection) = self.answered.take() {
            connection.idle();
        }
    }
}

/// How long nothing may come.
#[derive(Debug)]
struct Patience {
    limit: Duration,
    /// Until when; `None` since the last progress.
    until: Option<Instant>,
    alarm: Alarm,
}

impl Patience {
    fn new(limit: Duration) -> Self {
        Self {
            limit,
            until: None,
            alarm: Alarm::default(),
        }
    }

    /// Notes progress.
    fn progress(&mut self) {
        self.until = None;
    }

    /// Ready when there was no progress for the limit.
    fn poll_exhausted(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let until = *self
            .until
            .get_or_insert_with(|| Instant::now() + self.limit);
        self.alarm.poll_until(until, cx)
    }
}

/// An answer's body on its way to the client. Records the request when it is dropped.
#[derive(Debug)]
pub(crate) struct ReplyBody {
    source: ReplySource,
    observation: Box<Observation>,
}

#[derive(Debug)]
enum ReplySource {
    /// Our own text, sent in one piece.
    Own(Option<Bytes>),
    /// Streamed from the upstream.
    Upstream(Box<UpstreamReply>),
}

#[derive(Debug)]
struct UpstreamReply {
    incoming: Incoming,
    /// Given back when the last byte was read; dropped, and the connection closed, otherwise.
    lease: Option<Lease>,
    request: Rc<BodyProgress>,
    patience: Patience,
    /// How it failed, to be told in the next turn.
    failed: Option<BodyError>,
}

impl ReplyBody {
    /// Answers with our own text.
    pub(crate) fn own(text: Bytes, observation: Box<Observation>) -> Self {
        let body = Self {
            source: ReplySource::Own(Some(text)),
            observation,
        };
        if body.is_end_stream() {
            body.observation.complete();
        }
        body
    }

    /// Streams an upstream's answer.
    pub(crate) fn upstream(
        incoming: Incoming,
        mut lease: Lease,
        request: Rc<BodyProgress>,
        idle_timeout: Duration,
        observation: Box<Observation>,
    ) -> Self {
        if !request.is_done() {
            // The client may read the answer only after it has sent everything.
            lease.detach();
        }
        let mut reply = UpstreamReply {
            incoming,
            lease: Some(lease),
            request,
            patience: Patience::new(idle_timeout),
            failed: None,
        };
        if reply.incoming.is_end_stream() {
            reply.end(&observation);
        }
        Self {
            source: ReplySource::Upstream(Box::new(reply)),
            observation,
        }
    }
}

impl UpstreamReply {
    /// Takes what has arrived; drives the connection where nothing has.
    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let arrived = Pin::new(&mut self.incoming).poll_frame(cx);
        match &mut self.lease {
            Some(lease) if arrived.is_pending() => {
                lease.drive(cx);
                Pin::new(&mut self.incoming).poll_frame(cx)
            }
            _ => arrived,
        }
    }

    /// Ends the exchange: gives the connection back, or lets the rest of the request's body through
    /// first, where the upstream answered before it had read all of it.
    fn end(&mut self, observation: &Observation) {
        let Some(lease) = self.lease.take() else {
            return;
        };
        if self.request.is_done() {
            lease.give_back();
            observation.complete();
        } else {
            *self.request.answered.borrow_mut() = Some(observation.complete_early());
            let request = Rc::clone(&self.request);
            tokio::task::spawn_local(finish_upload(lease, request, self.patience.limit));
        }
    }

    /// Notes that the upstream broke off or stalled, and closes its connection.
    fn fail(&mut self, error: BodyError, observation: &mut Observation) {
        if matches!(error, BodyError::Stalled(_)) {
            observation.stalled(Side::Upstream);
        }
        self.failed = Some(error);
        if let Some(lease) = self.lease.take() {
            lease.broke_off();
            observation.upstream_broke_off(lease.upstream());
        }
    }
}

/// Holds a connection on which a body is still being sent after its answer, as long as it gets on.
async fn finish_upload(lease: Lease, request: Rc<BodyProgress>, limit: Duration) {
    let began = Instant::now();
    while request.is_awaited() && !lease.is_closed() {
        sleep(limit.min(UPLOAD_CHECK_INTERVAL)).await;
        if began.max(request.read_at()).elapsed() >= limit {
            return;
        }
    }
    if request.is_done() {
        lease.give_back();
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Self {
            source,
            observation,
        } = self.get_mut();
        let reply = match source {
            ReplySource::Own(text) => {
                let frame = text.take().filter(|text| !text.is_empty());
                observation.bytes_sent += frame.as_ref().map_or(0, |text| text.len() as u64);
                observation.complete();
                return Poll::Ready(frame.map(|text| Ok(Frame::data(text))));
            }
            ReplySource::Upstream(reply) => reply,
        };
        if let Some(error) = reply.failed.take() {
            return Poll::Ready(Some(Err(error)));
        }
        if observation.poll_client(cx).is_pending() {
            // It is not the upstream who lets nothing move.
            reply.patience.progress();
            return Poll::Pending;
        }
        match reply.poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                reply.patience.progress();
                observation.bytes_sent += frame.data_ref().map_or(0, |data| data.len() as u64);
                if reply.incoming.is_end_stream() {
                    reply.end(observation);
                }
                Poll::Ready(Some(Ok(without_forbidden_trailers(frame))))
            }
            Poll::Ready(Some(Err(error))) => {
                reply.fail(BodyError::Broken(error), observation);
                // First what did arrive is written, head included; an error ends everything.
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Poll::Ready(None) => {
                reply.end(observation);
                Poll::Ready(None)
            }
            Poll::Pending => match reply.patience.poll_exhausted(cx) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(()) => {
                    reply.fail(BodyError::Stalled(reply.patience.limit), observation);
                    Poll::Ready(reply.failed.take().map(Err))
                }
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            ReplySource::Own(text) => text.as_ref().is_none_or(Bytes::is_empty),
            ReplySource::Upstream(reply) => reply.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            ReplySource::Own(text) => {
                SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64))
            }
            ReplySource::Upstream(reply) => reply.incoming.size_hint(),
        }
    }
}

/// Passes trailers on without those that could be taken for headers of consequence.
fn without_forbidden_trailers(frame: Frame<Bytes>) -> Frame<Bytes> {
    match frame.into_trailers() {
        Ok(mut trailers) => {
            remove_forbidden(&mut trailers);
            Frame::trailers(trailers)
        }
        Err(frame) => frame,
    }
}

fn remove_forbidden(trailers: &mut HeaderMap) {
    for name in FORBIDDEN_TRAILERS {
        trailers.remove(name);
    }
}
