//! Large bodies beside small calls, in the same service.

use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::clients::Load;
use crate::experiments::{kib, ms, ratio};
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

/// Sends a body of so many MiB on a thread of its own, as fast as it is taken.
fn upload(proxy: SocketAddr, mebibytes: usize) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let mut stream = TcpStream::connect(proxy).expect("the proxy listens");
        let piece = vec![b'a'; MIB];
        let mut sent = stream.write_all(&head("/chat/upload", mebibytes * MIB));
        for _ in 0..mebibytes {
            // Refused in the middle, or done: the small calls are what is measured.
            if sent.is_err() {
                return;
            }
            sent = stream.write_all(&piece);
        }
    })
}

/// M5: small calls do not notice a huge upload and a thousand large ones.
pub(crate) fn m5(scale: Scale, table: &mut Table) {
    let upstream = Upstream::start(Capacity::PLENTY);
    let chat = Service::new("chat", "/chat/", upstream.address);
    let proxy = Proxy::start(Setup::of(vec![chat]));
    let stage = scale.pick(
        Stage::short([0.5, 1.5, 0.5]),
        Stage::full(1, [8.0, 10.0, 4.0]),
    );
    let witness = Witness::of(&proxy, &stage);
    let small = Load::get(proxy.address, "/chat/small", scale.pick(50.0, 300.0));
    let small = small.lasting(stage.ends()).start(stage.began);
    let (from, to) = stage.phase(0, Phase::During);
    let body = head("/chat/large", MIB).into_iter().chain(vec![b'a'; MIB]);
    let body: Vec<u8> = body.collect();
    let mut large = Load::get(proxy.address, "", scale.pick(15.0, 100.0))
        .sending(move |_| body.clone())
        .during(from, to);
    large.niceness = 5;
    let large = large.start(stage.began);
    let mut huge = None;
    stage.play(|begins| {
        if begins {
            huge = Some(upload(proxy.address, scale.pick(64, 1024)));
        }
    });
    let (small, large, seen) = (small.outcomes(), large.outcomes(), witness.seen());
    if let Some(huge) = huge {
        huge.join().expect("an upload does not panic");
    }
    let [before, during, after] = stage.phases_of(&small);
    table.add(
        Figure::fact("errors of small calls", 0)
            .phases(before.ends(), during.ends(), after.ends())
            .held(small.errors() == 0),
    );
    let slower = ratio(before.p99(), during.p99());
    table.add(
        Figure::time("p99 of small calls", "<= 1.2 x before")
            .phases(
                ms(before.p99()),
                format_args!("{} ({slower:.2} x)", ms(during.p99())),
                ms(after.p99()),
            )
            .held(slower <= 1.2),
    );
    let growth = seen.growth(&stage, 0);
    table.add(
        Figure::fact("memory", format_args!("<= {}", kib(MEMORY_BYTES_MAX)))
            .during(format_args!(
                "{} ({} large bodies)",
                kib(growth),
                large.good()
            ))
            .control(
                format_args!("all bodies: {}", kib((large.good() * MIB) as u64)),
                scale == Scale::Short || (large.good() * MIB) as u64 > MEMORY_BYTES_MAX,
            )
            .held(growth <= MEMORY_BYTES_MAX && large.good() > 0),
    );
    all_places_uploading(scale, table);
}

/// As many slow uploads as there are places: the small calls of the same service go on.
fn all_places_uploading(scale: Scale, table: &mut Table) {
    const PLACES: usize = 32;
    let upstream = Upstream::start(Capacity::PLENTY);
    let chat = Service::new("chat", "/chat/", upstream.address).with_places(PLACES);
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
        // Twice as many: a small call may be in a place when its turn comes.
        for _ in 0..if begins { 2 * PLACES } else { 0 } {
            let mut stream = TcpStream::connect(proxy.address).expect("the proxy listens");
            let mut beginning = head("/chat/large", 8 * MIB);
            beginning.resize(beginning.len() + 1024, b'a');
            stream.write_all(&beginning).expect("room for a beginning");
            uploads.push(stream);
        }
    });
    let small = small.outcomes();
    let [before, during, after] = stage.phases_of(&small);
    table.add(
        Figure::not_yet(
            "errors of small calls beside 32 slow uploads in 32 places",
            0,
        )
        .phases(before.ends(), during.ends(), after.ends())
        .held(small.errors() == 0),
    );
    let last = small.between(
        stage.ends().saturating_sub(Duration::from_secs(1)),
        stage.ends(),
    );
    table.add(
        Figure::fact("errors in the last second", 0)
            .after(last.ends())
            .held(last.len() > 0 && last.errors() == 0),
    );
}
