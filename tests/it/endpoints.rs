//! Several endpoints of one upstream: who is asked, who is left out and comes back, and what is never
//! sent twice.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::harness::{OK, Proxy, Recorder, Setup, Upstream, Wire, eventually};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc";
const SICK: &str = "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n";

/// An address where nobody listens.
fn nobody() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("a bound socket")
}

fn proxy(endpoints: &[SocketAddr], upstream: &str) -> Proxy {
    let Some(first) = endpoints.first() else {
        panic!("at least one")
    };
    Setup {
        endpoints: endpoints.iter().map(ToString::to_string).collect(),
        upstream,
        ..Setup::to(*first)
    }
    .start()
}

/// What an upstream does as long as it is not well.
type Sickness = fn() -> Option<String>;

/// An upstream that is well or not, as the test says.
fn moody(sickness: Sickness) -> (Recorder, Arc<AtomicBool>) {
    let is_well = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&is_well);
    let upstream = Upstream::new().recorder(move |_, _| {
        if seen.load(Ordering::Relaxed) {
            Some(OK.to_owned())
        } else {
            sickness()
        }
    });
    (upstream, is_well)
}

fn ejections(proxy: &Proxy, reason: &str) -> u64 {
    proxy.metric(&format!(
        "tidegate_upstream_ejections_total{{reason=\"{reason}\",upstream=\"chat\"}}"
    ))
}

fn endpoints_in(proxy: &Proxy, state: &str) -> u64 {
    proxy.metric(&format!(
        "tidegate_upstream_endpoints{{state=\"{state}\",upstream=\"chat\"}}"
    ))
}

fn errors(proxy: &Proxy, error: &str) -> u64 {
    proxy.metric(&format!(
        "tidegate_upstream_errors_total{{error=\"{error}\",upstream=\"chat\"}}"
    ))
}

fn breaker_is_open(proxy: &Proxy) -> bool {
    proxy.metric("tidegate_upstream_breaker_open{upstream=\"chat\"}") == 1
}

#[test]
fn requests_are_spread_by_weight() {
    let (heavy, light) = (Upstream::recording(), Upstream::recording());
    let proxy = Setup {
        endpoints: vec![
            format!("{{ address: \"{}\", weight: 4 }}", heavy.address),
            light.address.to_string(),
        ],
        ..Setup::to(heavy.address)
    }
    .start();
    let mut client = proxy.client();
    for _ in 0..500 {
        assert_eq!(client.exchange(GET).status(), 200);
    }
    let (heavy, light) = (heavy.take().len(), light.take().len());
    assert_eq!(heavy + light, 500);
    // 100 are expected here, with a deviation of 9.
    assert!((55..=145).contains(&light), "{heavy} and {light}");
}

#[test]
fn an_endpoint_that_is_busy_gets_nothing_while_another_is_free() {
    let (busy, free) = (Upstream::new(), Upstream::recording());
    let proxy = proxy(&[busy.address, free.address], "");
    let mut waiting = proxy.client();
    let mut wire = loop {
        waiting.send(GET);
        match busy.accept_if_any() {
            Some(wire) => break wire,
            None => assert_eq!(waiting.response().status(), 200),
        }
    };
    wire.request();
    free.take();
    let mut client = proxy.client();
    for _ in 0..100 {
        assert_eq!(client.exchange(GET).status(), 200);
    }
    assert_eq!(free.take().len(), 100);
    wire.send(OK);
    assert_eq!(waiting.response().status(), 200);
}

