//! Who a client is does not depend on how it writes that down: no trick gets a blocked client through.

use super::harness::{Proxy, Recorder, Setup, Upstream};

const BLOCK_APP: &str = "rules: [{ name: no-acme, when: { app: acme }, action: block }]";

fn blocking(upstream: &Recorder, rules: &'static str, trusted_proxies: &'static str) -> Proxy {
    Setup {
        trusted_proxies,
        rules,
        ..Setup::to(upstream.address)
    }
    .start()
}

/// Sends each request and asserts that it was refused and that the upstream saw nothing of it.
#[track_caller]
fn expect_refused(proxy: &Proxy, upstream: &Recorder, requests: &[(&str, u16)]) {
    for (request, status) in requests {
        let answer = proxy.ask(request);
        assert_eq!(answer.status(), *status, "{request:?}: {answer:?}");
        let seen = upstream.take();
        assert!(seen.is_empty(), "{request:?}: {seen:?}");
    }
}

fn get(fields: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n")
}

#[test]
fn a_header_is_the_same_however_it_is_written() {
    let upstream = Upstream::recording();
    let proxy = blocking(&upstream, BLOCK_APP, "[]");
    let cases = [
        ("X-App-Id: acme", 403),
        ("x-app-id: acme", 403),
        ("X-APP-ID:acme", 403),
        ("X-App-Id: \t acme \t ", 403),
        ("X-App-Id: acme\r\nX-App-Id: acme", 403),
        ("X-App-Id: acme\r\nX-App-Id: other", 400),
        ("X-App-Id: other\r\nX-App-Id: acme", 400),
        ("X-App-Id:\r\nX-App-Id: acme", 400),
        ("X-App-Id: acme\r\nX_App_Id: other", 403),
        ("X-App-Id: acme\r\nConnection: x-app-id", 400),
        ("X-App-Id: other\r\nConnection: X-App-Id", 400),
        ("Connection: x-app-id, close\r\nX-App-Id: acme", 400),
    ];
    for (fields, status) in cases {
        expect_refused(&proxy, &upstream, &[(&get(fields), status)]);
    }
    // The negative control: another client goes through.
    assert_eq!(proxy.ask(get("X-App-Id: other")).status(), 200);
    assert_eq!(upstream.take().len(), 1);
}

#[test]
fn padding_does_not_hide_a_value_and_a_long_value_is_one_value() {
    let upstream = Upstream::recording();
    let proxy = blocking(&upstream, BLOCK_APP, "[]");
    let padded = get(&format!("X-App-Id: {}acme", " ".repeat(5000)));
    expect_refused(&proxy, &upstream, &[(&padded, 403)]);
    let rules = "limits: [{ name: per-app, key: [app], rate: 1/h, burst: 1 }]";
    let proxy = blocking(&upstream, rules, "[]");
    let long = |end: &str| get(&format!("X-App-Id: {}{end}", "a".repeat(5000)));
    assert_eq!(proxy.ask(long("x")).status(), 200);
    assert_eq!(proxy.ask(long("x")).status(), 429, "the same long value");
    assert_eq!(proxy.ask(long("y")).status(), 200, "another long value");
}

/// Values above 256 bytes are kept as hashes; conditions saw the hash, so padding hid a client from
/// each regex and prefix.
#[test]
fn padding_does_not_hide_a_value_from_a_regex_or_a_prefix() {
    let upstream = Upstream::recording();
    let rules = "rules:
  - { name: scrapers, when: { user_agent: { regex: '(?i)scrapy' } }, action: block }
  - { name: acmes, when: { app: { prefix: acme } }, action: block }
  - { name: strangers, when: { app: { not: { regex: 'z$' } } }, action: block }";
    let proxy = blocking(&upstream, rules, "[]");
    for length in [0, 300, 6000] {
        let padding = "x".repeat(length);
        for fields in [
            format!("User-Agent: Scrapy{padding}\r\nX-App-Id: z"),
            format!("User-Agent: {padding}Scrapy\r\nX-App-Id: z"),
            format!("X-App-Id: acme{padding}z"),
            format!("X-App-Id: {padding}y"),
        ] {
            expect_refused(&proxy, &upstream, &[(&get(&fields), 403)]);
        }
        let honest = get(&format!("User-Agent: {padding}a\r\nX-App-Id: {padding}z"));
        assert_eq!(proxy.ask(honest).status(), 200);
        upstream.take();
    }
}

#[test]
fn an_alias_with_an_underscore_never_reaches_the_upstream() {
    let upstream = Upstream::recording();
    let proxy = blocking(&upstream, BLOCK_APP, "[]");
    for fields in [
        "X_App_Id: acme",
        "x_app-id: acme",
        "X-App-Id: other\r\nx_app_id: acme",
    ] {
        assert_eq!(proxy.ask(get(fields)).status(), 200);
        let seen = upstream.take();
        let is_acme = seen[0].headers.iter().any(|(_, value)| value == "acme");
        assert!(!is_acme, "{fields}: {seen:?}");
    }
    proxy.metric_reaches("tidegate_headers_dropped_total", 3);
}

