//! What is decided about endpoints, without any connection.

use super::super::seats::Seats;
use super::*;
use proptest::prelude::*;

fn spec(endpoints: &str, more: &str) -> UpstreamSpec {
    let text = format!(
        "services: [{{ name: a, match: [{{ path: / }}], upstream: a }}]
upstreams: [{{ name: a, endpoints: {endpoints} {more} }}]"
    );
    let settings = crate::settings::Settings::parse("tidegate.yaml", &text);
    let settings = settings.unwrap_or_else(|problems| panic!("{problems}"));
    settings.upstreams[0].clone()
}

fn open(spec: UpstreamSpec, before: Option<&Endpoints>) -> Arc<Endpoints> {
    Endpoints::open(spec, before, &Metrics::new(), Clock::start()).unwrap()
}

/// So many endpoints with settings.
fn many(count: usize, more: &str) -> Arc<Endpoints> {
    let list: Vec<String> = (1..=count).map(|n| format!("10.0.0.{n}:80")).collect();
    open(spec(&format!("{list:?}"), more), None)
}

fn out(endpoints: &Endpoints) -> usize {
    let list = endpoints.list();
    list.iter()
        .filter(|one| one.view().standing.is_out())
        .count()
}

/// Whom these seats choose, by its place; nothing stays under way.
fn chosen(seats: &mut Seats, endpoints: &Endpoints, random: u64) -> Option<usize> {
    let stay = seats.choose(endpoints, &[], || random)?;
    let list = endpoints.list();
    list.iter()
        .position(|one| Arc::ptr_eq(one, &stay.seat.endpoint))
}

/// Endpoints that stay after a reload tell the seats of then, too.
#[test]
fn seats_learn_of_an_ejection_after_new_settings() {
    let before = many(3, "");
    let after = open(
        spec("[\"10.0.0.1:80\", \"10.0.0.2:80\", \"10.0.0.3:80\"]", ""),
        Some(&before),
    );
    let mut seats = Seats::default();
    assert!(chosen(&mut seats, &after, 0).is_some());
    let one = Arc::clone(&after.list()[0]);
    (0..5).for_each(|_| after.failed(&one));
    let mut random = fastrand::Rng::with_seed(1);
    for _ in 0..100 {
        assert_ne!(chosen(&mut seats, &after, random.u64(..)), Some(0));
    }
    // Whoever was tried is left out for this request, and not for the next.
    let second = Arc::clone(&after.list()[1]);
    let stay = seats.choose(&after, &[second], || 0).unwrap();
    assert!(Arc::ptr_eq(&stay.seat.endpoint, &after.list()[2]));
    drop(stay);
    let picked = |seats: &mut Seats, random| chosen(seats, &after, random);
    assert!((0..64).any(|bit| picked(&mut seats, u64::MAX >> bit) == Some(1)));
}

proptest! {
    /// What is known beforehand is never other than what is found by looking at everybody.
    #[test]
    fn seats_that_were_there_choose_as_those_made_just_now(
        steps in proptest::collection::vec((0_usize..4, 0_usize..5, any::<u64>()), 1..60),
    ) {
        let endpoints = many(5, ", health: { path: / }, ejection: { max_ejected: 100% }");
        let list = endpoints.list();
        let mut seats = Seats::default();
        for (step, at, random) in steps {
            let (one, now) = (&list[at], endpoints.clock.now());
            match step {
                0 => (0..5).for_each(|_| endpoints.failed(one)),
                1 => (0..2).for_each(|_| endpoints.checked(one, Some("gone"), now)),
                2 => (0..2).for_each(|_| endpoints.checked(one, None, now)),
                _ => endpoints.answered(one, true),
            }
            let expected = chosen(&mut Seats::default(), &endpoints, random);
            for _ in 0..2 {
                prop_assert_eq!(chosen(&mut seats, &endpoints, random), expected);
            }
        }
    }
}

#[test]
fn five_failures_in_a_row_take_an_endpoint_out_and_an_answer_between_forgives() {
    let endpoints = many(2, "");
    let list = endpoints.list();
    for failure in 1..20 {
        endpoints.failed(&list[0]);
        assert_eq!(out(&endpoints), 0, "{failure}");
        if failure % 4 == 0 {
            endpoints.answered(&list[0], true);
        }
    }
    endpoints.failed(&list[0]);
    endpoints.failed(&list[0]);
    assert_eq!(out(&endpoints), 1);
    assert_eq!(endpoints.series.ejections_for_tests(), [1, 0, 0]);
}