#[test]
fn an_endpoint_that_fails_is_left_out_and_comes_back_when_it_is_well() {
    let (moody, is_well) = moody(|| None);
    let good = Upstream::recording();
    let proxy = proxy(&[moody.address, good.address], "");
    let mut answers = Vec::new();
    while ejections(&proxy, "consecutive_failures") == 0 {
        answers.extend((0..10).map(|_| proxy.ask(POST).status()));
        assert!(answers.len() < 1000, "it is never left out");
    }
    let ejected = Instant::now();
    let failed = answers.iter().filter(|status| **status == 502).count();
    assert_eq!(failed, 5, "{answers:?}");
    assert_eq!(moody.take().len(), 5, "a POST goes out once");
    for _ in 0..100 {
        assert_eq!(proxy.ask(POST).status(), 200);
    }
    assert!(moody.take().is_empty());
    eventually("what operators see", || {
        let services = proxy.admin("/api/v1/services").json();
        let state = services.pointer("/0/endpoints/0/state");
        state.is_some_and(|state| state == "ejected")
            && endpoints_in(&proxy, "ejected") == 1
            && endpoints_in(&proxy, "in") == 1
    });
    is_well.store(true, Ordering::Relaxed);
    eventually("a probe", || {
        assert_eq!(proxy.ask(GET).status(), 200);
        !moody.take().is_empty()
    });
    assert!(
        ejected.elapsed() >= Duration::from_secs(4),
        "it was left in peace"
    );
    eventually("slow start", || endpoints_in(&proxy, "slow_start") == 1);
    eventually("its share", || {
        assert_eq!(proxy.ask(GET).status(), 200);
        !moody.take().is_empty()
    });
    assert_eq!(ejections(&proxy, "consecutive_failures"), 1);
}

#[test]
fn an_endpoint_that_answers_errors_is_left_out_while_the_others_do_well() {
    let (sick, _) = moody(|| Some(SICK.to_owned()));
    let good = Upstream::recording();
    let proxy = proxy(&[sick.address, good.address], "");
    let mut client = proxy.client();
    let (mut failed, mut sent) = (0, 0);
    eventually("it is left out", || {
        for _ in 0..100 {
            failed += u32::from(client.exchange(GET).status() == 500);
            sent += 1;
        }
        ejections(&proxy, "success_rate") == 1
    });
    assert!(failed >= 100 && sent >= 200, "{failed} of {sent}");
    sick.take();
    for _ in 0..100 {
        assert_eq!(client.exchange(GET).status(), 200);
    }
    assert!(sick.take().is_empty());
}

#[test]
fn where_all_endpoints_answer_errors_none_is_left_out() {
    let sick = [0, 1].map(|_| moody(|| Some(SICK.to_owned())).0);
    let proxy = proxy(&[sick[0].address, sick[1].address], "");
    let mut client = proxy.client();
    let until = Instant::now() + Duration::from_millis(2500);
    while Instant::now() < until {
        assert_eq!(client.exchange(GET).status(), 500);
    }
    assert_eq!(ejections(&proxy, "success_rate"), 0);
    assert!(sick.iter().all(|one| one.take().len() > 100));
}

#[test]
fn where_nobody_is_there_little_is_tried_and_it_is_noticed_when_somebody_is() {
    let address = nobody();
    let proxy = proxy(&[address], "");
    let began = Instant::now();
    let answers: Vec<_> = (0..300).map(|_| proxy.ask(GET)).collect();
    let took = began.elapsed().as_secs_f64();
    for answer in &answers {
        match answer.status() {
            503 => {
                answer.expect_problem(503, "destination_unavailable");
                assert!(answer.header("retry-after").is_some());
            }
            _ => answer.expect_problem(502, "connection_refused"),
        }
    }
    let tried = answers.iter().filter(|one| one.status() == 502).count() as f64;
    assert!(tried <= 3.0 + took / 0.75, "{tried} in {took} s");
    assert!(breaker_is_open(&proxy));
    let upstream = Upstream::at(address).recorder(|_, _| Some(OK.to_owned()));
    let began = Instant::now();
    eventually("an answer", || proxy.ask(GET).status() == 200);
    assert!(began.elapsed() < Duration::from_secs(2));
    assert!(!breaker_is_open(&proxy));
    for _ in 0..100 {
        assert_eq!(proxy.ask(GET).status(), 200);
    }
    assert_eq!(upstream.take().len(), 101);
}

