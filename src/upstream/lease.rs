//! The use of a connection for one request.

use std::rc::Rc;
use std::task::{Context, Poll};

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use tokio::time::Instant;

use super::link::Link;
use super::pool::Upstream;
use super::seat::Stay;
use crate::request::{HeadCopy, RequestBody};

/// A connection, for one request. Dropped without being given back, it is closed.
#[derive(Debug)]
pub(crate) struct Lease {
    link: Box<Link>,
    /// Whether the connection carried requests before, and so may turn out closed.
    pub(crate) is_reused: bool,
    stay: Stay,
    upstream: Rc<Upstream>,
}

impl Lease {
    pub(super) fn new(
        link: Box<Link>,
        is_reused: bool,
        stay: Stay,
        upstream: &Rc<Upstream>,
    ) -> Self {
        Self {
            link,
            is_reused,
            stay,
            upstream: Rc::clone(upstream),
        }
    }

    /// Sends a request; [`Self::drive`] gets it and its answer through.
    pub(crate) fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> impl Future<Output = Result<Response<Incoming>, TrySendError<Request<RequestBody>>>> + use<>
    {
        self.link.send(request)
    }

    /// Does what can be done on the connection; to be called whenever its user is polled.
    pub(crate) fn drive(&mut self, cx: &mut Context<'_>) {
        self.link.drive(cx);
    }

    /// Ready when `deadline` has passed.
    pub(crate) fn poll_until(&mut self, deadline: Instant, cx: &mut Context<'_>) -> Poll<()> {
        self.link.alarm.poll_until(deadline, cx)
    }

    /// The place for the copy of the head of the request that is being sent.
    pub(crate) fn head_copy(&mut self) -> &mut HeadCopy {
        &mut self.link.head_copy
    }

    /// Returns whether the endpoint takes nothing of what it is sent.
    pub(crate) fn is_blocked(&self) -> bool {
        self.link.is_blocked()
    }

    /// Returns whether the connection cannot be used again.
    pub(crate) fn is_closed(&self) -> bool {
        self.link.is_closed()
    }

    /// Lets the connection go on by itself: it must not depend on how fast its user is.
    pub(crate) fn detach(&mut self) {
        self.link.detach();
    }

    /// Returns the upstream of the connection.
    pub(crate) fn upstream(&self) -> &Upstream {
        &self.upstream
    }

    /// Notes that the endpoint began an answer with this status.
    pub(crate) fn answered(&self, status: StatusCode) {
        let seat = &self.stay.seat;
        let is_good = !status.is_server_error();
        seat.answered(is_good);
        if seat.endpoint.view().is_troubled {
            self.stay.has_told();
            self.upstream.endpoints.answered(&seat.endpoint, is_good);
        }
    }

    /// Notes that the endpoint gave no answer, which is its own fault.
    pub(crate) fn failed(&self) {
        let seat = &self.stay.seat;
        seat.answered(false);
        self.stay.has_told();
        self.upstream.endpoints.failed(&seat.endpoint);
    }

    /// Notes that an answer broke off or stalled.
    pub(crate) fn broke_off(&self) {
        self.stay.seat.broke_off();
    }

    /// Gives the connection back after the answer's last byte was read.
    pub(crate) fn give_back(self) {
        let Self {
            link,
            stay,
            upstream,
            ..
        } = self;
        let now = upstream.now();
        if !link.is_closed() && !link.is_old(now) {
            stay.seat.keep(link, now);
        }
    }
}
