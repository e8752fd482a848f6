//! The access log: JSON lines, written by a thread of its own.
//!
//! Workers collect lines and hand over whole chunks. When the disk is slower than the traffic, lines
//! are dropped and counted; a request never waits for a log.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{
    Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError, sync_channel,
};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::metrics::Metrics;
use crate::settings::AccessLog as Target;

/// The most chunks that wait for the writer: 16 × 256 KiB = 4 MiB.
const CHUNKS_MAX: usize = 16;
/// A chunk is handed over when it is longer than this, and at the latest at the next flush.
const CHUNK_BYTES: usize = 256 * 1024;

/// The thread that writes, to be waited for when all senders are gone.
#[derive(Debug)]
struct AccessLogWriter {
    /// Disconnected when the thread has ended.
    ended: Receiver<()>,
}

/// How long the end of the process waits for the rest of the log.
const LAST_LINES_TIMEOUT: Duration = Duration::from_secs(1);

impl AccessLogWriter {
    fn is_running(&self) -> bool {
        self.ended.try_recv() == Err(TryRecvError::Empty)
    }

    fn join(self) {
        if let Err(RecvTimeoutError::Timeout) = self.ended.recv_timeout(LAST_LINES_TIMEOUT) {
            tracing::warn!("nobody takes the access log; its last lines are lost");
        }
    }
}

/// Opens access logs, and waits for their writers in the end.
#[derive(Clone, Debug)]
pub struct AccessLogs {
    metrics: Arc<Metrics>,
    writers: Arc<Mutex<Vec<AccessLogWriter>>>,
}

impl AccessLogs {
    /// Begins with none.
    pub fn new(metrics: &Arc<Metrics>) -> Self {
        Self {
            metrics: Arc::clone(metrics),
            writers: Arc::default(),
        }
    }

    /// Opens an access log.
    ///
    /// # Errors
    ///
    /// The file cannot be opened, or the thread not started.
    pub fn open(&self, target: &Target) -> io::Result<AccessLogSender> {
        let output: Box<dyn Write + Send> = match target {
            Target::Off => return Ok(AccessLogSender { chunks: None }),
            Target::Stdout => Box::new(io::stdout()),
            Target::File(path) => Box::new(LogFile::open(path)?),
        };
        let (chunks, waiting) = sync_channel(CHUNKS_MAX);
        let metrics = Arc::clone(&self.metrics);
        let (ends, ended) = sync_channel::<()>(0);
        std::thread::Builder::new()
            .name("access-log".into())
            .spawn(move || {
                write_all(&waiting, output, &metrics);
                drop(ends);
            })?;
        let mut writers = self.writers.lock();
        // Of logs that were replaced, those that are written are forgotten.
        writers.retain(AccessLogWriter::is_running);
        writers.push(AccessLogWriter { ended });
        Ok(AccessLogSender {
            chunks: Some(chunks),
        })
    }

    /// Waits until everything that was handed over is written, or until it is clear that nobody takes
    /// it. All [`AccessLog`]s and [`AccessLogSender`]s must be dropped.
    pub fn join(&self) {
        for writer in self.writers.lock().drain(..) {
            writer.join();
        }
    }
}

/// A file that is appended to, under its name: moved away, it is opened anew.
struct LogFile {
    path: PathBuf,
    file: File,
    looked: Instant,
}

/// How often is looked whether the file was moved away.
const LOOK_EVERY: Duration = Duration::from_secs(1);

impl LogFile {
    fn open(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            file: File::options().create(true).append(true).open(path)?,
            looked: Instant::now(),
        })
    }

    /// Returns whether the file does not stand under its name any more.
    fn was_moved(&self) -> bool {
        let Ok(open) = self.file.metadata() else {
            return false;
        };
        match std::fs::metadata(&self.path) {
            Ok(named) => (named.dev(), named.ino()) != (open.dev(), open.ino()),
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
    }
}

impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.looked.elapsed() >= LOOK_EVERY {
            self.looked = Instant::now();
            if self.was_moved() {
                *self = Self::open(&self.path)?;
            }
        }
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn write_all(waiting: &Receiver<Vec<u8>>, mut output: Box<dyn Write + Send>, metrics: &Metrics) {
    let mut failing = false;
    for chunk in waiting {
        match output.write_all(&chunk).and_then(|()| output.flush()) {
            Ok(()) => failing = false,
            Err(error) => {
                metrics.access_log_dropped_total.inc_by(lines(&chunk));
                if !failing {
                    tracing::error!(
                        %error,
                        "the access log cannot be written; lines are dropped and counted until it can"
                    );
                }
                failing = true;
            }
        }
    }
}

/// Counts the lines of a chunk; each ends with a line feed.
fn lines(chunk: &[u8]) -> u64 {
    chunk.split_inclusive(|byte| *byte == b'\n').count() as u64
}

/// Makes the workers' ends of the access log.
#[derive(Clone, Debug)]
pub struct AccessLogSender {
    chunks: Option<SyncSender<Vec<u8>>>,
}

impl AccessLogSender {
    /// Makes a worker's end.
    pub(crate) fn worker(&self, metrics: &Arc<Metrics>) -> AccessLog {
        AccessLog {
            chunks: self.chunks.clone(),
            collected: Vec::new(),
            metrics: Arc::clone(metrics),
        }
    }
}

/// A worker's end: collects lines.
#[derive(Debug)]
pub(crate) struct AccessLog {
    chunks: Option<SyncSender<Vec<u8>>>,
    collected: Vec<u8>,
    metrics: Arc<Metrics>,
}

impl AccessLog {
    /// Returns whether lines go anywhere.
    pub(crate) fn is_on(&self) -> bool {
        self.chunks.is_some()
    }

    /// Takes a line, newline included.
    pub(crate) fn line(&mut self, line: &[u8]) {
        if self.chunks.is_none() {
            return;
        }
        self.collected.extend_from_slice(line);
        if self.collected.len() >= CHUNK_BYTES {
            self.flush();
        }
    }

    /// Hands over what is collected; drops and counts it when the writer is behind.
    pub(crate) fn flush(&mut self) {
        let Some(chunks) = &self.chunks else { return };
        if self.collected.is_empty() {
            return;
        }
        let next = Vec::with_capacity(self.collected.len().min(CHUNK_BYTES) + 1024);
        let chunk = std::mem::replace(&mut self.collected, next);
        if let Err(TrySendError::Full(chunk) | TrySendError::Disconnected(chunk)) =
            chunks.try_send(chunk)
        {
            self.metrics.access_log_dropped_total.inc_by(lines(&chunk));
        }
    }
}

/// Requests that the end of a drain cuts off write their lines when their worker is gone.
impl Drop for AccessLog {
    fn drop(&mut self) {
        self.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk that takes nothing until it is told to.
    struct Stuck(Receiver<()>);

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.recv().map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_stuck_disk_costs_lines_and_no_time() {
        let metrics = Arc::new(Metrics::new());
        let (chunks, waiting) = sync_channel(CHUNKS_MAX);
        let (unstick, stuck) = std::sync::mpsc::channel();
        let writer_metrics = Arc::clone(&metrics);
        let thread = std::thread::spawn(move || {
            write_all(&waiting, Box::new(Stuck(stuck)), &writer_metrics);
        });
        let mut log = AccessLogSender {
            chunks: Some(chunks),
        }
        .worker(&metrics);
        for _ in 0..CHUNKS_MAX + 10 {
            log.line(b"{}\n");
            log.flush();
        }
        let dropped = metrics.access_log_dropped_total.get();
        assert!((9..=10).contains(&dropped), "{dropped} lines were dropped");
        drop(log);
        drop(unstick);
        thread.join().unwrap();
    }
}
