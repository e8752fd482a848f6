//! F1: more connections than descriptors.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::clients::Load;
use crate::experiments::{percent, until_well};
use crate::proxy::Proxy;
use crate::settings::{Service, Setup};
use crate::stage::{Phase, Stage, Witness};
use crate::table::{Figure, Scale, Table};
use crate::upstream::{Capacity, Upstream};

/// What the proxy may have open.
const DESCRIPTORS: usize = 128;
/// How often accepting may fail in a second: each of two workers pauses for 50 ms when it did.
const ACCEPT_ERRORS_PER_SECOND: f64 = 2.0 * 20.0;

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
    let turned_away = proxy.metric("tidegate_connections_refused_total{reason=\"total\"}");
    table.add(
        Figure::fact("connections turned away, in words", "some")
            .during(turned_away)
            .held(turned_away > 0.0),
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
    without_any(scale, table, &proxy);
}

/// The control of the above: where somebody takes the reserve away while the proxy runs, no new
/// connection can be accepted, an operator's neither. Nothing spins, and all comes back.
fn without_any(scale: Scale, table: &mut Table, proxy: &Proxy) {
    let stage = scale.pick(
        Stage::short([0.5, 1.0, 1.0]),
        Stage::full(1, [2.0, 4.0, 2.0]),
    );
    let witness = Witness::of(proxy, &stage);
    let mut steady = Load::get(proxy.address, "/chat/session", 20.0);
    steady.connections_max = 1;
    let steady = steady.lasting(stage.ends()).start(stage.began);
    let errors = |proxy: &Proxy| proxy.metric("tidegate_accept_errors_total");
    let before = errors(proxy);
    let mut crowd = Vec::new();
    let mut answered = false;
    let (mut begun, mut lasted) = (Instant::now(), Duration::ZERO);
    stage.play(|begins| {
        if begins {
            // Below what is open already.
            begun = Instant::now();
            proxy.may_open(8, DESCRIPTORS);
            for _ in 0..20 {
                crowd.push(TcpStream::connect(proxy.address).expect("the kernel has room"));
            }
        } else {
            answered = proxy
                .admin_within("/healthz", Duration::from_millis(200))
                .is_some();
            proxy.may_open(DESCRIPTORS, DESCRIPTORS);
            lasted = begun.elapsed();
        }
    });
    drop(crowd);
    // A pause may be under way at either end.
    let seconds = lasted.as_secs_f64() + 0.1;
    // Those of operators are counted apart.
    let failed = errors(proxy) - before;
    let steady = steady.outcomes();
    let most = (ACCEPT_ERRORS_PER_SECOND * seconds).ceil();
    table.add(
        Figure::fact(
            "without any descriptor: accept errors",
            format_args!("1 to {most}, none spins"),
        )
        .during(failed)
        .control(
            format_args!("operators are answered: {answered}"),
            !answered,
        )
        .held(failed >= 1.0 && failed <= most),
    );
    let [before, during, after] = stage.phases_of(&steady);
    table.add(
        Figure::fact("without any: errors on a connection that was there", 0)
            .phases(before.ends(), during.ends(), after.ends())
            .held(steady.errors() == 0),
    );
    let seen = witness.seen();
    let spent = |phase| seen.processors(stage.phase(0, phase));
    table.add(
        Figure::time(
            "without any: processor time",
            "<= 20 % of one more than before",
        )
        .phases(
            percent(spent(Phase::Before)),
            percent(spent(Phase::During)),
            percent(spent(Phase::After)),
        )
        .held(spent(Phase::During) - spent(Phase::Before) <= 0.2),
    );
    let recovery = first_answer(proxy);
    table.add(
        Figure::fact("served when there are some again", "yes")
            .after(recovery.is_some())
            .held(recovery.is_some() && proxy.admin("/readyz").is_some()),
    );
}

/// Returns after how long a new connection is answered, within five seconds.
fn first_answer(proxy: &Proxy) -> Option<Duration> {
    let mut load = Load::get(proxy.address, "/chat/session", 1.0);
    load.patience = Duration::from_secs(5);
    let began = Instant::now();
    let outcomes = load.lasting(Duration::from_secs(1)).start(began).outcomes();
    (outcomes.good() == 1).then(|| outcomes.p99())
}
