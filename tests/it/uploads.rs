//! Request bodies: large ones in a lane of their own, none longer than its service takes, none slower
//! than its service waits, and none of that blamed on the upstream.

use std::sync::mpsc::channel;
use std::time::Duration;

use super::harness::{OK, Proxy, Setup, Upstream, Wire};
use super::isolation::{GET, begin, shed, start, waiting};

const CHUNKED: &str = "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";

/// Waits until a worker has told what it counted, and fails if the upstream is blamed for any of it.
#[track_caller]
fn expect_no_blame(proxy: &Proxy, verdict: &str) {
    let requests = "tidegate_requests_total{service=\"chat\",verdict=";
    proxy.metric_reaches(&format!("{requests}\"{verdict}\"}}"), 1);
    let metrics = proxy.admin("/metrics").text();
    let errors = metrics
        .lines()
        .filter(|line| line.starts_with("tidegate_upstream_errors_total{"));
    let blamed: Vec<&str> = errors.filter(|line| !line.ends_with(" 0")).collect();
    assert!(blamed.is_empty(), "{blamed:?}");
}

/// Announces a body and sends some of it.
fn upload(proxy: &Proxy, length: usize, sent: usize) -> Wire {
    let head = format!("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n");
    let mut client = begin(proxy, &head);
    client.send(vec![b'a'; sent]);
    client
}

#[test]
fn large_bodies_wait_for_each_other_and_nobody_for_them() {
    let upstream = Upstream::new();
    let proxy = start(
        upstream.address,
        "concurrency: { max: 1, queue: 4, queue_timeout: 20s }, large_body: 1KiB, large_bodies_max: 1",
    );
    let mut large = upload(&proxy, 4096, 100);
    let mut of_large = upstream.accept();
    of_large.head();
    let mut another = upload(&proxy, 4096, 4096);
    waiting(&proxy, 1);
    let mut small = begin(&proxy, GET);
    let mut of_small = upstream.accept();
    of_small.request();
    of_small.send(OK);
    assert_eq!(small.response().status(), 200);
    waiting(&proxy, 1);
    large.send(vec![b'a'; 3996]);
    of_large.exactly(4096);
    of_large.send(OK);
    assert_eq!(large.response().status(), 200);
    // On the connection that became free last.
    of_large.head();
    of_large.exactly(4096);
    of_large.send(OK);
    assert_eq!(another.response().status(), 200);
    waiting(&proxy, 0);
}

/// A body of unknown length gives its place back when it turns out large.
#[test]
fn a_body_that_turns_out_large_moves_over() {
    let upstream = Upstream::new();
    let proxy = start(
        upstream.address,
        "concurrency: { max: 1, queue: 4, queue_timeout: 20s }, large_body: 1KiB, large_bodies_max: 1",
    );
    let mut client = begin(&proxy, CHUNKED);
    let mut wire = upstream.accept();
    client.send(format!("200\r\n{}\r\n", "a".repeat(0x200)));
    wire.head();
    let mut small = begin(&proxy, GET);
    waiting(&proxy, 1);
    client.send(format!("800\r\n{}\r\n1\r\na\r\n", "a".repeat(0x800)));
    let mut of_small = upstream.accept();
    of_small.request();
    of_small.send(OK);
    assert_eq!(small.response().status(), 200);
    client.send("0\r\n\r\n");
    wire.read_until(b"0\r\n\r\n");
    wire.send(OK);
    assert_eq!(client.response().status(), 200);
}

#[test]
fn bodies_longer_than_the_service_takes_are_refused_announced_or_not() {
    let upstream = Upstream::new();
    let proxy = start(upstream.address, "body_max: 1KiB");
    let mut announced = upload(&proxy, 2048, 0);
    announced.response().expect_problem(413, "body_too_large");
    upstream.expect_untouched();
    let mut client = begin(&proxy, CHUNKED);
    client.send(format!("800\r\n{}\r\n", "a".repeat(0x800)));
    let refused = client.response();
    refused.expect_problem(413, "body_too_large");
    assert!(
        refused
            .header("connection")
            .is_some_and(|field| field == "close")
    );
    let mut fits = upload(&proxy, 1024, 1024);
    let mut wire = loop {
        let mut wire = upstream.accept();
        if let Some(head) = wire.head_if_any()
            && head.header("content-length").is_some()
        {
            break wire;
        }
    };
    wire.exactly(1024);
    wire.send(OK);
    assert_eq!(fits.response().status(), 200);
}

