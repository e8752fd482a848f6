//! The built program in a process of its own, where signals and exit codes matter.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, ExitStatus, Output, Stdio};

use super::{Folder, Setup, Wire, eventually};
use crate::program::Program;

/// Runs the program to its end.
pub(crate) fn tidegate(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.args(arguments).stdin(Stdio::null());
    command.output().expect("the program was built")
}

/// `tidegate run`, ended with this.
#[derive(Debug)]
pub(crate) struct Process {
    program: Program,
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
        let mut process = Self {
            program: run(&folder.path().join("tidegate.yaml")),
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
        self.program = run(&self.folder.path().join("tidegate.yaml"));
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
        let process = self.program.id().to_string();
        std::thread::spawn(move || {
            std::thread::sleep(delay);
            drop(Command::new("kill").args(["-KILL", &process]).status());
        })
    }

    pub(crate) fn id(&self) -> u32 {
        self.program.id()
    }

    pub(crate) fn log(&self) -> String {
        self.program.log()
    }

    #[track_caller]
    pub(crate) fn wait_for_log(&self, text: &str) {
        eventually(text, || self.log().contains(text));
    }

    fn logged_address(&self, message: &str) -> SocketAddr {
        let address = self.program.logged_address(message);
        address.expect("it was waited for")
    }

    /// Sends a signal, by its name.
    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args([&format!("-{name}"), &self.program.id().to_string()])
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
        self.program.ended().is_some()
    }

    /// Waits until the process has ended.
    #[track_caller]
    pub(crate) fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("the process ends", || {
            status = self.program.ended();
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

fn run(config: &Path) -> Program {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    Program::start(command.args(["run", "--config"]).arg(config))
}
