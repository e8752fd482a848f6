//! F2: attacks on memory, under a ceiling.

use std::fs;
use std::io::Write as _;
use std::net::TcpStream;
use std::path::{Path, PathBuf};

use crate::clients::Load;
use crate::experiments::kib;
use crate::outcomes::End;
use crate::proxy::Proxy;
use crate::settings::{Service, Setup};
use crate::stage::Stage;
use crate::table::{Figure, Scale, Table};
use crate::upstream::{Capacity, Upstream};

/// The ceiling.
const CEILING_BYTES: u64 = 128 * 1024 * 1024;
const MEMORY_GROUPS: &str = "/sys/fs/cgroup/memory";

/// A control group of the kernel (version 1) with a ceiling for memory.
struct Group(PathBuf);

impl Group {
    fn create() -> Result<Self, String> {
        let name = format!("tidegate-chaos-{}", std::process::id());
        let group = Self(Path::new(MEMORY_GROUPS).join(name));
        let made = fs::create_dir(&group.0);
        made.map_err(|error| format!("no control group can be made: {error}"))?;
        let ceiling = CEILING_BYTES.to_string();
        let set = fs::write(group.0.join("memory.limit_in_bytes"), ceiling);
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
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

/// Unfinished heads, unfinished bodies and unread answers fit under a ceiling of 128 MiB.
pub(crate) fn f2(scale: Scale, table: &mut Table) {
    let each = scale.pick(60, 600);
    let upstream = Upstream::start(Capacity::PLENTY);
    let mut proxy = Proxy::start(Setup {
        memory_max: "100MiB",
        ..Setup::of(vec![Service::new("chat", "/chat/", upstream.address)])
    });
    // Under the ceiling goes what has started: only what the attacks need counts.
    let group = Group::create().and_then(|group| group.add(proxy.id()).map(|()| group));
    let stage = scale.pick(
        Stage::short([0.3, 1.0, 1.2]),
        Stage::full(1, [2.0, 4.0, 7.0]),
    );
    let good = Load::get(proxy.address, "/chat/session", scale.pick(50.0, 200.0));
    let good = good.lasting(stage.ends()).start(stage.began);
    let mut held = Vec::new();
    let idle = proxy.system().resident_bytes();
    let mut peak = 0;
    stage.play(|begins| {
        if !begins {
            peak = proxy.peak_bytes();
            held.clear();
            return;
        }
        let unfinished_head = {
            let mut text = b"GET /chat/session HTTP/1.1\r\nhost: chaos.test\r\nx-a: ".to_vec();
            text.resize(15 * 1024, b'a');
            text
        };
        let unfinished_body = {
            let mut text = b"POST /chat/upload?do=read-nothing HTTP/1.1\r\nhost: chaos.test\r\n\
                content-length: 1000000\r\n\r\n"
                .to_vec();
            text.resize(60 * 1024, b'a');
            text
        };
        let unread = b"GET /chat/slow?do=large HTTP/1.1\r\nhost: chaos.test\r\n\r\n".to_vec();
        for text in [unfinished_head, unfinished_body, unread] {
            for _ in 0..each {
                // Shed: refused, or closed while it is written to.
                if let Ok(mut stream) = TcpStream::connect(proxy.address) {
                    stream.set_nonblocking(true).expect("a TCP socket");
                    drop(stream.write(&text));
                    held.push(stream);
                }
            }
        }
    });
    let good = good.outcomes();
    let [before, during, after] = stage.phases_of(&good);
    let alive = proxy.is_alive();
    let attack = format!("{} connections", 3 * each);
    table.add(
        Figure::fact("the proxy lives", "yes")
            .phases("", attack, alive)
            .held(alive),
    );
    table.add(
        Figure::fact(
            "resident memory",
            format_args!("<= {} more than before", kib(CEILING_BYTES)),
        )
        .phases(kib(idle), kib(peak), "")
        .held(peak > idle && peak - idle <= CEILING_BYTES),
    );
    match &group {
        Ok(group) => {
            let charged = group.peak();
            table.add(
                Figure::fact(
                    "charged by the kernel",
                    format_args!("<= {}", kib(CEILING_BYTES)),
                )
                .during(kib(charged))
                .held(alive && charged > 0 && charged <= CEILING_BYTES),
            );
        }
        Err(why) => table.add(Figure::fact("killed under a ceiling of 128 MiB", "no").skipped(why)),
    }
    // Nobody who has no connection yet gets one while memory is short.
    let is_told = |end| matches!(end, End::Status(200 | 503) | End::Broken);
    let last = stage.last_second(&good);
    table.add(
        Figure::fact(
            "errors of good clients before, answers during",
            "0; 200, 503 or no connection",
        )
        .phases(before.ends(), during.ends(), after.ends())
        .held(before.errors() == 0 && during.count(is_told) == during.len()),
    );
    table.add(
        Figure::fact("errors in the last second", 0)
            .after(last.ends())
            .held(last.len() > 0 && last.errors() == 0),
    );
}