#[test]
fn a_probe_that_is_answered_badly_puts_an_endpoint_out_again() {
    let endpoints = many(2, "");
    let list = endpoints.list();
    let now = endpoints.clock.now();
    list[0].change(now - Duration::from_secs(5), |health| {
        health.eject(now - Duration::from_secs(5));
    });
    assert!(list[0].change(now, |health| health.claim_probe(now)));
    endpoints.answered(&list[0], false);
    assert_eq!(out(&endpoints), 1);
    let later = now + Duration::from_mins(2);
    assert!(list[0].change(later, |health| health.claim_probe(later)));
    endpoints.answered(&list[0], true);
    assert_eq!(out(&endpoints), 0);
}

#[test]
fn the_share_that_may_be_out_is_kept() {
    for (count, share, most) in [
        (1, "100%", 0),
        (2, "1%", 1),
        (2, "50%", 1),
        (3, "50%", 1),
        (3, "100%", 2),
        (10, "50%", 5),
        (10, "25%", 2),
    ] {
        let endpoints = many(count, &format!(", ejection: {{ max_ejected: {share} }}"));
        for one in endpoints.list().iter() {
            for _ in 0..10 {
                endpoints.failed(one);
            }
        }
        assert_eq!(out(&endpoints), most, "{count} endpoints, {share}");
    }
    let endpoints = many(4, ", ejection: off");
    for one in endpoints.list().iter().cycle().take(100) {
        endpoints.failed(one);
    }
    assert_eq!(out(&endpoints), 0);
}

#[test]
fn nobody_connects_any_more_only_when_every_endpoint_failed_three_times() {
    let endpoints = many(3, "");
    let list = endpoints.list();
    for one in list.iter().take(2).cycle().take(100) {
        endpoints.connect_failed(one, true, 0.5);
    }
    assert_eq!(endpoints.permit(), Permit::Given, "the third is well");
    endpoints.connect_failed(&list[2], true, 0.5);
    endpoints.connect_failed(&list[2], true, 0.5);
    assert_eq!(endpoints.permit(), Permit::Given);
    endpoints.connect_failed(&list[2], true, 0.5);
    assert_eq!(endpoints.permit(), Permit::Refused);
    endpoints.connected(&list[1]);
    assert_eq!(endpoints.permit(), Permit::Given);
}

#[test]
fn connections_that_take_too_long_mean_nothing_while_answers_come() {
    let endpoints = many(1, "");
    let list = endpoints.list();
    endpoints.count(0, true);
    for _ in 0..9 {
        endpoints.connect_failed(&list[0], false, 0.5);
    }
    assert_eq!(endpoints.permit(), Permit::Given);
    endpoints.connect_failed(&list[0], true, 0.5);
    assert_eq!(endpoints.permit(), Permit::Refused, "nobody is there");
    let silent = many(1, "");
    for _ in 0..3 {
        silent.connect_failed(&silent.list()[0], false, 0.5);
    }
    assert_eq!(silent.permit(), Permit::Refused);
}

#[test]
fn an_endpoint_that_fails_its_checks_does_not_count_among_those_that_may_be_reached() {
    let endpoints = many(2, ", health: { path: / }");
    let list = endpoints.list();
    let now = endpoints.clock.now();
    endpoints.checked(&list[1], None, now);
    for _ in 0..2 {
        endpoints.checked(&list[0], Some("sick"), now);
    }
    assert!(list[0].view().fails_checks);
    for _ in 0..3 {
        endpoints.connect_failed(&list[1], true, 0.5);
    }
    assert_eq!(endpoints.permit(), Permit::Refused);
}

#[test]
fn a_check_that_nobody_ever_passed_takes_nobody_out() {
    let endpoints = many(2, ", health: { path: /wrong }");
    let now = endpoints.clock.now();
    let fail = || {
        for one in endpoints.list().iter().cycle().take(10) {
            endpoints.checked(one, Some("the answer was 404 Not Found"), now);
        }
        let list = endpoints.list();
        list.iter().filter(|one| one.view().fails_checks).count()
    };
    assert_eq!(fail(), 0);
    endpoints.checked(&endpoints.list()[0], None, now);
    assert_eq!(fail(), 2, "now it is known that it can be passed");
}

#[test]
fn a_name_is_as_many_endpoints_as_it_has_addresses_and_keeps_the_last_that_were_found() {
    let address = |last: u8| SocketAddr::from(([10, 0, 0, last], 80));
    let endpoints = open(spec("[\"chat:80\", \"10.0.0.9:80\"]", ""), None);
    let (name, now) = ("chat:80".into(), endpoints.clock.now());
    let addresses =
        || -> Vec<SocketAddr> { endpoints.list().iter().map(|one| one.address).collect() };
    assert_eq!(addresses(), [address(9)]);
    endpoints.resolved(&name, vec![address(2), address(1), address(2)], now);
    assert_eq!(addresses(), [1, 2, 9].map(address));
    let first = Arc::clone(&endpoints.list()[0]);
    assert!(first.view().is_lasting(), "nobody was there before");
    endpoints.failed(&first);
    endpoints.resolved(&name, vec![address(3), address(1)], now);
    assert_eq!(addresses(), [1, 3, 9].map(address));
    let list = endpoints.list();
    assert!(Arc::ptr_eq(&list[0], &first), "who stays is known");
    assert!(!list[1].view().is_lasting(), "who is new begins slowly");
    let generation = endpoints.generation();
    endpoints.resolved(&name, Vec::new(), now);
    endpoints.resolved(&name, vec![address(1), address(3)], now);
    assert_eq!(
        (addresses(), endpoints.generation()),
        ([1, 3, 9].map(address).to_vec(), generation)
    );
    let crowd = (1..=200).map(address).collect();
    endpoints.resolved(&name, crowd, now);
    assert_eq!(addresses().len(), ADDRESSES_MAX + 1);
}

