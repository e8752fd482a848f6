//! What goes through, and how it comes out on the other side.

use std::time::Duration;

use super::harness::{OK, Proxy, Setup, Upstream};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// A pattern in which a lost or doubled piece shows.
fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at / 7 + at / 65_537) as u8).collect()
}

/// Sends a request with these fields and returns what the upstream saw.
#[track_caller]
fn seen_with(
    setup: Setup<'_>,
    recorder: &super::harness::Recorder,
    request: &str,
) -> super::harness::Message {
    let proxy = setup.start();
    let answer = proxy.ask(request);
    assert_eq!(answer.status(), 200, "{answer:?}");
    let mut seen = recorder.take();
    assert_eq!(seen.len(), 1, "{seen:?}");
    seen.remove(0)
}

#[test]
fn a_body_arrives_as_it_was_sent_with_a_length_and_chunked() {
    let upstream = Upstream::recording();
    let proxy = Proxy::to(upstream.address);
    let body = pattern(300_000);
    let mut client = proxy.client();
    client.send("POST /x?y=1 HTTP/1.1\r\nHost: a\r\nContent-Length: 300000\r\n\r\n");
    client.send(&body);
    assert_eq!(client.response().text(), "ok");
    client.send("POST /x?y=1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    for piece in body.chunks(4321) {
        client.send(format!("{:x}\r\n", piece.len()));
        client.send(piece);
        client.send("\r\n");
    }
    client.send("0\r\n\r\n");
    assert_eq!(client.response().text(), "ok");
    let seen = upstream.take();
    assert_eq!(seen.len(), 2);
    for request in &seen {
        assert_eq!(request.start, "POST /x?y=1 HTTP/1.1");
        assert!(request.body == body, "the body changed");
    }
    assert_eq!(seen[0].header("content-length"), Some("300000"));
    assert_eq!(seen[1].header("content-length"), None);
}

#[test]
fn an_answer_arrives_as_it_was_sent_with_a_length_chunked_and_to_the_end() {
    let upstream = Upstream::new();
    let proxy = Proxy::to(upstream.address);
    let body = pattern(300_000);
    let mut client = proxy.client();
    client.send(GET);
    let mut wire = upstream.accept();
    wire.request();
    wire.send(
        "HTTP/1.1 201 Made\r\nContent-Length: 300000\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n\r\n",
    );
    wire.send(&body);
    let answer = client.response();
    assert_eq!(answer.status(), 201);
    assert_eq!(answer.header("content-length"), Some("300000"));
    assert_eq!(answer.all("set-cookie").collect::<Vec<_>>(), ["a=1", "b=2"]);
    assert!(answer.body == body && answer.is_complete);

    client.send(GET);
    wire.request();
    wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    for piece in body.chunks(54_321) {
        wire.send(format!("{:X};x=y\r\n", piece.len()));
        wire.send(piece);
        wire.send("\r\n");
    }
    wire.send("0\r\n\r\n");
    let answer = client.response();
    assert!(answer.body == body && answer.is_complete);

    client.send(GET);
    wire.request();
    wire.send("HTTP/1.1 200 OK\r\n\r\n");
    wire.send(&body);
    drop(wire);
    let answer = client.response();
    assert!(answer.body == body && answer.is_complete);
    assert_eq!(answer.header("transfer-encoding"), Some("chunked"));
}

#[test]
fn an_upstream_connection_is_used_again_after_an_upload() {
    // With an announced length nobody asked the body for its end, so no connection that had carried
    // a POST was ever used again.
    let upstream = Upstream::new();
    let proxy = Proxy::to(upstream.address);
    let mut client = proxy.client();
    let mut wire = None;
    for body in [
        "Content-Length: 3\r\n\r\nabc",
        "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    ] {
        for _ in 0..2 {
            client.send(format!("POST / HTTP/1.1\r\nHost: a\r\n{body}"));
            let wire = wire.get_or_insert_with(|| upstream.accept());
            assert_eq!(wire.answer_ok().text(), "abc");
            assert_eq!(client.response().text(), "ok");
        }
    }
    upstream.expect_untouched();
}

#[test]
fn an_upload_waits_for_an_upstream_that_does_not_read() {
    const BODY: usize = 32 * 1024 * 1024;
    let upstream = Upstream::with_small_window();
    let proxy = Proxy::to(upstream.address);
    let mut client = proxy.client();
    let body = pattern(BODY);
    client.send(format!(
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {BODY}\r\n\r\n"
    ));
    let sent = client.send_until_stuck(&body, Duration::from_millis(300));
    // What the kernel's buffers hold on both ways is some MiB; the proxy itself holds far less.
    assert!(sent < BODY / 2, "{sent} bytes were taken and not sent on");
    let mut wire = upstream.accept();
    let rest = body[sent..].to_vec();
    let sender = std::thread::spawn(move || {
        client.send(rest);
        client.response()
    });
    let head = wire.head();
    assert_eq!(head.header("content-length"), Some("33554432"));
    assert!(wire.exactly(BODY) == body, "the body changed");
    wire.send(OK);
    assert_eq!(sender.join().unwrap().text(), "ok");
}

