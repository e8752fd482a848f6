//! Notices that the settings file or a rule file changed, reads and understands all of them, and hands
//! the result over to [`crate::control`], which puts it in force.
//!
//! A thread of its own does it: reading is as slow as the disk is, and the detector's tick must not
//! wait for it. At most one reload is under way and one waits, however fast files change.

mod bell;
mod files;
mod watch;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tidegate_engine::problem::Problems;
use tidegate_engine::rules::Rules;
use tokio::sync::mpsc;

pub use self::files::ConfigFiles;

use self::bell::{Bell, Rings};
use self::files::Look;
use self::watch::Watch;
use crate::settings::Settings;

/// How often files are looked at, whether or not the system told of a change.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long files stay as they are before they are read: whoever writes is done by then, mostly.
const QUIET: Duration = Duration::from_millis(200);
/// How long is waited for that at most; then they are read as they are.
const QUIET_WAIT_MAX: Duration = Duration::from_secs(1);
/// How far the thread that reads stands back: ten thousand rules are some 0.1 s of work.
const NICENESS: i32 = 15;

/// What was found in the files.
#[derive(Debug)]
pub enum Loaded {
    /// Something else than what is in force, and it is right.
    Changed {
        /// The rules.
        rules: Rules,
        /// The settings, where their file, or one of authorities that it names, says something else than
        /// before.
        settings: Option<Box<Settings>>,
    },
    /// Other rules, which are right, under settings as before but for a file of authorities that is wrong.
    RulesOnly {
        /// The rules.
        rules: Rules,
        /// What is wrong.
        problems: Problems,
        /// Whether an operator waits to hear of it.
        is_asked: bool,
    },
    /// What is in force already.
    Again,
    /// Something that is wrong.
    Refused {
        /// What is.
        problems: Problems,
        /// Whether an operator waits to hear of it.
        is_asked: bool,
    },
}

/// Has files read again. Dropped, it ends the thread.
#[derive(Debug)]
pub struct Reloader {
    bell: Arc<Bell>,
}

impl Reloader {
    /// Has the files read again though nobody saw a change. Asked again while one is under way, it is
    /// done once more.
    pub fn ask(&self) {
        self.bell.ask();
    }
}

impl Drop for Reloader {
    fn drop(&mut self) {
        self.bell.end();
    }
}

/// Begins to watch. What is read comes out of the channel.
///
/// # Errors
///
/// The system has no thread to give.
pub fn start(files: ConfigFiles) -> io::Result<(Reloader, mpsc::Receiver<Loaded>)> {
    let bell = Arc::new(Bell::default());
    let watch = Watch::start(&bell);
    begin(files, bell, watch)
}

fn begin(
    files: ConfigFiles,
    bell: Arc<Bell>,
    watch: Watch,
) -> io::Result<(Reloader, mpsc::Receiver<Loaded>)> {
    let (hand_over, loaded) = mpsc::channel(1);
    let reloader = Reloader {
        bell: Arc::clone(&bell),
    };
    std::thread::Builder::new()
        .name("reload".into())
        .spawn(move || run(files, &bell, watch, &hand_over))?;
    Ok((reloader, loaded))
}

/// Watches and reads until all is over. Nobody waits for its end: a disk may never answer.
fn run(mut files: ConfigFiles, bell: &Bell, mut watch: Watch, hand_over: &mpsc::Sender<Loaded>) {
    // On Linux that of the calling thread: requests go first where cores are few.
    if let Err(error) = rustix::process::nice(NICENESS) {
        tracing::debug!(%error, "the thread that reads files has the priority of the others");
    }
    let mut seen: Option<Look> = None;
    let mut read_at: Option<Instant> = None;
    loop {
        let (look, places) = files.look();
        watch.arm(&places);
        // What was not seen before is read without being told: at the start, and where nobody tells.
        let is_new = seen.as_ref() != Some(&look);
        let mut rings = if is_new {
            Rings::default()
        } else {
            bell.wait(LOOK_EVERY)
        };
        if !is_new && rings == Rings::default() {
            continue;
        }
        if is_new && seen.is_some() {
            watch.arm_anew(&places);
        }
        if rings.asked {
            // Whoever asks has finished writing. Only whoever asks all the time must wait.
            let since = read_at.map_or(QUIET, |at| at.elapsed());
            std::thread::sleep(QUIET.saturating_sub(since));
        } else if seen.is_some() && !rings.ended {
            settle(&files, bell);
        }
        // What rang until now is answered by what is read from now on.
        rings.join(bell.wait(Duration::ZERO));
        if rings.ended {
            return;
        }
        let loaded = read(&mut files, rings.asked, &mut seen);
        read_at = Some(Instant::now());
        if let Some(loaded) = loaded
            && hand_over.blocking_send(loaded).is_err()
        {
            return;
        }
    }
}

/// Waits until the files stay as they are.
fn settle(files: &ConfigFiles, bell: &Bell) {
    let began = Instant::now();
    let mut before = files.look().0;
    while began.elapsed() < QUIET_WAIT_MAX && !bell.has_ended() {
        std::thread::sleep(QUIET);
        let now = files.look().0;
        if now == before {
            return;
        }
        before = now;
    }
}

/// Reads all files, and notes how they looked just before.
fn read(files: &mut ConfigFiles, is_asked: bool, seen: &mut Option<Look>) -> Option<Loaded> {
    // A panic is a bug of ours and counted as one. What is in force stays, and so does the watch.
    let load = std::panic::AssertUnwindSafe(|| files.load(is_asked, SystemTime::now(), seen));
    std::panic::catch_unwind(load).unwrap_or_else(|_panic| {
        tracing::error!("reading settings and rules failed; what is in force stays in force");
        None
    })
}
