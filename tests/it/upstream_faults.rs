//! Upstreams that misbehave cost the request that met them, never the next one, and are never
//! mistaken for upstreams that answered.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use super::harness::{Message, OK, Proxy, Setup, Upstream, Wire};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc";

/// An address where nobody listens.
fn nobody() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("a bound socket")
}

#[track_caller]
fn expect_problem(answer: &Message, status: u16, error: &str) {
    answer.expect_problem(status, error);
    let proxy_status = format!("tidegate; error={error}");
    assert_eq!(answer.header("proxy-status"), Some(proxy_status.as_str()));
}

fn failures(proxy: &Proxy, error: &str) -> u64 {
    let labels = format!("{{error=\"{error}\",upstream=\"chat\"}}");
    proxy.metric(&format!("tidegate_upstream_errors_total{labels}"))
}

#[track_caller]
fn expect_counted(proxy: &Proxy, error: &str) {
    super::harness::eventually(error, || failures(proxy, error) == 1);
}

#[test]
fn an_upstream_that_refuses_is_502() {
    let proxy = Proxy::to(nobody());
    expect_problem(&proxy.ask(GET), 502, "connection_refused");
    expect_counted(&proxy, "connection_refused");
}

#[test]
fn an_upstream_that_closes_or_resets_before_its_head_is_502() {
    let ends: [fn(Wire); 3] = [drop, Wire::reset, |mut wire| {
        wire.send("HTTP/1.1 200 OK\r\nContent-Le");
    }];
    for end in ends {
        let upstream = Upstream::new();
        let proxy = Proxy::to(upstream.address);
        let mut client = proxy.client();
        client.send(GET);
        let mut wire = upstream.accept();
        wire.request();
        end(wire);
        expect_problem(&client.response(), 502, "connection_terminated");
        expect_counted(&proxy, "connection_terminated");
        upstream.expect_untouched();
    }
}

#[test]
fn an_answer_that_is_not_http_is_502() {
    for garbage in [
        "SSH-2.0-OpenSSH_9.2\r\n",
        "HTTP/1.1 abc\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        "HTTP/1.1 200 OK\r\nNo colon\r\n\r\n",
        "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\r\n\r\n",
    ] {
        let upstream = Upstream::new();
        let proxy = Proxy::to(upstream.address);
        let mut client = proxy.client();
        client.send(GET);
        let mut wire = upstream.accept();
        wire.request();
        wire.send(garbage);
        let answer = client.response();
        expect_problem(&answer, 502, "http_protocol_error");
        wire.expect_closed();
    }
}

#[test]
fn an_answer_with_too_large_a_head_is_502() {
    let upstream = Upstream::new();
    let proxy = Proxy::to(upstream.address);
    let mut client = proxy.client();
    client.send(GET);
    let mut wire = upstream.accept();
    wire.request();
    let line = format!("X-A: {}\r\n", "a".repeat(70 * 1024));
    wire.send(format!("HTTP/1.1 200 OK\r\n{line}\r\n"));
    expect_problem(&client.response(), 502, "http_protocol_error");
}

#[test]
fn an_upgrade_that_nobody_asked_for_is_502() {
    let upstream = Upstream::new();
    let proxy = Proxy::to(upstream.address);
    let mut client = proxy.client();
    client.send(GET);
    let mut wire = upstream.accept();
    wire.request();
    wire.send("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nhello");
    expect_problem(&client.response(), 502, "http_protocol_error");
}

#[test]
fn an_answer_that_breaks_off_is_never_complete_at_the_client() {
    let ends: [fn(Wire); 2] = [drop, Wire::reset];
    for end in ends {
        for begin in [
            "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7\r\nabc",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n",
        ] {
            let upstream = Upstream::new();
            let proxy = Proxy::to(upstream.address);
            let mut client = proxy.client();
            client.send(GET);
            let mut wire = upstream.accept();
            wire.request();
            wire.send(begin);
            let mut answer = client.head();
            assert_eq!(answer.status(), 200);
            end(wire);
            client.finish(&mut answer);
            assert!(!answer.is_complete, "{begin:?}: {answer:?}");
            let log = proxy.log(1);
            assert_eq!(log[0]["error"], "http_response_incomplete", "{log:?}");
            // The word was declared and never counted.
            expect_counted(&proxy, "http_response_incomplete");
        }
    }
}