#[test]
fn a_download_waits_for_a_client_that_does_not_read() {
    const BODY: usize = 32 * 1024 * 1024;
    let upstream = Upstream::new();
    let proxy = Proxy::to(upstream.address);
    let mut client = proxy.client().with_small_window();
    client.send(GET);
    let mut wire = upstream.accept();
    wire.request();
    wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {BODY}\r\n\r\n"));
    let body = pattern(BODY);
    let sent = wire.send_until_stuck(&body, Duration::from_millis(300));
    assert!(sent < BODY / 2, "{sent} bytes were taken and not sent on");
    let rest = body[sent..].to_vec();
    let sender = std::thread::spawn(move || wire.send(rest));
    let answer = client.response();
    sender.join().unwrap();
    assert!(answer.body == body, "the body changed");
}

#[test]
fn trailers_pass_both_ways_but_not_those_that_pose_as_headers() {
    const CHUNKS: &str = "3\r\nabc\r\n0\r\nX-Sum: 1\r\nAuthorization: x\r\nX-Forwarded-For: 192.0.2.1\r\nHost: b\r\nContent-Length: 9\r\n\r\n";
    const NAMES: &str = "Trailer: X-Sum, Authorization, X-Forwarded-For, Host, Content-Length\r\n";
    let upstream = Upstream::new();
    let proxy = Proxy::to(upstream.address);
    let mut client = proxy.client();
    client.send(format!("POST / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\n{NAMES}\r\n{CHUNKS}"));
    let mut wire = upstream.accept();
    let request = wire.request();
    assert_eq!(request.text(), "abc");
    assert_eq!(request.trailer("x-sum"), Some("1"));
    assert_eq!(request.trailers.len(), 1, "{request:?}");
    assert_eq!(request.header("te"), Some("trailers"));
    wire.send(format!(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n{NAMES}\r\n{CHUNKS}"
    ));
    let answer = client.response();
    assert_eq!(answer.text(), "abc");
    assert_eq!(answer.trailer("x-sum"), Some("1"));
    assert_eq!(answer.trailers.len(), 1, "{answer:?}");
}

#[test]
fn an_answer_without_body_keeps_its_length_and_the_connection() {
    let upstream = Upstream::new();
    let proxy = Proxy::to(upstream.address);
    let mut client = proxy.client();
    client.send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut wire = upstream.accept();
    assert_eq!(wire.request().start, "HEAD / HTTP/1.1");
    wire.send("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n");
    let answer = client.head();
    assert_eq!(answer.header("content-length"), Some("1000"));
    for (head, length) in [
        ("HTTP/1.1 204 No Content\r\n\r\n", None),
        // It may be left out here (RFC 9110, 15.4.5), and hyper does.
        (
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 1000\r\nETag: \"x\"\r\n\r\n",
            None,
        ),
        ("HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n", None),
        ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", Some("0")),
    ] {
        client.send(GET);
        wire.request();
        wire.send(head);
        let answer = client.response();
        assert!(head.starts_with(answer.start.as_str()), "{answer:?}");
        assert_eq!(answer.header("content-length"), length, "{head}");
        assert_eq!(answer.header("transfer-encoding"), None, "{head}");
    }
    upstream.expect_untouched();
}

#[test]
fn interim_answers_of_the_upstream_are_not_the_answer() {
    let upstream = Upstream::new();
    let proxy = Proxy::to(upstream.address);
    let mut client = proxy.client();
    client.send(GET);
    let mut wire = upstream.accept();
    wire.request();
    wire.send("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n");
    wire.send(OK);
    assert_eq!(client.response().status(), 200);
}

#[test]
fn a_client_that_waits_for_100_gets_it_when_its_body_is_wanted() {
    let upstream = Upstream::new();
    let proxy = Proxy::to(upstream.address);
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n");
    let mut wire = upstream.accept();
    let head = wire.head();
    assert_eq!(head.header("expect"), None, "the proxy waits for nobody");
    assert_eq!(client.head().status(), 100);
    client.send("abc");
    assert_eq!(wire.exactly(3), b"abc");
    wire.send(OK);
    assert_eq!(client.response().status(), 200);
}

