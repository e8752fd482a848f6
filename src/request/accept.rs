//! Accepts connections and serves the requests on them, until the drain.
//!
//! Generic over the stream: whatever gives bytes in order (TCP today; TLS or a PROXY header in front
//! of it later) goes the same one way.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use http::{HeaderValue, Request};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::address::TrustedProxies;
use super::guard::{ConnectionState, Guard, HEAD_BYTES_MAX, Phase};
use super::worker::Workbench;
use crate::outlet::bound_unsent;

/// The pause after an accept that failed for want of something (descriptors, memory), so that the
/// loop does not spin while there is none.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// The most that hyper buffers of what a client sends ahead, in bytes: no more than a head needs.
pub(crate) const READ_BUFFER_BYTES: usize = HEAD_BYTES_MAX;
/// What a client reads for which there is no room.
const NO_ROOM: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 5\r\n\
    content-length: 0\r\nconnection: close\r\n\r\n";
/// Says when the drain has begun; shared by all workers.
pub(crate) type Drain = watch::Receiver<bool>;

/// A client's connection, as its requests see it.
#[derive(Debug)]
pub(crate) struct Connection {
    /// What the connection is doing.
    pub(crate) state: Rc<ConnectionState>,
    /// The address of the other end, canonical.
    pub(crate) peer: IpAddr,
    /// The other end's address, ready for `X-Forwarded-For`.
    pub(crate) peer_text: HeaderValue,
    /// Whether the other end is one of the operator's own proxies.
    pub(crate) is_trusted: bool,
    /// Who else is.
    pub(crate) trusted: Arc<TrustedProxies>,
}

/// Connections that are open in one worker.
#[derive(Debug, Default)]
pub(crate) struct OpenConnections {
    count: Cell<u64>,
}

impl OpenConnections {
    /// Returns how many connections are open.
    pub(crate) fn count(&self) -> u64 {
        self.count.get()
    }
}

/// Counts a connection as long as it lives, whichever way its task ends.
struct Counted(Rc<OpenConnections>, prometheus::IntGauge);

