//! Deadlines of a client connection.
//!
//! hyper's own head timeout covers neither the first byte nor the answer that a slow client gets, so
//! it is off and this stream keeps the time: 5 s to the first byte, 10 s for a head, 75 s between
//! requests, and 30 s in which a client takes nothing of its answer. Putting a deadline off is one
//! store.
//!
//! Closing is done with care here, too: a refusal that was written while the client still sends would
//! be lost in the reset of a plain close.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::LazyLock;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use memchr::memmem::Finder;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::alarm::Alarm;
use crate::outlet::Outlet;

/// How long a new connection may send nothing.
pub(crate) const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a request head may take from its first byte to its last.
pub(crate) const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may be idle between two requests.
pub(crate) const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(75);
/// The longest request head; more is answered 431.
pub(crate) const HEAD_BYTES_MAX: usize = 16 * 1024;

/// How long a client may take none of the bytes that are ready for it, where its service says nothing
/// else. Without an end, a few hundred clients that do not read would hold all connections to an
/// upstream.
pub(crate) const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// How much of an unread body is thrown away so that its sender can read the refusal.
const LINGER_BYTES: u64 = 256 * 1024;
/// How long that may take.
const LINGER_TIMEOUT: Duration = Duration::from_secs(2);
/// What a client reads that did not finish its head in time.
const TOO_SLOW: &[u8] =
    b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Accepted, nothing read yet.
    FirstByte,
    /// A head is arriving.
    Head,
    /// A request is being served; its own timeouts hold.
    Serving,
    /// Between requests.
    Idle,
}

/// The state that a connection's stream and its requests share.
#[derive(Debug)]
pub(crate) struct ConnectionState {
    phase: Cell<Phase>,
    deadline: Cell<Instant>,
    /// The time, a tenth of a second late at most: exact enough for these deadlines, and free.
    now: Rc<Cell<Instant>>,
    /// The raw bytes of the head that is arriving or was read last, and of what came behind it; at
    /// most [`HEAD_BYTES_MAX`].
    head: RefCell<Vec<u8>>,
    /// Whether the request that is being served has a body.
    has_body: Cell<bool>,
    /// Whether the client must be given time to read a refusal before the connection closes.
    pub(crate) linger: Cell<bool>,
    /// Whether a deadline of this connection has passed.
    pub(crate) timed_out: Cell<bool>,
    /// How long the client may take nothing of its answer.
    write_timeout: Cell<Duration>,
    /// Whether the client takes its answer.
    pub(crate) outlet: Outlet,
    /// Who reads while a request with a body is served: its end may be noted by another task, and from
    /// then on there is a deadline.
    reader: RefCell<Option<Waker>>,
}

impl ConnectionState {
    /// Begins a connection. `now` is kept up to date by the worker.
    pub(crate) fn new(now: &Rc<Cell<Instant>>) -> Rc<Self> {
        Rc::new(Self {
            phase: Cell::new(Phase::FirstByte),
            deadline: Cell::new(now.get() + FIRST_BYTE_TIMEOUT),
            now: Rc::clone(now),
            head: RefCell::new(Vec::new()),
            has_body: Cell::new(false),
            linger: Cell::new(false),
            timed_out: Cell::new(false),
            write_timeout: Cell::new(WRITE_TIMEOUT),
            outlet: Outlet::default(),
            reader: RefCell::new(None),
        })
    }

    /// Returns what the connection is doing.
    pub(crate) fn phase(&self) -> Phase {
        self.phase.get()
    }

    /// Says how long the client may take nothing of the answer to come.
    pub(crate) fn set_write_timeout(&self, timeout: Duration) {
        self.write_timeout.set(timeout);
    }

    /// A head is complete and its request is being served.
    pub(crate) fn serving(&self, has_body: bool) {
        self.phase.set(Phase::Serving);
        self.has_body.set(has_body);
    }

