//! Writes what is kept under `state`, on a thread of its own: a slow disk delays no tick and no answer
//! longer than whoever asks is ready to wait.
//!
//! What could not be written is tried again until it can: a full disk costs durability as long as it is
//! full, and nothing else. Until then `tidegate_state_writable` is 0.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::audit::AuditFile;
use super::kept::KeptFile;
use super::{DetectorFile, write_whole};
use crate::metrics::Metrics;

/// The most orders that wait. One beyond is answered at once as not written.
const WAITING_MAX: usize = 64;

/// How often what failed is tried again.
const RETRY_EVERY: Duration = Duration::from_secs(2);

/// How long the end of the process waits for the disk. With the drain's 30 s and the access log's 1 s it
/// is less than the 35 s that the unit gives.
const LAST_WRITES_TIMEOUT: Duration = Duration::from_secs(3);
/// How often it is looked meanwhile whether another order may wait.
const ROOM_EVERY: Duration = Duration::from_millis(20);

/// Tells whether an order has come to the disk.
pub type Done = oneshot::Receiver<bool>;

/// What is to be written.
#[derive(Debug)]
enum Job {
    /// A file, whole; a later one takes its place.
    Whole(PathBuf, Vec<Vec<u8>>),
    /// A line of the audit trail.
    Audit(String),
    /// Ends the thread.
    End,
}

#[derive(Debug)]
struct Order {
    job: Job,
    done: Option<oneshot::Sender<bool>>,
}

/// The hand of the control side.
#[derive(Debug)]
pub struct StateWriter {
    orders: SyncSender<Order>,
    thread: JoinHandle<()>,
    /// Disconnected when the thread has ended.
    ended: Receiver<()>,
    detector: DetectorFile,
    /// Whether a snapshot of the detector waits; it is large, and one at a time is enough.
    snapshot_waits: Arc<AtomicBool>,
    metrics: Arc<Metrics>,
}

impl StateWriter {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// The system has no thread to give.
    pub fn start(
        detector: DetectorFile,
        audit: AuditFile,
        metrics: &Arc<Metrics>,
    ) -> io::Result<Self> {
        let (orders, waiting) = sync_channel(WAITING_MAX);
        let snapshot_waits = Arc::new(AtomicBool::new(false));
        metrics.state_writable.set(1);
        let mut work = Work {
            audit,
            metrics: Arc::clone(metrics),
            failed: BTreeMap::new(),
            snapshot: detector.path().to_owned(),
            snapshot_waits: Arc::clone(&snapshot_waits),
        };
        let (ends, ended) = sync_channel::<()>(0);
        let thread = std::thread::Builder::new()
            .name("state".into())
            .spawn(move || {
                work.run(&waiting);
                drop(ends);
            })?;
        Ok(Self {
            orders,
            thread,
            ended,
            detector,
            snapshot_waits,
            metrics: Arc::clone(metrics),
        })
    }

    /// Has a file written, whole.
    pub fn write(&self, file: &KeptFile, content: &[u8]) -> Done {
        let parts = file.parts(content);
        self.order(Job::Whole(file.path().to_owned(), parts))
    }

    /// Has a line added to the audit trail.
    pub fn audit(&self, line: String) -> Done {
        self.order(Job::Audit(line))
    }

    /// Has a snapshot of the detector written; it is left out while the last one is being written.
    pub fn snapshot(&self, make: impl FnOnce() -> Vec<u8>) {
        if self.snapshot_waits.swap(true, Ordering::AcqRel) {
            tracing::debug!("the last snapshot of the detector is still being written");
            return;
        }
        let parts = self.detector.parts(make());
        // Whether it came to the disk is seen in the metrics.
        drop(self.order(Job::Whole(self.detector.path().to_owned(), parts)));
    }

    fn order(&self, job: Job) -> Done {
        let (done, answer) = oneshot::channel();
        let order = Order {
            job,
            done: Some(done),
        };
        if self.orders.try_send(order).is_err() {
            self.metrics.state_write_failures_total.inc();
            self.metrics.state_writable.set(0);
        }
        answer
    }

    /// Writes a last snapshot and waits until everything is on the disk, or until it is clear that the disk
    /// takes nothing.
    pub fn finish(self, snapshot: Vec<u8>) {
        self.finish_until(snapshot, Instant::now() + LAST_WRITES_TIMEOUT);
    }

    fn finish_until(self, snapshot: Vec<u8>, until: Instant) {
        let parts = self.detector.parts(snapshot);
        let jobs = [Job::Whole(self.detector.path().to_owned(), parts), Job::End];
        let is_written = jobs.into_iter().all(|job| self.order_until(job, until))
            && self.has_ended(until)
            && self.thread.join().is_ok();
        if !is_written {
            tracing::error!("the last snapshot of the detector was not written");
        }
    }