#[test]
fn a_client_that_waits_for_100_is_refused_without_it() {
    let upstream = Upstream::new();
    let proxy = Setup {
        rules: "rules: [{ name: no, when: { app: acme }, action: block }]",
        ..Setup::to(upstream.address)
    }
    .start();
    for (fields, status) in [
        ("Expect: 100-continue\r\nX-App-Id: acme\r\n", 403),
        (
            "Expect: 100-continue\r\nExpect: 100-continue\r\nX-App-Id: acme\r\n",
            403,
        ),
        ("Expect: the-unexpected\r\n", 417),
    ] {
        let mut client = proxy.client();
        client.send(format!(
            "POST / HTTP/1.1\r\nHost: a\r\n{fields}Content-Length: 3\r\n\r\n"
        ));
        let answer = client.response();
        assert_eq!(answer.status(), status, "{answer:?}");
        assert_eq!(answer.header("connection"), Some("close"));
        client.expect_closed();
    }
    upstream.expect_untouched();
}

#[test]
fn an_absolute_target_is_sent_on_as_path_and_host() {
    let upstream = Upstream::recording();
    let request = "GET http://Acme.example.com/x?y=1 HTTP/1.1\r\nHost: acme.example.com\r\n\r\n";
    let seen = seen_with(Setup::to(upstream.address), &upstream, request);
    assert_eq!(seen.target(), "/x?y=1");
    assert_eq!(seen.all("host").count(), 1);
    assert!(
        seen.header("host")
            .unwrap()
            .eq_ignore_ascii_case("acme.example.com")
    );
    let proxy = Proxy::to(upstream.address);
    let foreign = "GET http://other.example.com/ HTTP/1.1\r\nHost: acme.example.com\r\n\r\n";
    assert_eq!(proxy.ask(foreign).status(), 400);
    assert!(upstream.take().is_empty());
}

#[test]
fn an_http_1_0_client_is_served_in_its_own_way() {
    let upstream = Upstream::recording();
    let proxy = Proxy::to(upstream.address);
    for (fields, keeps) in [
        ("", false),
        ("Host: a\r\n", false),
        ("Connection: keep-alive\r\n", true),
    ] {
        let mut client = proxy.client();
        client.send(format!("GET /x HTTP/1.0\r\n{fields}\r\n"));
        let answer = client.response();
        assert_eq!((answer.status(), answer.text().as_str()), (200, "ok"));
        if keeps {
            assert_eq!(answer.header("connection"), Some("keep-alive"));
            client.send("GET /x HTTP/1.0\r\n\r\n");
            assert_eq!(client.response().status(), 200);
        }
        client.expect_closed();
    }
    let seen = upstream.take();
    assert_eq!(seen.len(), 4);
    assert!(
        seen.iter()
            .all(|request| request.start == "GET /x HTTP/1.1"),
        "{seen:?}"
    );
    assert!(seen.iter().all(|request| request.header("host").is_some()));
    assert_eq!(seen[0].header("via"), Some("1.0 tidegate"));
}

