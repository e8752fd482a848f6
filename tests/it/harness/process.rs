//! The built program in a process of its own, where signals and exit codes matter.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};

use super::{Folder, Setup, Wire, eventually};

/// Runs the program to its end.
pub(crate) fn tidegate(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.args(arguments).stdin(Stdio::null());
    command.output().expect("the program was built")
}

/// `tidegate run`, ended with this.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    log: Arc<Mutex<String>>,
    pub(crate) address: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) folder: Folder,
}

impl Process {
    /// Starts the program and waits until it serves.
    #[track_caller]
    pub(crate) fn start(setup: &Setup<'_>) -> Self {
        let folder = Folder::new();
        setup.write(&folder);
        let (child, log) = spawn(&folder.path().join("tidegate.yaml"));
        let mut process = Self {
            child,
            log,
            address: SocketAddr::from(([0; 4], 0)),
            admin: SocketAddr::from(([0; 4], 0)),
            folder,
        };
        process.serves();
        process
    }

    /// Starts the program again, in the same folder, once it has ended.
    #[track_caller]
    pub(crate) fn start_again(&mut self) {
        self.ended();
        (self.child, self.log) = spawn(&self.folder.path().join("tidegate.yaml"));
        self.serves();
    }

    #[track_caller]
    fn serves(&mut self) {
        self.wait_for_log("admin API and metrics");
        self.address = self.logged_address("serving");
        self.admin = self.logged_address("admin API and metrics");
    }

    /// Ends the process after so long, without a warning.
    pub(crate) fn kill_after(&self, delay: std::time::Duration) -> std::thread::JoinHandle<()> {
        let process = self.child.id().to_string();
        std::thread::spawn(move || {
            std::thread::sleep(delay);
            drop(Command::new("kill").args(["-KILL", &process]).status());
        })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn log(&self) -> String {
        self.log.lock().expect("no panics here").clone()
    }

    #[track_caller]
    pub(crate) fn wait_for_log(&self, text: &str) {
        eventually(text, || self.log().contains(text));
    }

    fn logged_address(&self, message: &str) -> SocketAddr {
        let log = self.log();
        let line = log.lines().find(|line| line.contains(message));
        let line: serde_json::Value =
            serde_json::from_str(line.expect("it was waited for")).expect("JSON lines");
        let address = line
            .pointer("/address")
            .and_then(|it| it.as_str())
            .expect("an address");
        address.parse().expect("an address")
    }

    /// Sends a signal, by its name.
    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args([&format!("-{name}"), &self.child.id().to_string()])
            .status();
        assert!(status.is_ok_and(|status| status.success()), "kill -{name}");
    }

    /// Sends a signal, unless the process has ended meanwhile.
    pub(crate) fn signal_if_alive(&mut self, name: &str) {
        // A child that was not waited for keeps its id, so nobody else is met.
        if !self.has_ended() {
            self.signal(name);
        }
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("a child of ours").is_some()
    }

    /// Waits until the process has ended.
    #[track_caller]
    pub(crate) fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("the process ends", || {
            status = self.child.try_wait().expect("a child of ours");
            status.is_some()
        });
        status.expect("it ended")
    }

    pub(crate) fn client(&self) -> Wire {
        Wire::connect(self.address)
    }

    /// Returns the value of one series that counts, 0 where there is none.
    #[track_caller]
    pub(crate) fn metric(&self, series: &str) -> u64 {
        let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        let text = Wire::connect(self.admin).exchange(request).text();
        super::proxy::value_of(&text, series)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn spawn(config: &Path) -> (Child, Arc<Mutex<String>>) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .args(["run", "--config"])
        .arg(config)
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program was built");
    let log = Arc::new(Mutex::new(String::new()));
    let stderr = BufReader::new(child.stderr.take().expect("a pipe"));
    let written = Arc::clone(&log);
    std::thread::spawn(move || {
        for line in stderr.lines().map_while(Result::ok) {
            let mut log = written.lock().expect("no panics here");
            log.push_str(&line);
            log.push('\n');
        }
    });
    (child, log)
}
