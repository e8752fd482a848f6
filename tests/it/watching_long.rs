//! Files that change while the proxy runs, against the clock and for long: how soon they are in force, and
//! what is seen meanwhile. All of it is for `make soak`.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::harness::{Proxy, Upstream};
use super::watching::{GET, block, refused, start};

/// The longest time from a change on the disk until it is in force.
const IN_FORCE_WITHIN: Duration = Duration::from_secs(2);

/// Changes with which each way of writing is measured.
const CHANGES: usize = 20;

/// Statuses to tell one version of the rules from the next.
const STATUSES: [u16; 4] = [402, 404, 405, 406];

/// Puts a version of the rules into a folder.
type Write = fn(&Path, &str, usize);

fn in_place(folder: &Path, text: &str, _: usize) {
    fs::write(folder.join("rules.yaml"), text).expect("a folder of ours");
}

fn moved_over(folder: &Path, text: &str, _: usize) {
    fs::write(folder.join("new"), text).expect("a folder of ours");
    fs::rename(folder.join("new"), folder.join("rules.yaml")).expect("a folder of ours");
}

/// As Kubernetes does: the files are links through `..data`, which is swapped.
fn config_map(folder: &Path, text: &str, number: usize) {
    let version = format!("..version-{number}");
    fs::create_dir(folder.join(&version)).expect("a folder of ours");
    fs::write(folder.join(&version).join("rules.yaml"), text).expect("a folder of ours");
    symlink(&version, folder.join("..data_tmp")).expect("a folder of ours");
    fs::rename(folder.join("..data_tmp"), folder.join("..data")).expect("a folder of ours");
    let link = folder.join("rules.yaml");
    if !link.is_symlink() {
        fs::remove_file(&link).expect("a folder of ours");
        symlink("..data/rules.yaml", &link).expect("a folder of ours");
    }
}

#[test]
#[ignore = "a minute: make soak"]
fn however_a_file_is_written_it_is_in_force_within_two_seconds() {
    let upstream = Upstream::recording();
    let proxy = start(&upstream);
    let folder = proxy.folder.path().join("rules");
    let ways: [(&str, Write); 3] = [
        ("in place", in_place),
        ("moved over", moved_over),
        ("ConfigMap", config_map),
    ];
    for (way, write) in ways {
        let mut waits = Vec::new();
        for (number, status) in STATUSES.into_iter().cycle().take(CHANGES).enumerate() {
            let text = block(status);
            let began = Instant::now();
            write(&folder, &text, number);
            while proxy.ask(GET).status() != status {
                assert!(began.elapsed() < 4 * IN_FORCE_WITHIN, "{way}: not at all");
                std::thread::sleep(Duration::from_millis(2));
            }
            waits.push(began.elapsed());
            // Not in step with anything that looks once a second.
            std::thread::sleep(Duration::from_millis(37 * (number as u64 % 20)));
        }
        waits.sort_unstable();
        let median = waits.get(CHANGES / 2).copied().unwrap_or_default();
        let longest = waits.last().copied().unwrap_or_default();
        println!("{way}: in force after {median:.0?} (median), {longest:.0?} (longest)");
        assert!(longest < IN_FORCE_WITHIN, "{way}: {waits:?}");
    }
}

/// The statuses that may be seen now: of the version in force, and of one that is about to be.
struct Allowed {
    now: Mutex<Vec<u16>>,
    is_over: AtomicBool,
}

/// Ends the client, also when a test fails.
struct End<'a>(&'a Allowed);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::Relaxed);
    }
}

impl Allowed {
    fn now(&self) -> Vec<u16> {
        let now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        now.clone()
    }

    fn set(&self, statuses: &[u16]) {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        *now = statuses.to_vec();
    }

    /// Asks a hundred times a second, and returns how often.
    fn ask(&self, proxy: &Proxy) -> usize {
        let mut client = proxy.client();
        let mut asked = 0;
        while !self.is_over.load(Ordering::Relaxed) {
            let before = self.now();
            let status = client.exchange(GET).status();
            let after = self.now();
            let is_allowed = before.contains(&status) || after.contains(&status);
            assert!(is_allowed, "{status}, and neither {before:?} nor {after:?}");
            asked += 1;
            std::thread::sleep(Duration::from_millis(10));
        }
        asked
    }
}

/// What is bad every other second never counts: no request sees anything but what was good last, and the
/// alarm is up as long as the bad one is there.
#[test]
#[ignore = "five minutes: make soak"]
fn five_minutes_of_good_and_bad_files_in_turns_show_nothing_but_what_was_good_last() {
    const LASTS: Duration = Duration::from_mins(5);
    const EACH: Duration = Duration::from_secs(1);
    let upstream = Upstream::recording();
    let proxy = start(&upstream);
    let folder = proxy.folder.path().join("rules");
    let allowed = Allowed {
        now: Mutex::new(vec![401]),
        is_over: AtomicBool::new(false),
    };
    let alarm = || proxy.metric("tidegate_reload_last_successful") == 0;
    let began = Instant::now();
    let (asked, rounds) = std::thread::scope(|scope| {
        let end = End(&allowed);
        let client = scope.spawn(|| allowed.ask(&proxy));
        let (mut rounds, mut in_force) = (0, 401);
        let mut statuses = STATUSES.into_iter().cycle();
        while began.elapsed() < LASTS && !client.is_finished() {
            let write = [in_place, moved_over].into_iter().cycle().nth(rounds / 2);
            let write = write.expect("it has no end");
            rounds += 1;
            let turn = Instant::now();
            // Half of the bad ones are cut off in the middle of what comes next.
            let status = statuses.next().expect("it has no end");
            let good = block(status);
            let bad = match rounds % 2 {
                0 => good.replace("action: block", "action: blok"),
                _ => good.split_at(good.len() - 8).0.to_owned(),
            };
            write(&folder, &bad, rounds);
            refused(&proxy, "rules.yaml", in_force);
            assert!(turn.elapsed() < IN_FORCE_WITHIN, "{:?}", turn.elapsed());
            while turn.elapsed() < EACH {
                assert!(alarm(), "round {rounds}: the alarm is down too early");
                std::thread::sleep(Duration::from_millis(50));
            }
            let turn = Instant::now();
            allowed.set(&[in_force, status]);
            write(&folder, &good, rounds);
            while proxy.ask(GET).status() != status {
                assert!(turn.elapsed() < IN_FORCE_WITHIN, "round {rounds}");
                std::thread::sleep(Duration::from_millis(5));
            }
            allowed.set(&[status]);
            in_force = status;
            while alarm() {
                assert!(turn.elapsed() < IN_FORCE_WITHIN, "round {rounds}");
                std::thread::sleep(Duration::from_millis(5));
            }
            std::thread::sleep(EACH.saturating_sub(turn.elapsed()));
            assert!(!alarm(), "round {rounds}");
        }
        drop(end);
        (client.join().expect("it saw only what is allowed"), rounds)
    });
    println!("{rounds} good and {rounds} bad versions, {asked} requests");
    assert!(rounds > 100 && asked > 10_000, "{rounds}, {asked}");
    assert_eq!(proxy.metric("tidegate_panics_total"), 0);
    assert_eq!(
        proxy.metric("tidegate_reload_failures_total"),
        rounds as u64
    );
}
