//! Large bodies beside small calls, in the same service.

use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::clients::{Clients, Load};
use crate::experiments::{kib, ms, ratio};
use crate::outcomes::Outcomes;
use crate::proxy::Proxy;
use crate::settings::{Service, Setup};
use crate::stage::{Phase, Stage, Witness};
use crate::table::{Figure, Scale, Table};
use crate::upstream::{Capacity, Upstream};

/// How much memory all large bodies together may take.
const MEMORY_BYTES_MAX: u64 = 64 * 1024 * 1024;
const MIB: usize = 1024 * 1024;

fn head(target: &str, length: usize) -> Vec<u8> {
    let text =
        format!("POST {target} HTTP/1.1\r\nhost: chaos.test\r\ncontent-length: {length}\r\n\r\n");
    text.into_bytes()
}

/// Sends a body of so many MiB on a thread of its own, evenly over so long a time, and not longer.
fn upload(to: SocketAddr, mebibytes: u32, lasts: Duration) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut stream = TcpStream::connect(to).expect("somebody listens");
        let piece = vec![b'a'; MIB];
        let began = Instant::now();
        let mut sent = stream.write_all(&head("/chat/upload", mebibytes as usize * MIB));
        for number in 0..mebibytes {
            // Refused in the middle, or time is over: the small calls are what is measured, and those
            // after it are to be calm.
            if sent.is_err() || began.elapsed() >= lasts {
                return;
            }
            let due = began + lasts * number / mebibytes;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            sent = stream.write_all(&piece);
        }
    })
}

/// What came of small calls beside large bodies.
struct Beside {
    stage: Stage,
    small: Outcomes,
    large: Outcomes,
    bytes: u64,
}

/// Sends small calls through a proxy, and meanwhile large bodies there or past it.
fn beside(scale: Scale, proxy: &Proxy, bodies: SocketAddr) -> Beside {
    let stage = scale.pick(
        Stage::short([0.5, 1.5, 0.5]),
        Stage::full(3, [4.0, 6.0, 2.0]),
    );
    let witness = Witness::of(proxy, &stage);
    let small = Load::get(proxy.address, "/chat/small", scale.pick(50.0, 300.0));
    let small = small.lasting(stage.ends()).start(stage.began);
    let body = head("/chat/large", MIB).into_iter().chain(vec![b'a'; MIB]);
    let body: Vec<u8> = body.collect();
    let large = stage.rounds().map(|round| {
        let (from, to) = stage.phase(round, Phase::During);
        let body = body.clone();
        let mut large = Load::get(bodies, "", scale.pick(15.0, 100.0))
            .sending(move |_| body.clone())
            .during(from, to);
        large.niceness = 5;
        // Large bodies wait for each other.
        large.patience = Duration::from_secs(20);
        large.start(stage.began)
    });
    let large: Vec<Clients> = large.collect();
    let (from, to) = stage.phase(0, Phase::During);
    let mut huge = Vec::new();
    stage.play(|begins| {
        if begins {
            // 100 MiB a second at full scale.
            let mebibytes = scale.pick(64, 600);
            huge.push(upload(bodies, mebibytes, to.saturating_sub(from)));
        }
    });
    let (small, seen) = (small.outcomes(), witness.seen());
    let large = large.into_iter().map(Clients::outcomes);
    let large = large.fold(Outcomes::default(), |all, more| all.with(&more));
    for upload in huge {
        upload.join().expect("an upload does not panic");
    }
    let growths = stage.rounds().map(|round| seen.growth(&stage, round));
    let bytes = growths.max().unwrap_or_default();
    Beside {
        stage,
        small,
        large,
        bytes,
    }
}

/// M5: small calls do not notice huge uploads and hundreds of large ones.
pub(crate) fn m5(scale: Scale, table: &mut Table) {
    let upstream = Upstream::start(Capacity::PLENTY);
    let chat = Service::new("chat", "/chat/", upstream.address);
    let proxy = Proxy::start(Setup::of(vec![chat]));
    let through = beside(scale, &proxy, proxy.address);
    let [before, during, after] = through.stage.phases_of(&through.small);
    table.add(
        Figure::fact("errors of small calls", 0)
            .phases(before.ends(), during.ends(), after.ends())
            .held(through.small.errors() == 0),
    );
    let [before, during, after] = through.stage.p99s(&through.small);
    let slower = ratio(before, during);
    let figure = Figure::time("p99 of small calls", "<= 1.2 x before").phases(
        ms(before),
        format_args!("{} ({slower:.2} x)", ms(during)),
        ms(after),
    );
    // The same bodies past the proxy: what they cost these two processors anyway.
    let figure = if scale == Scale::Full {
        let past = beside(scale, &proxy, upstream.address);
        let [before, during, _] = past.stage.p99s(&past.small);
        let slower = ratio(before, during);
        figure.beside(format_args!(
            "bodies past the proxy: {} ({slower:.2} x)",
            ms(during)
        ))
    } else {
        figure
    };
    table.add(figure.held(slower <= 1.2));
    let bodies = through.large.good();
    table.add(
        Figure::fact("memory", format_args!("<= {}", kib(MEMORY_BYTES_MAX)))
            .during(format_args!(
                "{} ({bodies} large bodies)",
                kib(through.bytes)
            ))
            .held(through.bytes <= MEMORY_BYTES_MAX && bodies > 0),
    );
    let chat = || Service::new("chat", "/chat/", upstream.address).with_places(PLACES);
    let (stage, small) = all_places_uploading(scale, chat());
    let (control_stage, control) = all_places_uploading(scale, chat().without_lane());
    let [before, during, after] = stage.phases_of(&small);
    let controlled = control_stage.all(&control, Phase::During);
    let figure = Figure::fact(
        "errors of small calls beside 32 slow uploads in 32 places",
        0,
    )
    .phases(before.ends(), during.ends(), after.ends());
    let figure = figure.control(
        format_args!("no lane: {}", controlled.ends()),
        controlled.errors() > 0,
    );
    table.add(figure.held(small.errors() == 0));
    let last = control_stage.last_second(&control);
    table.add(
        Figure::fact("errors in the last second, even without a lane", 0)
            .after(last.ends())
            .held(last.len() > 0 && last.errors() == 0),
    );
}

/// Requests in flight, in what follows.
const PLACES: usize = 32;

/// Fills all places with slow uploads, as far as they are let in. Returns the small calls.
fn all_places_uploading(scale: Scale, chat: Service) -> (Stage, Outcomes) {
    let proxy = Proxy::start(Setup::of(vec![chat]));
    let stage = scale.pick(
        Stage::short([0.3, 0.7, 1.2]),
        Stage::full(1, [2.0, 3.0, 2.0]),
    );
    let small = Load::get(proxy.address, "/chat/small", 50.0);
    let small = small.lasting(stage.ends()).start(stage.began);
    let mut uploads = Vec::new();
    stage.play(|begins| {
        uploads.clear();
        for number in 0..if begins { PLACES + 16 } else { 0 } {
            // A small call may be in the last place when its turn comes, but not all the time.
            if number > PLACES {
                std::thread::sleep(Duration::from_millis(7));
            }
            let mut stream = TcpStream::connect(proxy.address).expect("the proxy listens");
            let mut beginning = head("/chat/large", 8 * MIB);
            beginning.resize(beginning.len() + 1024, b'a');
            stream.write_all(&beginning).expect("room for a beginning");
            uploads.push(stream);
        }
    });
    (stage, small.outcomes())
}