/// The negative control of the test before: who is well is never refused, however many others fail.
#[test]
fn an_upstream_with_one_endpoint_that_is_well_is_never_refused() {
    let good = Upstream::recording();
    let proxy = proxy(&[nobody(), nobody(), good.address, nobody()], "");
    let address = proxy.address();
    let clients = (0..24).map(|_| {
        thread::spawn(move || {
            (0..20)
                .map(|_| Wire::connect(address).exchange(POST).status())
                .collect::<Vec<_>>()
        })
    });
    let clients: Vec<_> = clients.collect();
    for client in clients {
        let answers = client.join().expect("no panics here");
        assert!(answers.iter().all(|status| *status == 200), "{answers:?}");
    }
    assert!(!breaker_is_open(&proxy));
    assert_eq!(good.take().len(), 24 * 20);
}

#[test]
fn an_upstream_that_takes_no_connections_is_waited_for_a_few_times_only() {
    // The kernel takes one more than that, and ignores the rest.
    let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)
        .expect("a descriptor is left");
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    listener.bind(&any.into()).expect("a free port");
    listener.listen(0).expect("a bound socket");
    let address = listener.local_addr().expect("a bound socket");
    let address = address.as_socket().expect("of the internet");
    let _held = Wire::connect(address);
    let proxy = proxy(&[address], "connect_timeout: 100ms");
    let answers: Vec<_> = (0..30).map(|_| proxy.ask(GET)).collect();
    let late = answers.iter().filter(|one| one.status() == 504).count();
    assert!((3..=4).contains(&late), "{late}");
    for answer in answers.iter().filter(|one| one.status() != 504) {
        answer.expect_problem(503, "destination_unavailable");
    }
    eventually("counted", || {
        errors(&proxy, "connection_timeout") == late as u64
    });
}

#[test]
fn an_endpoint_that_fails_its_health_check_is_left_out_until_it_passes_again() {
    let is_well = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&is_well);
    let sick = Upstream::new().recorder(move |_, request| {
        let is_check = request.target() == "/healthz";
        let answer = if is_check && !seen.load(Ordering::Relaxed) {
            SICK
        } else {
            OK
        };
        Some(answer.to_owned())
    });
    let good = Upstream::recording();
    let health = "health: { path: /healthz, interval: 100ms }";
    let proxy = proxy(&[sick.address, good.address], health);
    eventually("left out", || endpoints_in(&proxy, "failing_checks") == 1);
    assert_eq!(ejections(&proxy, "health_check"), 1);
    sick.take();
    for _ in 0..50 {
        assert_eq!(proxy.ask(GET).status(), 200);
    }
    let asked = sick.take();
    let request = asked.iter().find(|request| request.target() != "/healthz");
    assert!(request.is_none(), "{request:?}");
    is_well.store(true, Ordering::Relaxed);
    eventually("in again", || endpoints_in(&proxy, "failing_checks") == 0);
    eventually("asked again", || {
        assert_eq!(proxy.ask(GET).status(), 200);
        sick.take().iter().any(|request| request.target() == "/")
    });
}

#[test]
fn where_all_fail_their_health_checks_nobody_is_asked() {
    let (moody, is_well) = moody(|| Some(SICK.to_owned()));
    is_well.store(true, Ordering::Relaxed);
    let proxy = proxy(
        &[moody.address],
        "health: { path: /healthz, interval: 100ms }",
    );
    eventually("a check", || !moody.take().is_empty());
    is_well.store(false, Ordering::Relaxed);
    eventually("left out", || endpoints_in(&proxy, "failing_checks") == 1);
    moody.take();
    proxy
        .ask(GET)
        .expect_problem(503, "destination_unavailable");
    assert!(
        moody
            .take()
            .iter()
            .all(|request| request.target() == "/healthz")
    );
    is_well.store(true, Ordering::Relaxed);
    eventually("in again", || proxy.ask(GET).status() == 200);
}

