//! Beyond the knee, and back.

use std::time::{Duration, Instant};

use crate::clients::Load;
use crate::experiments::{ms, ratio, until_well};
use crate::outcomes::{End, Outcomes};
use crate::proxy::Proxy;
use crate::settings::{Service, Setup};
use crate::stage::{Phase, Stage};
use crate::table::{Figure, Scale, Table};
use crate::upstream::{Capacity, Upstream};

/// After how long clients here give up: as in most apps, sooner than the work that waits is done.
fn patience(scale: Scale) -> Duration {
    Duration::from_millis(scale.pick(500, 1000))
}

/// Returns within what time nine of ten requests are answered when all is well: a few times what the
/// upstream takes for one.
fn well_within(scale: Scale) -> Duration {
    Duration::from_millis(scale.pick(250, 100))
}

fn capacity(scale: Scale) -> Capacity {
    // 50/s or 200/s, so that ten times as much is nothing to the machine.
    Capacity {
        places: scale.pick(2, 4),
        service_time: Duration::from_millis(scale.pick(40, 20)),
    }
}

/// Returns the service with its defence: as many in flight as keep the upstream busy, as many again
/// in the queue.
fn defended(upstream: &Upstream, capacity: Capacity) -> Service {
    Service::new("chat", "/chat/", upstream.address)
        .with_places(2 * capacity.places)
        .with_queue(2 * capacity.places, "200ms")
        .answering_within("2s")
}

fn undefended(upstream: &Upstream) -> Service {
    Service::new("chat", "/chat/", upstream.address).without_limits()
}

/// Measures what the upstream can do by itself: as many clients as places, each at work all the time.
fn peak_per_second(scale: Scale, upstream: &Upstream, capacity: Capacity) -> f64 {
    let lasts = Duration::from_millis(scale.pick(700, 2000));
    let mut load = Load::get(
        upstream.address,
        "/chat/session",
        2.0 * capacity.per_second(),
    );
    load.connections_max = capacity.places;
    load.patience = Duration::from_mins(1);
    let began = Instant::now();
    let served = load.lasting(lasts).start(began).outcomes();
    served.good() as f64 / began.elapsed().as_secs_f64()
}

/// What came of one run beyond the knee.
struct Beyond {
    stage: Stage,
    outcomes: Outcomes,
}

impl Beyond {
    /// Offers 0.8 times the knee, ten times as much for a while, and 0.8 times again.
    fn run(scale: Scale, service: Service, capacity: Capacity) -> Self {
        let proxy = Proxy::start(Setup::of(vec![service]));
        let stage = scale.pick(
            Stage::short([0.8, 2.0, 1.5]),
            Stage::full(1, [4.0, 6.0, 6.0]),
        );
        let knee = capacity.per_second();
        let get = |per_second| {
            let mut load = Load::get(proxy.address, "/chat/session", per_second);
            load.patience = patience(scale);
            load.connections_max = 3000;
            load
        };
        let steady = get(0.8 * knee).lasting(stage.ends()).start(stage.began);
        let (from, to) = stage.phase(0, Phase::During);
        let mut flood = get(9.2 * knee).during(from, to);
        flood.niceness = 5;
        let flood = flood.start(stage.began);
        let outcomes = steady.outcomes().with(&flood.outcomes());
        Self { stage, outcomes }
    }

    fn phase(&self, phase: Phase) -> Outcomes {
        self.stage.all(&self.outcomes, phase)
    }

    /// Returns what was answered well per second, from a second into the flood: a queue is full by
    /// then.
    fn goodput(&self) -> f64 {
        let (from, to) = self.stage.phase(0, Phase::During);
        let from = from + Duration::from_secs(1);
        let part = self.outcomes.between(from, to);
        part.good() as f64 / to.saturating_sub(from).as_secs_f64()
    }
}

