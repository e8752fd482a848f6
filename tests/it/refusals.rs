//! What a refused client sees: enough to behave, nothing about the rules, and always the answer.

use std::time::Duration;

use super::harness::{Proxy, Setup, Upstream, eventually};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const ACME: &str = "GET / HTTP/1.1\r\nHost: a\r\nX-App-Id: acme\r\n\r\n";

#[test]
fn a_limit_says_which_how_much_and_when() {
    let upstream = Upstream::recording();
    let proxy = Setup {
        rules: "limits: [{ name: per-address, key: [ip], rate: 6/m, burst: 2 }]",
        ..Setup::to(upstream.address)
    }
    .start();
    let mut client = proxy.client();
    assert_eq!(client.exchange(GET).status(), 200);
    assert_eq!(client.exchange(GET).status(), 200);
    let refused = client.exchange(GET);
    refused.expect_problem(429, "rate_limited");
    let policy = refused.header("ratelimit-policy").unwrap();
    assert!(policy.starts_with("\"per-address\";q="), "{policy}");
    let state = refused.header("ratelimit").unwrap();
    assert!(state.starts_with("\"per-address\";r=0;t="), "{state}");
    let wait: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    // One comes back in ten seconds, and a quarter of jitter at most is added.
    assert!((9..=13).contains(&wait), "{wait}");
    let text = refused.text();
    assert!(!text.contains("127.0.0.1"), "{text}");
    // A client that does not wait is told to wait longer.
    let longer = client
        .exchange(GET)
        .header("retry-after")
        .unwrap()
        .parse::<u64>();
    assert!(longer.unwrap() > wait);
    assert_eq!(upstream.take().len(), 2);
    proxy.metric_reaches("tidegate_limit_refusals_total{limit=\"per-address\"}", 2);
    let refusals = "tidegate_requests_total{service=\"chat\",verdict=\"limit\"}";
    proxy.metric_reaches(refusals, 2);
}

#[test]
fn a_block_says_nothing_of_its_rule() {
    let upstream = Upstream::recording();
    let proxy = Setup {
        rules: "rules:
  - { name: no-acme, when: { app: acme }, action: block, reason: ticket 4711 }
  - { name: gone, when: { app: old }, action: block, status: 410 }",
        ..Setup::to(upstream.address)
    }
    .start();
    let refused = proxy.ask(ACME);
    refused.expect_problem(403, "blocked");
    let whole = format!("{refused:?}{}", refused.text());
    for secret in ["no-acme", "4711", "acme"] {
        assert!(!whole.contains(secret), "{whole}");
    }
    assert!(refused.header("retry-after").is_some());
    let gone = proxy.ask("GET / HTTP/1.1\r\nHost: a\r\nX-App-Id: old\r\n\r\n");
    gone.expect_problem(410, "blocked");
    assert!(upstream.take().is_empty());
    proxy.metric_reaches("tidegate_rule_matches_total{rule=\"no-acme\"}", 1);
}

#[test]
fn a_throttle_lets_its_rate_through() {
    let upstream = Upstream::recording();
    let proxy = Setup {
        rules: "rules: [{ name: slow, when: { app: acme }, action: throttle, rate: 1/m, burst: 2 }]",
        ..Setup::to(upstream.address)
    }
    .start();
    let mut client = proxy.client();
    let statuses: Vec<u16> = (0..4).map(|_| client.exchange(ACME).status()).collect();
    assert_eq!(statuses, [200, 200, 429, 429]);
    client.exchange(ACME).expect_problem(429, "throttled");
    assert_eq!(client.exchange(GET).status(), 200, "others go through");
}

#[test]
fn shadow_changes_nothing_but_the_counters() {
    let upstream = Upstream::recording();
    let proxy = Setup {
        rules: "limits: [{ name: tight, key: [ip], rate: 1/h, burst: 1, mode: shadow }]
rules: [{ name: no-acme, when: { app: acme }, action: block, mode: shadow }]",
        ..Setup::to(upstream.address)
    }
    .start();
    let mut client = proxy.client();
    for _ in 0..5 {
        let answer = client.exchange(ACME);
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.header("ratelimit"), None);
    }
    assert_eq!(upstream.take().len(), 5);
    proxy.metric_reaches("tidegate_rule_matches_total{rule=\"no-acme\"}", 5);
    proxy.metric_reaches("tidegate_limit_shadow_refusals_total{limit=\"tight\"}", 4);
    assert_eq!(
        proxy.metric("tidegate_limit_refusals_total{limit=\"tight\"}"),
        0
    );
}

#[test]
fn a_drop_closes_without_a_word() {
    let upstream = Upstream::recording();
    let proxy = Setup {
        rules: "rules: [{ name: no-acme, when: { app: acme }, action: drop }]",
        ..Setup::to(upstream.address)
    }
    .start();
    let mut client = proxy.client();
    client.send(ACME);
    client.expect_closed();
    assert!(upstream.take().is_empty());
    assert_eq!(proxy.log(1)[0]["verdict"], "drop");
    proxy.metric_reaches(
        "tidegate_requests_total{service=\"chat\",verdict=\"drop\"}",
        1,
    );
}

