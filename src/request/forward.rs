//! Sends a request to its upstream and the answer back.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Poll, ready};
use std::time::Duration;

use http::header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::{HeaderValue, Request, Response, StatusCode, Uri, Version};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use tokio::time::Instant;

use super::accept::Connection;
use super::body::{BodyLimits, BodyProgress, ReplyBody, RequestBody};
use super::headers::{Fields, ForwardedFacts, prepare_request, prepare_response};
use super::observe::Observation;
use crate::settings;
use crate::upstream::{Lease, Upstream, UpstreamError};

/// What comes of a request that is being sent.
type Sent = Result<Response<Incoming>, TrySendError<Request<RequestBody>>>;

/// Turns the client's request into the one for the upstream. Returns how many fields were dropped that
/// could be taken for others.
pub(super) fn prepare(
    request: &mut Request<Incoming>,
    fields: Fields,
    upstream: &settings::Upstream,
    connection: &Connection,
    id: &HeaderValue,
) -> usize {
    if !fields.host
        && let Some(host) = upstream
            .endpoints
            .first()
            .and_then(|at| at.address.parse().ok())
    {
        // Only HTTP/1.0 clients may leave it out; the upstream is asked in HTTP/1.1.
        request.headers_mut().insert(HOST, host);
    }
    if let Some(authority) = request.uri().authority() {
        // The absolute form is for proxies that choose the destination by it; we do not.
        if let Ok(host) = authority.as_str().parse() {
            request.headers_mut().insert(HOST, host);
        }
        let origin = request
            .uri()
            .path_and_query()
            .map_or("/", |target| target.as_str());
        if let Ok(uri) = origin.parse::<Uri>() {
            *request.uri_mut() = uri;
        }
    }
    let version = request.version();
    let facts = ForwardedFacts {
        peer: &connection.peer_text,
        peer_is_trusted: connection.is_trusted,
        request_id: id,
    };
    let dropped = prepare_request(request.headers_mut(), fields, &facts, version);
    *request.version_mut() = Version::HTTP_11;
    dropped
}

/// Forwards a prepared request that has its place. On failure the observation comes back for the refusal.
///
/// A request goes out twice in two cases only: it was never written, or it is safe to repeat (idempotent,
/// without body), a kept-alive connection turned out closed, and not too many were repeated lately. What
/// was never written costs the upstream nothing and is not counted.
///
/// The future is moved and has its room in every connection. So what is seldom done is kept out of it, and
/// nothing large is in it twice, as the arguments of an `async fn` would be.
pub(super) fn forward<'a>(
    upstream: &'a Rc<Upstream>,
    request: Request<Incoming>,
    limits: BodyLimits,
    request_id: &'a HeaderValue,
    mut observation: Box<Observation>,
    retried: impl FnOnce() + 'a,
) -> impl Future<Output = Result<Response<ReplyBody>, (UpstreamError, Box<Observation>)>> + 'a {
    let progress = BodyProgress::of(request.body(), &mut observation.place);
    observation.forwarded(&progress);
    let mut request = request.map(|body| RequestBody::new(body, limits, &progress));
    if matches!(request.body(), RequestBody::Streamed(_))
        && !request.headers().contains_key(CONTENT_LENGTH)
    {
        // hyper takes a GET without framing for one without body, and would drop the body.
        let chunked = HeaderValue::from_static("chunked");
        request.headers_mut().insert(TRANSFER_ENCODING, chunked);
    }
    async move {
        let idle = upstream.idle_connection();
        let mut lease = match idle {
            Ok(lease) => lease,
            Err(chosen) => match Box::pin(upstream.connection(chosen)).await {
                Ok(lease) => lease,
                Err(error) => return Err((error, observation)),
            },
        };
        let may_repeat = lease.is_reused
            && matches!(request.body(), RequestBody::Empty)
            && request.method().is_idempotent();
        if may_repeat {
            lease.head_copy().take(&request);
        }
        let sending = pin!(lease.send(request));
        let response = match answer(upstream, &mut lease, sending, &progress).await {
            Ok(response) => response,
            Err(failed) => {
                let again = send_again(upstream, lease, may_repeat, failed, &progress, retried);
                match Box::pin(again).await {
                    Ok(answered) => {
                        lease = answered.1;
                        answered.0
                    }
                    Err(error) => return Err((error, observation)),
                }
            }
        };
        lease.answered(response.status());
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Err((UpstreamError::Switched, observation));
        }
        Ok(reply(
            response,
            lease,
            progress,
            limits.idle_timeout,
            request_id,
            observation,
        ))
    }
}