#[test]
fn an_http_1_0_client_is_never_sent_chunks() {
    let upstream = Upstream::new();
    let proxy = Proxy::to(upstream.address);
    let mut client = proxy.client();
    client.send("GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n");
    let mut wire = upstream.accept();
    wire.request();
    wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n");
    let answer = client.response();
    assert_eq!(answer.header("transfer-encoding"), None);
    assert_eq!(answer.text(), "abc");
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let upstream = Upstream::new();
    let proxy = Setup {
        rules: "rules: [{ name: no, when: { app: acme }, action: block }]",
        ..Setup::to(upstream.address)
    }
    .start();
    let mut client = proxy.client();
    client.send("GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\nX-App-Id: acme\r\n\r\nPOST /3 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET /4 HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut wire = upstream.accept();
    for (target, status) in [("/1", 200), ("/2", 403), ("/3", 200), ("/4", 200)] {
        if status == 200 {
            let request = wire.request();
            assert_eq!(request.target(), target);
            wire.send(format!(
                "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{target}"
            ));
        }
        let answer = client.response();
        assert_eq!(answer.status(), status, "{target}");
        if status == 200 {
            assert_eq!(answer.text(), target);
        }
    }
}

#[test]
fn an_upgrade_is_not_passed_on() {
    let upstream = Upstream::recording();
    let h2c = "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n";
    let seen = seen_with(Setup::to(upstream.address), &upstream, h2c);
    for name in ["upgrade", "connection", "http2-settings"] {
        assert_eq!(seen.header(name), None, "{seen:?}");
    }
    let proxy = Proxy::to(upstream.address);
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\nsecret");
    assert_eq!(client.response().status(), 501);
    client.expect_closed();
    assert!(upstream.take().is_empty());
}

#[test]
fn connect_and_trace_are_refused() {
    let upstream = Upstream::new();
    let proxy = Proxy::to(upstream.address);
    for request in [
        "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\nGET /after HTTP/1.1\r\nHost: a\r\n\r\n",
        "TRACE / HTTP/1.1\r\nHost: a\r\n\r\n",
    ] {
        let mut client = proxy.client();
        client.send(request);
        assert_eq!(client.response().status(), 405, "{request}");
        client.expect_closed();
    }
    upstream.expect_untouched();
}

#[test]
fn what_belongs_to_one_connection_ends_there_both_ways() {
    let upstream = Upstream::new();
    let proxy = Proxy::to(upstream.address);
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: X-Hop, keep-alive\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nProxy-Authorization: Basic x\r\nProxy-Connection: close\r\nTE: gzip\r\nX-End: 1\r\nAuthorization: Bearer x\r\n\r\n");
    let mut wire = upstream.accept();
    let request = wire.request();
    for gone in [
        "connection",
        "x-hop",
        "keep-alive",
        "proxy-authorization",
        "proxy-connection",
        "te",
    ] {
        assert_eq!(request.header(gone), None, "{request:?}");
    }
    assert_eq!(request.header("x-end"), Some("1"));
    assert_eq!(request.header("authorization"), Some("Bearer x"));
    wire.send("HTTP/1.1 200 OK\r\nConnection: X-Hop, close\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nProxy-Authenticate: Basic\r\nUpgrade: h2\r\nX-End: 1\r\nContent-Length: 2\r\n\r\nok");
    let answer = client.response();
    for gone in ["x-hop", "keep-alive", "proxy-authenticate", "upgrade"] {
        assert_eq!(answer.header(gone), None, "{answer:?}");
    }
    assert_eq!(answer.header("x-end"), Some("1"));
    // The upstream's `close` is not the client's.
    client.send(GET);
    upstream.accept().answer_ok();
    assert_eq!(client.response().status(), 200);
}

#[test]
fn a_stranger_is_introduced_by_its_address_only() {
    let upstream = Upstream::recording();
    let request = "GET / HTTP/1.1\r\nHost: a:81\r\nX-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: b\r\nVia: 1.0 x\r\nVia: 1.1 y\r\nX-Request-Id: mine\r\n\r\n";
    let seen = seen_with(Setup::to(upstream.address), &upstream, request);
    assert_eq!(
        seen.all("x-forwarded-for").collect::<Vec<_>>(),
        ["127.0.0.1"]
    );
    assert_eq!(seen.header("x-forwarded-proto"), Some("http"));
    assert_eq!(seen.header("x-forwarded-host"), Some("a:81"));
    assert_ne!(seen.header("x-request-id"), Some("mine"));
    // Of several lines only the first was kept.
    assert_eq!(
        seen.all("via").collect::<Vec<_>>(),
        ["1.0 x, 1.1 y, 1.1 tidegate"]
    );
}

#[test]
fn a_trusted_proxy_is_believed() {
    let upstream = Upstream::recording();
    let setup = Setup {
        trusted_proxies: "[127.0.0.0/8]",
        ..Setup::to(upstream.address)
    };
    let request = "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 192.0.2.1\r\nX-Forwarded-For: 192.0.2.2\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: b\r\nX-Request-Id: mine\r\n\r\n";
    let seen = seen_with(setup, &upstream, request);
    assert_eq!(
        seen.all("x-forwarded-for").collect::<Vec<_>>(),
        ["192.0.2.1, 192.0.2.2, 127.0.0.1"]
    );
    assert_eq!(seen.header("x-forwarded-proto"), Some("https"));
    assert_eq!(seen.header("x-forwarded-host"), Some("b"));
    assert_eq!(seen.header("x-request-id"), Some("mine"));
}

#[test]
fn client_and_upstream_are_told_the_same_request_id() {
    let upstream = Upstream::recording();
    let proxy = Proxy::to(upstream.address);
    let answer = proxy.ask(GET);
    let seen = upstream.take();
    let id = answer.header("x-request-id").unwrap();
    assert_eq!(id.len(), 32);
    assert_eq!(seen[0].header("x-request-id"), Some(id));
}

#[test]
fn a_trace_passes_through_and_a_broken_one_does_not() {
    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let upstream = Upstream::recording();
    let ask = |parent: &str| {
        let request = format!(
            "GET / HTTP/1.1\r\nHost: a\r\nTraceparent: {parent}\r\nTracestate: a=1\r\n\r\n"
        );
        seen_with(Setup::to(upstream.address), &upstream, &request)
    };
    let seen = ask(GOOD);
    assert_eq!(seen.header("traceparent"), Some(GOOD));
    assert_eq!(seen.header("tracestate"), Some("a=1"));
    let seen = ask("00-zz");
    assert_eq!(seen.header("traceparent"), None);
    assert_eq!(seen.header("tracestate"), None);
}
