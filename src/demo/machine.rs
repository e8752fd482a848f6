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
