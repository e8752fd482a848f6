//! Upstreams that break off, talk nonsense, or are not there.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::clients::Load;
use crate::experiments::{kib, ms, percent, until_well};
use crate::fault_proxy::{Fault, FaultProxy};
use crate::outcomes::{End, Outcomes};
use crate::proxy::Proxy;
use crate::settings::{Service, Setup};
use crate::stage::{Phase, Stage, Witness};
use crate::table::{Figure, Scale, Table};
use crate::upstream::{Capacity, Upstream};

/// What nonsense may cost, in bytes.
const MEMORY_BYTES_MAX: u64 = 1024 * 1024;

/// Asks for answers with something wrong, and for good ones at the same time. Returns the bad ones,
/// the good ones, and how many bytes memory grew by.
fn beside_good_ones(scale: Scale, proxy: &Proxy, wish: &str) -> (Outcomes, Outcomes, u64) {
    let stage = scale.pick(
        Stage::short([0.2, 0.4, 0.2]),
        Stage::full(1, [0.5, 1.5, 0.5]),
    );
    let witness = Witness::of(proxy, &stage);
    let good = Load::get(proxy.address, "/chat/good", 50.0).lasting(stage.ends());
    let good = good.start(stage.began);
    let (from, to) = stage.phase(0, Phase::During);
    let target = format!("/chat/bad?do={wish}");
    let bad = Load::get(proxy.address, "", scale.pick(20.0, 50.0))
        .sending(move |number| {
            let text = format!("GET {target}&n={number} HTTP/1.1\r\nhost: chaos.test\r\n\r\n");
            text.into_bytes()
        })
        .during(from, to)
        .start(stage.began);
    let (bad, good) = (bad.outcomes(), good.outcomes());
    // What was begun may end after the stage.
    let growth = witness.seen().growth(&stage, 0);
    (bad, good, growth)
}

/// Asks for answers with something wrong past the proxy: what clients would get without it.
fn straight(to: SocketAddr, wish: &str) -> Outcomes {
    let target = format!("/chat/bad?do={wish}");
    Load::get(to, "", 50.0)
        .sending(move |number| {
            let text = format!("GET {target}&n={number} HTTP/1.1\r\nhost: chaos.test\r\n\r\n");
            text.into_bytes()
        })
        .lasting(Duration::from_millis(200))
        .start(Instant::now())
        .outcomes()
}

/// Adds what is promised for one thing that an upstream does wrong.
fn told_as(
    table: &mut Table,
    wish: &str,
    expected: &[End],
    [before, during]: [&Outcomes; 2],
    (how, control): (&str, &Outcomes),
) {
    let is_expected = |end: End| expected.contains(&end);
    let words = expected.iter().map(|end| match end {
        End::Status(status) => status.to_string(),
        _ => "broken off".to_owned(),
    });
    let promised = words.collect::<Vec<String>>().join(" or ");
    table.add(
        Figure::fact(&format!("upstream does: {wish}"), promised)
            .phases(before.ends(), during.ends(), "")
            .control(
                format_args!("{how}: {}", control.ends()),
                control.count(is_expected) < control.len(),
            )
            .held(during.len() > 0 && during.count(is_expected) == during.len()),
    );
}

/// U3: a reset is 502 before the head, and never a whole answer after it.
pub(crate) fn u3(scale: Scale, table: &mut Table) {
    let upstream = Upstream::start(Capacity::PLENTY);
    let chat = Service::new("chat", "/chat/", upstream.address);
    let proxy = Proxy::start(Setup::of(vec![chat]));
    let mut good = Outcomes::default();
    for (wish, expected) in [
        ("reset", End::Status(502)),
        ("close", End::Status(502)),
        ("switch", End::Status(502)),
        ("reset-inside", End::Incomplete),
    ] {
        let (bad, beside, _) = beside_good_ones(scale, &proxy, wish);
        good = good.with(&beside);
        // What breaks off is told as that with the proxy and without; where nothing does, it is not.
        let (how, wish_straight) = match expected {
            End::Incomplete => ("without the reset", ""),
            _ => ("past the proxy", wish),
        };
        let control = straight(upstream.address, wish_straight);
        told_as(table, wish, &[expected], [&beside, &bad], (how, &control));
    }
    table.add(
        Figure::fact("good requests between them, errors", 0)
            .during(good.ends())
            .held(good.errors() == 0),
    );
}

