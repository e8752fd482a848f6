//! Upstreams that say nothing, or hardly anything, and clients that do not listen.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use crate::clients::{Clients, Load};
use crate::experiments::{Neighbours, kib, ms, ratio, until_well};
use crate::fault_proxy::{Fault, FaultProxy};
use crate::outcomes::{End, Outcomes};
use crate::proxy::Proxy;
use crate::settings::{Service, Setup};
use crate::stage::{Phase, Stage, Witness};
use crate::table::{Figure, Scale, Table};
use crate::upstream::{Capacity, Upstream};

/// What a request that waits may cost, in bytes.
const WAITING_BYTES_MAX: u64 = 64 * 1024;
/// What is not to be had more exactly from outside: the allocator keeps pages for later.
const MEMORY_NOISE_BYTES: u64 = 2 * 1024 * 1024;

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
    table.add(
        Figure::fact("chat is answered, 503 or 504", "all")
            .phases(before.ends(), during.ends(), after.ends())
            .held(unheard == 0 && during.errors() > 0),
    );
    let late = during.percentile(1.0, |end| end == End::Status(504));
    table.add(
        Figure::time("504 after", "<= 1.2 s (response_timeout 1s)")
            .during(ms(late))
            .held(late <= Duration::from_millis(1200)),
    );
    let refused = stage.percentile(&chat, Phase::During, 0.99, |end| end == End::Status(503));
    table.add(
        Figure::time("503 within, p99", "<= 5 ms")
            .during(ms(refused))
            .held(refused <= Duration::from_millis(5)),
    );
    let growth = seen.growth(&stage, 0);
    let bound = WAITING_BYTES_MAX * places as u64 + MEMORY_NOISE_BYTES;
    table.add(
        Figure::fact("memory for what waits", format_args!("<= {}", kib(bound)))
            .during(kib(growth))
            .held(growth <= bound),
    );
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
            .control(
                format_args!("all bodies: {}", kib((posts * BODY) as u64)),
                true,
            )
            .held(growth <= bound),
    );
}

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
}

/// What came of slow answers beside KB and login.
struct Slow {
    stage: Stage,
    others: Outcomes,
    /// By how much the proxy's memory grew, in bytes.
    growth: u64,
    /// How many there were at once.
    open: f64,
    /// How long one that stood still was waited for.
    stalled: Duration,
}

/// Asks for slow and large answers and reads none, through the proxy or past it, beside the clients
/// of KB and login.
fn slow_answers(
    scale: Scale,
    proxy: &Proxy,
    asked: SocketAddr,
    upstream: &Upstream,
    each: u32,
) -> Slow {
    let stage = scale.pick(
        Stage::short([1.0, 3.0, 0.5]),
        Stage::full(1, [5.0, 15.5, 1.5]),
    );
    let witness = Witness::of(proxy, &stage);
    let others = Neighbours::clients(proxy, &stage, scale.pick(50.0, 200.0));
    let mut held = Vec::new();
    let mut stalled = Duration::ZERO;
    let mut open = 0.0;
    stage.play(|begins| {
        if begins {
            for number in 0..2 * each {
                let wish = if number < each { "drip" } else { "large" };
                held.push(ask_and_read_nothing(asked, wish));
                // Gently: the upstream of this test must not be what takes the processors.
                std::thread::sleep(Duration::from_millis(scale.pick(5, 15)));
            }
            // Workers say ten times a second how many there are.
            std::thread::sleep(Duration::from_millis(200));
            open = proxy.metric("tidegate_inflight_requests{service=\"chat\"}");
            if asked != upstream.address {
                stalled = time_of_a_stalled_answer(asked);
            }
        } else {
            held.clear();
        }
    });
    let growth = witness.seen().growth(&stage, 0);
    Slow {
        stage,
        others: Neighbours::outcomes(others),
        growth,
        open,
        stalled,
    }
}

/// U5: answers of one byte a second, and clients that read nothing, cost little each and others
/// nothing.
pub(crate) fn u5(scale: Scale, table: &mut Table) {
    let each = scale.pick(40_u32, 200);
    let idle = Duration::from_secs(scale.pick(2, 8));
    let neighbours = Neighbours::start();
    let upstream = Upstream::start(Capacity::PLENTY);
    let chat = Service::new("chat", "/chat/", upstream.address).idle_for(scale.pick("2s", "8s"));
    let proxy = Proxy::start(Setup::of(neighbours.beside(chat)));
    let slow = slow_answers(scale, &proxy, proxy.address, &upstream, each);
    let left = proxy.metric("tidegate_inflight_requests{service=\"chat\"}");
    // The same clients past the proxy: what they cost these two processors anyway.
    let past = (scale == Scale::Full).then(|| {
        let past = slow_answers(scale, &proxy, upstream.address, &upstream, each);
        let [before, during, _] = past.stage.p99s(&past.others);
        ("slow clients past the proxy", ratio(before, during))
    });
    Neighbours::figures(table, &slow.stage, &slow.others, 1.1, None, past);
    let bound = WAITING_BYTES_MAX * 2 * u64::from(each) + MEMORY_NOISE_BYTES;
    table.add(
        Figure::fact(
            "memory for slow answers",
            format_args!("<= {} for {}", kib(bound), 2 * each),
        )
        .during(format_args!("{} for {}", kib(slow.growth), slow.open))
        .held(slow.growth <= bound && slow.open >= f64::from(2 * each)),
    );
    table.add(
        Figure::fact(
            "an answer that stands still is cut off",
            "after idle_timeout",
        )
        .during(ms(slow.stalled))
        .held(slow.stalled >= idle.mul_f64(0.9) && slow.stalled < idle + Duration::from_secs(5)),
    );
    table.add(
        Figure::fact("requests that stay when their clients are gone", 0)
            .after(left)
            .control(
                format_args!("while they were there: {}", slow.open),
                slow.open > 0.0,
            )
            .held(left <= 0.0),
    );
}

/// Asks for a slow or a large answer, and reads none of it.
fn ask_and_read_nothing(proxy: SocketAddr, wish: &str) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    // What the kernel holds for this client: little, so that the proxy has to.
    socket
        .set_recv_buffer_size(16 * 1024)
        .expect("a TCP socket");
    socket.connect(&proxy.into()).expect("the proxy listens");
    let mut stream = TcpStream::from(socket);
    let text = format!("GET /chat/slow?do={wish} HTTP/1.1\r\nhost: chaos.test\r\n\r\n");
    stream
        .write_all(text.as_bytes())
        .expect("room for a request");
    stream
}

/// Returns how long an answer takes to be cut off that begins and does not go on.
fn time_of_a_stalled_answer(proxy: SocketAddr) -> Duration {
    let began = std::time::Instant::now();
    let mut stream = TcpStream::connect(proxy).expect("the proxy listens");
    let patience = Some(Duration::from_secs(20));
    stream.set_read_timeout(patience).expect("a TCP socket");
    let text = "GET /chat/slow?do=stall HTTP/1.1\r\nhost: chaos.test\r\n\r\n";
    stream
        .write_all(text.as_bytes())
        .expect("room for a request");
    // An end or a reset: both are ends.
    drop(stream.read_to_end(&mut Vec::new()));
    began.elapsed()
}
