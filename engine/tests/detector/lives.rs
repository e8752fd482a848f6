//! How long a rule lives, and how much of normal traffic all rules together may hit.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use tidegate_engine::detect::{DetectionSpec, Happening};
use tidegate_engine::rules::{Action, Rule};

use crate::world::{Client, Load, Served, World, background, device};
use crate::{BEGIN, devices, load};

/// An app with 300 honest users and a rule that may hit as many; its loop goes on with less from
/// `BEGIN + 10` on.
fn loop_that_becomes(loopers_left: usize) -> World {
    let spec = DetectionSpec {
        warmup: Duration::from_secs(20),
        collateral_max: 0.2,
        budget: 0.2,
        ..DetectionSpec::default()
    };
    let mut world = World::with(91, spec);
    let users = devices(300, "4.1.0", "acme", 1.0, &mut world);
    world.background.extend(users);
    let loopers = devices(500, "4.1.0", "acme", 10.0, &mut world);
    let left: Vec<Client> = loopers.iter().take(loopers_left).cloned().collect();
    world.loads.push(load(loopers, BEGIN, BEGIN + 10.0));
    world.loads.push(load(left, BEGIN + 10.0, BEGIN + 300.0));
    world.run(BEGIN + 10.0);
    assert_eq!(
        world.ruled(),
        ["app=acme, sdk=chat-android, sdk_version=4.1.0"]
    );
    assert!(world.when(Happening::Blocked).is_some());
    world
}

/// 550 requests a second are 1.8 times what is expected.
#[test]
fn a_block_stays_while_half_as_much_again_as_expected_comes() {
    let mut world = loop_that_becomes(25);
    world.run(BEGIN + 90.0);
    assert!(world.when(Happening::Probing).is_none());
    assert!(matches!(world.rules()[0].action, Action::Block { .. }));
}

/// 360 are 1.2 times. A second passes before what came before is out of the window.
#[test]
fn a_block_ends_after_fifteen_calm_seconds_and_a_probe_of_a_thousandth() {
    let mut world = loop_that_becomes(6);
    let calm = BEGIN + 10.0;
    let mut open = Vec::new();
    while world.when(Happening::Released).is_none() && world.now < calm + 60.0 {
        world.run(world.now + 0.1);
        for rule in world.rules() {
            assert!(matches!(rule.action, Action::Block { .. }));
            open.push(f64::from(100 - rule.percent) / 100.0);
        }
    }
    let probing = world.when(Happening::Probing).expect("a probe");
    let waited = probing - calm;
    assert!((15.0..=16.5).contains(&waited), "{waited}");
    let probed = world.when(Happening::Released).expect("a release") - probing;
    assert!((4.95..=5.2).contains(&probed), "{probed}");
    // Ten ticks a second; what is open is the share of the source's requests in a tick.
    let let_through = open.iter().sum::<f64>() / (10.0 * probed);
    assert!(let_through > 0.0 && let_through <= 0.001, "{let_through}");
    assert!(world.rules().is_empty());
}

#[test]
fn a_source_that_is_back_in_the_probe_is_blocked_at_once() {
    let mut world = loop_that_becomes(6);
    while world.when(Happening::Probing).is_none() {
        world.run(world.now + 0.1);
    }
    let back = devices(500, "4.1.0", "acme", 10.0, &mut world);
    world.loads.push(load(back, world.now, BEGIN + 300.0));
    let before = world.events.len();
    world.run(world.now + 0.5);
    let since = world.events.get(before..).unwrap_or_default();
    assert!(
        since.iter().any(|event| event.what == Happening::Blocked),
        "{since:?}"
    );
    world.run(world.now + 20.0);
    assert!(world.when(Happening::Released).is_none());
}

#[test]
fn a_rule_lives_twice_as_long_each_time_its_source_is_back_up_to_an_hour() {
    let mut world = World::new(92);
    world.background = background(20, 0.1, &mut world.random);
    let loopers = devices(10, "3.2.1", "acme", 10.0, &mut world);
    world.run(BEGIN);
    let mut ttls = Vec::new();
    while ttls.len() < 8 {
        world.events.clear();
        let from = world.now;
        world.loads = vec![load(loopers.clone(), from, from + 3.0)];
        // Without more of its source a rule lives until then: the longest is when the loop ends.
        let mut ttl = Duration::ZERO;
        while world.when(Happening::Released).is_none() {
            world.run(world.now + 0.1);
            assert!(world.now < from + 3600.0, "{:?}", world.events);
            let until = world.rules().first().and_then(|rule| rule.until);
            let left = until.and_then(|until| until.duration_since(SystemTime::UNIX_EPOCH).ok());
            ttl = ttl.max(left.unwrap_or_default());
        }
        ttls.push(ttl.as_secs());
    }
    assert_eq!(ttls, [60, 120, 240, 480, 960, 1920, 3600, 3600]);
}