/// U6: nonsense is 502, costs no memory, and nothing of it gets into another answer.
pub(crate) fn u6(scale: Scale, table: &mut Table) {
    let upstream = Upstream::start(Capacity::PLENTY);
    let chat = Service::new("chat", "/chat/", upstream.address).answering_within("2s");
    let proxy = Proxy::start(Setup::of(vec![chat]));
    let mut good = Outcomes::default();
    let mut bytes = 0;
    let mut foreign = 0;
    for (wish, expected) in [
        ("garbage", 502),
        ("bad-length", 502),
        ("two-lengths", 502),
        ("large-head", 502),
        // They are skipped, however many, and a good answer comes after them.
        ("interim", 200),
        ("unsolicited", 200),
    ] {
        let (bad, beside, growth) = beside_good_ones(scale, &proxy, wish);
        good = good.with(&beside);
        foreign += bad.count(|end| end == End::Foreign);
        bytes = bytes.max(growth);
        let control = straight(upstream.address, wish);
        let expected = [End::Status(expected)];
        told_as(
            table,
            wish,
            &expected,
            [&beside, &bad],
            ("past the proxy", &control),
        );
    }
    foreign += good.count(|end| end == End::Foreign);
    table.add(
        Figure::fact("answers with anything of another's", 0)
            .during(foreign)
            .held(foreign == 0),
    );
    table.add(
        Figure::fact("good requests between them, errors", 0)
            .during(good.ends())
            .held(good.errors() == 0),
    );
    table.add(
        Figure::fact("memory", format_args!("<= {}", kib(MEMORY_BYTES_MAX)))
            .during(kib(bytes))
            .held(bytes <= MEMORY_BYTES_MAX),
    );
}

/// U7: connections that are closed just when they are used again cost a second attempt and no error.
pub(crate) fn u7(scale: Scale, table: &mut Table) {
    // Every twentieth request: 5 %, well within a retry budget of a tenth.
    let upstream = Upstream::closing_after(Capacity::PLENTY, 20);
    let chat = Service::new("chat", "/chat/", upstream.address);
    let proxy = Proxy::start(Setup::of(vec![chat]));
    let lasts = Duration::from_secs(scale.pick(1, 6));
    let rate = scale.pick(200.0, 1000.0);
    let run =
        |method: &'static str| {
            Load::get(proxy.address, "", rate)
            .sending(move |number| {
                let length = if method == "POST" { "content-length: 0\r\n" } else { "" };
                let text = format!(
                    "{method} /chat/session?n={number} HTTP/1.1\r\nhost: chaos.test\r\n{length}\r\n"
                );
                text.into_bytes()
            })
            .lasting(lasts)
            .start(Instant::now())
            .outcomes()
        };
    let outcomes = run("GET");
    let retries = proxy.metric("tidegate_upstream_retries_total{");
    let control = run("POST");
    table.add(
        Figure::fact("errors", "<= 0.01 %")
            .during(outcomes.ends())
            .control(
                format_args!("POST, which is not repeated: {}", control.ends()),
                control.success() < 0.9999,
            )
            .held(outcomes.success() >= 0.9999),
    );
    let share = retries / outcomes.len() as f64;
    table.add(
        Figure::fact("requests sent twice", "<= 10 %, and some")
            .during(percent(share))
            .held(share > 0.0 && share <= 0.1),
    );
}

/// U8: where nobody listens, clients are told at once, and the upstream is not stormed when it comes
/// back.
pub(crate) fn u8(scale: Scale, table: &mut Table) {
    let rate = scale.pick(100.0, 400.0);
    let upstream = Upstream::start(Capacity::PLENTY);
    let faults = FaultProxy::before(upstream.address);
    let chat = Service::new("chat", "/chat/", faults.address);
    let proxy = Proxy::start(Setup::of(vec![chat]));
    let stage = scale.pick(
        Stage::short([0.5, 0.7, 2.5]),
        Stage::full(2, [3.0, 4.0, 3.0]),
    );
    let clients = Load::get(proxy.address, "/chat/session", rate).lasting(stage.ends());
    let clients = clients.start(stage.began);
    let mut failed = Vec::new();
    stage.play(|begins| {
        failed.push(failed_connects());
        faults.set(if begins {
            Fault::Refuse
        } else {
            Fault::Nothing
        });
    });
    let per_second_straight = tried_without_a_proxy(&faults, rate);
    let outcomes = clients.outcomes();
    let [before, during, after] = stage.phases_of(&outcomes);
    let in_words = |end| matches!(end, End::Status(200 | 502 | 503));
    table.add(
        Figure::fact("clients are answered, 502 or 503", "all")
            .phases(before.ends(), during.ends(), after.ends())
            .held(during.count(in_words) == during.len() && during.errors() > 0),
    );
    let median = during.percentile(0.5, |end| !end.is_good());
    table.add(
        Figure::time("half of them within", "<= 2 ms")
            .phases(ms(before.percentile(0.5, End::is_good)), ms(median), "")
            .held(!median.is_zero() && median <= Duration::from_millis(2)),
    );
    let first = failed.first().zip(failed.get(1));
    let (from, to) = stage.phase(0, Phase::During);
    let attempts = first.map_or(0, |(first, second)| second - first);
    let per_second = attempts as f64 / to.saturating_sub(from).as_secs_f64();
    table.add(
        Figure::time("connections tried per second", "<= 10")
            .during(format_args!("{per_second:.0}"))
            .control(
                format_args!("past the proxy: {per_second_straight:.0}"),
                per_second_straight > 10.0,
            )
            .held(attempts > 0 && per_second <= 10.0),
    );
    let recovery = stage.recovery(&outcomes, 0.99, Duration::from_millis(200));
    table.add(
        Figure::time("well again after", "<= 2 s")
            .after(until_well(recovery))
            .held(recovery.is_some_and(|time| time <= Duration::from_secs(2))),
    );
    let last = stage.last_second(&outcomes);
    table.add(
        Figure::fact("errors in the last second", 0)
            .after(last.ends())
            .held(last.len() > 0 && last.errors() == 0),
    );
}

