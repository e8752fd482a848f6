//! F2: attacks on memory, under a ceiling.

use std::fs;
use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::clients::Load;
use crate::experiments::kib;
use crate::outcomes::{End, Outcomes};
use crate::proxy::Proxy;
use crate::settings::{Service, Setup};
use crate::stage::{Phase, Stage, Witness};
use crate::table::{Figure, Scale, Table};
use crate::upstream::{Capacity, Upstream};

const MIB: u64 = 1024 * 1024;
/// What comes in between two looks at memory, at worst.
const LATE_BYTES: u64 = 4 * MIB;
/// How far the kernel's ceiling is above the proxy's: what it charges besides.
const KERNEL_BYTES: u64 = 16 * MIB;
const MEMORY_GROUPS: &str = "/sys/fs/cgroup/memory";

/// A control group of the kernel (version 1) with a ceiling for memory.
struct Group(PathBuf);

impl Group {
    fn create(ceiling: u64) -> Result<Self, String> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("tidegate-chaos-{}-{number}", std::process::id());
        let group = Self(Path::new(MEMORY_GROUPS).join(name));
        let made = fs::create_dir(&group.0);
        made.map_err(|error| format!("no control group can be made: {error}"))?;
        let set = fs::write(group.0.join("memory.limit_in_bytes"), ceiling.to_string());
        set.map_err(|error| format!("no ceiling can be set: {error}"))?;
        Ok(group)
    }

    fn peak(&self) -> u64 {
        let text = fs::read_to_string(self.0.join("memory.max_usage_in_bytes"));
        text.ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(0)
    }

    fn add(&self, process: u32) -> Result<(), String> {
        let added = fs::write(self.0.join("cgroup.procs"), process.to_string());
        added.map_err(|error| format!("the process cannot be put under it: {error}"))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The kernel may still be tidying up after the process.
        for _ in 0..50 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// What came of attacks on memory.
struct Attacked {
    stage: Stage,
    /// Resident before, and at most.
    idle: u64,
    peak: u64,
    /// What the kernel charged at most; why it was not asked.
    charged: Result<u64, String>,
    is_alive: bool,
    pressure: f64,
    /// Requests and connections that were refused for memory.
    refused: f64,
    chat: Outcomes,
    login: Outcomes,
}

/// Unfinished heads and unread answers, so many each, against a proxy that sheds from `memory_max` on and
/// is killed by the kernel at its own ceiling.
fn attacked(scale: Scale, each: usize, memory_max: u64, ceiling: u64) -> Attacked {
    let upstream = Upstream::start(Capacity::PLENTY);
    let chat = Service::new("chat", "/chat/", upstream.address);
    let login = Service::new("login", "/login/", upstream.address).first();
    let mut proxy = Proxy::start(Setup {
        memory_max: format!("{memory_max}B"),
        ..Setup::of(vec![chat, login])
    });
    // Under the ceiling goes what has started: only what the attacks need counts.
    let group = Group::create(ceiling).and_then(|group| group.add(proxy.id()).map(|()| group));
    let stage = scale.pick(
        Stage::short([0.8, 1.5, 1.2]),
        Stage::full(1, [3.0, 5.0, 7.0]),
    );
    let witness = Witness::of(&proxy, &stage);
    let good = |target| {
        let mut load = Load::get(proxy.address, target, scale.pick(50.0, 200.0));
        load.connections_max = 8;
        load.lasting(stage.ends()).start(stage.began)
    };
    let (chat, login) = (good("/chat/session"), good("/login/session"));
    let mut held = Vec::new();
    let (mut pressure, mut refused) = (0.0, 0.0);
    stage.play(|begins| {
        if begins {
            attack(proxy.address, each, &mut held);
            std::thread::sleep(Duration::from_millis(200));
            pressure = proxy.metric("tidegate_memory_pressure");
            refused = proxy.metric("tidegate_shed_total{reason=\"memory\"")
                + proxy.metric("tidegate_connections_refused_total{reason=\"memory\"}");
        } else {
            held.clear();
        }
    });
    let (chat, login, seen) = (chat.outcomes(), login.outcomes(), witness.seen());
    Attacked {
        idle: seen.usual(stage.phase(0, Phase::Before)),
        peak: seen.peak(stage.phase(0, Phase::During)),
        charged: group.map(|group| group.peak()),
        is_alive: proxy.is_alive(),
        stage,
        pressure,
        refused,
        chat,
        login,
    }
}

/// Opens connections that cost memory, one every two milliseconds: of heads that do not end, and of answers
/// that nobody reads.
fn attack(proxy: SocketAddr, each: usize, held: &mut Vec<TcpStream>) {
    let unfinished = {
        let mut text = b"GET /chat/session HTTP/1.1\r\nhost: chaos.test\r\nx-a: ".to_vec();
        text.resize(15 * 1024, b'a');
        text
    };
    let unread = b"GET /chat/slow?do=large HTTP/1.1\r\nhost: chaos.test\r\n\r\n".to_vec();
    for text in [unfinished, unread].iter().cycle().take(2 * each) {
        // Shed: refused, or closed while it is written to.
        if let Ok(mut stream) = TcpStream::connect(proxy) {
            stream.set_nonblocking(true).expect("a TCP socket");
            drop(stream.write(text));
            held.push(stream);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Returns what the proxy needs where nobody attacks it.
fn idle_bytes() -> u64 {
    let upstream = Upstream::start(Capacity::PLENTY);
    let chat = Service::new("chat", "/chat/", upstream.address);
    let proxy = Proxy::start(Setup::of(vec![chat]));
    std::thread::sleep(Duration::from_millis(500));
    proxy.system().resident_bytes()
}

/// Unfinished heads and unread answers stay under a ceiling, by which low priority goes first and critical
/// services last.
pub(crate) fn f2(scale: Scale, table: &mut Table) {
    let each = scale.pick(300, 1000);
    let room = scale.pick(12, 40) * MIB;
    let most = idle_bytes() + room;
    let ceiling = most + KERNEL_BYTES;
    let with = attacked(scale, each, most, ceiling);
    let without = attacked(scale, each, 1024 * MIB, ceiling);
    let Attacked { stage, .. } = with;
    table.add(
        Figure::fact("the proxy lives", "yes")
            .phases("", format_args!("{} connections", 2 * each), with.is_alive)
            .held(with.is_alive),
    );
    table.add(
        Figure::fact(
            "resident memory",
            format_args!("<= {}", kib(most + LATE_BYTES)),
        )
        .phases(kib(with.idle), kib(with.peak), "")
        .control(
            format_args!(
                "no memory_max: {}{}",
                kib(without.peak),
                if without.is_alive { "" } else { ", killed" }
            ),
            without.peak > most + LATE_BYTES || !without.is_alive,
        )
        .held(with.peak > with.idle && with.peak <= most + LATE_BYTES),
    );
    let promised = format!("<= {}", kib(ceiling));
    let charged = Figure::fact("charged by the kernel, which kills at this", promised);
    table.add(match &with.charged {
        Ok(bytes) => charged
            .during(kib(*bytes))
            .held(*bytes > 0 && with.is_alive),
        Err(why) => charged.skipped(why),
    });
    table.add(
        Figure::fact("refused for memory", "some, and pressure is told")
            .during(format_args!("{}, pressure {}", with.refused, with.pressure))
            .control(
                format_args!("no memory_max: {}", without.refused),
                without.refused <= 0.0,
            )
            .held(with.refused > 0.0 && with.pressure > 0.0),
    );
    let [before, during, after] = stage.phases_of(&with.login);
    table.add(
        Figure::fact("errors of a critical service", 0)
            .phases(before.ends(), during.ends(), after.ends())
            .held(with.login.errors() == 0),
    );
    let [before, during, after] = stage.phases_of(&with.chat);
    // Nobody who has no connection yet gets one while memory is short.
    let is_told = |end| matches!(end, End::Status(200 | 503) | End::Broken);
    table.add(
        Figure::fact(
            "errors of the attacked one before, answers during",
            "0; 200, 503 or no connection",
        )
        .phases(before.ends(), during.ends(), after.ends())
        .held(before.errors() == 0 && during.count(is_told) == during.len()),
    );
    let last = stage.last_second(&with.chat);
    table.add(
        Figure::fact("errors in the last second", 0)
            .after(last.ends())
            .held(last.len() > 0 && last.errors() == 0),
    );
}
