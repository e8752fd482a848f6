//! Sends a request to its upstream and the answer back.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, ready};

use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderValue, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::body::{BodyLimits, BodyProgress, ReplyBody, RequestBody};
use super::headers::prepare_response;
use super::observe::Observation;
use crate::upstream::{Lease, Upstream, UpstreamError};

/// Forwards a prepared request. On failure the observation comes back for the refusal.
pub(crate) async fn forward(
    upstream: &Rc<Upstream>,
    request: Request<Incoming>,
    limits: BodyLimits,
    request_id: &HeaderValue,
    mut observation: Observation,
    retried: impl FnOnce(),
) -> Result<Response<ReplyBody>, (UpstreamError, Observation)> {
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
    let (response, lease) = match exchange(upstream, request, &progress, retried).await {
        Ok(answer) => answer,
        Err(error) => return Err((error, observation)),
    };
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Err((UpstreamError::Switched, observation));
    }
    let (mut head, incoming) = response.into_parts();
    observation.answered(head.status.as_u16());
    if head.headers.contains_key(TRANSFER_ENCODING) {
        // The chunks are the body (RFC 9112, 6.3); the length would cut them off.
        head.headers.remove(CONTENT_LENGTH);
    }
    prepare_response(&mut head.headers, request_id, head.version);
    // The version is that of one connection; the client's is not the upstream's.
    head.version = Version::HTTP_11;
    let body = ReplyBody::upstream(incoming, lease, progress, limits.idle_timeout, observation);
    Ok(Response::from_parts(head, body))
}

/// Gets a response head. A request goes out twice in two cases only: it was never written, or it is
/// safe to repeat (idempotent, without body), a kept-alive connection turned out closed, and not too
/// many were repeated lately. What was never written costs the upstream nothing and is not counted.
async fn exchange(
    upstream: &Rc<Upstream>,
    request: Request<RequestBody>,
    progress: &Rc<BodyProgress>,
    retried: impl FnOnce(),
) -> Result<(Response<Incoming>, Lease), UpstreamError> {
    // What is seldom done is kept out of this future, which is as large as its largest part and is
    // moved for every request.
    let mut lease = match upstream.idle_connection() {
        Ok(lease) => lease,
        Err(chosen) => Box::pin(upstream.connection(chosen)).await?,
    };
    let may_repeat = lease.is_reused
        && matches!(request.body(), RequestBody::Empty)
        && request.method().is_idempotent();
    if may_repeat {
        lease.head_copy().take(&request);
    }
    let failed = match send(upstream, &mut lease, request, progress).await {
        Ok(response) => {
            lease.answered(response.status());
            return Ok((response, lease));
        }
        Err(failed) => failed,
    };
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
    Box::pin(async move {
        let mut lease = upstream.connection(None).await?;
        match send(upstream, &mut lease, again, progress).await {
            Ok(response) => {
                lease.answered(response.status());
                Ok((response, lease))
            }
            Err(failed) => {
                if failed.error.blames_the_endpoint() {
                    lease.failed();
                }
                Err(failed.error)
            }
        }
    })
    .await
}

struct Failed {
    error: UpstreamError,
    /// The request, where nothing of it was written.
    unsent: Option<Request<RequestBody>>,
}

async fn send(
    upstream: &Upstream,
    lease: &mut Lease,
    request: Request<RequestBody>,
    progress: &BodyProgress,
) -> Result<Response<Incoming>, Failed> {
    let limit = upstream.spec.response_timeout;
    let began = Instant::now();
    let mut deadline = began + limit;
    let mut sending = std::pin::pin!(lease.send(request));
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
