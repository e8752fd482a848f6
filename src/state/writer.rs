//! Writes what is kept under `state`, on a thread of its own: a slow disk delays no tick and no answer
//! longer than whoever asks is ready to wait. What waits is the business of [`super::orders`].
//!
//! What could not be written is tried again until it can: a full disk costs durability as long as it is
//! full, and nothing else. Until then `tidegate_state_writable` is 0.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::DetectorFile;
use super::audit::AuditFile;
use super::kept::KeptFile;
use super::orders::{Done, Job, Next, Orders};
use crate::metrics::Metrics;

/// How long the thread that writes waits for an order before it looks again by itself.
const IDLE_LOOK: Duration = Duration::from_mins(1);
/// How long the end of the process waits for the disk. With 30 s for requests under way and 1 s for the
/// access log it is less than the 35 s that the service manager gives.
const FINISH_MAX: Duration = Duration::from_secs(3);

/// The hand of the control side.
#[derive(Debug)]
pub struct StateWriter {
    desk: Arc<Desk>,
    detector: DetectorFile,
}

/// Where the hand and the thread meet.
#[derive(Debug)]
struct Desk {
    orders: Mutex<Orders>,
    /// Something was ordered, or the thread has ended.
    changed: Condvar,
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
        metrics.state_writable.set(1);
        let desk = Arc::new(Desk {
            orders: Mutex::default(),
            changed: Condvar::new(),
            metrics: Arc::clone(metrics),
        });
        let mut work = Work {
            desk: Arc::clone(&desk),
            audit,
            is_told: false,
        };
        // Nobody joins it: a disk may never answer.
        std::thread::Builder::new()
            .name("state".into())
            .spawn(move || work.run())?;
        Ok(Self { desk, detector })
    }

    /// Has a file written, whole. A content of it that still waits is written no more.
    pub fn write(&self, file: &KeptFile, content: &[u8]) -> Done {
        let parts = file.parts(content);
        self.desk
            .order(|orders| orders.put_file(file.place(), parts))
    }

    /// Has a line added to the audit trail; `None` where too many wait already.
    pub fn audit(&self, line: String) -> Option<Done> {
        let done = self.desk.order(|orders| orders.put_line(line));
        if done.is_none() {
            self.desk.metrics.state_audit_lines_lost_total.inc();
            tracing::error!(
                "a line of the audit trail is lost: the disk takes nothing, and too many wait already; \
                 make room or check who may write there"
            );
        }
        done
    }

    /// Has a snapshot of the detector written; it is large, and left out while the last one is being
    /// written.
    pub fn snapshot(&self, make: impl FnOnce() -> Vec<u8>) {
        let place = self.detector.place();
        if self.desk.orders.lock().is_busy_with(place.path()) {
            tracing::debug!("the last snapshot of the detector is still being written");
            return;
        }
        let parts = self.detector.parts(make());
        // Whether it came to the disk is seen in the metrics.
        drop(self.desk.order(|orders| orders.put_file(place, parts)));
    }

    /// Writes a last snapshot and waits until everything is on the disk, or for so long as the end of a
    /// process may take.
    pub fn finish(self, snapshot: Vec<u8>) {
        let lost = self.finish_within(snapshot, FINISH_MAX);
        if !lost.is_empty() {
            tracing::error!(
                lost = lost.join(", "),
                "the state folder took not all that was to be kept; the next start does not know of it"
            );
        }
    }

    /// Returns what was not written.
    fn finish_within(self, snapshot: Vec<u8>, at_most: Duration) -> Vec<String> {
        let parts = self.detector.parts(snapshot);
        let put = |orders: &mut Orders| orders.put_file(self.detector.place(), parts);
        drop(self.desk.order(put));
        self.desk.order(Orders::end);
        let mut orders = self.desk.orders.lock();
        let goes_on = |orders: &mut Orders| !orders.has_ended();
        let changed = &self.desk.changed;
        let waited = changed.wait_while_for(&mut orders, goes_on, at_most);
        if waited.timed_out() {
            tracing::error!("the disk under the state folder does not answer");
        }
        orders.unkept()
    }
}

