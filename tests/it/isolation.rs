//! Places, queues and lanes: a full service makes its own requests wait or go, and nobody else's.

use super::harness::{OK, Proxy, Setup, Upstream, Wire, eventually};

pub(super) const GET: &str = "GET /x HTTP/1.1\r\nHost: a\r\nX-App-Id: acme\r\n\r\n";

/// Starts a proxy whose one service has these keys besides.
pub(super) fn start(upstream: std::net::SocketAddr, keys: &str) -> Proxy {
    let service =
        format!("services: [{{ name: chat, match: [{{ path: / }}], upstream: chat, {keys} }}]");
    Setup {
        services: &service,
        ..Setup::to(upstream)
    }
    .start()
}

pub(super) fn shed(proxy: &Proxy, reason: &str) -> u64 {
    proxy.metric(&format!(
        "tidegate_shed_total{{reason=\"{reason}\",service=\"chat\"}}"
    ))
}

/// Sends a request without waiting for its answer.
pub(super) fn begin(proxy: &Proxy, request: &str) -> Wire {
    let mut client = proxy.client();
    client.send(request);
    client
}

pub(super) fn waiting(proxy: &Proxy, count: u64) {
    let series = "tidegate_waiting_requests{service=\"chat\"}";
    eventually("so many wait", || proxy.metric(series) == count);
}

#[test]
fn who_finds_no_place_waits_for_one_and_whoever_finds_no_room_to_wait_is_told_so() {
    let upstream = Upstream::new();
    let proxy = start(
        upstream.address,
        "concurrency: { max: 1, queue: 1, queue_timeout: 20s }",
    );
    let mut first = begin(&proxy, GET);
    let mut served = upstream.accept();
    served.request();
    let mut second = begin(&proxy, GET);
    waiting(&proxy, 1);
    // Of the same source: the newest waits, the oldest goes.
    let mut third = begin(&proxy, GET);
    let refused = second.response();
    assert_eq!(refused.status(), 503);
    assert!(refused.header("retry-after").is_some());
    assert!(refused.text().contains("overloaded"));
    assert_eq!(shed(&proxy, "full"), 1);
    served.send(OK);
    assert_eq!(first.response().status(), 200);
    served.request();
    served.send(OK);
    assert_eq!(third.response().status(), 200);
    waiting(&proxy, 0);
    proxy.metric_reaches("tidegate_queue_wait_seconds_count{service=\"chat\"}", 1);
}

#[test]
fn nobody_waits_longer_than_the_queue_allows_and_who_has_gone_waits_no_more() {
    let upstream = Upstream::new();
    let proxy = start(
        upstream.address,
        "concurrency: { max: 1, queue: 8, queue_timeout: 300ms }",
    );
    let mut first = begin(&proxy, GET);
    let mut served = upstream.accept();
    served.request();
    assert_eq!(proxy.ask(GET).status(), 503);
    assert_eq!(shed(&proxy, "queue_timeout"), 1);

    let gone = begin(&proxy, GET);
    waiting(&proxy, 1);
    drop(gone);
    waiting(&proxy, 0);
    served.send(OK);
    assert_eq!(first.response().status(), 200);
    let mut next = begin(&proxy, GET);
    served.request();
    served.send(OK);
    assert_eq!(next.response().status(), 200);
    assert_eq!(shed(&proxy, "full"), 0);
}

/// One source fills the queue; another comes last and is next but one.
#[test]
fn a_source_that_asks_for_much_does_not_keep_others_waiting() {
    let upstream = Upstream::new();
    let proxy = start(
        upstream.address,
        "concurrency: { max: 1, queue: 10, queue_timeout: 20s }",
    );
    let mut clients = vec![begin(&proxy, GET)];
    let mut served = upstream.accept();
    served.request();
    for number in 1..=10 {
        clients.push(begin(&proxy, GET));
        waiting(&proxy, number);
    }
    let other = GET.replace("acme", "other");
    let mut honest = begin(&proxy, &other);
    eventually("one of the many made room", || shed(&proxy, "full") == 1);
    let mut turns = Vec::new();
    for _ in 0..3 {
        served.send(OK);
        let request = served.request();
        turns.push(request.header("x-app-id").unwrap_or_default().to_owned());
    }
    assert!(turns.iter().take(2).any(|app| app == "other"), "{turns:?}");
    assert_eq!(honest.response().status(), 200);
    assert_eq!(shed(&proxy, "full"), 1, "nobody else had to go");
}