#[test]
fn a_tarpit_holds_without_a_word_and_frees_whoever_leaves() {
    let upstream = Upstream::recording();
    let proxy = Setup {
        rules: "rules: [{ name: no-acme, when: { app: acme }, action: tarpit }]",
        ..Setup::to(upstream.address)
    }
    .start();
    let mut client = proxy.client();
    client.send(ACME);
    client.expect_silence(Duration::from_secs(1));
    assert!(upstream.take().is_empty());
    let inflight = "tidegate_inflight_requests{service=\"chat\"}";
    proxy.metric_reaches("tidegate_rule_matches_total{rule=\"no-acme\"}", 1);
    proxy.metric_reaches(inflight, 1);
    assert_eq!(proxy.ask(GET).status(), 200, "others go through");
    drop(client);
    eventually("the request is over", || proxy.metric(inflight) == 0);
    proxy.metric_reaches(
        "tidegate_requests_total{service=\"chat\",verdict=\"tarpit\"}",
        1,
    );
}

#[test]
fn what_no_service_answers_is_404() {
    let upstream = Upstream::recording();
    let proxy = Setup {
        services: "services: [{ name: chat, match: [{ path: /c/v1/, host: \"*.example.com\" }], upstream: chat }]",
        ..Setup::to(upstream.address)
    }
    .start();
    for (host, target) in [
        ("a.example.com", "/"),
        ("a.example.com", "/c/v10"),
        ("example.org", "/c/v1/x"),
        ("127.0.0.1", "/c/v1/x"),
    ] {
        let answer = proxy.ask(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        answer.expect_problem(404, "no_service");
        let status = answer.header("proxy-status");
        assert_eq!(status, Some("tidegate; error=destination_not_found"));
    }
    assert!(upstream.take().is_empty());
    let good = "GET /c/v1/x HTTP/1.1\r\nHost: a.example.com\r\n\r\n";
    assert_eq!(proxy.ask(good).status(), 200);
}

#[test]
fn a_refused_upload_always_reads_its_refusal() {
    const BODY: usize = 1024 * 1024;
    let upstream = Upstream::recording();
    let proxy = Setup {
        rules: "limits: [{ name: none, key: [app], when: { app: limited }, rate: 1/h, burst: 1 }]
rules: [{ name: no-acme, when: { app: acme }, action: block }]",
        ..Setup::to(upstream.address)
    }
    .start();
    let limited = "GET / HTTP/1.1\r\nHost: a\r\nX-App-Id: limited\r\n\r\n";
    assert_eq!(proxy.ask(limited).status(), 200);
    upstream.take();
    let body = vec![b'a'; BODY];
    let mut lost = 0;
    for round in 0..50 {
        let (app, status) = [("acme", 403), ("limited", 429)][round % 2];
        let framing = if round % 4 < 2 {
            format!("Content-Length: {BODY}\r\n\r\n")
        } else {
            format!("Transfer-Encoding: chunked\r\n\r\n{BODY:x}\r\n")
        };
        let mut client = proxy.client();
        client.send(format!(
            "POST / HTTP/1.1\r\nHost: a\r\nX-App-Id: {app}\r\n{framing}"
        ));
        client.send(&body);
        match client.response_if_any() {
            Some(answer) => assert_eq!((answer.status(), answer.is_complete), (status, true)),
            None => lost += 1,
        }
    }
    assert_eq!(lost, 0, "answers were lost of 50");
    assert!(upstream.take().is_empty());
}

#[test]
fn a_refused_upload_may_be_sent_to_its_end() {
    let upstream = Upstream::recording();
    let proxy = Setup {
        rules: "rules: [{ name: no-acme, when: { app: acme }, action: block }]",
        ..Setup::to(upstream.address)
    }
    .start();
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nX-App-Id: acme\r\nContent-Length: 250000\r\n\r\n");
    client.send(vec![b'a'; 200_000]);
    assert_eq!(client.response().status(), 403);
    // Many clients look for the answer only after their last byte, and a reset before it would be
    // all that they see.
    for _ in 0..50 {
        assert!(client.is_taken(&[b'a'; 1000]), "the upload was reset");
    }
    client.half_close();
    assert!(client.ends_cleanly(), "the connection was reset");
}

#[test]
fn a_refused_small_upload_keeps_its_connection() {
    let upstream = Upstream::recording();
    let proxy = Setup {
        rules: "rules: [{ name: no-acme, when: { app: acme }, action: block }]",
        ..Setup::to(upstream.address)
    }
    .start();
    let mut client = proxy.client();
    for _ in 0..3 {
        let body = "a".repeat(60_000);
        let answer = client.exchange(format!(
            "POST / HTTP/1.1\r\nHost: a\r\nX-App-Id: acme\r\nContent-Length: 60000\r\n\r\n{body}"
        ));
        answer.expect_problem(403, "blocked");
        assert_eq!(answer.header("connection"), None);
    }
    assert_eq!(client.exchange(GET).status(), 200);
}

#[test]
fn an_upload_to_a_dead_upstream_reads_its_refusal() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let proxy = Proxy::to(nobody);
    for number in 0..20 {
        let mut client = proxy.client();
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1048576\r\n\r\n");
        client.send(vec![b'a'; 1024 * 1024]);
        let answer = client.response();
        // After three, it is known that nobody is there; once a second it is tried.
        match answer.status() {
            503 if number >= 3 => answer.expect_problem(503, "destination_unavailable"),
            _ => answer.expect_problem(502, "connection_refused"),
        }
    }
}

#[test]
fn a_refused_answer_to_head_has_no_body() {
    let upstream = Upstream::recording();
    let proxy = Setup {
        rules: "rules: [{ name: no-acme, when: { app: acme }, action: block }]",
        ..Setup::to(upstream.address)
    }
    .start();
    let mut client = proxy.client();
    client.send("HEAD / HTTP/1.1\r\nHost: a\r\nX-App-Id: acme\r\n\r\n");
    assert_eq!(client.head().status(), 403);
    // Were there a body, it would stand before this answer.
    assert_eq!(client.exchange(GET).status(), 200);
}
