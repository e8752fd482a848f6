//! F3: no port left to connect to an upstream from. In a network of its own, so that nobody else on
//! this machine is short of them.

use std::net::Ipv4Addr;
use std::time::Duration;

use crate::clients::Load;
use crate::experiments::until_well;
use crate::network::Network;
use crate::outcomes::{End, Outcomes};
use crate::proxy::Proxy;
use crate::settings::{Service, Setup};
use crate::stage::{Phase, Stage};
use crate::table::{Figure, Scale, Table};
use crate::upstream::{Capacity, Upstream};

/// The ports that there are: 30 for each pair of an address and a listener.
const FEW_PORTS: &str = "40000 40029";
const ENOUGH_PORTS: &str = "40000 49999";

/// Requests for which there is no port are refused, and all is well when there are again.
pub(crate) fn f3(scale: Scale, table: &mut Table) {
    let run = |ports| Network::with_ports(ports)?.run(|| flooded(scale));
    let figures = run(FEW_PORTS).and_then(|with_few| {
        let with_enough = run(ENOUGH_PORTS)?;
        Ok(figures(&with_few, &with_enough))
    });
    match figures {
        Ok(figures) => figures.into_iter().for_each(|figure| table.add(figure)),
        Err(why) => table.add(Figure::fact("requests without a port", "503").skipped(why)),
    }
}

/// Sends more at once than a few ports can carry. Returns the stage, and what became of it.
fn flooded(scale: Scale) -> (Stage, Outcomes) {
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
    (stage, steady.outcomes().with(&flood.outcomes()))
}

fn figures(
    (stage, outcomes): &(Stage, Outcomes),
    (control_stage, control): &(Stage, Outcomes),
) -> Vec<Figure> {
    let [before, during, after] = stage.phases_of(outcomes);
    let refused = during.count(|end| end == End::Status(503));
    let others = during.errors() - refused;
    let recovery = stage.recovery(outcomes, 1.0, Duration::from_secs(1));
    let last = stage.last_second(outcomes);
    let control = control_stage.all(control, Phase::During);
    vec![
        Figure::fact("requests without a port", "503, all")
            .phases(before.ends(), during.ends(), after.ends())
            .control(
                format_args!("ports enough: {}", control.ends()),
                control.errors() == 0,
            )
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
