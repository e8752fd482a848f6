//! A request's body on its way to the upstream: held to its pace, its length and its lane.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::{BodyError, BodyFault, BodyLimits, BodyProgress, Patience, without_forbidden_trailers};
use crate::outlet::Outlet;
use crate::request::accept::READ_BUFFER_BYTES;
use crate::request::admit::Shed;
use crate::service::{Lane, Waiting};

/// A request's body on its way to the upstream.
#[derive(Debug)]
pub(crate) enum RequestBody {
    /// There is none.
    Empty,
    /// Streamed from the client.
    Streamed(Box<StreamedBody>),
}

/// A body that is streamed from the client.
#[derive(Debug)]
pub(crate) struct StreamedBody {
    incoming: Incoming,
    patience: Patience,
    /// Bytes since the deadline was put off last. Whoever drips puts nothing off.
    fresh_bytes: u64,
    bytes: u64,
    limits: BodyLimits,
    /// For a place among the large bodies, and not for ever.
    waiting: Option<(Waiting, Patience)>,
    progress: Rc<BodyProgress>,
    /// The connection that it leaves by.
    outlet: Option<Rc<Outlet>>,
}

/// The slowest that a body may be over `idle_timeout`, in bytes a second. A 2G modem is ten times as
/// fast.
const BODY_RATE_MIN: f64 = 240.0;

impl StreamedBody {
    /// Takes note of bytes that came.
    fn received(&mut self, bytes: u64) {
        self.progress.read_at.set(Instant::now());
        self.bytes += bytes;
        self.fresh_bytes += bytes;
        let enough = BODY_RATE_MIN * self.patience.limit.as_secs_f64();
        if self.fresh_bytes as f64 >= enough || self.incoming.is_end_stream() {
            self.fresh_bytes = 0;
            self.patience.progress();
        }
    }

    /// Sees to it that a body which turned out large is among the large ones before more of it is read.
    /// An error: it gets no place there.
    fn poll_lane(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Shed>> {
        let mut place = self.progress.place.borrow_mut();
        let Some(place) = place.as_mut().filter(|place| place.lane() == Lane::Normal) else {
            return Poll::Ready(Ok(()));
        };
        if self.bytes <= self.limits.large {
            return Poll::Ready(Ok(()));
        }
        if self.waiting.is_none() {
            if place.move_to_large()? {
                return Poll::Ready(Ok(()));
            }
            let waiting = place.wait_for_large(READ_BUFFER_BYTES as u64);
            let waiting = waiting.ok_or(Shed::Full)?;
            self.waiting = Some((waiting, Patience::new(self.limits.queue_timeout)));
            // While it waits, it is not the client who lets nothing move.
            self.patience.progress();
        }
        let Some((waiting, patience)) = &mut self.waiting else {
            return Poll::Ready(Ok(()));
        };
        let moved = match place.poll_move(waiting, cx) {
            Poll::Ready(true) => Ok(()),
            Poll::Ready(false) => Err(Shed::Full),
            Poll::Pending => {
                ready!(patience.poll_exhausted(cx));
                Err(Shed::Waited)
            }
        };
        self.waiting = None;
        Poll::Ready(moved)
    }
}

impl Drop for StreamedBody {
    fn drop(&mut self) {
        self.progress.is_dropped.set(true);
        self.progress.end();
    }
}

impl RequestBody {
    /// Streams a client's body.
    pub(crate) fn new(incoming: Incoming, limits: BodyLimits, progress: &Rc<BodyProgress>) -> Self {
        if incoming.is_end_stream() {
            return Self::Empty;
        }
        let patience = Patience::new(limits.idle_timeout);
        Self::Streamed(Box::new(StreamedBody {
            incoming,
            patience,
            fresh_bytes: 0,
            bytes: 0,
            limits,
            waiting: None,
            progress: Rc::clone(progress),
            outlet: None,
        }))
    }

    /// Says which connection the body leaves by.
    pub(crate) fn leave_by(&mut self, outlet: &Rc<Outlet>) {
        if let Self::Streamed(body) = self {
            body.outlet = Some(Rc::clone(outlet));
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Self::Streamed(body) = self.get_mut() else {
            return Poll::Ready(None);
        };
        if let Some(outlet) = &body.outlet
            && outlet.poll_open(cx).is_pending()
        {
            // It is not the client who lets nothing move.
            body.patience.progress();
            return Poll::Pending;
        }
        if let Err(why) = ready!(body.poll_lane(cx)) {
            return body.progress.fail(BodyFault::Shed(why), BodyError::Shed);
        }
        match Pin::new(&mut body.incoming).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                body.received(frame.data_ref().map_or(0, Bytes::len) as u64);
                if body.bytes > body.limits.max {
                    let error = BodyError::TooLarge(body.limits.max);
                    return body.progress.fail(BodyFault::TooLarge, error);
                }
                // Nobody asks again after the last byte of an announced length, or after trailers.
                if body.incoming.is_end_stream() || frame.is_trailers() {
                    body.progress.done();
                }
                Poll::Ready(Some(Ok(without_forbidden_trailers(frame))))
            }
            Poll::Ready(Some(Err(error))) => {
                let error = BodyError::Broken(error);
                body.progress.fail(BodyFault::Broken, error)
            }
            Poll::Ready(None) => {
                body.progress.done();
                Poll::Ready(None)
            }
            Poll::Pending => {
                ready!(body.patience.poll_exhausted(cx));
                let error = BodyError::Stalled(body.patience.limit);
                body.progress.fail(BodyFault::Stalled, error)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Streamed(body) => body.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Streamed(body) => body.incoming.size_hint(),
        }
    }
}