#[test]
fn what_is_known_of_an_endpoint_survives_new_settings() {
    let before = open(
        spec("[\"10.0.0.1:80\", \"chat:80\", \"10.0.0.2:80\"]", ""),
        None,
    );
    let now = before.clock.now();
    before.resolved(
        &"chat:80".into(),
        vec![SocketAddr::from(([10, 0, 0, 9], 80))],
        now,
    );
    for _ in 0..5 {
        before.failed(&before.list()[0]);
    }
    assert_eq!(out(&before), 1);
    let text = "[\"chat:80\", { address: \"10.0.0.1:80\", weight: 7 }]";
    let after = open(spec(text, ", response_timeout: 3s"), Some(&before));
    let list = after.list();
    assert_eq!(list.len(), 2, "names need not be looked up again");
    assert!(Arc::ptr_eq(&list[0], &before.list()[1]));
    assert_eq!(
        (list[1].weight, out(&after)),
        (7, 1),
        "and who is out stays out"
    );
}

#[tokio::test]
async fn an_upstream_that_nobody_looks_after_any_more_raises_no_alarm() {
    let metrics = Metrics::new();
    let spec = spec("[\"10.0.0.1:80\"]", "");
    let endpoints = Endpoints::open(spec, None, &metrics, Clock::start()).unwrap();
    for _ in 0..3 {
        endpoints.connect_failed(&endpoints.list()[0], true, 0.5);
    }
    let shown = || {
        let text = String::from_utf8(metrics.text()).unwrap();
        let alarms = [
            "_breaker_open{upstream=\"a\"} 1",
            "state=\"in\",upstream=\"a\"} 1",
        ];
        alarms.map(|line| text.contains(line))
    };
    let board = Arc::default();
    let care = crate::upstream::care::run(Arc::clone(&endpoints), Arc::clone(&board));
    let cared_for = tokio::time::timeout(Duration::ZERO, care).await;
    assert!(cared_for.is_err(), "it never ends by itself");
    assert_eq!(shown(), [false, false]);
    assert!(board.read("a").is_empty());
}

#[test]
fn without_a_usable_authority_nobody_is_believed() {
    let folder = std::env::temp_dir().join(format!("tidegate-ca-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("ca.pem");
    let ca = format!(", tls: {{ ca: {} }}", path.display());
    let open = || {
        let spec = spec("[\"10.0.0.1:443\"]", &ca);
        Endpoints::open(spec, None, &Metrics::new(), Clock::start()).unwrap_err()
    };
    assert!(matches!(open(), TlsError::Unreadable { .. }));
    std::fs::write(&path, "nothing of use").unwrap();
    assert!(matches!(open(), TlsError::Nobody { .. }));
    let text = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    std::fs::write(&path, text).unwrap();
    assert!(matches!(open(), TlsError::Unusable { .. }));
    std::fs::remove_dir_all(&folder).unwrap();
}

proptest! {
    /// Whatever happens, never more are out than may be, and one is always in.
    #[test]
    fn never_more_are_out_than_may_be(
        count in 1_usize..8,
        share in 1_u32..=100,
        steps in proptest::collection::vec((0_usize..8, 0_u8..5), 1..300),
    ) {
        let more = format!(", ejection: {{ consecutive_failures: 2, max_ejected: {share}% }}");
        let endpoints = many(count, &more);
        let list = endpoints.list();
        let mut now = endpoints.clock.now();
        for (place, what) in steps {
            let one = &list[place % count];
            match what {
                0 | 1 => endpoints.failed(one),
                2 => endpoints.connect_failed(one, true, 0.5),
                3 => endpoints.answered(one, true),
                _ => {
                    now = now + Duration::from_secs(7);
                    one.change(now, |health| health.claim_probe(now));
                }
            }
            let may = (count as f64 * f64::from(share) / 100.0) as usize;
            prop_assert!(out(&endpoints) <= may.max(1));
            prop_assert!(out(&endpoints) < count);
        }
    }
}