/// M1: at ten times the knee as much is served as at the knee, and the rest is refused at once.
pub(crate) fn m1(scale: Scale, table: &mut Table) {
    let capacity = capacity(scale);
    let upstream = Upstream::start(capacity);
    let peak = peak_per_second(scale, &upstream, capacity);
    let with = Beyond::run(scale, defended(&upstream, capacity), capacity);
    // What clients of before have left behind must not wait in this one.
    let upstream = Upstream::start(capacity);
    let without = Beyond::run(scale, undefended(&upstream), capacity);

    let [before, during, after] = with.stage.phases_of(&with.outcomes);
    let share = with.goodput() / peak;
    let bound = scale.pick(0.6, 0.9);
    table.add(
        Figure::fact(
            "served at ten times the knee",
            format_args!(">= {:.0} % of {peak:.0}/s", bound * 100.0),
        )
        .phases("", format_args!("{:.0} %", share * 100.0), "")
        .control(
            format_args!("no limit: {:.0} %", without.goodput() / peak * 100.0),
            without.goodput() < bound * peak,
        )
        .held(share >= bound),
    );
    let is_told = |end| matches!(end, End::Status(200 | 503));
    table.add(
        Figure::fact("everybody is answered, 200 or 503", "all")
            .phases(before.ends(), during.ends(), after.ends())
            .control(
                without.phase(Phase::During).ends(),
                without.phase(Phase::During).count(is_told) < without.phase(Phase::During).len(),
            )
            .held(during.count(is_told) == during.len() && during.errors() > 0),
    );
    let refused = during.percentile(0.99, End::is_refusal);
    table.add(
        Figure::time("refused within, p99", "<= 5 ms")
            .during(ms(refused))
            .held(!refused.is_zero() && refused <= Duration::from_millis(5)),
    );
    let slower = ratio(before.p99(), during.p99());
    table.add(
        Figure::time("p99 of those served", "<= 2 x before")
            .phases(
                ms(before.p99()),
                format_args!("{} ({slower:.2} x)", ms(during.p99())),
                ms(after.p99()),
            )
            .held(slower <= 2.0),
    );
    well_again(scale, table, &with, &without);
}

fn well_again(scale: Scale, table: &mut Table, with: &Beyond, without: &Beyond) {
    let within = scale.pick(1.5, 5.0);
    let recovery = |run: &Beyond| run.stage.recovery(&run.outcomes, 0.95, well_within(scale));
    let (recovered, controlled) = (recovery(with), recovery(without));
    let is_in_time = |time: Option<Duration>| time.is_some_and(|time| time.as_secs_f64() <= within);
    table.add(
        Figure::fact("well again after", format_args!("<= {within} s"))
            .after(until_well(recovered))
            .control(
                format_args!("no limit: {}", until_well(controlled)),
                !is_in_time(controlled),
            )
            .held(is_in_time(recovered)),
    );
}

/// What came of a trigger under clients that send again what failed.
fn trigger(
    scale: Scale,
    service: Service,
    upstream: &Upstream,
    capacity: Capacity,
) -> (Stage, Outcomes) {
    let proxy = Proxy::start(Setup::of(vec![service]));
    let stage = scale.pick(
        Stage::short([0.6, 1.5, 2.5]),
        Stage::full(1, [3.0, 5.0, 12.0]),
    );
    let mut load = Load::get(proxy.address, "/chat/session", 0.8 * capacity.per_second());
    load.patience = patience(scale);
    load.retries = 3;
    load.connections_max = 3000;
    let clients = load.lasting(stage.ends()).start(stage.began);
    stage.play(|is_frozen| {
        if is_frozen {
            upstream.freeze("/chat/");
        } else {
            upstream.thaw();
        }
    });
    (stage, clients.outcomes())
}

/// M2: after a trigger, clients that send three times again at once do not keep the service down.
pub(crate) fn m2(scale: Scale, table: &mut Table) {
    let capacity = capacity(scale);
    let upstream = Upstream::start(capacity);
    let (stage, outcomes) = trigger(scale, defended(&upstream, capacity), &upstream, capacity);
    let upstream = Upstream::start(capacity);
    let (control_stage, control) = trigger(scale, undefended(&upstream), &upstream, capacity);
    let [before, during, after] = stage.phases_of(&outcomes);
    table.add(
        Figure::fact(
            "how often a request is sent",
            "> 1.5 in the trigger, else it is none",
        )
        .phases(
            format_args!("{:.2}", before.attempts_per_request()),
            format_args!("{:.2}", during.attempts_per_request()),
            format_args!("{:.2}", after.attempts_per_request()),
        )
        .held(during.attempts_per_request() > 1.5),
    );
    let within = scale.pick(2.0, 10.0);
    let well = |stage: &Stage, outcomes| stage.recovery(outcomes, 0.95, well_within(scale));
    let (recovered, controlled) = (well(&stage, &outcomes), well(&control_stage, &control));
    let is_in_time = |time: Option<Duration>| time.is_some_and(|time| time.as_secs_f64() <= within);
    table.add(
        Figure::fact("well again, unaided, after", format_args!("<= {within} s"))
            .after(until_well(recovered))
            .control(
                format_args!("no limit: {}", until_well(controlled)),
                !is_in_time(controlled),
            )
            .held(is_in_time(recovered)),
    );
    let (last, control_last) = (
        stage.last_second(&outcomes),
        control_stage.last_second(&control),
    );
    table.add(
        Figure::fact("errors in the last second", 0)
            .after(last.ends())
            .control(
                format_args!("no limit: {}", control_last.ends()),
                control_last.errors() > 0,
            )
            .held(last.len() > 0 && last.errors() == 0),
    );
}