#[test]
fn an_upstream_that_never_answers_is_504() {
    let upstream = Upstream::new();
    let proxy = Setup {
        upstream: "response_timeout: 300ms",
        ..Setup::to(upstream.address)
    }
    .start();
    let mut client = proxy.client();
    client.send(POST);
    let mut wire = upstream.accept();
    wire.request();
    let answer = client.response();
    expect_problem(&answer, 504, "http_response_timeout");
    assert!(answer.header("retry-after").is_some());
    wire.expect_closed();
    upstream.expect_untouched();
}

#[test]
fn endless_interim_answers_are_504() {
    let upstream = Upstream::new();
    let proxy = Setup {
        upstream: "response_timeout: 300ms",
        ..Setup::to(upstream.address)
    }
    .start();
    let mut client = proxy.client();
    client.send(GET);
    let mut wire = upstream.accept();
    wire.request();
    let interim = "HTTP/1.1 100 Continue\r\n\r\n".repeat(100);
    let sender = std::thread::spawn(move || {
        for _ in 0..200 {
            wire.send(&interim);
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    expect_problem(&client.response(), 504, "http_response_timeout");
    sender.join().unwrap();
}

#[test]
fn an_answer_that_stalls_is_cut_off() {
    let upstream = Upstream::new();
    let proxy = Setup {
        upstream: "idle_timeout: 300ms",
        ..Setup::to(upstream.address)
    }
    .start();
    let mut client = proxy.client();
    client.send(GET);
    let mut wire = upstream.accept();
    wire.request();
    wire.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc");
    let answer = client.response();
    assert!(!answer.is_complete, "{answer:?}");
    wire.expect_closed();
    expect_counted(&proxy, "http_response_incomplete");
}

#[test]
fn bytes_that_nobody_asked_for_never_reach_the_next_answer() {
    for (answer, unsolicited) in [
        (OK, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"),
        (OK, "evil"),
        (
            "HTTP/1.1 204 No Content\r\nContent-Length: 4\r\n\r\n",
            "evil",
        ),
        (
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\n",
            "evil",
        ),
        (
            "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n",
            "4\r\nevil\r\n0\r\n\r\n",
        ),
    ] {
        for at_once in [true, false] {
            let upstream = Upstream::new();
            let proxy = Proxy::to(upstream.address);
            let mut client = proxy.client();
            client.send(GET);
            let mut wire = upstream.accept();
            wire.request();
            if at_once {
                wire.send(format!("{answer}{unsolicited}"));
                client.response();
            } else {
                wire.send(answer);
                client.response();
                wire.send(unsolicited);
            }
            wire.expect_closed();
            client.send(GET);
            upstream.accept().answer_ok();
            assert_eq!(client.response().text(), "ok", "{answer:?} {unsolicited:?}");
        }
    }
}

#[test]
fn an_answer_longer_than_announced_is_cut_to_its_length() {
    let upstream = Upstream::new();
    let proxy = Proxy::to(upstream.address);
    let mut client = proxy.client();
    client.send(GET);
    let mut wire = upstream.accept();
    wire.request();
    wire.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n\r\n");
    assert_eq!(client.response().text(), "ok");
    client.send(GET);
    upstream.accept().answer_ok();
    assert_eq!(client.response().text(), "ok");
}

#[test]
fn an_answer_with_length_and_chunks_is_its_chunks() {
    for fields in [
        "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 300\r\n",
    ] {
        let upstream = Upstream::new();
        let proxy = Proxy::to(upstream.address);
        let mut client = proxy.client();
        client.send(GET);
        let mut wire = upstream.accept();
        wire.request();
        wire.send(format!(
            "HTTP/1.1 200 OK\r\n{fields}\r\n5\r\nabcde\r\n0\r\n\r\n"
        ));
        let answer = client.response();
        assert_eq!((answer.status(), answer.text().as_str()), (200, "abcde"));
        assert!(answer.is_complete, "{answer:?}");
        assert_eq!(answer.header("content-length"), None);
    }
}

#[test]
fn an_answer_to_head_with_a_body_leaks_nothing() {
    let upstream = Upstream::new();
    let proxy = Proxy::to(upstream.address);
    let mut client = proxy.client();
    client.send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut wire = upstream.accept();
    wire.request();
    wire.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil");
    assert_eq!(client.head().header("content-length"), Some("4"));
    client.send(GET);
    upstream.accept().answer_ok();
    assert_eq!(client.response().text(), "ok");
}

/// Makes a kept-alive connection that the upstream closes as soon as it is used again.
fn closed_when_reused(upstream: &Upstream, proxy: &Proxy) -> (Wire, Wire) {
    let mut client = proxy.client();
    client.send(GET);
    let mut wire = upstream.accept();
    wire.answer_ok();
    client.response();
    (client, wire)
}

#[test]
fn a_get_that_met_a_closing_connection_is_sent_again_once() {
    let ends: [fn(Wire); 2] = [drop, Wire::reset];
    for end in ends {
        let upstream = Upstream::new();
        let proxy = Proxy::to(upstream.address);
        let (mut client, mut wire) = closed_when_reused(&upstream, &proxy);
        client.send("GET /again?x=1 HTTP/1.1\r\nHost: a\r\nX-A: 1\r\n\r\n");
        let first = wire.request();
        end(wire);
        let mut wire = upstream.accept();
        let second = wire.request();
        assert_eq!(first.start, second.start);
        assert_eq!(first.headers, second.headers);
        drop(wire);
        expect_problem(&client.response(), 502, "connection_terminated");
        upstream.expect_untouched();
        proxy.metric_reaches("tidegate_upstream_retries_total{upstream=\"chat\"}", 1);
    }
}

#[test]
fn a_get_that_met_a_closing_connection_succeeds() {
    let upstream = Upstream::new();
    let proxy = Proxy::to(upstream.address);
    let (mut client, mut wire) = closed_when_reused(&upstream, &proxy);
    client.send(GET);
    wire.request();
    drop(wire);
    upstream.accept().answer_ok();
    assert_eq!(client.response().status(), 200);
}

#[test]
fn a_post_that_met_a_closing_connection_is_not_sent_again() {
    for request in [
        POST,
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
    ] {
        let upstream = Upstream::new();
        let proxy = Proxy::to(upstream.address);
        let (mut client, mut wire) = closed_when_reused(&upstream, &proxy);
        client.send(request);
        wire.request();
        drop(wire);
        expect_problem(&client.response(), 502, "connection_terminated");
        upstream.expect_untouched();
    }
}

#[test]
fn a_connection_that_was_closed_while_idle_is_not_met_at_all() {
    let upstream = Upstream::new();
    let proxy = Proxy::to(upstream.address);
    let (mut client, wire) = closed_when_reused(&upstream, &proxy);
    drop(wire);
    let gauge = "tidegate_upstream_connections{upstream=\"chat\"}";
    super::harness::eventually("the end is noticed", || proxy.metric(gauge) == 0);
    client.send(POST);
    upstream.accept().answer_ok();
    assert_eq!(client.response().status(), 200);
}

#[test]
fn an_early_answer_does_not_poison_the_next_request() {
    let upstream = Upstream::new();
    let proxy = Proxy::to(upstream.address);
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nabc");
    let mut wire = upstream.accept();
    wire.head();
    assert_eq!(wire.exactly(3), b"abc");
    wire.send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig");
    let answer = client.response();
    assert_eq!((answer.status(), answer.text().as_str()), (413, "big"));
    // Whoever comes next gets a connection of its own.
    let mut other = proxy.client();
    other.send(GET);
    upstream.accept().answer_ok();
    assert_eq!(other.response().text(), "ok");
    // The rest of the first body is the first body's, and nobody's request.
    client.send("def");
    wire.half_close();
    let rest = wire.rest();
    assert!(rest == b"def" || rest.is_empty(), "{rest:?}");
}

#[test]
fn an_early_answer_to_an_upload_that_nobody_reads_frees_the_connection() {
    const BODY: usize = 32 * 1024 * 1024;
    let upstream = Upstream::with_small_window();
    let proxy = Setup {
        upstream: "idle_timeout: 300ms",
        ..Setup::to(upstream.address)
    }
    .start();
    let mut client = proxy.client();
    client.send(format!(
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {BODY}\r\n\r\n"
    ));
    let mut wire = upstream.accept();
    wire.head();
    wire.send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig");
    assert_eq!(client.response().status(), 413);
    client.send_until_stuck(&vec![b'a'; BODY], Duration::from_millis(200));
    // The upstream has answered and reads no more: it, and the client, were held for ever.
    for gauge in [
        "tidegate_upstream_connections{upstream=\"chat\"}",
        "tidegate_connections",
    ] {
        super::harness::eventually(gauge, || proxy.metric(gauge) == 0);
    }
}

#[test]
fn a_client_that_leaves_takes_its_request_along() {
    let upstream = Upstream::new();
    let proxy = Proxy::to(upstream.address);
    let mut client = proxy.client();
    client.send(GET);
    let mut wire = upstream.accept();
    wire.request();
    drop(client);
    wire.expect_closed();
    let log = proxy.log(1);
    assert_eq!(log[0]["error"], "client_gone");
}

#[test]
fn a_client_that_stalls_in_its_body_is_408_and_one_that_breaks_off_frees_the_upstream() {
    let upstream = Upstream::new();
    let proxy = Setup {
        upstream: "idle_timeout: 300ms",
        ..Setup::to(upstream.address)
    }
    .start();
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nabc");
    let mut wire = upstream.accept();
    wire.head();
    expect_problem(&client.response(), 408, "http_request_error");
    assert_eq!(wire.rest(), b"abc");
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nabc");
    let mut wire = upstream.accept();
    wire.head();
    client.reset();
    assert_eq!(wire.rest(), b"abc");
}

/// The answer's version was passed through: clients were answered in HTTP/1.0 and their connections
/// closed after each request.
#[test]
fn an_http_1_0_upstream_is_no_business_of_the_client() {
    let upstream = Upstream::new();
    let proxy = Proxy::to(upstream.address);
    let mut client = proxy.client();
    for _ in 0..2 {
        client.send(GET);
        let mut wire = upstream.accept();
        wire.request();
        wire.send("HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok");
        let answer = client.response();
        assert_eq!(answer.start, "HTTP/1.1 200 OK");
        assert_eq!(answer.text(), "ok");
    }
}

#[test]
fn an_endpoint_may_be_a_name() {
    let upstream = Upstream::recording();
    let proxy = Setup {
        endpoints: vec![format!("localhost:{}", upstream.address.port())],
        ..Setup::to(upstream.address)
    }
    .start();
    assert_eq!(proxy.ask(GET).status(), 200);
    assert_eq!(upstream.take().len(), 1);
}

#[test]
fn a_dead_endpoint_costs_nothing_while_another_lives() {
    let upstream = Upstream::recording();
    let proxy = Setup {
        endpoints: vec![nobody().to_string(), upstream.address.to_string()],
        ..Setup::to(upstream.address)
    }
    .start();
    // Uploads in parallel, so that each needs a connection of its own.
    let mut clients: Vec<Wire> = (0..6).map(|_| proxy.client()).collect();
    for client in &mut clients {
        client.send(POST);
    }
    for client in &mut clients {
        assert_eq!(client.response().status(), 200);
    }
    assert_eq!(upstream.take().len(), 6);
}