impl Counted {
    fn begin(open: &Rc<OpenConnections>, gauge: &prometheus::IntGauge) -> Self {
        open.count.set(open.count.get() + 1);
        gauge.inc();
        Self(Rc::clone(open), gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.count.set(self.0.count.get() - 1);
        self.1.dec();
    }
}

/// Accepts connections until the drain begins.
pub(crate) async fn accept(
    listener: TcpListener,
    trusted: Arc<TrustedProxies>,
    bench: Rc<Workbench>,
    open: Rc<OpenConnections>,
    mut drain: Drain,
) {
    let mut failing = false;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = drain.wait_for(|begun| *begun) => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                failing = false;
                begin(stream, peer, &trusted, &bench, &open, &drain);
            }
            Err(error) => {
                bench.metrics.accept_errors_total.inc();
                if is_one_connections_fault(&error) {
                    continue;
                }
                if !failing {
                    tracing::error!(
                        %error,
                        "connections cannot be accepted; raise LimitNOFILE if descriptors are short"
                    );
                }
                failing = true;
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    // What the kernel has already accepted for this listener would be reset when it closes.
    while let Some(Ok((stream, peer))) = poll_once(listener.accept()).await {
        begin(stream, peer, &trusted, &bench, &open, &drain);
    }
}

/// Polls a future once.
async fn poll_once<F: Future>(future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// Returns whether an accept failed because that one connection was gone already.
fn is_one_connections_fault(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionReset | ConnectionRefused | Interrupted
    )
}

/// Tells a client that there is no room, as far as that goes without waiting: a new connection has room
/// for this much. Who has sent its request already may see a reset instead.
fn turn_away(stream: &TcpStream) {
    drop(stream.try_write(NO_ROOM));
}

fn begin(
    stream: TcpStream,
    peer: SocketAddr,
    trusted: &Arc<TrustedProxies>,
    bench: &Rc<Workbench>,
    open: &Rc<OpenConnections>,
    drain: &Drain,
) {
    let peer = peer.ip().to_canonical();
    let is_trusted = trusted.contains(peer);
    bench.metrics.connections_total.inc();
    let place = match bench.overload.connect(peer, is_trusted) {
        Ok(place) => place,
        Err(why) => {
            turn_away(&stream);
            let reasons = &bench.metrics.connections_refused_total;
            reasons.with_label_values(&[why.word()]).inc();
            return;
        }
    };
    if let Err(error) = stream
        .set_nodelay(true)
        .and_then(|()| bound_unsent(&stream))
    {
        tracing::debug!(%error, "a connection could not be set up as it should be");
    }
    let connection = Rc::new(Connection {
        state: ConnectionState::new(&bench.now),
        peer,
        peer_text: HeaderValue::try_from(peer.to_string())
            .unwrap_or(HeaderValue::from_static("unknown")),
        is_trusted,
        trusted: Arc::clone(trusted),
    });
    let counted = Counted::begin(open, &bench.metrics.connections);
    let (bench, drain) = (Rc::clone(bench), drain.clone());
    tokio::task::spawn_local(async move {
        serve_connection(stream, connection, bench, drain).await;
        drop((counted, place));
    });
}

/// Serves the requests on one connection.
async fn serve_connection<S: AsyncRead + AsyncWrite + Unpin + 'static>(
    stream: S,
    connection: Rc<Connection>,
    bench: Rc<Workbench>,
    mut drain: Drain,
) {
    let state = Rc::clone(&connection.state);
    let metrics = Arc::clone(&bench.metrics);
    let service = service_fn(move |request: Request<Incoming>| {
        bench.worker().serve(request, Rc::clone(&connection))
    });
    let guard = Guard::new(stream, Rc::clone(&state));
    let mut http = pin!(
        http1::Builder::new()
            .header_read_timeout(None)
            .max_header_size(HEAD_BYTES_MAX)
            .max_buf_size(READ_BUFFER_BYTES)
            .serve_connection(TokioIo::new(guard), service)
    );
    let ended = {
        let news = drain.clone();
        let mut draining = pin!(async move {
            // An error means that there is nobody left to begin a drain.
            if drain.wait_for(|begun| *begun).await.is_err() {
                std::future::pending::<()>().await;
            }
        });
        let (mut is_first, mut has_begun) = (true, false);
        poll_fn(|cx| {
            // Once it waits, the task is woken when there is news; asking whether there is costs one
            // look.
            let may_have_begun = is_first || news.has_changed().unwrap_or(true);
            is_first = false;
            if !has_begun && may_have_begun && draining.as_mut().poll(cx).is_ready() {
                has_begun = true;
                http.as_mut().graceful_shutdown();
            }
            http.as_mut().poll(cx)
        })
        .await
    };
    let word = match &ended {
        Err(error) => word(error, &state),
        // hyper takes an end before the first byte for a good one.
        Ok(()) if state.timed_out.get() && state.phase() == Phase::FirstByte => {
            "first_byte_timeout"
        }
        Ok(()) => return,
    };
    metrics.client_errors_total.with_label_values(&[word]).inc();
    tracing::debug!(error = ?ended.err(), word, "a client connection ended");
}

fn is_timeout(error: &hyper::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        if let Some(error) = inner.downcast_ref::<io::Error>() {
            return error.kind() == io::ErrorKind::TimedOut;
        }
        source = inner.source();
    }
    false
}

/// Returns the word for an error in `tidegate_client_errors_total{error}`.
fn word(error: &hyper::Error, state: &ConnectionState) -> &'static str {
    if is_timeout(error) {
        match state.phase() {
            Phase::FirstByte => "first_byte_timeout",
            Phase::Head => "head_timeout",
            Phase::Serving => "write_timeout",
            Phase::Idle => "keep_alive_timeout",
        }
    } else if error.is_parse_too_large() {
        "head_too_large"
    } else if error.is_parse() {
        "invalid_head"
    } else if error.is_body_write_aborted() {
        "response_aborted"
    } else if error.is_user() {
        "dropped"
    } else {
        "connection_lost"
    }
}
