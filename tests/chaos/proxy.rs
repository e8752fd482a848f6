//! The program in a process of its own, and what the system says of it.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::program::Program;
use crate::settings::Setup;

/// How long a start may take on a busy machine.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// How long the admin API may take; it is asked while the proxy suffers.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Ticks of processor time in a second (proc(5); Linux has had no other value for decades).
const TICKS_PER_SECOND: f64 = 100.0;
/// The size of a page, in bytes.
const PAGE_BYTES: u64 = 4096;

/// A running proxy; killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Proxy {
    program: Program,
    setup: Setup,
    folder: PathBuf,
    /// Where clients connect.
    pub(crate) address: SocketAddr,
    /// Where operators do.
    pub(crate) admin: SocketAddr,
}

impl Proxy {
    /// Starts one and waits until it serves.
    #[track_caller]
    pub(crate) fn start(setup: Setup) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("tidegate-chaos-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir_all(folder.join("rules")).expect("a folder for temporary files");
        let any = "127.0.0.1:0";
        let mut proxy = Self {
            program: run(&folder, &setup, any, any),
            setup,
            folder,
            address: SocketAddr::from(([0; 4], 0)),
            admin: SocketAddr::from(([0; 4], 0)),
        };
        proxy.wait_until_serving();
        proxy
    }

    #[track_caller]
    fn wait_until_serving(&mut self) {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            let messages = ["serving", "admin API and metrics"];
            let addresses = messages.map(|message| self.program.logged_address(message));
            if let [Some(address), Some(admin)] = addresses {
                (self.address, self.admin) = (address, admin);
                return;
            }
            assert!(Instant::now() < deadline, "no start: {}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Returns what it logged.
    pub(crate) fn log(&self) -> String {
        self.program.log()
    }

    /// Kills it without a warning and starts another one at the same addresses.
    #[track_caller]
    pub(crate) fn kill_and_start_again(&mut self) {
        self.program.kill();
        let (address, admin) = (self.address.to_string(), self.admin.to_string());
        self.program = run(&self.folder, &self.setup, &address, &admin);
        self.wait_until_serving();
    }

    /// Returns whether it runs.
    pub(crate) fn is_alive(&mut self) -> bool {
        self.program.ended().is_none()
    }

    /// Returns its process.
    pub(crate) fn id(&self) -> u32 {
        self.program.id()
    }

    /// Returns what the system says of it.
    pub(crate) fn system(&self) -> System {
        System(self.program.id())
    }

    /// Bounds the descriptors that it may have open from now on, and what it might raise that to.
    pub(crate) fn may_open(&self, descriptors: usize, at_most: usize) {
        let limit = Rlimit {
            current: Some(descriptors as u64),
            maximum: Some(at_most as u64),
        };
        let process = Pid::from_raw(self.program.id() as i32);
        prlimit(process, Resource::Nofile, limit).expect("a process of our own");
    }

    /// Asks the admin API; `None` where it does not answer well.
    pub(crate) fn admin(&self, path: &str) -> Option<String> {
        self.admin_within(path, ADMIN_TIMEOUT)
    }

    /// Asks it and does not wait for longer than this.
    pub(crate) fn admin_within(&self, path: &str, patience: Duration) -> Option<String> {
        let mut stream = TcpStream::connect_timeout(&self.admin, patience).ok()?;
        stream.set_read_timeout(Some(patience)).ok()?;
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let body = answer
            .split_once("\r\n\r\n")
            .map(|(_, body)| body.to_owned());
        body.filter(|_| answer.starts_with("HTTP/1.1 200 "))
    }

    /// Returns the sum of all series whose name and labels begin so.
    pub(crate) fn metric(&self, beginning: &str) -> f64 {
        let text = self.admin("/metrics").unwrap_or_default();
        let lines = text.lines().filter(|line| line.starts_with(beginning));
        let values = lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok());
        // The sum of none is -0.
        values.fold(0.0, |sum, value| sum + value)
    }
}

/// What the system says of a process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct System(u32);

impl System {
    fn read(self, file: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{file}", self.0)).unwrap_or_default()
    }

    /// Returns its resident memory in bytes.
    pub(crate) fn resident_bytes(self) -> u64 {
        let statm = self.read("statm");
        let pages = statm.split(' ').nth(1);
        pages.and_then(|it| it.parse::<u64>().ok()).unwrap_or(0) * PAGE_BYTES
    }

    /// Returns the processor time that it has used, in seconds.
    pub(crate) fn processor_seconds(self) -> f64 {
        let stat = self.read("stat");
        // After the name, which may contain anything, utime and stime are the 12th and 13th.
        let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
        let ticks = fields.split_whitespace().skip(11).take(2);
        let ticks: u64 = ticks.map_while(|it| it.parse::<u64>().ok()).sum();
        ticks as f64 / TICKS_PER_SECOND
    }

    /// Returns how many files it has open.
    pub(crate) fn open_files(self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.0)).map_or(0, Iterator::count)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.program.kill();
        let log = self.log();
        let has_panicked = log.contains("panicked at");
        if has_panicked || std::thread::panicking() {
            drop(writeln!(std::io::stderr(), "the proxy's log:\n{log}"));
        }
        drop(fs::remove_dir_all(&self.folder));
        // Whatever else was promised.
        assert!(
            !has_panicked || std::thread::panicking(),
            "the proxy panicked"
        );
    }
}

fn run(folder: &Path, setup: &Setup, address: &str, admin: &str) -> Program {
    let settings = folder.join("tidegate.yaml");
    fs::write(&settings, setup.text(address, admin)).expect("a folder of our own");
    fs::write(folder.join("rules/rules.yaml"), setup.rules).expect("a folder of our own");
    // `exec`: the shell becomes the proxy, so that the process is the proxy's.
    let mut command = Command::new("sh");
    command
        .arg("-c")
        .arg(format!("{} exec \"$0\" run --config \"$1\"", setup.before))
        .arg(env!("CARGO_BIN_EXE_tidegate"))
        .arg(&settings)
        // In pages of 2 MiB, nothing smaller can be measured from outside.
        .env("MIMALLOC_ALLOW_THP", "0");
    Program::start(&mut command)
}
