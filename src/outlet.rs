//! Whether a connection takes what is written to it, so that a body is read no faster than it leaves.
//!
//! hyper collects up to its largest buffer for a peer that takes nothing. A body that waits while its
//! connection is blocked costs the pieces that are under way and no more.

use std::cell::{Cell, RefCell};
use std::io;
use std::task::{Context, Poll, Waker};

use tokio::net::TcpStream;

/// How much a kernel takes that it has not sent, in bytes. By itself it takes up to 4 MiB (`tcp_wmem`) for
/// a peer that reads nothing, in one go, and holds it.
#[cfg(target_os = "linux")]
const UNSENT_BYTES_MAX: u32 = 256 * 1024;

/// Has the kernel take little for a peer that reads slowly.
pub(crate) fn bound_unsent(stream: &TcpStream) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    socket2::SockRef::from(stream).set_tcp_notsent_lowat(UNSENT_BYTES_MAX)?;
    #[cfg(not(target_os = "linux"))]
    let _ = stream;
    Ok(())
}

/// What the writing side of a connection knows, and the body that is written to it asks.
#[derive(Debug, Default)]
pub(crate) struct Outlet {
    is_blocked: Cell<bool>,
    /// Whoever asked while it was blocked.
    waiting: RefCell<Option<Waker>>,
}

impl Outlet {
    /// Notes whether the last write went through, or waits for the peer.
    pub(crate) fn wrote(&self, went_through: bool) {
        if self.is_blocked.replace(!went_through)
            && went_through
            && let Some(waiting) = self.waiting.take()
        {
            waiting.wake();
        }
    }

    /// Returns whether what was written last waits for the peer.
    pub(crate) fn is_blocked(&self) -> bool {
        self.is_blocked.get()
    }

    /// Ready while nothing waits to be written. Pending otherwise: the task is woken when the peer has
    /// taken something.
    pub(crate) fn poll_open(&self, cx: &Context<'_>) -> Poll<()> {
        if !self.is_blocked.get() {
            return Poll::Ready(());
        }
        let mut waiting = self.waiting.borrow_mut();
        match &mut *waiting {
            Some(waker) => waker.clone_from(cx.waker()),
            None => *waiting = Some(cx.waker().clone()),
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn who_waits_is_woken_once_when_the_peer_takes_something() {
        let (outlet, woken) = (Outlet::default(), Arc::<Woken>::default());
        let waker = Waker::from(Arc::clone(&woken));
        let cx = Context::from_waker(&waker);
        assert!(outlet.poll_open(&cx).is_ready());
        outlet.wrote(false);
        assert!(outlet.poll_open(&cx).is_pending());
        outlet.wrote(false);
        assert_eq!(woken.0.load(Ordering::Relaxed), 0, "nothing was taken yet");
        outlet.wrote(true);
        outlet.wrote(true);
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        assert!(outlet.poll_open(&cx).is_ready());
    }
}