    /// The answer is complete.
    pub(crate) fn idle(&self) {
        self.phase.set(Phase::Idle);
        self.deadline.set(self.now.get() + KEEP_ALIVE_TIMEOUT);
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
        let mut head = self.head.borrow_mut();
        let served = if self.has_body.get() {
            None
        } else {
            head_end(&head)
        };
        match served {
            Some(end) => drop(head.drain(..end)),
            None => head.clear(),
        }
        // Most heads are under 1 KiB; an idle connection keeps no more than 4 KiB.
        head.shrink_to(4096);
    }

    /// Returns whether the head of the request that is being served announces a length besides its
    /// `Transfer-Encoding`. hyper drops the length before anybody can see it, so the raw bytes are
    /// asked. Where they are not known for sure (a request sent behind another's body without waiting
    /// for the answer) the answer is yes: who frames so carelessly is not served.
    pub(crate) fn head_has_content_length(&self, method: &str) -> bool {
        let head = self.head.borrow();
        let Some(end) = head_end(&head) else {
            return true;
        };
        let head = head.get(..end).unwrap_or_default();
        let is_ours = head
            .strip_prefix(method.as_bytes())
            .is_some_and(|rest| rest.starts_with(b" "));
        let has_length = head.split(|byte| *byte == b'\n').skip(1).any(|line| {
            let name = line.split(|byte| *byte == b':').next().unwrap_or_default();
            name.trim_ascii().eq_ignore_ascii_case(b"content-length")
        });
        !is_ours || has_length
    }

    /// Notes bytes that arrived.
    fn received(&self, bytes: &[u8]) {
        match self.phase.get() {
            Phase::FirstByte | Phase::Idle => {
                self.phase.set(Phase::Head);
                self.deadline.set(self.now.get() + HEAD_TIMEOUT);
            }
            // The next head may come along, but behind a body nobody knows where it begins.
            Phase::Serving if self.has_body.get() => return,
            Phase::Head | Phase::Serving => {}
        }
        let mut head = self.head.borrow_mut();
        let room = HEAD_BYTES_MAX.saturating_sub(head.len());
        head.extend_from_slice(bytes.get(..bytes.len().min(room)).unwrap_or_default());
    }
}

/// An answer up to this size, head and body, is written in one piece: copying it takes less than the
/// kernel takes for a list of pieces.
const ONE_PIECE_BYTES: usize = 4096;

thread_local! {
    /// Where a worker puts such a piece together.
    static ONE_PIECE: RefCell<Vec<u8>> = RefCell::new(Vec::with_capacity(ONE_PIECE_BYTES));
}

/// Returns where a head ends, its empty line included.
fn head_end(bytes: &[u8]) -> Option<usize> {
    static EMPTY_LINE: LazyLock<Finder<'_>> = LazyLock::new(|| Finder::new(b"\r\n\r\n"));
    EMPTY_LINE.find(bytes).map(|at| at + 4)
}

/// A client's stream with the deadlines of [`ConnectionState`] on reading.
#[derive(Debug)]
pub(crate) struct Guard<S> {
    stream: S,
    state: Rc<ConnectionState>,
    alarm: Alarm,
    /// Until when the client may take nothing; `None` while it takes what there is.
    write_until: Option<Instant>,
    write_alarm: Alarm,
    /// When lingering ends.
    linger_until: Option<Instant>,
    lingered_bytes: u64,
    has_shut_down: bool,
}

impl<S> Guard<S> {
    /// Puts a stream under the deadlines of `state`.
    pub(crate) fn new(stream: S, state: Rc<ConnectionState>) -> Self {
        Self {
            stream,
            state,
            alarm: Alarm::default(),
            write_until: None,
            write_alarm: Alarm::default(),
            linger_until: None,
            lingered_bytes: 0,
            has_shut_down: false,
        }
    }