/// Six loops of a size, each in an app with 0.8 % of normal traffic, one after the other. Returns the world
/// and the largest share of normal traffic that the rules in force said they hit.
fn many_small_loops(budget: f64) -> (World, f64) {
    let spec = DetectionSpec {
        warmup: Duration::from_secs(20),
        budget,
        ..DetectionSpec::default()
    };
    let mut world = World::with(93, spec);
    let kinds = [
        ("chat-android", "android"),
        ("chat-ios", "ios"),
        ("chat-web", "web"),
    ];
    for at in 0..6 {
        // No two differ in one value alone, or they would become one rule.
        let (version, app) = (format!("8.{at}.0"), format!("small-{at}"));
        let kind = *kinds.get(at % 3).expect("one of three");
        let mut of = |number, rate| -> Vec<Client> {
            (0..number)
                .map(|_| device(kind, &version, &app, rate, &mut world.random))
                .collect()
        };
        let (users, loopers) = (of(16, 1.0), of(150, 10.0));
        world.background.extend(users);
        let from = BEGIN + 4.0 * at as f64;
        world.loads.push(load(loopers, from, BEGIN + 60.0));
    }
    let mut most: f64 = 0.0;
    while world.now < BEGIN + 40.0 {
        world.run(world.now + 0.1);
        let collaterals: BTreeMap<String, f64> = world
            .detector
            .incidents()
            .iter()
            .filter_map(|incident| {
                let name = incident.rule.as_ref()?.to_string();
                Some((name, incident.evidence.collateral))
            })
            .collect();
        let hit = |rule: &Rule| collaterals.get(rule.name.as_str()).copied();
        // A block that comes has a rule beside the throttle; it is the same source's.
        let spent: f64 = world.rules().iter().filter_map(hit).sum();
        most = most.max(spent);
    }
    (world, most)
}

#[test]
fn small_loops_together_get_no_more_than_the_budget_and_who_does_not_fit_is_said() {
    let (world, most) = many_small_loops(0.02);
    assert!(most > 0.01 && most <= 0.02, "{most}");
    assert_eq!(world.rules().len(), 2, "{:?}", world.rules());
    let said: Vec<&str> = world
        .events
        .iter()
        .filter(|event| event.what == Happening::NotLocalisable)
        .flat_map(|event| &event.evidence.rejected_candidates)
        .map(|candidate| &*candidate.why)
        .filter(|why| why.contains("more than the budget"))
        .collect();
    assert!(!said.is_empty(), "{:?}", world.events);
}

/// The control: with room for all, all have one.
#[test]
fn small_loops_within_the_budget_get_a_rule_each() {
    let (world, most) = many_small_loops(0.1);
    assert_eq!(world.rules().len(), 6, "{:?}", world.ruled());
    assert!(most > 0.03, "{most}");
}

/// An operator allows a source while it has a rule: nobody of it is refused any more, what it sends is no
/// evidence, and the rule goes as if it were calm.
#[test]
fn what_an_operator_allows_loses_the_rule_that_it_has() {
    let mut world = World::new(94);
    let loopers = devices(500, "3.2.1", "acme", 10.0, &mut world);
    let allowed = Load {
        exempt: true,
        ..load(loopers.clone(), BEGIN + 8.0, BEGIN + 100.0)
    };
    world.loads.push(load(loopers, BEGIN, BEGIN + 8.0));
    world.loads.push(allowed);
    world.run(BEGIN + 8.0);
    assert!(world.when(Happening::Blocked).is_some());
    world.bad = Served::default();
    world.run(BEGIN + 8.0 + 22.0);
    assert_eq!(world.bad.refused, 0, "{:?}", world.bad);
    assert!(world.when(Happening::Released).is_some());
    world.events.clear();
    world.run(BEGIN + 90.0);
    assert!(world.rules().is_empty() && world.events.is_empty());
}
