//! What the demonstration needs of the machine: open files, addresses, a folder, and word of Ctrl-C.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, bail};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

use super::background::Background;

/// Open files that are needed: two for each of 1,300 clients, two for each of as many requests at
/// the upstreams, and 5,500 for what waits there when nothing stops the loop.
const OPEN_FILES: u64 = 12_000;

/// A folder for the proxy's state that goes with its owner.
#[derive(Debug)]
pub(super) struct Folder(PathBuf);

impl Folder {
    /// Makes one.
    ///
    /// # Errors
    ///
    /// It exists, or cannot be made.
    pub(super) fn create() -> anyhow::Result<Self> {
        let name = format!("tidegate-demo-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        // An existing one is an error: it would be somebody else's.
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .with_context(|| format!("create the folder {}", path.display()))?;
        Ok(Self(path))
    }

    /// Returns where it is.
    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left is a few hundred bytes among other temporary files.
        drop(fs::remove_dir_all(&self.0));
    }
}

/// Allows this process as many open files as it needs: most systems give less by default.
pub(super) fn raise_open_files() -> anyhow::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= OPEN_FILES) {
        return Ok(());
    }
    if limit.maximum.is_some_and(|maximum| maximum < OPEN_FILES) {
        bail!(
            "{OPEN_FILES} open files are needed and {} allowed; as root, `ulimit -Hn {OPEN_FILES}`",
            limit.maximum.unwrap_or(0)
        );
    }
    let wanted = Rlimit {
        current: Some(OPEN_FILES),
        maximum: limit.maximum,
    };
    setrlimit(Resource::Nofile, wanted).context("raise the limit of open files")
}

/// Makes sure that clients can have addresses of their own.
pub(super) fn check_addresses() -> anyhow::Result<()> {
    TcpListener::bind((Ipv4Addr::new(127, 10, 0, 1), 0))
        .map(drop)
        .context(
            "the simulated clients need addresses in 127.0.0.0/8, which Linux has and this system \
             does not give; run it on Linux or in a container",
        )
}

/// Notes Ctrl-C and SIGTERM, so that the summary is still written and the folder removed.
pub(super) fn listen_for_interrupt() -> anyhow::Result<Arc<AtomicBool>> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let noted = Arc::clone(&interrupted);
    Background::start("demo-signals", move || {
        for kind in [SignalKind::interrupt(), SignalKind::terminate()] {
            let mut signals = signal(kind)?;
            let noted = Arc::clone(&noted);
            tokio::task::spawn_local(async move {
                if signals.recv().await.is_some() {
                    noted.store(true, Ordering::Relaxed);
                }
            });
        }
        Ok(())
    })
    .context("listen for signals")
    .map(Background::detach)?;
    Ok(interrupted)
}

/// How much processor time was spent since the start of the machine and of this process, in ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ProcessorTime {
    total: u64,
    idle: u64,
    own: u64,
}

impl ProcessorTime {
    /// Reads it; `None` where the system does not say.
    pub(super) fn now() -> Option<Self> {
        let machine = fs::read_to_string("/proc/stat").ok()?;
        let own = fs::read_to_string("/proc/self/stat").ok()?;
        Self::parse(&machine, &own)
    }

    /// Understands `/proc/stat` and `/proc/self/stat` as proc(5) describes them.
    fn parse(machine: &str, own: &str) -> Option<Self> {
        let fields = machine.lines().next()?.strip_prefix("cpu ")?;
        // user nice system idle iowait irq softirq steal; what follows is part of the first two.
        let ticks: Vec<u64> = fields
            .split_whitespace()
            .take(8)
            .map_while(|field| field.parse().ok())
            .collect();
        // After the name, which may contain anything: state is the 3rd field, utime and stime the
        // 14th and 15th.
        let (_name, fields) = own.rsplit_once(')')?;
        let own = fields
            .split_whitespace()
            .skip(11)
            .take(2)
            .map_while(|field| field.parse::<u64>().ok());
        Some(Self {
            total: ticks.iter().sum(),
            idle: ticks.get(3)? + ticks.get(4)?,
            own: own.sum(),
        })
    }

    /// Returns the shares of the machine's processors that this process and everybody else used
    /// since then.
    pub(super) fn shares_since(self, then: Self) -> (f64, f64) {
        let total = self.total.saturating_sub(then.total).max(1) as f64;
        let own = self.own.saturating_sub(then.own) as f64 / total;
        let idle = self.idle.saturating_sub(then.idle) as f64 / total;
        (own, (1.0 - own - idle).max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_split_into_ours_idle_and_others() {
        let own = |utime: u32| {
            format!("77 (a (strange) name) S 1 2 3 4 5 6 7 8 9 10 {utime} 50 0 0 20 0 9")
        };
        let then = "cpu  100 0 100 700 100 0 0 0 0 0\ncpu0 1 2 3\n";
        let then = ProcessorTime::parse(then, &own(50)).unwrap();
        let now = "cpu  150 0 110 720 110 0 10 0 0 0\ncpu0 1 2 3\n";
        let now = ProcessorTime::parse(now, &own(75)).unwrap();
        let (ours, others) = now.shares_since(then);
        assert!((ours - 0.25).abs() < 1e-9, "{ours}");
        assert!((others - 0.45).abs() < 1e-9, "{others}");
    }
}