/// Returns how many connections per second are tried where nobody refuses in the upstream's place.
fn tried_without_a_proxy(faults: &FaultProxy, rate: f64) -> f64 {
    faults.set(Fault::Refuse);
    let before = failed_connects();
    let lasts = Duration::from_millis(500);
    let clients = Load::get(faults.address, "/chat/session", rate).lasting(lasts);
    drop(clients.start(Instant::now()).outcomes());
    (failed_connects() - before) as f64 / lasts.as_secs_f64()
}

/// U9: what a wire can do to an answer is told as what it is, or is only slow.
pub(crate) fn u9(scale: Scale, table: &mut Table) {
    let upstream = Upstream::start(Capacity::PLENTY);
    let faults = FaultProxy::before(upstream.address);
    let chat = Service::new("chat", "/chat/", faults.address).answering_within("5s");
    let proxy = Proxy::start(Setup::of(vec![chat]));
    let late = Duration::from_millis(100);
    for (fault, what, expected) in [
        (Fault::Latency(late), "latency of 100 ms", &[200][..]),
        (
            Fault::Drip(Duration::from_millis(1)),
            "byte by byte",
            &[200],
        ),
        (Fault::Garbage, "garbage in place of the answer", &[502]),
        (Fault::HalfClose, "an end in place of the answer", &[502]),
        // As good as nobody there: the breaker may say so.
        (Fault::Reset, "resets", &[502, 503]),
    ] {
        let stage = scale.pick(
            Stage::short([0.2, 0.4, 2.2]),
            Stage::full(1, [0.5, 1.0, 2.0]),
        );
        let clients = Load::get(proxy.address, "/chat/session", 50.0).lasting(stage.ends());
        let clients = clients.start(stage.began);
        stage.play(|begins| faults.set(if begins { fault } else { Fault::Nothing }));
        let outcomes = clients.outcomes();
        let [before, during, after] = stage.phases_of(&outcomes);
        let is_expected = |end| matches!(end, End::Status(status) if expected.contains(&status));
        let as_expected = during.count(is_expected);
        let words: Vec<String> = expected.iter().map(u16::to_string).collect();
        // What was under way when the fault began or ended may be of either side.
        let nearly_all = during.len().saturating_sub(3);
        let is_late = during.percentile(0.5, End::is_good) >= late;
        let last = stage.last_second(&outcomes);
        let figure = Figure::fact(&format!("the wire does: {what}"), words.join(" or ")).phases(
            before.ends(),
            during.ends(),
            after.ends(),
        );
        // What is only slow is so with the proxy and without.
        let figure = if expected.contains(&200) {
            figure
        } else {
            faults.set(fault);
            let control = straight(faults.address, "");
            faults.set(Fault::Nothing);
            figure.control(
                format_args!("past the proxy: {}", control.ends()),
                control.count(is_expected) < control.len(),
            )
        };
        table.add(figure.held(
            as_expected > 0
                && as_expected >= nearly_all
                && before.errors() == 0
                && last.errors() == 0
                && (fault != Fault::Latency(late) || is_late),
        ));
    }
}

/// Returns how many connections could not be made on this machine so far (`AttemptFails`, RFC 4022):
/// the kernel's own count, of all programs, so an upper bound for one.
fn failed_connects() -> u64 {
    let text = std::fs::read_to_string("/proc/self/net/snmp").unwrap_or_default();
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, values) = (
        lines.next().unwrap_or_default(),
        lines.next().unwrap_or_default(),
    );
    let mut both = names.split(' ').zip(values.split(' '));
    let value = both.find_map(|(name, value)| (name == "AttemptFails").then_some(value));
    value.and_then(|it| it.parse().ok()).unwrap_or(0)
}