#[test]
fn a_health_check_that_nobody_ever_passed_takes_nobody_out() {
    let wrong = Upstream::new().recorder(|_, request| {
        let answer = if request.target() == "/wrong" {
            SICK
        } else {
            OK
        };
        Some(answer.to_owned())
    });
    let proxy = proxy(
        &[wrong.address],
        "health: { path: /wrong, interval: 100ms }",
    );
    let mut checks = 0;
    eventually("several checks", || {
        let asked = wrong.take();
        checks += asked
            .iter()
            .filter(|request| request.target() == "/wrong")
            .count();
        checks > 4
    });
    assert_eq!(proxy.ask(GET).status(), 200);
}

#[test]
fn a_name_that_is_not_known_is_502_and_costs_the_others_nothing() {
    let proxy = Setup {
        endpoints: vec!["nowhere.invalid:80".to_owned()],
        upstream: "connect_timeout: 200ms",
        ..Setup::to(nobody())
    }
    .start();
    proxy.ask(GET).expect_problem(502, "dns_error");
    let good = Upstream::recording();
    let proxy = Setup {
        endpoints: vec!["nowhere.invalid:80".to_owned(), good.address.to_string()],
        ..Setup::to(good.address)
    }
    .start();
    for _ in 0..20 {
        assert_eq!(proxy.ask(POST).status(), 200);
    }
}

/// An upstream that closes each connection when it is used a second time, after it has read the
/// request.
fn closing_when_reused() -> Recorder {
    Upstream::new().recorder(|number, _| (number == 0).then(|| OK.to_owned()))
}

#[test]
fn not_more_than_a_tenth_is_sent_again() {
    let upstream = closing_when_reused();
    let proxy = proxy(&[upstream.address], "");
    let mut client = proxy.client();
    let answers: Vec<_> = (0..400).map(|_| client.exchange(GET).status()).collect();
    let failed = answers.iter().filter(|status| **status == 502).count();
    let sent = upstream.take().len();
    let again = proxy.metric("tidegate_upstream_retries_total{upstream=\"chat\"}");
    assert_eq!(sent as u64, 400 + again);
    assert!(
        (30..=70).contains(&again),
        "3/s for 10 s and a tenth: {again}"
    );
    let denied = proxy.metric("tidegate_upstream_retries_denied_total{upstream=\"chat\"}");
    assert_eq!(failed as u64, denied);
    assert!(failed > 0);
}

#[test]
fn a_post_is_never_sent_again() {
    let upstream = closing_when_reused();
    let proxy = proxy(&[upstream.address], "");
    let mut client = proxy.client();
    let mut failed = 0;
    for _ in 0..40 {
        if client.exchange(POST).status() == 502 {
            // After that the client's connection is closed: nobody knows who has read what.
            client = proxy.client();
            failed += 1;
        }
    }
    assert_eq!(
        failed, 20,
        "each second one meets a connection that is closed"
    );
    assert_eq!(upstream.take().len(), 40);
    assert_eq!(
        proxy.metric("tidegate_upstream_retries_total{upstream=\"chat\"}"),
        0
    );
}

#[test]
fn a_connection_is_not_used_beyond_its_age() {
    let upstream = Upstream::new();
    let proxy = proxy(&[upstream.address], "max_age: 1s");
    let serving = thread::spawn(move || {
        let serve = |_| {
            let mut wire = upstream.accept();
            let began = Instant::now();
            while wire.request_if_any().is_some() {
                wire.send(OK);
            }
            began.elapsed()
        };
        [0, 1].map(serve)
    });
    let mut client = proxy.client();
    let until = Instant::now() + Duration::from_millis(1600);
    let mut answered = 0;
    while Instant::now() < until {
        assert_eq!(client.exchange(GET).status(), 200);
        answered += 1;
        thread::sleep(Duration::from_millis(5));
    }
    assert!(answered > 50, "{answered}");
    drop(client);
    drop(proxy);
    let [first, _second] = serving.join().expect("two connections");
    // A tenth less or more, and a tenth of a second late.
    let limit = Duration::from_millis(880)..Duration::from_millis(1500);
    assert!(limit.contains(&first), "{first:?}");
}
