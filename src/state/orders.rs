//! What waits to be written under `state`: of each file the newest content, and lines of the audit trail.
//! Knows nothing of disks and threads.
//!
//! A content that could not be written waits until it is tried again, or until a newer one takes its
//! place. So memory is bounded by the number of files, however long a disk takes nothing, and nothing
//! that was ordered is lost but by a newer word on the same.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::place::Place;

/// How often what failed is tried again.
const RETRY_EVERY: Duration = Duration::from_secs(2);

/// The most lines of the audit trail that wait, and the most bytes of them. A line holds a rule twice at
/// most, before and after: some sixty changes of the longest rules (64 KiB), a thousand of usual ones.
pub(super) const LINES_MAX: usize = 1000;
const LINE_BYTES_MAX: usize = 8 << 20;

/// Tells whether an order has come to the disk.
pub type Done = oneshot::Receiver<bool>;

type Waiter = oneshot::Sender<bool>;

/// What waits.
#[derive(Debug, Default)]
pub(super) struct Orders {
    files: BTreeMap<PathBuf, Whole>,
    lines: Vec<Line>,
    /// Whether one of them was not tried yet.
    are_lines_new: bool,
    /// Lines and their bytes, those that are being written included.
    lines_held: usize,
    bytes_held: usize,
    under_way: Option<UnderWay>,
    retry_at: Option<Instant>,
    number: u64,
    is_ending: bool,
    has_ended: bool,
}

/// A file, whole.
#[derive(Debug)]
struct Whole {
    place: Place,
    parts: Vec<Vec<u8>>,
    waiters: Vec<Waiter>,
    /// When it was ordered first: the oldest is written first, however often it is ordered again.
    number: u64,
    is_new: bool,
}

/// A line of the audit trail, without its end.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) text: String,
    waiter: Option<Waiter>,
}

#[derive(Debug)]
enum UnderWay {
    Whole(PathBuf),
    Lines(usize),
}

/// What is to be done now.
#[derive(Debug)]
pub(super) enum Next {
    /// To write this, and to say how that went.
    Write(Job),
    /// To wait for an order, so long at most.
    Wait(Option<Duration>),
    /// To end.
    End,
}

/// What is to be written.
#[derive(Debug)]
pub(super) enum Job {
    /// A file, whole.
    Whole(WholeFile),
    /// Lines of the audit trail.
    Lines(Vec<Line>),
}

/// A file to be written, and who waits for it.
#[derive(Debug)]
pub(super) struct WholeFile {
    pub(super) place: Place,
    pub(super) parts: Vec<Vec<u8>>,
    waiters: Vec<Waiter>,
    number: u64,
}

impl Orders {
    /// Has a file written. What waits for the same file is not written any more; who waits for that is
    /// told when this is on the disk.
    pub(super) fn put_file(&mut self, place: &Place, parts: Vec<Vec<u8>>) -> Done {
        let (waiter, done) = oneshot::channel();
        self.number += 1;
        let whole = self.files.entry(place.path().to_owned()).or_insert(Whole {
            place: place.clone(),
            parts: Vec::new(),
            waiters: Vec::new(),
            number: self.number,
            is_new: true,
        });
        whole.parts = parts;
        whole.is_new = true;
        // Most do not wait for an answer, or not for long: a disk that hangs must not make this grow.
        whole.waiters.retain(|waiter| !waiter.is_closed());
        whole.waiters.push(waiter);
        done
    }

    /// Has a line added to the audit trail; `None` where there is no room for it.
    pub(super) fn put_line(&mut self, text: String) -> Option<Done> {
        let bytes = self.bytes_held + text.len();
        if self.lines_held >= LINES_MAX || bytes > LINE_BYTES_MAX {
            return None;
        }
        self.lines_held += 1;
        self.bytes_held = bytes;
        let (waiter, done) = oneshot::channel();
        self.lines.push(Line {
            text,
            waiter: Some(waiter),
        });
        self.are_lines_new = true;
        Some(done)
    }

    /// Has everything that waits tried once more, and no more after that.
    pub(super) fn end(&mut self) {
        self.is_ending = true;
        self.renew();
    }

