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
    tables: usize,
    table: usize,
    name: String,
    bytes: u64,
    last: Instant,
    dirty: bool,
}

impl Progress {
    pub(super) fn new(tables: usize) -> Self {
        Self {
            shown: std::io::stderr().is_terminal(),
            tables,
            table: 0,
            name: String::new(),
            bytes: 0,
            last: Instant::now(),
            dirty: false,
        }
    }

    pub(super) fn table(&mut self, at: usize, path: &Path) {
        self.table = at + 1;
        path.display().to_string().clone_into(&mut self.name);
        if self.is_due() {
            self.write("");
        }
    }

    pub(super) fn reading(&mut self, bytes: u64) {
        self.bytes = bytes;
    }

    pub(super) fn read(&mut self, bytes: u64) {
        if self.is_due() && self.bytes > 0 {
            let percent = (100.0 * bytes as f64 / self.bytes as f64).min(100.0);
            self.write(&format!(": read {percent:.0} %"));
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
        let (table, tables, name) = (self.table, self.tables, &self.name);
        let mut out = std::io::stderr().lock();
        let written = write!(out, "\r\x1b[2Ktable {table} of {tables}: {name}{text}");
        drop(written.and_then(|()| out.flush()));
    }
}
