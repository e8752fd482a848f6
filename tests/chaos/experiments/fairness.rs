//! One source floods a service, and nothing tells anybody who it is: the others share what there is.

use std::net::Ipv4Addr;
use std::time::Duration;

use crate::clients::{Clients, Load};
use crate::experiments::{ms, percent, ratio};
use crate::outcomes::Outcomes;
use crate::proxy::Proxy;
use crate::settings::{Service, Setup};
use crate::stage::{Phase, Stage};
use crate::table::{Figure, Scale, Table};
use crate::upstream::{Capacity, Upstream};

/// How many honest sources there are.
const SOURCES: u8 = 20;
/// How many times the capacity one source offers.
const TIMES: f64 = 50.0;

fn request(number: u64, source: &str) -> Vec<u8> {
    format!(
        "GET /chat/session?n={number} HTTP/1.1\r\nhost: chaos.test\r\nx-sdk: chat-web\r\n\
         x-sdk-version: 2.0.0\r\nx-app: {source}\r\nx-device: {source}\r\n\r\n"
    )
    .into_bytes()
}

/// Has one source flood a service beside honest ones.
fn flood(
    scale: Scale,
    upstream: &Upstream,
    capacity: Capacity,
    queue: usize,
    rounds: u32,
) -> Flood {
    let chat = Service::new("chat", "/chat/", upstream.address)
        .with_places(capacity.places)
        .with_queue(queue, "1s");
    let proxy = Proxy::start(Setup::of(vec![chat]));
    let stage = scale.pick(
        Stage::short([0.7, 1.5, 0.5]),
        Stage::full(rounds, [3.0, 4.0, 1.0]),
    );
    let mut honest = Load::get(proxy.address, "", 0.5 * capacity.per_second()).sending(|number| {
        let source = format!("app-{}", number % u64::from(SOURCES));
        request(number, &source)
    });
    honest.from = (1..=SOURCES)
        .map(|last| Ipv4Addr::new(127, 1, last, 1))
        .collect();
    let honest = honest.lasting(stage.ends()).start(stage.began);
    let floods = stage.rounds().map(|round| {
        let (from, to) = stage.phase(round, Phase::During);
        let mut flood = Load::get(proxy.address, "", TIMES * capacity.per_second())
            .sending(|number| request(number, "loop"))
            .during(from, to);
        flood.from = vec![Ipv4Addr::new(127, 9, 9, 9)];
        flood.connections_max = 800;
        flood.niceness = 5;
        flood.start(stage.began)
    });
    // All are started before any is waited for.
    let floods: Vec<Clients> = floods.collect();
    let floods = floods.into_iter().map(Clients::outcomes);
    let floods = floods.fold(Outcomes::default(), |all, one| all.with(&one));
    let arrived = proxy.metric("tidegate_requests_total{service=\"chat\"");
    let honest = honest.outcomes();
    let (from, to) = stage.phase(0, Phase::During);
    let seconds = to.saturating_sub(from).as_secs_f64() * f64::from(rounds);
    let offered = (arrived - honest.len() as f64) / seconds;
    Flood {
        stage,
        honest,
        looping: floods,
        offered,
    }
}

/// What came of a flood.
struct Flood {
    stage: Stage,
    honest: Outcomes,
    looping: Outcomes,
    /// What of it arrived at the proxy, per second.
    offered: f64,
}

/// One source offers 50 times the capacity with the detector off; the others are served as before.
pub(crate) fn share(scale: Scale, table: &mut Table) {
    let capacity = Capacity {
        places: 10,
        service_time: Duration::from_millis(scale.pick(100, 50)),
    };
    let upstream = Upstream::start(capacity);
    let Flood {
        stage,
        honest,
        looping,
        offered,
    } = flood(scale, &upstream, capacity, 200, scale.pick(1, 3));
    let control = flood(scale, &upstream, capacity, 0, 1);
    let [before, during, after] = stage.phases_of(&honest);
    let controlled = control.stage.all(&control.honest, Phase::During);
    table.add(
        Figure::fact("success of the other sources", ">= 99.9 %")
            .phases(
                percent(before.success()),
                percent(during.success()),
                percent(after.success()),
            )
            .control(
                format_args!("no queue: {}", percent(controlled.success())),
                controlled.success() < 0.999,
            )
            .held(during.success() >= 0.999),
    );
    let [p99_before, p99_during, p99_after] = stage.p99s(&honest);
    let slower = ratio(p99_before, p99_during);
    table.add(
        Figure::time("p99 of the other sources", "<= 1.5 x before")
            .phases(
                ms(p99_before),
                format_args!("{} ({slower:.2} x)", ms(p99_during)),
                ms(p99_after),
            )
            .held(slower <= 1.5 && during.success() >= 0.999),
    );
    // An attempt that found no connection free is none that arrived.
    let most = TIMES * capacity.per_second();
    table.add(
        Figure::time(
            "offered by one source",
            format_args!("{TIMES} x {:.0}/s", capacity.per_second()),
        )
        .during(format_args!("{offered:.0}/s arrived"))
        .held(offered >= 0.95 * most),
    );
    table.add(
        Figure::fact("the flood is held off", "most of it refused")
            .during(looping.ends())
            .held(looping.success() < 0.2),
    );
}
