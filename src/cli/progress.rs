//! How far it has got, for a person at a terminal. Says nothing where nobody looks, and nothing on what
//! is quick.

use std::io::{IsTerminal as _, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

/// Between two lines, and before the first.
const INTERVAL: Duration = Duration::from_millis(300);

/// One line on standard error that is overwritten.
#[derive(Debug)]
pub(super) struct Progress {
    shown: bool,
    /// What one of the files is called.
    kind: &'static str,
    files: usize,
    file: usize,
    name: String,
    bytes: u64,
    last: Instant,
    dirty: bool,
}

impl Progress {
    pub(super) fn new(kind: &'static str, files: usize) -> Self {
        Self {
            shown: std::io::stderr().is_terminal(),
            kind,
            files,
            file: 0,
            name: String::new(),
            bytes: 0,
            last: Instant::now(),
            dirty: false,
        }
    }

    /// Begins with a file, of which nothing was read.
    pub(super) fn begin(&mut self, at: usize, path: &Path) {
        self.file = at + 1;
        self.bytes = 0;
        path.display().to_string().clone_into(&mut self.name);
        if self.is_due() {
            self.write("");
        }
    }

    /// Says how long the file is; without it, no share is shown.
    pub(super) fn reading(&mut self, bytes: u64) {
        self.bytes = bytes;
    }

    pub(super) fn read(&mut self, bytes: u64) {
        if !self.is_due() {
            return;
        }
        if self.bytes > 0 {
            let percent = (100.0 * bytes as f64 / self.bytes as f64).min(100.0);
            self.write(&format!(": read {percent:.0} %"));
        } else {
            self.write(&format!(": read {} MiB", bytes >> 20));
        }
    }

    pub(super) fn searching(&mut self, rows: usize) {
        // Some seconds of silence begin.
        if rows >= 1_000_000 && self.shown {
            self.write(&format!(": searching {rows} rows"));
        }
    }

    pub(super) fn clear(&mut self) {
        if std::mem::take(&mut self.dirty) {
            drop(write!(std::io::stderr().lock(), "\r\x1b[2K"));
        }
    }

    fn is_due(&self) -> bool {
        self.shown && self.last.elapsed() >= INTERVAL
    }

    fn write(&mut self, text: &str) {
        self.last = Instant::now();
        self.dirty = true;
        let (kind, file, files, name) = (self.kind, self.file, self.files, &self.name);
        let mut out = std::io::stderr().lock();
        let written = write!(out, "\r\x1b[2K{kind} {file} of {files}: {name}{text}");
        drop(written.and_then(|()| out.flush()));
    }
}