/// Turns the upstream's answer into the one for the client.
fn reply(
    response: Response<Incoming>,
    lease: Lease,
    progress: Rc<BodyProgress>,
    idle_timeout: Duration,
    request_id: &HeaderValue,
    mut observation: Box<Observation>,
) -> Response<ReplyBody> {
    let (mut head, incoming) = response.into_parts();
    observation.answered(head.status.as_u16());
    if head.headers.contains_key(TRANSFER_ENCODING) {
        // The chunks are the body (RFC 9112, 6.3); the length would cut them off.
        head.headers.remove(CONTENT_LENGTH);
    }
    prepare_response(&mut head.headers, request_id, head.version);
    // The version is that of one connection; the client's is not the upstream's.
    head.version = Version::HTTP_11;
    let body = ReplyBody::upstream(incoming, lease, progress, idle_timeout, observation);
    Response::from_parts(head, body)
}

/// Sends a request once more that failed, where that is right; otherwise returns why it failed.
async fn send_again(
    upstream: &Rc<Upstream>,
    mut lease: Lease,
    may_repeat: bool,
    failed: Failed,
    progress: &BodyProgress,
    retried: impl FnOnce(),
) -> Result<(Response<Incoming>, Lease), UpstreamError> {
    // An endpoint may close a connection that it has kept, at any time.
    let was_closed = lease.is_reused && matches!(failed.error, UpstreamError::Terminated(_));
    if !was_closed && failed.error.blames_the_endpoint() {
        lease.failed();
    }
    let again = match failed.unsent {
        Some(unsent) => lease.is_reused.then_some(unsent),
        None if may_repeat && was_closed && upstream.may_repeat() => lease.head_copy().request(),
        None => None,
    };
    drop(lease);
    let Some(again) = again else {
        return Err(failed.error);
    };
    retried();
    let mut lease = upstream.connection(None).await?;
    let sending = pin!(lease.send(again));
    match answer(upstream, &mut lease, sending, progress).await {
        Ok(response) => Ok((response, lease)),
        Err(failed) => {
            if failed.error.blames_the_endpoint() {
                lease.failed();
            }
            Err(failed.error)
        }
    }
}

struct Failed {
    error: UpstreamError,
    /// The request, where nothing of it was written.
    unsent: Option<Request<RequestBody>>,
}

/// Waits for the answer to a request that is being sent on a connection.
async fn answer(
    upstream: &Upstream,
    lease: &mut Lease,
    mut sending: Pin<&mut impl Future<Output = Sent>>,
    progress: &BodyProgress,
) -> Result<Response<Incoming>, Failed> {
    let limit = upstream.spec.response_timeout;
    let began = Instant::now();
    let mut deadline = began + limit;
    let answered = poll_fn(|cx| {
        lease.drive(cx);
        if let Poll::Ready(answer) = sending.as_mut().poll(cx) {
            return Poll::Ready(Some(answer));
        }
        loop {
            ready!(lease.poll_until(deadline, cx));
            // The time is for the answer, which nobody can expect before the last byte of the question.
            // Where that is not the upstream's doing, who holds it up has a deadline of its own
            // (`StreamedBody`), as long as somebody waits for more of it.
            let now = Instant::now();
            deadline = if progress.is_awaited() && !lease.is_blocked() {
                now + limit
            } else {
                began.max(progress.read_at()) + limit
            };
            if deadline <= now {
                return Poll::Ready(None);
            }
        }
    });
    match answered.await {
        Some(Ok(response)) => Ok(response),
        Some(Err(mut error)) => {
            let unsent = error.take_message();
            Err(Failed {
                error: cause(error.into_error(), progress),
                unsent,
            })
        }
        None => Err(Failed {
            error: UpstreamError::ResponseTimeout(limit),
            unsent: None,
        }),
    }
}

fn cause(error: hyper::Error, progress: &BodyProgress) -> UpstreamError {
    if let Some(fault) = progress.fault.get() {
        UpstreamError::ClientBody(fault)
    } else if error.is_parse() || error.is_parse_too_large() || error.is_parse_status() {
        UpstreamError::Protocol(error)
    } else {
        UpstreamError::Terminated(error)
    }
}