/// Whoever sends a byte now and then makes no progress; a service that streams sets its own patience.
#[test]
fn a_dripping_body_is_ended_after_the_services_idle_timeout() {
    let upstream = Upstream::new();
    let proxy = start(upstream.address, "idle_timeout: 1s");
    let mut client = upload(&proxy, 100_000, 10);
    let mut wire = upstream.accept();
    wire.head();
    let mut drip = client.twin();
    let dripping = std::thread::spawn(move || {
        for _ in 0..60 {
            if !drip.is_taken(b"a") {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("it was never ended");
    });
    assert_eq!(client.response().status(), 408);
    dripping.join().expect("the drip was cut off");
    let series = "tidegate_stalled_requests_total{service=\"chat\",side=\"client\"}";
    proxy.metric_reaches(series, 1);
}

/// It waited until its client gave up, and its endpoint was blamed.
#[test]
fn a_body_that_turns_out_large_waits_for_its_lane_no_longer_than_the_queue_allows() {
    for (keys, reason) in [
        (
            "concurrency: { queue: 4, queue_timeout: 300ms }",
            "queue_timeout",
        ),
        ("concurrency: { queue: 0 }", "full"),
    ] {
        let upstream = Upstream::new();
        let keys = format!("{keys}, large_body: 1KiB, large_bodies_max: 1");
        let proxy = start(upstream.address, &keys);
        let _large = upload(&proxy, 4096, 100);
        let _of_large = upstream.accept();
        let mut client = begin(&proxy, CHUNKED);
        client.send(format!("800\r\n{}\r\n1\r\na\r\n", "a".repeat(0x800)));
        let refused = client.response();
        refused.expect_problem(503, "overloaded");
        assert!(refused.header("retry-after").is_some());
        assert_eq!(shed(&proxy, reason), 1);
        expect_no_blame(&proxy, "shed");
        waiting(&proxy, 0);
    }
}

/// The time to the answer is the upstream's; until the request is whole, it is the client's.
#[test]
fn a_client_that_falls_silent_in_its_body_is_told_so_and_the_endpoint_is_not_blamed() {
    let upstream = Upstream::new();
    let proxy = Setup {
        upstream: "response_timeout: 200ms\n    idle_timeout: 1s",
        ..Setup::to(upstream.address)
    }
    .start();
    let mut client = upload(&proxy, 9, 3);
    let mut wire = upstream.accept();
    wire.head();
    client.response().expect_problem(408, "http_request_error");
    let series = "tidegate_stalled_requests_total{service=\"chat\",side=\"client\"}";
    proxy.metric_reaches(series, 1);
    let metrics = proxy.admin("/metrics").text();
    let blamed =
        "tidegate_upstream_errors_total{error=\"http_response_timeout\",upstream=\"chat\"} ";
    assert!(metrics.contains(&format!("{blamed}0\n")), "{metrics}");
}

/// hyper lets a body go at its trailers, without asking for its end; the request waited for ever then.
#[test]
fn a_body_that_ends_in_trailers_has_ended() {
    let upstream = Upstream::new();
    let proxy = Setup {
        upstream: "response_timeout: 500ms",
        ..Setup::to(upstream.address)
    }
    .start();
    let mut client = begin(&proxy, CHUNKED);
    client.send("1\r\na\r\n0\r\nX-Sum: 1\r\n\r\n");
    let mut wire = upstream.accept();
    wire.head();
    client
        .response()
        .expect_problem(504, "http_response_timeout");
}

/// It had twice the time then: who asked a second later was told first.
#[test]
fn a_request_with_a_body_waits_for_its_answer_no_longer_than_one_without() {
    let upstream = Upstream::new();
    let proxy = Setup {
        upstream: "response_timeout: 2s",
        ..Setup::to(upstream.address)
    }
    .start();
    let (told, order) = channel();
    let waits = |who: &'static str, mut client: Wire| {
        let told = told.clone();
        std::thread::spawn(move || {
            client
                .response()
                .expect_problem(504, "http_response_timeout");
            told.send(who).expect("it is waited for");
        })
    };
    let with = waits("with", upload(&proxy, 4, 4));
    std::thread::sleep(Duration::from_secs(1));
    let without = waits("without", begin(&proxy, GET));
    let first = order.recv_timeout(Duration::from_secs(8));
    assert_eq!(first, Ok("with"));
    with.join().unwrap();
    without.join().unwrap();
}

#[test]
fn the_upstream_has_its_whole_time_from_the_last_byte_of_the_request() {
    let upstream = Upstream::new();
    let proxy = Setup {
        upstream: "response_timeout: 2s",
        ..Setup::to(upstream.address)
    }
    .start();
    let mut client = upload(&proxy, 4, 2);
    let mut wire = upstream.accept();
    wire.head();
    std::thread::sleep(Duration::from_millis(1500));
    client.send("bb");
    wire.exactly(4);
    std::thread::sleep(Duration::from_secs(1));
    wire.send(OK);
    assert_eq!(client.response().status(), 200);
}
