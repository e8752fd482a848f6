//! Upstreams that accept and then do nothing.

use std::time::Duration;

use crate::clients::{Clients, Load};
use crate::experiments::{MEMORY_NOISE_BYTES, Neighbours, WAITING_BYTES_MAX, kib, ms, until_well};
use crate::fault_proxy::{Fault, FaultProxy};
use crate::outcomes::{End, Outcomes};
use crate::proxy::Proxy;
use crate::settings::{Service, Setup};
use crate::stage::{Phase, Stage, Witness};
use crate::table::{Figure, Scale, Table};
use crate::upstream::{Capacity, Upstream};

/// U1: the others notice nothing; the frozen service answers 503 and 504 in time, and is well at
/// once when it thaws.
pub(crate) fn u1(scale: Scale, table: &mut Table) {
    let places = scale.pick(50, 400);
    let neighbours = Neighbours::start();
    let upstream = Upstream::start(Capacity::PLENTY);
    let faults = FaultProxy::before(upstream.address);
    let chat = Service::new("chat", "/chat/", faults.address)
        .with_places(places)
        .answering_within("1s");
    let proxy = Proxy::start(Setup::of(neighbours.beside(chat)));
    let stage = scale.pick(
        Stage::short([0.5, 1.5, 1.6]),
        Stage::full(4, [2.5, 2.5, 2.0]),
    );
    let witness = Witness::of(&proxy, &stage);
    let chat = Load::get(proxy.address, "/chat/session", scale.pick(150.0, 1200.0));
    let chat = chat.lasting(stage.ends()).start(stage.began);
    let others = Neighbours::clients(&proxy, &stage, scale.pick(50.0, 400.0));
    stage.play(|is_frozen| {
        faults.set(if is_frozen {
            Fault::Stall
        } else {
            Fault::Nothing
        });
    });
    let (chat, seen) = (chat.outcomes(), witness.seen());
    let others = Neighbours::outcomes(others);
    let control = one_service_for_all(scale);
    Neighbours::figures(table, &stage, &others, 1.1, Some(control), None);

    let [before, during, after] = stage.phases_of(&chat);
    let in_words = |end| matches!(end, End::Status(200 | 503 | 504));
    let unheard = chat.len() - chat.count(in_words);
    let of = |status| during.count(|end| end == End::Status(status));
    table.add(
        Figure::fact("chat is answered, 503 or 504", "all")
            .phases(before.ends(), during.ends(), after.ends())
            .held(unheard == 0 && of(503) > 0 && of(504) > 0),
    );
    let late = during.percentile(1.0, |end| end == End::Status(504));
    table.add(
        Figure::time("504 after", "<= 1.2 s (response_timeout 1s)")
            .during(ms(late))
            .held(!late.is_zero() && late <= Duration::from_millis(1200)),
    );
    let refused = stage.percentile(&chat, Phase::During, 0.99, |end| end == End::Status(503));
    table.add(
        Figure::time("503 within, p99", "<= 5 ms")
            .during(ms(refused))
            .held(!refused.is_zero() && refused <= Duration::from_millis(5)),
    );
    let growth = seen.growth(&stage, 0);
    let bound = WAITING_BYTES_MAX * places as u64 + MEMORY_NOISE_BYTES;
    table.add(
        Figure::fact("memory for what waits", format_args!("<= {}", kib(bound)))
            .during(kib(growth))
            .held(growth <= bound),
    );
    waiting_memory(scale, table);
    let recovery = stage.recovery(&chat, 0.99, Duration::from_millis(200));
    table.add(
        Figure::time("chat is well again after", "<= 1 s")
            .after(until_well(recovery))
            .held(recovery.is_some_and(|time| time <= Duration::from_secs(1))),
    );
    let last = stage.last_second(&chat);
    table.add(
        Figure::fact("chat's errors in the last second", 0)
            .after(last.ends())
            .held(last.len() > 0 && last.errors() == 0),
    );
}

/// What a queue holds before a frozen upstream costs so much each, and all of it no more than
/// `queue_bytes`.
fn waiting_memory(scale: Scale, table: &mut Table) {
    const BYTES_MAX: u64 = 1024 * 1024;
    let count = scale.pick(200_u32, 1000);
    let upstream = Upstream::start(Capacity::PLENTY);
    let body = vec![b'a'; 30 * 1024];
    let post = format!(
        "POST /chat/session HTTP/1.1\r\nhost: chaos.test\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let post: Vec<u8> = post.into_bytes().into_iter().chain(body).collect();
    // How many wait, and by how much memory grows for them.
    let run = |queue_bytes: &'static str, wanted: u32| {
        let chat = Service::new("chat", "/chat/", upstream.address)
            .with_places(4)
            .with_queue(10_000, "10s")
            .holding(queue_bytes)
            .answering_within("10s");
        let proxy = Proxy::start(Setup::of(vec![chat]));
        let stage = scale.pick(
            Stage::short([0.5, 1.5, 0.3]),
            Stage::full(1, [3.0, 3.0, 0.5]),
        );
        let witness = Witness::of(&proxy, &stage);
        upstream.freeze("/chat/");
        let (from, _) = stage.phase(0, Phase::During);
        let lasts = Duration::from_secs(1);
        let text = post.clone();
        let mut load = Load::get(proxy.address, "", f64::from(count))
            .sending(move |_| text.clone())
            .during(from, from + lasts);
        load.connections_max = count as usize;
        load.patience = stage.ends();
        let clients = load.start(stage.began);
        stage.wait_until(stage.phase(0, Phase::After).0);
        let waiting = || proxy.metric("tidegate_waiting_requests{service=\"chat\"}");
        // They wait for ten seconds: on a busy machine a few may be late.
        let late = std::time::Instant::now() + Duration::from_secs(4);
        while waiting() + 4.0 < f64::from(wanted) && std::time::Instant::now() < late {
            std::thread::sleep(Duration::from_millis(50));
        }
        let waiting = waiting();
        let growth = witness.seen().growth(&stage, 0);
        upstream.thaw();
        (waiting, growth, clients.outcomes())
    };
    let (waiting, growth, served) = run("64MiB", count);
    let bound = WAITING_BYTES_MAX * u64::from(count) + MEMORY_NOISE_BYTES;
    table.add(
        Figure::fact(
            "memory for a queue",
            format_args!("<= {} for {count}", kib(bound)),
        )
        .during(format_args!("{} for {waiting} that wait", kib(growth)))
        .held(waiting >= f64::from(count - 4) && growth <= bound && served.errors() == 0),
    );
    let (few, less, outcomes) = run("1MiB", 0);
    // Each holds its head, its task and 16 KiB of its body.
    let most = BYTES_MAX / (16 * 1024);
    table.add(
        Figure::fact(
            "requests that wait in 1 MiB",
            format_args!("<= {most}, the others 503"),
        )
        .during(format_args!("{few} ({}); {}", kib(less), outcomes.ends()))
        .control(format_args!("in 64 MiB: {waiting}"), waiting > most as f64)
        .held(
            few > 0.0
                && few <= most as f64
                && outcomes.count(|end| end == End::Status(503)) > 0
                && outcomes.count(|end| matches!(end, End::Status(200 | 503))) == outcomes.len(),
        ),
    );
}