#[test]
fn low_priority_is_shed_before_critical() {
    let upstream = Upstream::new();
    let services = "services:
  - { name: chat, match: [{ path: /c/ }], upstream: chat, priority: low }
  - { name: login, match: [{ path: /l/ }], upstream: chat, priority: critical }
overload: { inflight_max: 4 }";
    let proxy = Setup {
        services,
        ..Setup::to(upstream.address)
    }
    .start();
    let at = |path: &str| GET.replace("/x", path);
    let mut held = Vec::new();
    for _ in 0..3 {
        let client = begin(&proxy, &at("/c/"));
        let mut wire = upstream.accept();
        wire.request();
        held.push((client, wire));
    }
    assert_eq!(proxy.ask(at("/c/")).status(), 503, "70 % of four are three");
    assert_eq!(shed(&proxy, "priority"), 1);
    let mut login = begin(&proxy, &at("/l/"));
    let mut wire = upstream.accept();
    wire.request();
    wire.send(OK);
    assert_eq!(login.response().status(), 200);
}

/// However short memory is, 64 requests may be in flight: refusing them would give nothing back.
#[test]
fn with_memory_short_only_what_is_critical_is_served() {
    let upstream = Upstream::new();
    let services = "services:
  - { name: chat, match: [{ path: /c/ }], upstream: chat }
  - { name: login, match: [{ path: /l/ }], upstream: chat, priority: critical }
overload: { memory_max: 1MiB }
";
    let proxy = Setup {
        services,
        ..Setup::to(upstream.address)
    }
    .start();
    let (to_chat, to_login) = (GET.replace("/x", "/c/"), GET.replace("/x", "/l/"));
    proxy.metric_reaches("tidegate_memory_pressure", 3);
    let held = (0..64).map(|_| {
        let client = begin(&proxy, &to_chat);
        let mut wire = upstream.accept();
        wire.request();
        (client, wire)
    });
    let mut held: Vec<_> = held.collect();
    assert_eq!(proxy.ask(&to_chat).status(), 503);
    assert_eq!(shed(&proxy, "memory"), 1);
    let mut login = begin(&proxy, &to_login);
    let mut wire = upstream.accept();
    wire.request();
    wire.send(OK);
    assert_eq!(login.response().status(), 200);
    let (mut client, mut wire) = held.pop().expect("64 of them");
    wire.send(OK);
    assert_eq!(client.response().status(), 200);
    let settings = proxy.folder.read("tidegate.yaml");
    let plenty = settings.replace("memory_max: 1MiB", "memory_max: 64GiB");
    proxy.folder.write("tidegate.yaml", &plenty);
    eventually("memory is not short", || {
        proxy.metric("tidegate_memory_pressure") == 0
    });
}

#[test]
fn the_oldest_request_in_flight_is_told_as_long_as_it_is() {
    let upstream = Upstream::new();
    let proxy = Proxy::to(upstream.address);
    let oldest = || {
        let metrics = proxy.admin("/metrics").text();
        let series = "tidegate_oldest_inflight_seconds{service=\"chat\"} ";
        let line = metrics.lines().find_map(|line| line.strip_prefix(series));
        line.expect("a series").parse::<f64>().expect("a number")
    };
    let mut client = begin(&proxy, GET);
    let mut wire = upstream.accept();
    wire.request();
    eventually("it gets old", || oldest() > 0.3);
    wire.send(OK);
    assert_eq!(client.response().status(), 200);
    eventually("there is none", || oldest() <= 0.0);
}

#[test]
fn one_address_does_not_take_all_connections_and_trusted_proxies_are_exempt() {
    let upstream = Upstream::recording();
    let services = "services: [{ name: chat, match: [{ path: / }], upstream: chat }]
overload: { connections_per_address: 2, connections_max: 4 }";
    let start = |trusted_proxies| {
        Setup {
            trusted_proxies,
            services,
            ..Setup::to(upstream.address)
        }
        .start()
    };
    let proxy = start("[]");
    let mut held: Vec<_> = (0..2).map(|_| proxy.client()).collect();
    for client in &mut held {
        assert_eq!(client.exchange(GET).status(), 200);
    }
    let turned_away = proxy.client().response();
    assert_eq!(turned_away.status(), 503);
    assert!(turned_away.header("retry-after").is_some());
    proxy.metric_reaches("tidegate_connections_refused_total{reason=\"address\"}", 1);
    held.pop();
    eventually("there is room again", || {
        let mut client = proxy.client();
        client.send(GET);
        client
            .response_if_any()
            .is_some_and(|answer| answer.status() == 200)
    });

    let proxy = start("[127.0.0.0/8]");
    let mut held: Vec<_> = (0..4).map(|_| proxy.client()).collect();
    for client in &mut held {
        assert_eq!(client.exchange(GET).status(), 200);
    }
    assert_eq!(proxy.client().response().status(), 503);
    proxy.metric_reaches("tidegate_connections_refused_total{reason=\"total\"}", 1);
}