    /// Waits for the deadline; ready when it has passed.
    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.state.phase.get() == Phase::Serving {
            if self.state.has_body.get() {
                let mut reader = self.state.reader.borrow_mut();
                match &mut *reader {
                    Some(reader) => reader.clone_from(cx.waker()),
                    None => *reader = Some(cx.waker().clone()),
                }
            }
            return Poll::Pending;
        }
        self.alarm.poll_until(self.state.deadline.get(), cx)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Guard<S> {
    /// Answers a client that is too slow, as far as that goes without waiting.
    fn answer_too_slow(&mut self, cx: &mut Context<'_>) {
        if matches!(self.state.phase.get(), Phase::FirstByte | Phase::Head) {
            // The client may be gone, and nobody waits for it: the connection ends either way.
            drop(Pin::new(&mut self.stream).poll_write(cx, TOO_SLOW));
        }
    }

    /// Throws away what the client still sends, until it has read the refusal and closes.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut rubbish = [0; 4096];
        while self.lingered_bytes < LINGER_BYTES {
            let mut buffer = ReadBuf::new(&mut rubbish);
            match Pin::new(&mut self.stream).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    self.lingered_bytes += buffer.filled().len() as u64;
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => {
                    let until = *self.linger_until.get_or_insert_with(Instant::now);
                    return self.alarm.poll_until(until, cx);
                }
            }
        }
        Poll::Ready(())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Guard<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        match Pin::new(&mut self.stream).poll_read(cx, buffer) {
            Poll::Ready(Ok(())) => {
                self.state
                    .received(buffer.filled().get(before..).unwrap_or_default());
                Poll::Ready(Ok(()))
            }
            Poll::Ready(error) => Poll::Ready(error),
            Poll::Pending => {
                ready!(self.poll_deadline(cx));
                self.state.timed_out.set(true);
                self.answer_too_slow(cx);
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
        }
    }
}

impl<S> Guard<S> {
    /// Takes how a write went: one that waits may do so for a while.
    fn written(
        &mut self,
        cx: &mut Context<'_>,
        result: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        self.state.outlet.wrote(result.is_ready());
        if result.is_ready() {
            self.write_until = None;
            return result;
        }
        let limit = self.state.write_timeout.get();
        let until = *self
            .write_until
            .get_or_insert_with(|| Instant::now() + limit);
        ready!(self.write_alarm.poll_until(until, cx));
        self.state.timed_out.set(true);
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Guard<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.written(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length: usize = slices.iter().map(|slice| slice.len()).sum();
        let result = if length <= ONE_PIECE_BYTES {
            ONE_PIECE.with_borrow_mut(|piece| {
                piece.clear();
                for slice in slices {
                    piece.extend_from_slice(slice);
                }
                Pin::new(&mut self.stream).poll_write(cx, piece)
            })
        } else {
            Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
        };
        self.written(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.has_shut_down {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
            self.has_shut_down = true;
            if self.state.linger.get() {
                self.linger_until = Some(Instant::now() + LINGER_TIMEOUT);
            }
        }
        if self.state.linger.get() {
            ready!(self.poll_linger(cx));
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    /// The last byte of a body may be read by the client's task and its end be noted by the upstream's:
    /// whoever reads must look at the deadline that there is from then on.
    #[tokio::test]
    async fn whoever_reads_is_woken_when_another_task_makes_the_connection_idle() {
        let state = ConnectionState::new(&Rc::new(Cell::new(Instant::now())));
        let (_client, server) = tokio::io::duplex(64);
        let mut guard = Guard::new(server, Rc::clone(&state));
        let woken = Arc::<Woken>::default();
        let waker = Waker::from(Arc::clone(&woken));
        let cx = &mut Context::from_waker(&waker);
        let mut bytes = [0; 8];
        let mut buffer = ReadBuf::new(&mut bytes);
        state.serving(true);
        assert!(Pin::new(&mut guard).poll_read(cx, &mut buffer).is_pending());
        assert!(!woken.0.load(Ordering::Relaxed));
        state.idle();
        assert!(woken.0.load(Ordering::Relaxed));
    }
}
