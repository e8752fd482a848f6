//! Where one request ends and the next begins: whatever a client writes, the upstream sees what the
//! proxy saw, or nothing.

use super::harness::{Message, Proxy, Upstream, eventually};

/// What must become of the bytes of one client, `GET /after` at their end.
#[derive(Clone, Copy, Debug)]
enum Outcome {
    /// One answer with this status, then the end; nothing at the upstream.
    Refused(u16),
    /// The upstream sees `POST /` with this body, then `GET /after`.
    Kept(&'static str),
    /// The upstream sees nothing, and there is no answer or a refusal.
    Dropped,
}
use Outcome::{Dropped, Kept, Refused};

const AFTER: &str = "GET /after HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

/// Sends each case on a connection of its own and compares what came out at both ends.
fn check(cases: &[(&str, String, Outcome)]) {
    let upstream = Upstream::recording();
    let proxy = Proxy::to(upstream.address);
    let mut wrong = Vec::new();
    for (what, bytes, expected) in cases {
        let mut client = proxy.client();
        client.send(format!("{bytes}{AFTER}"));
        let answers = String::from_utf8_lossy(&client.rest()).into_owned();
        let seen: Vec<(String, String)> = upstream
            .take()
            .iter()
            .map(|request| (request.target().to_owned(), request.text()))
            .collect();
        let seen: Vec<(&str, &str)> = seen.iter().map(|(t, b)| (&**t, &**b)).collect();
        let statuses: Vec<u16> = answers
            .split("HTTP/1.1 ")
            .skip(1)
            .filter_map(|answer| answer.get(..3)?.parse().ok())
            .collect();
        let is_right = match expected {
            Refused(status) => seen.is_empty() && statuses == [*status],
            Dropped => seen.is_empty() && statuses.iter().all(|status| *status >= 400),
            Kept(body) => seen == [("/", *body), ("/after", "")] && statuses == [200, 200],
        };
        if !is_right {
            wrong.push(format!(
                "{what}: expected {expected:?}, upstream saw {seen:?}, client {statuses:?}"
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_length_that_two_readers_could_read_differently_is_refused() {
    const H: &str = "POST / HTTP/1.1\r\nHost: a\r\n";
    let case = |fields: &str, body: &str| format!("{H}{fields}\r\n{body}");
    let texts: Vec<(&str, String, Outcome)> = vec![
        ("plain", case("Content-Length: 3\r\n", "abc"), Kept("abc")),
        ("no body", case("Content-Length: 0\r\n", ""), Kept("")),
        ("neither", case("", ""), Kept("")),
        (
            "leading zeros",
            case("Content-Length: 003\r\n", "abc"),
            Kept("abc"),
        ),
        (
            "twice the same",
            case("Content-Length: 3\r\nContent-Length: 3\r\n", "abc"),
            Kept("abc"),
        ),
        (
            "twice different",
            case("Content-Length: 3\r\nContent-Length: 4\r\n", "abc"),
            Refused(400),
        ),
        (
            "a list, different",
            case("Content-Length: 3, 4\r\n", "abc"),
            Refused(400),
        ),
        ("plus", case("Content-Length: +3\r\n", "abc"), Refused(400)),
        ("minus", case("Content-Length: -3\r\n", "abc"), Refused(400)),
        (
            "hexadecimal",
            case("Content-Length: 0x3\r\n", "abc"),
            Refused(400),
        ),
        (
            "underscore",
            case("Content-Length: 1_0\r\n", "abc"),
            Refused(400),
        ),
        ("empty", case("Content-Length:\r\n", "abc"), Refused(400)),
        (
            "blank inside",
            case("Content-Length: 1 0\r\n", "abc"),
            Refused(400),
        ),
        (
            "a letter",
            case("Content-Length: 3a\r\n", "abc"),
            Refused(400),
        ),
        (
            "above 64 bits",
            case("Content-Length: 18446744073709551619\r\n", "abc"),
            Refused(400),
        ),
    ];
    check(&texts);
}

#[test]
fn transfer_encoding_is_chunked_alone_or_refused() {
    const H: &str = "POST / HTTP/1.1\r\nHost: a\r\n";
    const BODY: &str = "3\r\nabc\r\n0\r\n\r\n";
    let case = |fields: &str| format!("{H}{fields}\r\n{BODY}");
    let one_zero =
        format!("POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{BODY}");
    let texts: Vec<(&str, String, Outcome)> = vec![
        ("plain", case("Transfer-Encoding: chunked\r\n"), Kept("abc")),
        (
            "in capitals",
            case("Transfer-Encoding: CHUNKED\r\n"),
            Kept("abc"),
        ),
        (
            "with a length after",
            case("Transfer-Encoding: chunked\r\nContent-Length: 3\r\n"),
            Refused(400),
        ),
        (
            "with a length before",
            case("Content-Length: 13\r\nTransfer-Encoding: chunked\r\n"),
            Refused(400),
        ),
        (
            "with a length of nothing",
            case("Content-Length: 0\r\nTransfer-Encoding: chunked\r\n"),
            Refused(400),
        ),
        (
            "identity",
            case("Transfer-Encoding: identity\r\n"),
            Refused(400),
        ),
        (
            "xchunked",
            case("Transfer-Encoding: xchunked\r\n"),
            Refused(400),
        ),
        (
            "chunked first",
            case("Transfer-Encoding: chunked, identity\r\n"),
            Refused(400),
        ),
        (
            "chunked twice",
            case("Transfer-Encoding: chunked, chunked\r\n"),
            Refused(501),
        ),
        (
            "gzip, chunked",
            case("Transfer-Encoding: gzip, chunked\r\n"),
            Refused(501),
        ),
        (
            "two lines, the last not",
            case("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n"),
            Refused(400),
        ),
        (
            "two lines, the first not",
            case("Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n"),
            Refused(501),
        ),
        ("empty", case("Transfer-Encoding:\r\n"), Refused(400)),
        (
            "a form feed",
            case("Transfer-Encoding: \x0bchunked\r\n"),
            Refused(400),
        ),
        (
            "quoted",
            case("Transfer-Encoding: \"chunked\"\r\n"),
            Refused(400),
        ),
        ("HTTP/1.0", one_zero, Refused(400)),
    ];
    check(&texts);
}

#[test]
fn a_head_that_is_not_exactly_one_is_refused() {
    let case = |fields: &str| format!("POST / HTTP/1.1\r\n{fields}Content-Length: 3\r\n\r\nabc");
    let texts: Vec<(&str, String, Outcome)> = vec![
        (
            "a folded line",
            case("Host: a\r\nX-A: 1\r\n 2\r\n"),
            Refused(400),
        ),
        (
            "a blank before the colon",
            case("Host: a\r\nX-A : 1\r\n"),
            Refused(400),
        ),
        (
            "a blank before the colon of the length",
            case("Host: a\r\nContent-Length : 9\r\n"),
            Refused(400),
        ),
        (
            "a blank before the name",
            case("Host: a\r\n X-A: 1\r\n"),
            Refused(400),
        ),
        ("an empty name", case("Host: a\r\n: 1\r\n"), Refused(400)),
        ("no colon", case("Host: a\r\nX-A\r\n"), Refused(400)),
        (
            "NUL in a value",
            case("Host: a\r\nX-A: 1\x002\r\n"),
            Refused(400),
        ),
        (
            "NUL in a name",
            case("Host: a\r\nX\x00A: 1\r\n"),
            Refused(400),
        ),
        (
            "a bare carriage return in a value",
            case("Host: a\r\nX-A: 1\rContent-Length: 30\r\n"),
            Refused(400),
        ),
        ("no Host", case(""), Refused(400)),
        ("two Hosts", case("Host: a\r\nHost: b\r\n"), Refused(400)),
        (
            "two equal Hosts",
            case("Host: a\r\nHost: a\r\n"),
            Refused(400),
        ),
        ("an empty Host", case("Host:\r\n"), Refused(400)),
        ("a Host with a path", case("Host: a/b\r\n"), Refused(400)),
        ("a Host with a user", case("Host: u@a\r\n"), Refused(400)),
        (
            "HTTP/1.2",
            "POST / HTTP/1.2\r\nHost: a\r\n\r\n".to_owned(),
            Refused(400),
        ),
        ("HTTP/0.9", "GET /\r\n".to_owned(), Refused(400)),
        (
            "HTTP/2",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
            Dropped,
        ),
        (
            "two blanks",
            "POST  / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
            Refused(400),
        ),
        (
            "a tab",
            "POST\t/ HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
            Refused(400),
        ),
        (
            "garbage",
            "\x16\x03\x01\x02\x00\x01\x00\x01\u{fc}\x03\x03".to_owned(),
            Refused(400),
        ),
    ];
    check(&texts);
}

#[test]
fn a_chunk_that_two_readers_could_read_differently_ends_the_connection() {
    let case = |chunks: &str| {
        format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}")
    };
    let texts: Vec<(&str, String, Outcome)> = vec![
        ("plain", case("3\r\nabc\r\n0\r\n\r\n"), Kept("abc")),
        (
            "two chunks, in capitals",
            case("A\r\n0123456789\r\n1\r\na\r\n0\r\n\r\n"),
            Kept("0123456789a"),
        ),
        (
            "leading zeros",
            case("0003\r\nabc\r\n0\r\n\r\n"),
            Kept("abc"),
        ),
        (
            "an extension",
            case("3;a=b\r\nabc\r\n0\r\n\r\n"),
            Kept("abc"),
        ),
        (
            "a quoted extension",
            case("3;a=\"b\"\r\nabc\r\n0\r\n\r\n"),
            Kept("abc"),
        ),
    ];
    check(&texts);
    for (what, chunks) in [
        ("plus", "+3\r\nabc\r\n0\r\n\r\n"),
        ("minus", "-3\r\nabc\r\n0\r\n\r\n"),
        ("0x", "0x3\r\nabc\r\n0\r\n\r\n"),
        ("a letter", "g\r\nabc\r\n0\r\n\r\n"),
        ("empty", "\r\nabc\r\n0\r\n\r\n"),
        ("a blank inside", "3 3\r\nabc\r\n0\r\n\r\n"),
        ("above 64 bits", "10000000000000003\r\nabc\r\n0\r\n\r\n"),
        (
            "far above 64 bits",
            "fffffffffffffffffffff\r\nabc\r\n0\r\n\r\n",
        ),
        ("too short for its data", "2\r\nabc\r\n0\r\n\r\n"),
        ("a bare line feed after the size", "3\nabc\r\n0\r\n\r\n"),
        (
            "a bare line feed in an extension",
            "3;a\nb\r\nabc\r\n0\r\n\r\n",
        ),
        (
            "a bare carriage return in an extension",
            "3;a\rb\r\nabc\r\n0\r\n\r\n",
        ),
        ("no line end after the data", "3\r\nabc0\r\n\r\n"),
        ("negative zero", "3\r\nabc\r\n-0\r\n\r\n"),
    ] {
        check_broken_chunks(what, &case(chunks));
    }
}

/// The head is fine and goes to the upstream at once; the upstream must never take the body for
/// complete, and never see what follows.
fn check_broken_chunks(what: &str, bytes: &str) {
    let upstream = Upstream::new();
    let proxy = Proxy::to(upstream.address);
    let mut client = proxy.client();
    client.send(format!("{bytes}{AFTER}"));
    let answers = client.rest();
    let answers = String::from_utf8_lossy(&answers);
    assert!(answers.starts_with("HTTP/1.1 400 "), "{what}: {answers}");
    assert_eq!(answers.matches("HTTP/1.1 ").count(), 1, "{what}: {answers}");
    if let Some(mut wire) = upstream.accept_if_any() {
        let seen = wire.rest();
        let seen = String::from_utf8_lossy(&seen);
        assert!(!seen.contains("/after"), "{what}: {seen}");
        assert!(!seen.ends_with("0\r\n\r\n"), "{what}: ended well: {seen}");
    }
}

#[test]
fn bytes_after_the_announced_body_are_the_next_request_or_refused() {
    let upstream = Upstream::recording();
    let proxy = Proxy::to(upstream.address);
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcdef\r\n\r\n");
    assert_eq!(client.response().status(), 200);
    assert_eq!(client.response().status(), 400);
    client.expect_closed();
    let seen = upstream.take();
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert_eq!(seen[0].text(), "abc");
}

#[test]
fn a_body_that_ends_early_is_never_complete_at_the_upstream() {
    for head in [
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
    ] {
        let upstream = Upstream::new();
        let proxy = Proxy::to(upstream.address);
        let mut client = proxy.client();
        client.send(head);
        let mut wire = upstream.accept();
        let begun = wire.head();
        client.half_close();
        let rest = wire.rest();
        let rest = String::from_utf8_lossy(&rest);
        assert_eq!(begun.target(), "/");
        assert!(!rest.ends_with("0\r\n\r\n"), "{rest}");
        assert!(rest.len() < 10, "{rest}");
    }
}

#[test]
fn half_a_head_is_nothing() {
    let upstream = Upstream::new();
    let proxy = Proxy::to(upstream.address);
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Len");
    client.half_close();
    client.rest();
    upstream.expect_untouched();
    eventually("no connection is left", || {
        proxy.metric("tidegate_connections") == 0
    });
}

#[test]
fn a_head_has_at_most_100_fields_and_16_kib_and_a_target_8_kib() {
    let upstream = Upstream::recording();
    let proxy = Proxy::to(upstream.address);
    let fields = |count: usize| "X-A: 1\r\n".repeat(count);
    let ask = |text: String| proxy.ask(text).status();
    let head = |fields: &str| format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
    assert_eq!(ask(head(&fields(99))), 200);
    assert_eq!(ask(head(&fields(100))), 431);
    let long = |bytes: usize| format!("X-A: {}\r\n", "a".repeat(bytes));
    assert_eq!(ask(head(&long(15 * 1024))), 200);
    assert_eq!(ask(head(&long(17 * 1024))), 431);
    assert_eq!(ask(head(&long(70 * 1024))), 431);
    let target = |bytes: usize| format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(bytes));
    assert_eq!(ask(target(8 * 1024 - 1)), 200);
    assert_eq!(ask(target(8 * 1024)), 414);
    assert_eq!(upstream.take().len(), 3);
}

#[test]
fn a_get_with_a_chunked_body_reaches_the_upstream_with_it() {
    let upstream = Upstream::recording();
    let proxy = Proxy::to(upstream.address);
    let mut client = proxy.client();
    let request =
        "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    assert_eq!(client.exchange(request).status(), 200);
    assert_eq!(client.exchange(request).status(), 200);
    let bodies: Vec<String> = upstream.take().iter().map(Message::text).collect();
    assert_eq!(bodies, ["abc", "abc"]);
}

/// The raw head of a request that came along with the one before was not kept, so a length besides
/// its `Transfer-Encoding` went unseen.
#[test]
fn a_second_framing_is_seen_in_a_pipelined_request_too() {
    let upstream = Upstream::recording();
    let proxy = Proxy::to(upstream.address);
    let both = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 13\r\nTransfer-Encoding: \
                chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    let one = both.replace("Content-Length: 13\r\n", "");
    let get = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let post = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc";
    for (first, second, status) in [
        (get, both, 400),
        (get, one.as_str(), 200),
        // Behind a body nobody knows for sure where the next head began.
        (post, both, 400),
        (post, one.as_str(), 400),
    ] {
        let mut client = proxy.client();
        client.send(format!("{first}{second}"));
        assert_eq!(client.response().status(), 200, "{first}");
        assert_eq!(client.response().status(), status, "{first}{second}");
        let seen = upstream.take();
        let forwarded = if status == 200 { 2 } else { 1 };
        assert_eq!(seen.len(), forwarded, "{seen:?}");
    }
}
