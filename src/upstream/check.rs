//! Asks endpoints whether they are well, on the control side and the way requests go: the same
//! connection, the same TLS.

use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use http::header::{CONNECTION, HOST, USER_AGENT};
use http::{HeaderValue, Request, StatusCode};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::connect::{Stream, connect};
use super::endpoint::Endpoint;
use super::{Endpoints, chain};
use crate::settings::Health;

/// What a check says it is.
const AGENT: HeaderValue = HeaderValue::from_static("tidegate-health-check");
/// The largest answer head that is read.
const RESPONSE_HEAD_BYTES_MAX: usize = 16 * 1024;

/// Why an endpoint does not pass.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("no connection")]
    Connect(#[source] super::UpstreamError),
    #[error("no answer")]
    NoAnswer(#[source] hyper::Error),
    #[error("the connection was closed")]
    Closed,
    #[error("the answer was {0}")]
    Status(StatusCode),
    #[error("no answer in time")]
    Late,
}

/// Checks all endpoints, again and again. A check ends before the next begins.
pub(super) async fn keep(endpoints: Arc<Endpoints>, health: Health) {
    let mut ticks = interval(health.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut was_short = false;
    loop {
        ticks.tick().await;
        let mut checks = JoinSet::new();
        for endpoint in endpoints.list().iter() {
            let (endpoints, endpoint) = (Arc::clone(&endpoints), Arc::clone(endpoint));
            let health = health.clone();
            checks.spawn_local(async move {
                let fault = match timeout(health.timeout, ask(&endpoints, &endpoint, &health)).await
                {
                    Ok(Ok(())) => None,
                    Ok(Err(fault)) => Some(fault),
                    Err(_elapsed) => Some(Fault::Late),
                };
                if let Some(Fault::Connect(error)) = &fault
                    && error.is_our_own_fault()
                {
                    // It says nothing of the endpoint, and must not take it away as well.
                    return Some(chain(error));
                }
                let fault = fault.map(|fault| chain(&fault));
                endpoints.checked(&endpoint, fault.as_deref(), endpoints.clock.now());
                None
            });
        }
        let mut short = None;
        while let Some(check) = checks.join_next().await {
            short = check.unwrap_or_default().or(short);
        }
        if let Some(error) = &short
            && !was_short
        {
            let upstream = &endpoints.spec.name;
            tracing::warn!(%upstream, error, "health checks cannot be made from here");
        }
        was_short = short.is_some();
    }
}

async fn ask(endpoints: &Endpoints, endpoint: &Endpoint, health: &Health) -> Result<(), Fault> {
    let mut request = Request::new(Empty::<Bytes>::new());
    if let Ok(path) = health.path.parse() {
        *request.uri_mut() = path;
    }
    let headers = request.headers_mut();
    if let Ok(host) = endpoint.name.parse() {
        headers.insert(HOST, host);
    }
    headers.insert(USER_AGENT, AGENT);
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    let stream = connect(endpoints, endpoint).await.map_err(Fault::Connect)?;
    let status = match stream {
        Stream::Plain(stream) => exchange(stream, request).await?,
        Stream::Tls(stream) => exchange(stream, request).await?,
    };
    if status.is_success() || status.is_redirection() {
        Ok(())
    } else {
        Err(Fault::Status(status))
    }
}

/// Sends a request and reads the status of its answer; the rest is not waited for.
async fn exchange<S>(stream: S, request: Request<Empty<Bytes>>) -> Result<StatusCode, Fault>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let (mut sender, connection) = http1::Builder::new()
        .max_header_size(RESPONSE_HEAD_BYTES_MAX)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(Fault::NoAnswer)?;
    let mut connection = pin!(connection);
    let mut answer = pin!(sender.send_request(request));
    let mut has_ended = false;
    std::future::poll_fn(|cx| {
        if !has_ended {
            has_ended = connection.as_mut().poll(cx).is_ready();
        }
        match answer.as_mut().poll(cx) {
            Poll::Ready(answer) => Poll::Ready(
                answer
                    .map(|answer| answer.status())
                    .map_err(Fault::NoAnswer),
            ),
            Poll::Pending if has_ended => Poll::Ready(Err(Fault::Closed)),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}