impl Drop for StateWriter {
    fn drop(&mut self) {
        self.desk.order(Orders::end);
    }
}

impl Desk {
    /// Changes what waits, and the gauge with it.
    fn order<T>(&self, change: impl FnOnce(&mut Orders) -> T) -> T {
        let mut orders = self.orders.lock();
        let answer = change(&mut orders);
        let is_all_kept = orders.is_all_kept();
        self.metrics.state_writable.set(i64::from(is_all_kept));
        self.changed.notify_all();
        answer
    }

    /// Waits until there is something to be written; `None` at the end.
    fn next(&self) -> Option<Job> {
        let mut orders = self.orders.lock();
        loop {
            match orders.next(Instant::now()) {
                Next::Write(job) => return Some(job),
                Next::End => {
                    self.changed.notify_all();
                    return None;
                }
                Next::Wait(None) => {
                    self.changed.wait_for(&mut orders, IDLE_LOOK);
                }
                Next::Wait(Some(at_most)) => {
                    self.changed.wait_for(&mut orders, at_most);
                }
            }
        }
    }
}

/// What the thread has to do.
#[derive(Debug)]
struct Work {
    desk: Arc<Desk>,
    audit: AuditFile,
    /// Whether it was said that something cannot be written.
    is_told: bool,
}

impl Work {
    fn run(&mut self) {
        while let Some(job) = self.desk.next() {
            let written = match &job {
                Job::Whole(file) => {
                    let parts: Vec<&[u8]> = file.parts.iter().map(Vec::as_slice).collect();
                    file.place.write(&parts)
                }
                Job::Lines(lines) => {
                    let lines = lines.iter().map(|line| line.text.as_str());
                    self.audit.append(lines)
                }
            };
            match written {
                Ok(()) => self.kept(job),
                Err(error) => self.failed(job, &error),
            }
        }
    }

    fn kept(&mut self, job: Job) {
        let keep = |orders: &mut Orders| {
            orders.kept(job);
            orders.is_all_kept()
        };
        let is_all_kept = self.desk.order(keep);
        if is_all_kept && std::mem::take(&mut self.is_told) {
            tracing::info!("the state folder takes everything again; what waited is kept");
        }
    }

