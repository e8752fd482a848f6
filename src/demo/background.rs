//! Threads with a runtime of their own, so that the demonstration's parts share nothing but sockets.

use std::io;
use std::thread::JoinHandle;

use tokio::sync::oneshot;
use tokio::task::LocalSet;

/// A thread that runs tasks until it is stopped.
#[derive(Debug)]
pub(super) struct Background {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<io::Result<()>>,
}

impl Background {
    /// Starts a thread; `spawn` begins its tasks with [`tokio::task::spawn_local`].
    ///
    /// # Errors
    ///
    /// There is no thread to be had.
    pub(super) fn start(
        name: &str,
        spawn: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> io::Result<Self> {
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()?;
                LocalSet::new().block_on(&runtime, async {
                    spawn()?;
                    // A sender that is gone stops it just as well.
                    drop(stopped.await);
                    Ok(())
                })
            })?;
        Ok(Self { stop, thread })
    }

    /// Lets the tasks run as long as the process.
    pub(super) fn detach(self) {
        std::mem::forget(self.stop);
    }

    /// Ends the tasks, wherever they are, and the thread.
    ///
    /// # Errors
    ///
    /// The tasks could not begin, or one panicked the thread.
    pub(super) fn stop(self) -> io::Result<()> {
        // It may have ended by itself.
        self.stop.send(()).unwrap_or(());
        self.thread
            .join()
            .unwrap_or_else(|_panic| Err(io::Error::other("the thread panicked")))
    }
}
