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
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn place(name: &str) -> Place {
        Place::new(Path::new(""), name)
    }

    fn parts(number: usize) -> Vec<Vec<u8>> {
        vec![number.to_string().into_bytes()]
    }

    fn write(orders: &mut Orders, now: Instant) -> Job {
        match orders.next(now) {
            Next::Write(job) => job,
            other => panic!("there is something to write: {other:?}"),
        }
    }

    fn path_of(job: &Job) -> &Path {
        match job {
            Job::Whole(file) => file.place.path(),
            Job::Lines(_) => panic!("a file is next"),
        }
    }

    /// The newest content used to be lost when 64 orders waited; what was older was in force again after
    /// a restart.
    #[test]
    fn the_newest_content_of_a_file_waits_however_many_were_ordered() {
        let mut orders = Orders::default();
        let dones: Vec<Done> = (0..1000)
            .map(|number| orders.put_file(&place("a"), parts(number)))
            .collect();
        let Job::Whole(file) = write(&mut orders, Instant::now()) else {
            panic!("a file was ordered");
        };
        assert_eq!(file.parts, parts(999));
        orders.kept(Job::Whole(file));
        for mut done in dones {
            assert_eq!(done.try_recv(), Ok(true));
        }
        assert!(orders.is_all_kept());
    }

    /// What failed used to be tried again only after two seconds of silence.
    #[test]
    fn what_failed_is_tried_again_by_the_clock_though_other_orders_come_all_the_time() {
        let (mut orders, began) = (Orders::default(), Instant::now());
        let mut done = orders.put_file(&place("rules"), parts(0));
        let job = write(&mut orders, began);
        orders.failed(job, began);
        assert_eq!(done.try_recv(), Ok(false));
        let mut tried = Vec::new();
        for step in 1..=9 {
            let now = began + Duration::from_millis(500) * step;
            drop(orders.put_file(&place("incidents"), parts(1)));
            while let Next::Write(job) = orders.next(now) {
                if path_of(&job) == Path::new("rules") {
                    tried.push(step);
                    orders.failed(job, now);
                } else {
                    orders.kept(job);
                }
            }
        }
        assert_eq!(tried, [4, 8]);
        assert_eq!(orders.unkept(), ["rules"]);
    }

    #[test]
    fn who_waits_for_a_content_that_failed_is_told_of_the_newer_one() {
        let (mut orders, now) = (Orders::default(), Instant::now());
        let mut older = orders.put_file(&place("a"), parts(0));
        let job = write(&mut orders, now);
        let mut newer = orders.put_file(&place("a"), parts(1));
        orders.failed(job, now);
        assert!(older.try_recv().is_err(), "nothing is known yet");
        let job = write(&mut orders, now);
        orders.kept(job);
        assert_eq!((older.try_recv(), newer.try_recv()), (Ok(true), Ok(true)));
    }

    #[test]
    fn lines_are_bounded_by_number_and_bytes_and_the_bound_counts_those_under_way() {
        let mut orders = Orders::default();
        for _ in 0..LINES_MAX {
            assert!(orders.put_line(String::new()).is_some());
        }
        let job = write(&mut orders, Instant::now());
        assert!(orders.put_line(String::new()).is_none());
        orders.kept(job);
        assert!(orders.put_line("x".repeat(LINE_BYTES_MAX)).is_some());
        assert!(orders.put_line("x".to_owned()).is_none());
        let job = write(&mut orders, Instant::now());
        orders.kept(job);
        assert!(orders.put_line("x".to_owned()).is_some());
    }

    #[test]
    fn at_the_end_all_is_tried_once_more_and_then_it_is_said_what_is_lost() {
        let (mut orders, now) = (Orders::default(), Instant::now());
        drop(orders.put_file(&place("a"), parts(0)));
        drop(orders.put_line("line".to_owned()));
        for is_last in [false, true] {
            if is_last {
                orders.end();
            }
            // A disk that is slow, too: what fails here comes after its next time.
            for step in 0..2 {
                let now = now + Duration::from_mins(step);
                let job = write(&mut orders, now);
                orders.failed(job, now);
            }
        }
        let end = orders.next(now + Duration::from_mins(2));
        assert!(matches!(end, Next::End), "{end:?}");
        assert_eq!(orders.unkept(), ["a", "1 lines of the audit trail"]);
    }

    #[test]
    fn a_disk_that_hangs_does_not_make_the_waiters_more_and_more() {
        let mut orders = Orders::default();
        for number in 0..100 {
            drop(orders.put_file(&place("a"), parts(number)));
        }
        assert_eq!(orders.files.values().next().unwrap().waiters.len(), 1);
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        File(u8),
        Line,
        Write,
        Settle(bool),
        Pass(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..3_u8).prop_map(Step::File),
            Just(Step::Line),
            Just(Step::Write),
            any::<bool>().prop_map(Step::Settle),
            (0..3000_u64).prop_map(Step::Pass),
        ]
    }

    /// A disk beside a list of all that was ever ordered.
    #[derive(Default)]
    struct Disk {
        files: BTreeMap<PathBuf, usize>,
        lines: Vec<usize>,
    }

    impl Disk {
        fn write(&mut self, job: &Job) {
            match job {
                Job::Whole(file) => {
                    let number = String::from_utf8(file.parts.concat()).unwrap();
                    self.files
                        .insert(file.place.path().to_owned(), number.parse().unwrap());
                }
                Job::Lines(lines) => {
                    let numbers = lines.iter().map(|line| line.text.parse::<usize>().unwrap());
                    self.lines.extend(numbers);
                }
            }
        }
    }

    proptest! {
        /// Whoever was told so finds it on the disk, nothing that was ordered is lost, and lines are there
        /// once and in order.
        #[test]
        fn what_is_told_is_true_and_in_the_end_all_is_there(
            steps in proptest::collection::vec(step(), 0..200)
        ) {
            let (mut orders, mut now) = (Orders::default(), Instant::now());
            let mut disk = Disk::default();
            let mut last: BTreeMap<PathBuf, usize> = BTreeMap::new();
            let mut ordered_lines = Vec::new();
            let mut file_waits: Vec<(PathBuf, usize, Done)> = Vec::new();
            let mut line_waits: Vec<(usize, Done)> = Vec::new();
            let mut under_way: Option<Job> = None;
            for (number, step) in steps.into_iter().enumerate() {
                match step {
                    Step::File(file) => {
                        let path = PathBuf::from(file.to_string());
                        let done = orders.put_file(&place(&file.to_string()), parts(number));
                        last.insert(path.clone(), number);
                        file_waits.push((path, number, done));
                    }
                    Step::Line => {
                        line_waits.push((number, orders.put_line(number.to_string()).unwrap()));
                        ordered_lines.push(number);
                    }
                    Step::Write if under_way.is_none() => {
                        if let Next::Write(job) = orders.next(now) {
                            under_way = Some(job);
                        }
                    }
                    Step::Write => {}
                    Step::Settle(is_good) => match under_way.take() {
                        Some(job) if is_good => {
                            disk.write(&job);
                            orders.kept(job);
                        }
                        Some(job) => orders.failed(job, now),
                        None => {}
                    },
                    Step::Pass(millis) => now += Duration::from_millis(millis),
                }
                for (path, number, done) in &mut file_waits {
                    if done.try_recv() == Ok(true) {
                        prop_assert!(disk.files.get(path) >= Some(number));
                    }
                }
                for (number, done) in &mut line_waits {
                    if done.try_recv() == Ok(true) {
                        prop_assert!(disk.lines.contains(number));
                    }
                }
                prop_assert_eq!(
                    orders.is_all_kept(),
                    disk.files == last && disk.lines == ordered_lines && under_way.is_none()
                );
            }
            if let Some(job) = under_way {
                orders.failed(job, now);
            }
            orders.end();
            while let Next::Write(job) = orders.next(now) {
                disk.write(&job);
                orders.kept(job);
            }
            prop_assert_eq!(disk.files, last);
            prop_assert_eq!(disk.lines, ordered_lines);
            prop_assert!(orders.is_all_kept());
        }
    }
}