/// The control of U1: the same load where all services share one's places. Freezing chat takes KB
/// and login along.
fn one_service_for_all(scale: Scale) -> (String, bool) {
    let upstream = Upstream::start(Capacity::PLENTY);
    let all = Service::new("all", "/", upstream.address)
        .with_places(scale.pick(50, 400))
        .answering_within("1s");
    let proxy = Proxy::start(Setup::of(vec![all]));
    let stage = scale.pick(
        Stage::short([0.3, 1.0, 0.2]),
        Stage::full(1, [1.0, 3.0, 0.5]),
    );
    let chat = Load::get(proxy.address, "/chat/session", scale.pick(150.0, 1200.0));
    let chat = chat.lasting(stage.ends()).start(stage.began);
    let others = Neighbours::clients(&proxy, &stage, scale.pick(50.0, 400.0));
    stage.play(|is_frozen| {
        if is_frozen {
            upstream.freeze("/chat/");
        } else {
            upstream.thaw();
        }
    });
    drop(chat.outcomes());
    let during = stage.all(&Neighbours::outcomes(others), Phase::During);
    (
        format!("one service for all: {}", during.ends()),
        during.errors() > 0,
    )
}

/// U2: large bodies that nobody reads stay with their clients.
pub(crate) fn u2(scale: Scale, table: &mut Table) {
    const BODY: usize = 10 * 1024 * 1024;
    let posts = scale.pick(8, 24);
    let neighbours = Neighbours::start();
    let upstream = Upstream::start(Capacity::PLENTY);
    let chat = Service::new("chat", "/chat/", upstream.address).answering_within("1s");
    let proxy = Proxy::start(Setup::of(neighbours.beside(chat)));
    let stage = scale.pick(
        Stage::short([1.0, 2.0, 0.5]),
        Stage::full(2, [4.0, 4.0, 2.0]),
    );
    let witness = Witness::of(&proxy, &stage);
    let others = Neighbours::clients(&proxy, &stage, scale.pick(50.0, 200.0));
    let post = |wish: &str| {
        let head = format!(
            "POST /chat/upload?do={wish} HTTP/1.1\r\nhost: chaos.test\r\n\
             content-length: {BODY}\r\n\r\n"
        );
        let mut text = head.into_bytes();
        text.resize(text.len() + BODY, b'a');
        text
    };
    let mut uploads = Vec::new();
    stage.play(|begins| {
        if begins {
            let text = post("read-nothing");
            let (from, _) = stage.phase(uploads.len() as u32, Phase::During);
            let to = from + Duration::from_millis(500);
            let load = Load::get(proxy.address, "", posts as f64 / 0.5)
                .during(from, to)
                .sending(move |_| text.clone());
            uploads.push(load.start(stage.began));
        }
    });
    let uploads = uploads.into_iter().map(Clients::outcomes);
    let uploads = uploads.fold(Outcomes::default(), |all, one| all.with(&one));
    let seen = witness.seen();
    let others = Neighbours::outcomes(others);
    Neighbours::figures(table, &stage, &others, 1.1, None, None);

    // The control: the same posts, where they are read.
    let text = post("");
    let whole = Load::get(proxy.address, "", posts as f64 / 2.0)
        .lasting(Duration::from_secs(2))
        .sending(move |_| text.clone())
        .start(std::time::Instant::now())
        .outcomes();
    table.add(
        Figure::fact("posts that nobody reads", "504; 503 beyond 8 at a time")
            .during(uploads.ends())
            .control(
                format_args!("where they are read: {}", whole.ends()),
                whole.errors() == 0,
            )
            .held(
                uploads.count(|end| matches!(end, End::Status(503 | 504))) == uploads.len()
                    && uploads.count(|end| end == End::Status(504)) > 0,
            ),
    );
    let growth = seen.growth(&stage, 0);
    let bound = WAITING_BYTES_MAX * posts as u64 + MEMORY_NOISE_BYTES;
    table.add(
        Figure::fact("memory for what waits", format_args!("<= {}", kib(bound)))
            .during(kib(growth))
            .beside(format_args!("all bodies: {}", kib((posts * BODY) as u64)))
            .held(growth <= bound),
    );
}