    fn failed(&mut self, job: Job, error: &io::Error) {
        let path = match &job {
            Job::Whole(file) => file.place.path(),
            Job::Lines(_) => self.audit.path(),
        };
        // Said once, when it begins; the gauge says the rest.
        if !self.is_told {
            tracing::error!(
                path = %path.display(),
                %error,
                "the state folder cannot be written: what changes now is in force and lost by a \
                 restart; make room or check who may write there"
            );
        }
        self.is_told = true;
        self.desk.metrics.state_write_failures_total.inc();
        self.desk.order(|orders| orders.failed(job, Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use tidegate_engine::request::HashKey;

    use super::*;
    use crate::state::orders::LINES_MAX;
    use crate::state::tests::folder;
    use crate::state::{Found, draft_of, last_lines};

    /// A writer whose thread waits for a disk that does not answer: a pipe that nobody reads.
    struct Hung {
        folder: PathBuf,
        metrics: Arc<Metrics>,
        writer: StateWriter,
        rules: KeptFile,
        pipe: PathBuf,
    }

    fn hung(name: &str) -> Hung {
        let folder = folder(name);
        let metrics = Arc::new(Metrics::new());
        let detector = DetectorFile::new(&folder, &HashKey::from_seed(1));
        let audit = AuditFile::new(&folder);
        let writer = StateWriter::start(detector, audit, &metrics).unwrap();
        let blocker = KeptFile::new(&folder, "blocker", "rules", 1);
        let pipe = draft_of(blocker.path(), std::process::id());
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        drop(writer.write(&blocker, b"0"));
        while !writer.desk.orders.lock().is_under_way() {
            std::thread::yield_now();
        }
        let rules = KeptFile::new(&folder, "rules.kept", "rules", 1);
        Hung {
            folder,
            metrics,
            writer,
            rules,
            pipe,
        }
    }

    impl Hung {
        /// Lets the disk answer, with an error the first time: a pipe cannot be synchronised.
        fn answer(&self) {
            drop(fs::File::open(&self.pipe).unwrap());
        }
    }

    /// Used to be lost for good beyond 64 orders, and said to be kept as soon as anything else was.
    #[test]
    fn what_is_ordered_while_the_disk_hangs_is_kept_when_it_answers() {
        let hung = hung("writer-newest");
        let write = |number: usize| {
            let content = number.to_string();
            hung.writer.write(&hung.rules, content.as_bytes())
        };
        let dones: Vec<Done> = (0..100).map(write).collect();
        let lines: Vec<Done> = (0..LINES_MAX)
            .map(|number| hung.writer.audit(format!("{{\"n\":{number}}}")).unwrap())
            .collect();
        assert!(hung.writer.audit("{\"n\":-1}".to_owned()).is_none());
        assert_eq!(hung.metrics.state_audit_lines_lost_total.get(), 1);
        assert_eq!(hung.metrics.state_writable.get(), 0);
        hung.answer();
        assert!(
            dones
                .into_iter()
                .all(|done| done.blocking_recv() == Ok(true))
        );
        assert!(
            lines
                .into_iter()
                .all(|done| done.blocking_recv() == Ok(true))
        );
        assert_eq!(hung.rules.read(), Found::Content(b"99".to_vec()));
        let (lines, damaged) = last_lines(&hung.folder, 2 * LINES_MAX).unwrap();
        assert_eq!((lines.len(), damaged), (LINES_MAX, 0));
        let lost = hung.writer.finish_within(Vec::new(), Duration::MAX);
        assert_eq!(lost, Vec::<String>::new());
        assert_eq!(hung.metrics.state_writable.get(), 1);
        fs::remove_dir_all(&hung.folder).unwrap();
    }

    /// Its order used to be dropped, and no other was made until the end.
    #[test]
    fn a_snapshot_is_left_out_only_while_another_waits() {
        let hung = hung("writer-snapshot");
        for number in 0..100_usize {
            drop(
                hung.writer
                    .write(&hung.rules, number.to_string().as_bytes()),
            );
        }
        hung.writer.snapshot(|| vec![1]);
        hung.writer.snapshot(|| panic!("one waits"));
        hung.answer();
        let path = hung.writer.detector.place().path().to_owned();
        while hung.writer.desk.orders.lock().is_busy_with(&path) {
            std::thread::yield_now();
        }
        let last = |path| fs::read(path).unwrap().last().copied();
        assert_eq!(last(&path), Some(1));
        hung.writer.snapshot(|| vec![2]);
        while hung.writer.desk.orders.lock().is_busy_with(&path) {
            std::thread::yield_now();
        }
        assert_eq!(last(&path), Some(2));
        hung.writer.finish_within(Vec::new(), Duration::MAX);
        fs::remove_dir_all(&hung.folder).unwrap();
    }

    /// SIGTERM used to wait for the disk without end.
    #[test]
    fn the_end_does_not_wait_for_a_disk_that_hangs_and_says_what_is_lost() {
        let hung = hung("writer-end");
        drop(hung.writer.write(&hung.rules, b"1"));
        drop(hung.writer.audit("{}".to_owned()));
        let lost = hung.writer.finish_within(Vec::new(), Duration::ZERO);
        let file = |name: &str| hung.folder.join(name).display().to_string();
        assert_eq!(
            lost,
            [
                file("blocker"),
                file("detector.state"),
                file("rules.kept"),
                "1 lines of the audit trail".to_owned()
            ]
        );
        fs::remove_dir_all(&hung.folder).unwrap();
    }
}
