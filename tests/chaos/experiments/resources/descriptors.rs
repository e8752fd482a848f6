//! F1: more connections than descriptors.

use std::net::TcpStream;
use std::time::Duration;

use crate::clients::Load;
use crate::experiments::{percent, until_well};
use crate::proxy::Proxy;
use crate::settings::{Service, Setup};
use crate::stage::{Phase, Stage, Witness};
use crate::table::{Figure, Scale, Table};
use crate::upstream::{Capacity, Upstream};

/// What the proxy may have open.
const DESCRIPTORS: usize = 128;

/// Connections that were there live on, nothing spins, operators are heard, and all is well when the
/// crowd goes.
pub(crate) fn f1(scale: Scale, table: &mut Table) {
    let upstream = Upstream::start(Capacity {
        places: 64,
        service_time: Duration::from_millis(20),
    });
    let proxy = Proxy::start(Setup {
        before: "ulimit -n 128;",
        ..Setup::of(vec![Service::new("chat", "/chat/", upstream.address)])
    });
    let stage = scale.pick(
        Stage::short([0.5, 1.0, 1.0]),
        Stage::full(1, [3.0, 4.0, 4.0]),
    );
    let witness = Witness::of(&proxy, &stage);
    let mut steady = Load::get(proxy.address, "/chat/session", 100.0);
    // Held from the beginning to the end; a request that finds them busy waits for one.
    steady.connections_max = 8;
    let steady = steady.lasting(stage.ends()).start(stage.began);
    let mut crowd = Vec::new();
    let (mut answered, mut open) = (None, 0);
    let mut recovery = None;
    stage.play(|begins| {
        if begins {
            for _ in 0..10 * DESCRIPTORS {
                crowd.push(TcpStream::connect(proxy.address).expect("the kernel has room"));
            }
            std::thread::sleep(Duration::from_millis(500));
            open = proxy.system().open_files();
            answered = proxy.admin("/metrics");
        } else {
            crowd.clear();
            recovery = first_answer(&proxy);
        }
    });
    let (steady, seen) = (steady.outcomes(), witness.seen());
    let (ready, metrics_after) = (proxy.admin("/readyz"), proxy.admin("/metrics"));
    let [before, during, after] = stage.phases_of(&steady);
    table.add(
        Figure::fact(
            "descriptors in use",
            format_args!("< {DESCRIPTORS}, for {} connections", 10 * DESCRIPTORS),
        )
        .during(open)
        .held(open > 0 && open < DESCRIPTORS),
    );
    table.add(
        Figure::fact("errors on connections that were there", 0)
            .phases(before.ends(), during.ends(), after.ends())
            .held(steady.errors() == 0),
    );
    let spent = |phase| seen.processors(stage.phase(0, phase));
    let more = spent(Phase::During) - spent(Phase::Before);
    table.add(
        Figure::time("processor time", "<= 20 % of one more than before")
            .phases(
                percent(spent(Phase::Before)),
                percent(spent(Phase::During)),
                percent(spent(Phase::After)),
            )
            .held(more <= 0.2),
    );
    table.add(
        Figure::fact("metrics are answered", "yes")
            .phases("", answered.is_some(), metrics_after.is_some())
            .held(answered.is_some() && metrics_after.is_some() && ready.is_some()),
    );
    table.add(
        Figure::time("a new connection is served after", "<= 1 s")
            .after(until_well(recovery))
            .held(recovery.is_some_and(|time| time <= Duration::from_secs(1))),
    );
    table.add(
        Figure::fact("new connections are served when the crowd is gone", "yes")
            .phases("", "", recovery.is_some())
            .held(recovery.is_some()),
    );
}

/// Returns after how long a new connection is answered, within five seconds.
fn first_answer(proxy: &Proxy) -> Option<Duration> {
    let mut load = Load::get(proxy.address, "/chat/session", 1.0);
    load.patience = Duration::from_secs(5);
    let began = std::time::Instant::now();
    let outcomes = load.lasting(Duration::from_secs(1)).start(began).outcomes();
    (outcomes.good() == 1).then(|| outcomes.p99())
}
