//! Connections to an upstream that go dead in silence.

use std::net::Ipv4Addr;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::clients::Load;
use crate::experiments::until_well;
use crate::fault_proxy::{Fault, FaultProxy};
use crate::network::Network;
use crate::outcomes::{End, Outcomes};
use crate::proxy::Proxy;
use crate::settings::{Service, Setup};
use crate::stage::{Phase, Stage};
use crate::table::{Figure, Scale, Table};
use crate::upstream::{Capacity, Upstream};

/// U4: a dead connection costs the one request that met it.
pub(crate) fn u4(scale: Scale, table: &mut Table) {
    let upstream = Upstream::start(Capacity {
        places: 4096,
        service_time: Duration::from_millis(scale.pick(40, 20)),
    });
    let run = |response_timeout: &'static str| {
        let faults = FaultProxy::before(upstream.address);
        let chat =
            Service::new("chat", "/chat/", faults.address).answering_within(response_timeout);
        let proxy = Proxy::start(Setup::of(vec![chat]));
        let stage = scale.pick(
            Stage::short([0.5, 0.5, 1.8]),
            Stage::full(1, [3.0, 2.0, 5.0]),
        );
        let mut load = Load::get(proxy.address, "/chat/session", scale.pick(100.0, 500.0));
        load.patience = Duration::from_secs(2);
        let clients = load.lasting(stage.ends()).start(stage.began);
        let mut dead = 0.0;
        stage.play(|begins| {
            if begins {
                dead = proxy.metric("tidegate_upstream_connections{");
                faults.set(Fault::BlackHole);
            }
        });
        (stage, clients.outcomes(), dead as usize)
    };
    let (stage, outcomes, dead) = run("500ms");
    let (_, control, _) = run("1h");
    let [before, during, after] = stage.phases_of(&outcomes);
    let unheard = control.count(|end| end == End::Silence);
    table.add(
        Figure::fact(
            "errors for dead connections",
            // One or two were made between the counting and the fault.
            format_args!("<= {dead} + 2, one each, 504"),
        )
        .phases(before.ends(), during.ends(), after.ends())
        .control(
            format_args!("without a response_timeout: {unheard} unheard"),
            unheard > 0,
        )
        .held(
            (1..=dead + 2).contains(&outcomes.errors())
                && outcomes.count(|end| end == End::Status(504)) == outcomes.errors(),
        ),
    );
    let (begun, ends) = (stage.phase(0, Phase::During).0, stage.ends());
    let step = Duration::from_millis(100);
    let recovery = outcomes.well_from(begun, ends, step, 1.0, Duration::from_millis(300));
    table.add(
        Figure::time("well again after", "<= 3 s")
            .after(until_well(recovery))
            .held(recovery.is_some_and(|time| time <= Duration::from_secs(3))),
    );
    let last = stage.last_second(&outcomes);
    table.add(
        Figure::fact("errors in the last second", 0)
            .after(last.ends())
            .held(last.len() > 0 && last.errors() == 0),
    );
    if scale == Scale::Full {
        match Network::with_ports("32768 60999").and_then(|network| network.run(unplugged)) {
            Ok((waiting, asking)) => noticed(table, &waiting, &asking),
            Err(why) => table.add(Figure::time("a dead peer is noticed", "").skipped(why)),
        }
    }
}

/// Unplugs an upstream: what is sent to it is lost, and nothing says so. Returns what became of requests
/// that waited for their answers then, and of those that were sent on open connections afterwards. No
/// timeout of ours is in the way: it is the kernel that notices.
fn unplugged() -> (Outcomes, Outcomes) {
    let address = Ipv4Addr::new(127, 0, 9, 9);
    let upstream = Upstream::start_at(address, Capacity::PLENTY);
    let chat = Service::new("chat", "/chat/", upstream.address).answering_within("1h");
    let proxy = Proxy::start(Setup::of(vec![chat]));
    let requests = |target, count: f64| {
        let mut load = Load::get(proxy.address, target, 10.0 * count);
        load.patience = Duration::from_secs(20);
        load.lasting(Duration::from_millis(100))
            .start(Instant::now())
    };
    // Both leave connections behind that the next requests go out on.
    upstream.freeze("/chat/wait");
    let waiting = requests("/chat/wait", 5.0);
    drop(requests("/chat/session", 5.0).outcomes());
    let unplug = ["route", "add", "blackhole", "127.0.9.9", "table", "local"];
    let status = Command::new("ip").args(unplug).status();
    assert!(status.is_ok_and(|status| status.success()), "the route");
    let asking = requests("/chat/session", 5.0);
    (waiting.outcomes(), asking.outcomes())
}

/// Adds how soon it was noticed that the peer is gone.
fn noticed(table: &mut Table, waiting: &Outcomes, asking: &Outcomes) {
    for (what, outcomes) in [
        ("a peer that is gone is noticed, waiting", waiting),
        ("the same, sending to it", asking),
    ] {
        let last = outcomes.percentile(1.0, |_| true);
        table.add(
            Figure::time(what, "<= 12 s, 502 to 504")
                .during(format_args!(
                    "{} ({})",
                    until_well(Some(last)),
                    outcomes.ends()
                ))
                .held(
                    outcomes.len() > 0
                        && outcomes.count(|end| matches!(end, End::Status(502..=504)))
                            == outcomes.len()
                        && last <= Duration::from_secs(12),
                ),
        );
    }
}
