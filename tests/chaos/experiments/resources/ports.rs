//! F3: no port left to connect to an upstream from. In a network of its own, so that nobody else on
//! this machine is short of them.

use std::fs;
use std::net::Ipv4Addr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::clients::Load;
use crate::experiments::until_well;
use crate::outcomes::End;
use crate::proxy::Proxy;
use crate::settings::{Service, Setup};
use crate::stage::{Phase, Stage};
use crate::table::{Figure, Scale, Table};
use crate::upstream::{Capacity, Upstream};

/// The ports that there are: 30 for each pair of an address and a listener.
const PORTS: &str = "40000 40029";

/// A network namespace, as long as the process that holds it.
struct Network(Child);

impl Network {
    fn create() -> Result<Self, String> {
        let script = format!(
            "ip link set lo up && echo '{PORTS}' > /proc/sys/net/ipv4/ip_local_port_range \
             && echo ready && exec sleep 120"
        );
        let child = Command::new("unshare")
            .args(["--net", "sh", "-c", &script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("unshare: {error}"))?;
        let mut network = Self(child);
        let mut line = String::new();
        if let Some(out) = network.0.stdout.take() {
            let mut reader = std::io::BufReader::new(out);
            drop(std::io::BufRead::read_line(&mut reader, &mut line));
        }
        if line.trim() == "ready" {
            Ok(network)
        } else {
            Err("no right to a network namespace".to_owned())
        }
    }

    /// Moves the calling thread, and those that it starts, into this network.
    fn enter(&self) -> Result<(), String> {
        let path = format!("/proc/{}/ns/net", self.0.id());
        let file = fs::File::open(&path).map_err(|error| format!("{path}: {error}"))?;
        let kind = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), kind)
            .map_err(|error| format!("no right to enter a network namespace: {error}"))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Requests for which there is no port are refused, and all is well when there are again.
pub(crate) fn f3(scale: Scale, table: &mut Table) {
    let network = Network::create();
    let figures = std::thread::scope(|scope| {
        let inside = || {
            network.as_ref().map_err(Clone::clone)?.enter()?;
            Ok::<_, String>(without_ports(scale))
        };
        scope.spawn(inside).join().expect("no panic in there")
    });
    match figures {
        Ok(figures) => figures.into_iter().for_each(|figure| table.add(figure)),
        Err(why) => table.add(Figure::fact("requests without a port", "503").skipped(why)),
    }
}

fn without_ports(scale: Scale) -> Vec<Figure> {
    let upstream = Upstream::start(Capacity {
        places: 4096,
        service_time: Duration::from_millis(200),
    });
    let chat = Service::new("chat", "/chat/", upstream.address);
    let proxy = Proxy::start(Setup::of(vec![chat]));
    let stage = scale.pick(
        Stage::short([0.5, 1.0, 1.5]),
        Stage::full(1, [2.0, 4.0, 4.0]),
    );
    // 10/s need two connections; 300/s need sixty, which is twice what there is.
    let get = |per_second| {
        let mut load = Load::get(proxy.address, "/chat/session", per_second);
        load.from = (2..22).map(|last| Ipv4Addr::new(127, 0, 0, last)).collect();
        load
    };
    let steady = get(10.0).lasting(stage.ends()).start(stage.began);
    let (from, to) = stage.phase(0, Phase::During);
    let flood = get(300.0).during(from, to).start(stage.began);
    let outcomes = steady.outcomes().with(&flood.outcomes());
    let [before, during, after] = stage.phases_of(&outcomes);
    let refused = during.count(|end| end == End::Status(503));
    let others = during.errors() - refused;
    let recovery = stage.recovery(&outcomes, 1.0, Duration::from_secs(1));
    let last = stage.last_second(&outcomes);
    vec![
        Figure::not_yet("requests without a port", "503, all")
            .phases(before.ends(), during.ends(), after.ends())
            .held(refused > 0 && others == 0 && before.errors() == 0),
        Figure::time("well again after", "<= 2 s")
            .after(until_well(recovery))
            .held(recovery.is_some_and(|time| time <= Duration::from_secs(2))),
        Figure::fact("errors before, and in the last second", 0)
            .phases(
                before.errors(),
                format_args!("{} of {}", during.errors(), during.len()),
                last.errors(),
            )
            .held(before.errors() == 0 && last.errors() == 0 && during.errors() > 0),
    ]
}
