//! An open connection.
//!
//! It is driven by whoever uses it, in the task of the client's connection: a request that wakes one
//! task and not two costs less. Only while a request's body is still on its way when the answer
//! begins, the connection gets a task of its own, because then both directions must go on by
//! themselves.

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use prometheus::IntGauge;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_rustls::client::TlsStream;

use super::UpstreamError;
use super::connect::Stream;
use super::stream::EndpointStream;
use crate::alarm::Alarm;
use crate::outlet::Outlet;
use crate::overload::UpstreamPlace;
use crate::request::{HeadCopy, RequestBody};

/// The largest response head, in bytes.
const RESPONSE_HEAD_BYTES_MAX: usize = 64 * 1024;

/// An open connection, with what stays with it from one request to the next.
#[derive(Debug)]
pub(super) struct Link {
    sender: SendRequest<RequestBody>,
    drive: Drive,
    /// Whether the endpoint takes what it is sent.
    outlet: Rc<Outlet>,
    pub(super) alarm: Alarm,
    pub(super) head_copy: HeadCopy,
    /// It is not used for another request after that.
    retires: Instant,
}

type Connection<S> = Box<http1::Connection<TokioIo<EndpointStream<S>>, RequestBody>>;

/// A connection that is driven by its user. Plain TCP is told apart here and not below, so that it
/// does not pay for TLS.
struct Driven {
    connection: Wire,
    _open: Open,
}

enum Wire {
    Plain(Connection<TcpStream>),
    Tls(Connection<Box<TlsStream<TcpStream>>>),
}

impl std::fmt::Debug for Driven {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Driven")
    }
}

impl Driven {
    /// Does what can be done on the connection. Ready when it has ended.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let ended = ready!(match &mut self.connection {
            Wire::Plain(connection) => Pin::new(&mut **connection).poll(cx),
            Wire::Tls(connection) => Pin::new(&mut **connection).poll(cx),
        });
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

/// Counts one open connection as long as it lives.
#[derive(Debug)]
pub(super) struct Open(
    IntGauge,
    #[expect(dead_code, reason = "given back when it is dropped")] UpstreamPlace,
);

impl Open {
    /// Counts a connection that has this descriptor.
    pub(super) fn begin(gauge: &IntGauge, place: UpstreamPlace) -> Self {
        gauge.inc();
        Self(gauge.clone(), place)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Link {
    /// Begins HTTP on a connection, to be used until `retires`.
    pub(super) async fn begin(
        stream: Stream,
        open: Open,
        retires: Instant,
    ) -> Result<Box<Self>, UpstreamError> {
        let outlet = Rc::<Outlet>::default();
        let (sender, connection) = match stream {
            Stream::Plain(stream) => {
                let (sender, connection) = handshake(stream, &outlet).await?;
                (sender, Wire::Plain(connection))
            }
            Stream::Tls(stream) => {
                let (sender, connection) = handshake(stream, &outlet).await?;
                (sender, Wire::Tls(connection))
            }
        };
        let driven = Driven {
            connection,
            _open: open,
        };
        Ok(Box::new(Self {
            sender,
            drive: Drive::InPlace(driven),
            outlet,
            alarm: Alarm::default(),
            head_copy: HeadCopy::default(),
            retires,
        }))
    }

    /// Sends a request; [`Self::drive`] gets it and its answer through.
    pub(super) fn send(
        &mut self,
        mut request: Request<RequestBody>,
    ) -> impl Future<Output = Result<Response<Incoming>, TrySendError<Request<RequestBody>>>> + use<>
    {
        request.body_mut().leave_by(&self.outlet);
        self.sender.try_send_request(request)
    }

    /// Does what can be done on the connection.
    pub(super) fn drive(&mut self, cx: &mut Context<'_>) {
        self.drive.poll(cx);
    }

    /// Returns whether the endpoint takes nothing of what it is sent.
    pub(super) fn is_blocked(&self) -> bool {
        self.outlet.is_blocked()
    }

    /// Returns whether a request may be sent.
    pub(super) fn is_ready(&self) -> bool {
        self.sender.is_ready()
    }

    /// Returns whether the connection cannot be used again.
    pub(super) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Returns whether the connection is too old for another request.
    pub(super) fn is_old(&self, now: Instant) -> bool {
        now >= self.retires
    }

    /// Looks whether the connection was closed meanwhile.
    pub(super) fn has_ended(&mut self) -> bool {
        self.drive.poll(&mut Context::from_waker(Waker::noop()));
        matches!(self.drive, Drive::Ended) || self.sender.is_closed()
    }

    /// Lets the connection go on by itself: it must not depend on how fast its user is.
    pub(super) fn detach(&mut self) {
        self.drive = match std::mem::replace(&mut self.drive, Drive::Ended) {
            Drive::InPlace(mut driven) => {
                let task =
                    tokio::task::spawn_local(async move { poll_fn(|cx| driven.poll(cx)).await });
                Drive::ByItself(Task(task.abort_handle()))
            }
            other => other,
        };
    }
}

async fn handshake<S>(
    stream: S,
    outlet: &Rc<Outlet>,
) -> Result<(SendRequest<RequestBody>, Connection<S>), UpstreamError>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let (sender, connection) = http1::Builder::new()
        .max_header_size(RESPONSE_HEAD_BYTES_MAX)
        .max_buf_size(RESPONSE_HEAD_BYTES_MAX)
        // Most requests are one small piece, for which a plain write costs less.
        .writev(false)
        .handshake(TokioIo::new(EndpointStream::new(stream, Rc::clone(outlet))))
        .await
        .map_err(UpstreamError::Protocol)?;
    Ok((sender, Box::new(connection)))
}
