//! Upstreams that say hardly anything, and clients that do not listen.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use crate::experiments::{MEMORY_NOISE_BYTES, Neighbours, WAITING_BYTES_MAX, kib, ms, ratio};
use crate::outcomes::Outcomes;
use crate::proxy::Proxy;
use crate::settings::{Service, Setup};
use crate::stage::{Stage, Witness};
use crate::table::{Figure, Scale, Table};
use crate::upstream::{Capacity, Upstream};

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
