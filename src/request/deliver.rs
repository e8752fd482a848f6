//! Brings a refusal to the client, or sees to it that nothing is brought.

use std::cell::Cell;
use std::time::Duration;

use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, HeaderValue};
use http::{Request, Response};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use super::accept::Connection;
use super::body::ReplyBody;
use super::observe::Observation;

/// A body up to this size is read before a refusal is written, so that the connection can be used
/// again and the client is sure to see the answer.
const SMALL_BODY_BYTES: u64 = 64 * 1024;
/// How long reading it may take.
const SMALL_BODY_TIMEOUT: Duration = Duration::from_millis(500);
/// How long a tarpitted request is held before its connection is closed.
const TARPIT_DELAY: Duration = Duration::from_secs(20);
/// The most requests that a worker holds in the tarpit; the rest are dropped at once.
const TARPIT_MAX: u64 = 1000;

/// Ends a connection without an answer.
#[derive(Debug, thiserror::Error)]
#[error("the connection is closed without an answer")]
pub(crate) struct Dropped;

/// Lets a refusal go as soon as the client is able to read it. Most requests have no body that would be
/// in its way.
pub(super) async fn deliver(
    request: Request<Incoming>,
    response: Response<ReplyBody>,
    connection: &Connection,
) -> Response<ReplyBody> {
    if request.body().is_end_stream() {
        return response;
    }
    Box::pin(make_room(request, response, connection)).await
}

/// Makes sure that a client which is still sending a body gets to read its refusal: a small body is read
/// first, a large one is cut off and the connection closed with care.
async fn make_room(
    request: Request<Incoming>,
    mut response: Response<ReplyBody>,
    connection: &Connection,
) -> Response<ReplyBody> {
    let expects_to_be_asked = request.headers().contains_key(EXPECT);
    let is_small = request.headers().contains_key(CONTENT_LENGTH)
        && request
            .body()
            .size_hint()
            .exact()
            .is_some_and(|bytes| bytes <= SMALL_BODY_BYTES);
    if is_small && !expects_to_be_asked {
        let mut body = request.into_body();
        let read = async { while let Some(Ok(_)) = body.frame().await {} };
        if tokio::time::timeout(SMALL_BODY_TIMEOUT, read).await.is_ok() && body.is_end_stream() {
            return response;
        }
    }
    close_with_care(&mut response, connection);
    response
}

/// Has the connection closed after a response, so that its client sees the response even where bytes of
/// a body are still under way.
pub(super) fn close_with_care(response: &mut Response<ReplyBody>, connection: &Connection) {
    connection.state.linger.set(true);
    let close = HeaderValue::from_static("close");
    response.headers_mut().insert(CONNECTION, close);
}

/// Closes the connection of a request that gets no answer.
pub(super) fn dropped(observation: &Observation) -> Dropped {
    observation.complete();
    Dropped
}

/// Where a worker holds requests that get no answer, each for a while.
#[derive(Debug, Default)]
pub(crate) struct Tarpit {
    held: Cell<u64>,
}

impl Tarpit {
    /// Holds a request, then closes its connection.
    pub(super) async fn hold(&self, observation: Box<Observation>) -> Dropped {
        if self.held.get() < TARPIT_MAX {
            self.held.set(self.held.get() + 1);
            let _held = Held(&self.held);
            tokio::time::sleep(TARPIT_DELAY).await;
        }
        dropped(&observation)
    }
}

/// Counts one tarpitted request as long as it lives, however its future ends.
struct Held<'a>(&'a Cell<u64>);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}
