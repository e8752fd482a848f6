//! Signals: SIGHUP reads the rules again and never makes things worse, SIGTERM ends without losing a
//! request that is under way.

use std::net::TcpStream;
use std::time::Duration;

use super::harness::{OK, Process, Setup, Upstream, eventually};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const ACME: &str = "GET / HTTP/1.1\r\nHost: a\r\nX-App-Id: acme\r\n\r\n";
const BLOCK: &str = "rules: [{ name: no-acme, when: { app: acme }, action: block }]";

#[test]
fn a_drain_lets_what_is_under_way_end_and_nothing_begin() {
    let upstream = Upstream::new();
    let mut process = Process::start(&Setup {
        workers: 2,
        ..Setup::to(upstream.address)
    });
    let mut idle = process.client();
    idle.send(GET);
    upstream.accept().answer_ok();
    assert_eq!(idle.response().status(), 200);
    let mut client = process.client();
    client.send(GET);
    let mut wire = upstream.accept();
    wire.request();
    let mut upload = process.client();
    upload.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nabc");
    let mut upload_wire = upstream.accept();
    upload_wire.head();
    assert_eq!(upload_wire.exactly(3), b"abc");

    process.signal("TERM");
    process.wait_for_log("draining");
    idle.expect_closed();
    eventually("nobody listens", || {
        TcpStream::connect(process.address).is_err()
    });

    upload.send("def");
    assert_eq!(upload_wire.exactly(3), b"def");
    upload_wire.send(OK);
    assert_eq!(upload.response().text(), "ok");
    wire.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n");
    assert_eq!(client.head().status(), 200);
    wire.send("ok");
    assert_eq!(client.rest(), b"ok");
    assert_eq!(process.ended().code(), Some(0), "{}", process.log());
    process.wait_for_log("drained");
    let log = process.folder.read("access.log");
    assert_eq!(log.lines().count(), 3, "every request is written: {log}");
}

#[test]
fn a_drain_answers_not_ready_and_a_second_signal_ends_at_once() {
    let upstream = Upstream::new();
    let mut process = Process::start(&Setup::to(upstream.address));
    let mut client = process.client();
    client.send(GET);
    let mut wire = upstream.accept();
    wire.request();
    process.signal("TERM");
    process.wait_for_log("draining");
    let probe = "GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let answer = super::harness::Wire::connect(process.admin).exchange(probe);
    assert_eq!(
        (answer.status(), answer.text().as_str()),
        (503, "draining\n")
    );
    // The thread that waits for it is started after the first signal, and says nothing.
    eventually("the process ends", || {
        process.signal_if_alive("INT");
        process.has_ended()
    });
    assert_eq!(process.ended().code(), Some(1), "{}", process.log());
}

#[test]
fn a_reload_takes_over_good_rules_and_leaves_bad_ones() {
    let upstream = Upstream::recording();
    let process = Process::start(&Setup::to(upstream.address));
    let status = |request: &str| process.client().exchange(request).status();
    assert_eq!(status(ACME), 200);

    process.folder.write("rules/rules.yaml", BLOCK);
    process.signal("HUP");
    eventually("the block is in force", || status(ACME) == 403);
    assert_eq!(status(GET), 200);

    process.folder.write(
        "rules/rules.yaml",
        "rules: [{ name: no-acme, when: { app: acme }, action: blok }]\nlimit: []\n",
    );
    process.signal("HUP");
    let failures = "tidegate_reload_failures_total";
    eventually(failures, || process.metric(failures) == 1);
    assert_eq!(process.metric("tidegate_reload_last_successful"), 0);
    assert_eq!(status(ACME), 403, "the last good rules stay");
    // Both problems are named, with their places.
    process.wait_for_log("rules.yaml:1:");
    process.wait_for_log("rules.yaml:2:1");
    process.wait_for_log("what was good last stays in force");

    // A folder that is gone is no reason to let everybody in.
    std::fs::remove_dir_all(process.folder.path().join("rules")).unwrap();
    process.signal("HUP");
    eventually(failures, || process.metric(failures) == 2);
    assert_eq!(status(ACME), 403);

    // Written beside and moved over, as careful hands do.
    std::fs::create_dir(process.folder.path().join("rules")).unwrap();
    process.folder.write("rules/.new", "rules: []\n");
    let (from, to) = ("rules/.new", "rules/rules.yaml");
    std::fs::rename(
        process.folder.path().join(from),
        process.folder.path().join(to),
    )
    .unwrap();
    process.signal("HUP");
    eventually("the block is gone", || status(ACME) == 200);
    assert_eq!(process.metric("tidegate_reload_last_successful"), 1);
    assert_eq!(process.metric(failures), 2);
}

#[test]
fn a_reload_keeps_what_unchanged_limits_have_counted() {
    let upstream = Upstream::recording();
    let limits = "limits: [{ name: tight, key: [ip], rate: 1/h, burst: 1 }]\n";
    let process = Process::start(&Setup {
        rules: limits,
        ..Setup::to(upstream.address)
    });
    assert_eq!(process.client().exchange(GET).status(), 200);
    process
        .folder
        .write("rules/rules.yaml", &format!("{limits}{BLOCK}"));
    process.signal("HUP");
    eventually("the block is in force", || {
        process.client().exchange(ACME).status() == 403
    });
    assert_eq!(process.client().exchange(GET).status(), 429);
}

#[test]
fn a_reload_under_way_loses_no_request() {
    let upstream = Upstream::recording();
    let process = Process::start(&Setup {
        workers: 2,
        ..Setup::to(upstream.address)
    });
    let mut clients: Vec<_> = (0..4).map(|_| process.client()).collect();
    for round in 0..25 {
        let rules = ["rules: []\n", BLOCK, "rules: [\n"][round % 3];
        process.folder.write("rules/rules.yaml", rules);
        process.signal("HUP");
        for client in &mut clients {
            for _ in 0..4 {
                assert_eq!(client.exchange(GET).status(), 200);
            }
        }
    }
    assert_eq!(upstream.take().len(), 25 * 4 * 4);
}

#[test]
fn a_client_that_leaves_does_not_hold_up_the_drain() {
    let upstream = Upstream::new();
    let mut process = Process::start(&Setup::to(upstream.address));
    let mut client = process.client();
    client.send(GET);
    let mut wire = upstream.accept();
    wire.request();
    let silent = process.client();
    process.signal("TERM");
    process.wait_for_log("draining");
    wire.expect_silence(Duration::from_millis(100));
    client.reset();
    wire.expect_closed();
    drop(silent);
    assert_eq!(process.ended().code(), Some(0));
}