    /// Gives an order as soon as it may wait. False: there was no room until then.
    fn order_until(&self, job: Job, until: Instant) -> bool {
        let mut order = Order { job, done: None };
        loop {
            order = match self.orders.try_send(order) {
                Ok(()) => return true,
                Err(TrySendError::Full(order)) if Instant::now() < until => order,
                Err(_) => return false,
            };
            std::thread::sleep(ROOM_EVERY);
        }
    }

    fn has_ended(&self, until: Instant) -> bool {
        let left = until.saturating_duration_since(Instant::now());
        self.ended.recv_timeout(left) == Err(RecvTimeoutError::Disconnected)
    }
}

/// What the thread has to do.
struct Work {
    audit: AuditFile,
    metrics: Arc<Metrics>,
    /// What could not be written, by file.
    failed: BTreeMap<PathBuf, Vec<Vec<u8>>>,
    snapshot: PathBuf,
    snapshot_waits: Arc<AtomicBool>,
}

impl Work {
    fn run(&mut self, waiting: &Receiver<Order>) {
        loop {
            match waiting.recv_timeout(RETRY_EVERY) {
                Ok(Order { job: Job::End, .. }) | Err(RecvTimeoutError::Disconnected) => break,
                Ok(Order { job, done }) => {
                    let written = self.act(job);
                    if done.is_some_and(|done| done.send(written).is_err()) {
                        tracing::debug!("who asked for something to be kept waits no more");
                    }
                }
                Err(RecvTimeoutError::Timeout) => self.try_again(),
            }
        }
        self.try_again();
    }

    fn act(&mut self, job: Job) -> bool {
        match job {
            Job::Whole(path, parts) => {
                if path == self.snapshot {
                    self.snapshot_waits.store(false, Ordering::Release);
                }
                self.failed.remove(&path);
                self.write(path, parts)
            }
            Job::Audit(line) => {
                let written = self.audit.append(line);
                self.tell(written.map_err(|error| (self.audit.path().to_owned(), error)))
            }
            Job::End => true,
        }
    }

    fn write(&mut self, path: PathBuf, parts: Vec<Vec<u8>>) -> bool {
        let slices: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        let written = write_whole(&path, &slices);
        let failed = written.is_err();
        let told = self.tell(written.map_err(|error| (path.clone(), error)));
        if failed {
            self.failed.insert(path, parts);
        }
        told
    }

    fn try_again(&mut self) {
        if self.failed.is_empty() && !self.audit.is_behind() {
            return;
        }
        for (path, parts) in std::mem::take(&mut self.failed) {
            if self.write(path.clone(), parts) {
                tracing::info!(path = %path.display(), "what could not be kept is kept now");
            }
        }
        let caught_up = self.audit.catch_up();
        self.tell(caught_up.map_err(|error| (self.audit.path().to_owned(), error)));
    }

    fn tell(&self, written: Result<(), (PathBuf, io::Error)>) -> bool {
        match written {
            Ok(()) => {
                let all = self.failed.is_empty() && !self.audit.is_behind();
                self.metrics.state_writable.set(i64::from(all));
                true
            }
            Err((path, error)) => {
                self.metrics.state_write_failures_total.inc();
                // Said once, when it begins; the gauge says the rest.
                if self.metrics.state_writable.get() != 0 {
                    tracing::error!(
                        path = %path.display(),
                        %error,
                        "the state folder cannot be written: what changes now is in force and lost by a \
                         restart; make room or check who may write there"
                    );
                }
                self.metrics.state_writable.set(0);
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, OpenOptions};

    use rustix::fs::{CWD, FileType, Mode, mknodat};
    use tidegate_engine::request::HashKey;

    use super::super::draft_of;
    use super::*;

    fn writer_in(folder: &std::path::Path) -> StateWriter {
        let detector = DetectorFile::new(folder, &HashKey::from_seed(1));
        let metrics = Arc::new(Metrics::new());
        StateWriter::start(detector, AuditFile::new(folder), &metrics).unwrap()
    }

    #[test]
    fn the_end_does_not_wait_for_a_disk_that_takes_nothing() {
        let folder = std::env::temp_dir().join(format!("tidegate-writer-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        // Whoever opens a pipe for writing waits for a reader.
        let writer = writer_in(&folder);
        let pipe = draft_of(writer.detector.path(), std::process::id());
        mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        writer.snapshot(|| vec![1]);
        writer.finish_until(vec![2], Instant::now());
        // A pipe that is open both ways lets the thread go.
        drop(
            OpenOptions::new()
                .read(true)
                .write(true)
                .open(&pipe)
                .unwrap(),
        );

        let other = folder.join("other");
        fs::create_dir_all(&other).unwrap();
        let writer = writer_in(&other);
        let path = writer.detector.path().to_owned();
        writer.finish(vec![3]);
        assert_eq!(fs::read(path).unwrap().last(), Some(&3));
        fs::remove_dir_all(&folder).unwrap();
    }
}