#[test]
fn a_query_parameter_or_cookie_is_the_same_however_it_is_escaped() {
    let upstream = Upstream::recording();
    let proxy = blocking(&upstream, BLOCK_APP, "[]");
    for (target, status) in [
        ("/?app=acme", 403),
        ("/?app=%61cme", 403),
        ("/?%61pp=acme", 403),
        ("/?x&app=acme&", 403),
        ("/?app=acme&app=acme", 403),
        ("/?app=acme&app=other", 400),
        ("/?app=other&%61pp=acme", 400),
        ("/?app=acme#app=other", 403),
        ("http://a/?app=acme", 403),
    ] {
        let request = format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n");
        expect_refused(&proxy, &upstream, &[(&request, status)]);
    }
    for (cookie, status) in [
        ("Cookie: app=acme", 403),
        ("Cookie: a=1;app=acme; b=2", 403),
        ("Cookie: a=1\r\nCookie: app=acme", 403),
        ("Cookie: app=other\r\nCookie: app=acme", 400),
        ("X-App-Id:\r\nCookie: app=acme", 403),
    ] {
        expect_refused(&proxy, &upstream, &[(&get(cookie), status)]);
    }
}

#[test]
fn a_path_is_the_same_however_it_is_escaped() {
    let upstream = Upstream::recording();
    let proxy = Setup {
        services: "services:
  - { name: login, match: [{ path: /v1/auth }], upstream: chat }
  - { name: chat, match: [{ path: / }], upstream: chat }",
        rules: "rules: [{ name: no-login, when: { service: login }, action: block }]",
        ..Setup::to(upstream.address)
    }
    .start();
    for (target, status) in [
        ("/v1/auth", 403),
        ("/v1/auth/", 403),
        ("/v1/auth/token?x=1", 403),
        ("/v1/%61uth/", 403),
        ("/%76%31/auth/x", 403),
        ("//v1/auth", 403),
        ("/v1//auth/x", 403),
        ("/v1/auth//", 403),
        ("http://a/v1/auth", 403),
        ("http://a//v1/auth", 403),
        ("/c/v1/../../v1/auth", 400),
        ("/c/v1/%2e%2e/../v1/auth", 400),
        ("/c/.%2E/v1/auth", 400),
        ("/./v1/auth", 400),
        ("/v1/./auth", 400),
        ("/v1/%2e/auth", 400),
        ("\\v1\\auth", 400),
        ("/v1\\auth", 400),
        ("/v1%5cauth", 400),
        ("/v1/auth%00", 400),
        ("/v1/auth%0d%0aX-A:%201", 400),
        ("/v1/auth%", 400),
        ("/v1/auth%4", 400),
        ("/v1/auth%zz", 400),
        ("*", 400),
    ] {
        let request = format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n");
        expect_refused(&proxy, &upstream, &[(&request, status)]);
    }
    // The negative control: what only looks alike goes through.
    for target in [
        "/v1/authors",
        "/v1/autho",
        "/V1/auth",
        "/.well-known/x",
        "/a..b",
    ] {
        let request = format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(proxy.ask(request).status(), 200, "{target}");
        assert_eq!(upstream.take()[0].target(), target);
    }
}

#[test]
fn a_host_is_the_same_however_it_is_written() {
    let upstream = Upstream::recording();
    let rules = "rules: [{ name: no-acme, when: { host: acme.example.com }, action: block }]";
    let proxy = blocking(&upstream, rules, "[]");
    for host in [
        "acme.example.com",
        "ACME.example.COM",
        "acme.example.com:8080",
        "acme.example.com.",
        "acme.example.com.:80",
    ] {
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
        expect_refused(&proxy, &upstream, &[(&request, 403)]);
    }
    let absolute = "GET http://ACME.example.com/ HTTP/1.1\r\nHost: acme.example.com\r\n\r\n";
    expect_refused(&proxy, &upstream, &[(absolute, 403)]);
}

#[test]
fn a_stranger_cannot_choose_its_address() {
    let upstream = Upstream::recording();
    let rules = "rules: [{ name: no-loop, when: { ip: 127.0.0.1 }, action: block }]";
    let proxy = blocking(&upstream, rules, "[]");
    for fields in [
        "X-Forwarded-For: 192.0.2.1",
        "X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-For: 192.0.2.2",
        "Forwarded: for=192.0.2.1",
        "X-Real-IP: 192.0.2.1",
        "Connection: x-forwarded-for\r\nX-Forwarded-For: 192.0.2.1",
    ] {
        expect_refused(&proxy, &upstream, &[(&get(fields), 403)]);
    }
}

#[test]
fn behind_a_trusted_proxy_the_client_is_the_last_stranger() {
    let upstream = Upstream::recording();
    let rules = "rules: [{ name: no-such, when: { ip: 192.0.2.7 }, action: block }]";
    let proxy = blocking(&upstream, rules, "[127.0.0.0/8, 10.0.0.0/8]");
    for line in [
        "192.0.2.7",
        "::ffff:192.0.2.7",
        "[::ffff:192.0.2.7]:443",
        "192.0.2.7:4711",
        "198.51.100.1, 192.0.2.7",
        "198.51.100.1, 192.0.2.7, 10.0.0.1",
        "unknown, 192.0.2.7",
        "192.0.2.7,",
        "198.51.100.1,192.0.2.7 , ,",
    ] {
        let request = get(&format!("X-Forwarded-For: {line}"));
        expect_refused(&proxy, &upstream, &[(&request, 403)]);
    }
    let request = get("X-Forwarded-For: 198.51.100.1\r\nX-Forwarded-For: 192.0.2.7");
    expect_refused(&proxy, &upstream, &[(&request, 403)]);
    // The negative control: what stands left of a stranger was written by the stranger.
    let request = get("X-Forwarded-For: 192.0.2.7, 198.51.100.1");
    assert_eq!(proxy.ask(request).status(), 200);
}
