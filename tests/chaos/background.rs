//! Threads with a runtime of their own, so that clients, upstreams and faults share nothing but
//! sockets. Ended with their owner.

use std::thread::JoinHandle;

use tokio::sync::oneshot;
use tokio::task::LocalSet;

/// A thread that runs tasks until it is dropped.
#[derive(Debug)]
pub(crate) struct Background {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Background {
    /// Starts a thread; `begin` starts its tasks with [`tokio::task::spawn_local`].
    pub(crate) fn start(name: &str, begin: impl FnOnce() + Send + 'static) -> Self {
        let (stop, stopped) = oneshot::channel();
        let thread = run(name, async move || {
            begin();
            // A sender that is gone stops it just as well.
            drop(stopped.await);
        });
        Self {
            stop: Some(stop),
            thread: Some(thread),
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "a task panicked");
        }
    }
}

/// Runs one future, and the tasks that it starts, on a thread of its own.
pub(crate) fn run<T: Send + 'static>(
    name: &str,
    begin: impl AsyncFnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    let work = move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        LocalSet::new().block_on(&runtime, begin())
    };
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .expect("a thread")
}
