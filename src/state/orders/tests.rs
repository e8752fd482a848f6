//! What waits, and what is told of it.

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