    /// Returns what is to be done now. One thing at a time: [`Self::kept`] or [`Self::failed`] comes next.
    pub(super) fn next(&mut self, now: Instant) -> Next {
        if !self.is_ending && self.retry_at.is_some_and(|at| at <= now) {
            self.renew();
        }
        // A change without its line would be worse than a line without its change.
        if self.are_lines_new && !self.lines.is_empty() {
            self.are_lines_new = false;
            self.under_way = Some(UnderWay::Lines(self.lines.len()));
            return Next::Write(Job::Lines(std::mem::take(&mut self.lines)));
        }
        let new = self.files.iter().filter(|(_, whole)| whole.is_new);
        let oldest = new.min_by_key(|(_, whole)| whole.number);
        let path = oldest.map(|(path, _)| path.clone());
        if let Some((path, whole)) = path.and_then(|path| self.files.remove_entry(&path)) {
            self.under_way = Some(UnderWay::Whole(path));
            return Next::Write(Job::Whole(WholeFile {
                place: whole.place,
                parts: whole.parts,
                waiters: whole.waiters,
                number: whole.number,
            }));
        }
        if self.is_ending {
            self.has_ended = true;
            return Next::End;
        }
        let wait = self.retry_at.map(|at| at.saturating_duration_since(now));
        Next::Wait(wait)
    }

    fn renew(&mut self) {
        self.retry_at = None;
        self.are_lines_new = true;
        for whole in self.files.values_mut() {
            whole.is_new = true;
        }
    }

    /// Notes that something is on the disk.
    pub(super) fn kept(&mut self, job: Job) {
        self.under_way = None;
        match job {
            Job::Whole(file) => tell(file.waiters, true),
            Job::Lines(lines) => {
                self.lines_held -= lines.len();
                self.bytes_held -= lines.iter().map(|line| line.text.len()).sum::<usize>();
                tell(lines.into_iter().filter_map(|line| line.waiter), true);
            }
        }
    }

    /// Notes that something could not be written. It waits, unless there is a newer word by now.
    pub(super) fn failed(&mut self, job: Job, now: Instant) {
        self.under_way = None;
        self.retry_at.get_or_insert(now + RETRY_EVERY);
        match job {
            Job::Whole(mut file) => {
                if let Some(newer) = self.files.get_mut(file.place.path()) {
                    newer.waiters.append(&mut file.waiters);
                    newer.number = file.number;
                    return;
                }
                tell(file.waiters, false);
                let path = file.place.path().to_owned();
                let whole = Whole {
                    place: file.place,
                    parts: file.parts,
                    waiters: Vec::new(),
                    number: file.number,
                    is_new: false,
                };
                self.files.insert(path, whole);
            }
            Job::Lines(mut lines) => {
                tell(
                    lines.iter_mut().filter_map(|line| line.waiter.take()),
                    false,
                );
                lines.append(&mut self.lines);
                self.lines = lines;
            }
        }
    }

    /// Returns whether a content of this file is being written, or will be next.
    pub(super) fn is_busy_with(&self, path: &Path) -> bool {
        let is_under_way =
            matches!(&self.under_way, Some(UnderWay::Whole(written)) if written == path);
        is_under_way || self.files.get(path).is_some_and(|whole| whole.is_new)
    }

    /// Returns whether it was said that nothing is to be done any more.
    pub(super) fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Returns whether something is being written.
    #[cfg(test)]
    pub(super) fn is_under_way(&self) -> bool {
        self.under_way.is_some()
    }

    /// Returns whether everything that was ordered is on the disk.
    pub(super) fn is_all_kept(&self) -> bool {
        self.files.is_empty() && self.lines.is_empty() && self.under_way.is_none()
    }

    /// Says what is not on the disk.
    pub(super) fn unkept(&self) -> Vec<String> {
        let (written, lines) = match &self.under_way {
            Some(UnderWay::Whole(path)) => (Some(path), 0),
            Some(UnderWay::Lines(lines)) => (None, *lines),
            None => (None, 0),
        };
        let waiting = self.files.keys().filter(|path| Some(*path) != written);
        let files = written.into_iter().chain(waiting);
        let mut unkept: Vec<String> = files.map(|path| path.display().to_string()).collect();
        let lines = lines + self.lines.len();
        if lines > 0 {
            unkept.push(format!("{lines} lines of the audit trail"));
        }
        unkept
    }
}

fn tell(waiters: impl IntoIterator<Item = Waiter>, is_kept: bool) {
    for waiter in waiters {
        if waiter.send(is_kept).is_err() {
            tracing::debug!("who asked for something to be kept waits no more");
        }
    }
}

#[cfg(test)]
mod tests;
