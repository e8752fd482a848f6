//! The stream of events over the admin API: server-sent events, one incident's step each.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame};
use tokio::sync::mpsc;
use tokio::time::{Interval, MissedTickBehavior};

use crate::control::EventSender;

/// The most events that wait for a slow reader; with more, its stream ends.
const WAITING_MAX: usize = 64;

/// How often a line is sent when nothing happens, so that a dead reader is noticed.
const PING_EVERY: Duration = Duration::from_secs(15);

/// The body of the answer.
#[derive(Debug)]
pub(super) struct EventStream {
    events: mpsc::Receiver<Arc<str>>,
    pings: Interval,
}

impl EventStream {
    /// Makes a stream and where its events go.
    pub(super) fn new() -> (EventSender, Self) {
        let (sender, events) = mpsc::channel(WAITING_MAX);
        let mut pings = tokio::time::interval(PING_EVERY);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        (sender, Self { events, pings })
    }
}

impl Body for EventStream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.events.poll_recv(context) {
            Poll::Ready(Some(event)) => {
                let text = format!("event: incident\ndata: {event}\n\n");
                return Poll::Ready(Some(Ok(Frame::data(Bytes::from(text)))));
            }
            // Too slow, or the end of the process.
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Pending => {}
        }
        match self.pings.poll_tick(context) {
            // The first one comes at once, and says that the stream is open.
            Poll::Ready(_) => {
                let ping = Bytes::from_static(b": tidegate\n\n");
                Poll::Ready(Some(Ok(Frame::data(ping))))
            }
            Poll::Pending => Poll::Pending,
        }
    }
}
