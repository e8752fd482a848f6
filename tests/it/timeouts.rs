//! Clients that take their time. The deadlines are real, so all run at once and cost one of them.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use super::harness::{Proxy, Upstream, Wire};

/// Waits until the proxy closes; returns after how long, and what it said.
fn until_closed(mut client: Wire) -> (Duration, String) {
    let (took, rest) = client.time_to_close(Duration::from_secs(20));
    (took, String::from_utf8_lossy(&rest).into_owned())
}

/// Sends one byte a quarter of a second until the proxy closes.
fn drip(client: Wire, bytes: &'static [u8]) -> (Duration, String) {
    let (closed, end) = channel::<()>();
    let mut sender = client.twin();
    let dripping = thread::spawn(move || {
        for byte in bytes {
            sender.send([*byte]);
            let waited = end.recv_timeout(Duration::from_millis(250));
            if waited == Err(RecvTimeoutError::Disconnected) {
                return;
            }
        }
    });
    let ended = until_closed(client);
    drop(closed);
    dripping.join().expect("sending never panics");
    ended
}

#[test]
fn slow_clients_are_told_so_and_closed_at_their_deadlines() {
    let upstream = Upstream::recording();
    let proxy = Proxy::to(upstream.address);
    let start = |what: fn(Wire) -> (Duration, String)| {
        let client = proxy.client();
        thread::spawn(move || what(client))
    };
    let silent = start(until_closed);
    let half = start(|mut client| {
        client.send("GET / HTTP/1.1\r\nHo");
        until_closed(client)
    });
    let dripping = start(|client| drip(client, &[b'a'; 100]));
    let preface = start(|mut client| {
        client.send("PRI * HT");
        until_closed(client)
    });
    let second_head = start(|mut client| {
        let first = client.exchange("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(first.status(), 200);
        drip(
            client,
            b"GET / HTTP/1.1\r\nX-A: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        )
    });
    for (what, ended, seconds) in [
        ("silent", silent, 5),
        ("half a head", half, 10),
        ("a head byte by byte", dripping, 10),
        ("half a preface", preface, 10),
        ("a second head byte by byte", second_head, 10),
    ] {
        let (took, answer) = ended.join().unwrap();
        let deadline = Duration::from_secs(seconds);
        let in_time = took + Duration::from_millis(300) >= deadline
            && took <= deadline + Duration::from_millis(1500);
        assert!(
            in_time,
            "{what}: closed after {took:?}, {deadline:?} was expected"
        );
        let is_408 = answer.starts_with("HTTP/1.1 408 ") && answer.contains("connection: close");
        assert!(is_408, "{what}: {answer:?}");
    }
    proxy.metric_reaches(
        "tidegate_client_errors_total{error=\"first_byte_timeout\"}",
        1,
    );
    proxy.metric_reaches("tidegate_client_errors_total{error=\"head_timeout\"}", 4);
    assert_eq!(upstream.take().len(), 1, "the one whole request");
}
