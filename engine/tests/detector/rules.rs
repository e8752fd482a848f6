//! What becomes of rules in force: they are judged again, become one, give way, and wake.

use std::sync::Arc;
use std::time::Duration;

use tidegate_engine::detect::{DetectionSpec, Happening, Nature, Stress};
use tidegate_engine::rules::Action;

use crate::world::{Client, Served, World, background, device, honest};
use crate::{BEGIN, devices, load};

/// The versions are those of a client that takes a new one whenever it is refused.
fn loop_that_changes_its_version(times: u32) -> World {
    let mut world = World::new(31);
    for at in 0..times {
        let loopers = devices(400, &format!("9.{at}.0"), "acme", 10.0, &mut world);
        let from = BEGIN + 5.0 * f64::from(at);
        world.loads.push(load(loopers, from, from + 5.0));
    }
    world.run(BEGIN + 5.0 * f64::from(times));
    world
}

#[test]
fn values_that_change_while_they_are_blocked_become_one_rule() {
    let world = loop_that_changes_its_version(5);
    assert_eq!(
        world.ruled(),
        [
            "app=acme, sdk=chat-android, sdk_version=9.0.0",
            "app=acme, sdk=chat-android, sdk_version=9.1.0",
            "app=acme, sdk=chat-android",
        ]
    );
    assert!(world.when(Happening::Merged).is_some());
    assert_eq!(world.rules().len(), 1);
    assert!(world.others.refused == 0, "{:?}", world.others);
}

/// The control: two values are no series.
#[test]
fn two_values_keep_a_rule_each() {
    let world = loop_that_changes_its_version(2);
    assert!(world.when(Happening::Merged).is_none());
    assert_eq!(world.rules().len(), 2);
}

#[test]
fn who_was_unclear_and_becomes_a_loop_is_blocked() {
    let mut world = World::new(32);
    let known = devices(15, "4.1.0", "acme", 1.0, &mut world);
    world.background.extend(known);
    let crowd = devices(3000, "4.1.0", "acme", 1.0, &mut world);
    let mut loopers = crowd.clone();
    for client in &mut loopers {
        client.rate = 6.0;
    }
    world.loads.push(load(crowd, BEGIN, BEGIN + 12.0));
    world.loads.push(load(loopers, BEGIN + 12.0, BEGIN + 30.0));
    world.run(BEGIN);
    world.stress = Stress::on(vec![Arc::from("chat")]);
    world.run(BEGIN + 12.0);
    assert!(world.when(Happening::Blocked).is_none(), "a crowd is not");
    world.run(BEGIN + 24.0);
    assert_eq!(world.detector.incidents()[0].nature, Some(Nature::Loop));
    assert!(world.when(Happening::Blocked).is_some());
}

#[test]
fn a_blocked_loop_that_turns_out_to_be_a_crowd_is_let_go() {
    let mut world = World::new(33);
    let known = devices(15, "4.1.0", "acme", 1.0, &mut world);
    world.background.extend(known);
    let loopers = devices(300, "4.1.0", "acme", 10.0, &mut world);
    let crowd = devices(3000, "4.1.0", "acme", 1.0, &mut world);
    world.loads.push(load(loopers, BEGIN, BEGIN + 6.0));
    world.loads.push(load(crowd, BEGIN + 6.0, BEGIN + 60.0));
    world.run(BEGIN + 6.0);
    assert!(world.when(Happening::Blocked).is_some());
    world.run(BEGIN + 40.0);
    assert!(world.when(Happening::Eased).is_some(), "{:?}", world.events);
    assert!(world.rules().is_empty(), "{:?}", world.rules());
}

fn pulses(gap: f64) -> (f64, World) {
    let mut world = World::new(34);
    let loopers = devices(500, "3.2.1", "acme", 10.0, &mut world);
    let second = BEGIN + 5.0 + gap;
    for from in [BEGIN, second] {
        world.loads.push(load(loopers.clone(), from, from + 5.0));
    }
    world.run(second - 0.01);
    world.bad = Served::default();
    world.run(second + 2.0);
    (world.bad.refused_share(), world)
}

#[test]
fn a_second_pulse_after_25_s_finds_its_rule_still_there() {
    let (refused, world) = pulses(25.0);
    assert!(refused > 0.85, "{refused}: {:?}", world.events);
    let mut throttled = world
        .events
        .iter()
        .filter(|event| event.what == Happening::Throttled);
    assert!(throttled.next().is_some_and(|first| first.why.is_none()));
    assert!(throttled.next().is_some_and(|back| back.why.is_some()));
}

/// The control: after its time a rule is forgotten, and the source found anew.
#[test]
fn a_second_pulse_after_the_time_of_its_rule_is_found_anew() {
    let (_, world) = pulses(80.0);
    let mut throttled = world
        .events
        .iter()
        .filter(|event| event.what == Happening::Throttled);
    assert!(throttled.all(|event| event.why.is_none()));
    assert_eq!(world.ruled().len(), 2);
}

#[test]
fn a_service_of_five_requests_a_second_is_protected() {
    let mut world = World::new(35);
    world.background = background(20, 0.25, &mut world.random);
    let loopers = devices(4, "3.2.1", "acme", 5.0, &mut world);
    world.loads.push(load(loopers, BEGIN, BEGIN + 40.0));
    world.run(BEGIN + 40.0);
    assert_eq!(
        world.ruled(),
        ["app=acme, sdk=chat-android, sdk_version=3.2.1"]
    );
    assert!(world.bad.refused_share() > 0.6, "{:?}", world.bad);
    assert!(world.others.refused == 0, "{:?}", world.others);
}

fn loop_of_everybody(suffers: bool) -> World {
    let mut world = World::new(36);
    let clients = background(1000, 10.0, &mut world.random);
    world.loads.push(load(clients, BEGIN, BEGIN + 20.0));
    world.run(BEGIN);
    if suffers {
        world.stress = Stress::on(["chat", "kb", "login"].map(Arc::from).to_vec());
    }
    world.run(BEGIN + 10.0);
    world
}

#[test]
fn what_cannot_be_localised_is_shared_out_while_the_upstream_suffers() {
    let mut world = loop_of_everybody(true);
    assert!(world.when(Happening::NotLocalisable).is_some());
    let mut events = world.events.iter();
    let shared = events.find(|event| event.what == Happening::Shared);
    let effect = shared.and_then(|shared| shared.effect).unwrap();
    // Who shares is not blamed: all 12,000 a second are others, whatever service they go to.
    assert!(effect.others.requests_per_second > 10_000.0, "{effect:?}");
    assert!(effect.others.refused_share.is_some());
    let throttles = |rule: &tidegate_engine::rules::Rule| {
        matches!(rule.action, Action::Throttle { .. }) && rule.sparing.is_some()
    };
    assert!(!world.rules().is_empty() && world.rules().iter().all(throttles));
    assert!(world.others.refused_share() < 0.1, "{:?}", world.others);
    assert!(
        world.bad.refused_share() > 0.2,
        "{:?} {:?}",
        world.bad,
        world.events
    );
    world.stress = Stress::none();
    world.run(BEGIN + 45.0);
    assert!(world.rules().is_empty(), "{:?}", world.events);
}

/// The control: nobody suffers.
#[test]
fn what_cannot_be_localised_is_left_alone_while_nobody_suffers() {
    let world = loop_of_everybody(false);
    assert!(world.when(Happening::Shared).is_none());
    assert!(world.rules().is_empty());
}

#[test]
fn bots_without_the_headers_of_the_sdk_are_named_by_what_they_lack() {
    let mut world = World::new(37);
    let bots: Vec<Client> = (0..400)
        .map(|at| {
            let mut bot = device(("", ""), "", "", 10.0, &mut world.random);
            bot.agent = format!("agent {at}");
            bot
        })
        .collect();
    world.loads.push(load(bots, BEGIN, BEGIN + 15.0));
    world.run(BEGIN + 15.0);
    assert_eq!(world.ruled().len(), 1, "{:?}", world.ruled());
    assert!(world.ruled()[0].starts_with("no "), "{:?}", world.ruled());
    assert!(world.when(Happening::Blocked).unwrap() - BEGIN <= 3.0);
    assert!(world.others.refused == 0, "{:?}", world.others);
}

#[test]
fn a_source_too_large_to_block_is_throttled_and_its_known_users_are_served() {
    let mut world = World::new(38);
    world.background = (0..2000).map(|_| honest(1.0, &mut world.random)).collect();
    let known = devices(800, "4.1.0", "acme", 1.0, &mut world);
    world.background.extend(known);
    let loopers = devices(1000, "4.1.0", "acme", 10.0, &mut world);
    world.loads.push(load(loopers, BEGIN, BEGIN + 20.0));
    world.source = Some(("chat-android", "4.1.0".to_owned(), "acme".to_owned()));
    world.run(BEGIN);
    world.honest = Served::default();
    world.run(BEGIN + 20.0);
    assert_eq!(
        world.ruled(),
        ["app=acme, sdk=chat-android, sdk_version=4.1.0"]
    );
    assert!(world.when(Happening::Blocked).is_none());
    assert!(world.bad.refused_share() > 0.93, "{:?}", world.bad);
    assert!(world.honest.refused_share() < 0.1, "{:?}", world.honest);
    assert!(world.others.refused == 0, "{:?}", world.others);
}

/// A loop of one version of `acme`, then of many others. `acme` has a tenth of normal traffic.
fn loop_found_by_a_part(collateral_max: f64, budget: f64) -> World {
    let spec = DetectionSpec {
        warmup: Duration::from_secs(20),
        collateral_max,
        budget,
        ..DetectionSpec::default()
    };
    let mut world = World::with(44, spec);
    let honest = devices(200, "4.1.0", "acme", 1.0, &mut world);
    world.background.extend(honest);
    let first = devices(300, "3.2.1", "acme", 10.0, &mut world);
    world.loads.push(load(first, BEGIN, BEGIN + 20.0));
    let mut rest = devices(300, "3.2.2", "acme", 10.0, &mut world);
    for (at, client) in rest.iter_mut().enumerate() {
        client.version = format!("9.{at}.0");
    }
    world.loads.push(load(rest, BEGIN + 6.0, BEGIN + 20.0));
    world.run(BEGIN + 5.0);
    assert_eq!(
        world.ruled(),
        ["app=acme, sdk=chat-android, sdk_version=3.2.1"]
    );
    world.run(BEGIN + 20.0);
    world
}

#[test]
fn a_wider_source_takes_the_place_of_the_rule_for_a_part_of_it() {
    let world = loop_found_by_a_part(0.5, 0.5);
    assert!(world.when(Happening::Merged).is_some());
    assert_eq!(world.rules().len(), 1);
    assert_eq!(world.ruled().last().unwrap(), "app=acme, sdk=chat-android");
}

/// The rule for the part was ended before it was asked whether there is room for the wider one: beyond the
/// budget neither was left.
#[test]
fn a_wider_source_that_is_beyond_the_budget_leaves_the_rule_for_a_part_of_it_alone() {
    let world = loop_found_by_a_part(0.5, 0.05);
    assert!(world.when(Happening::Merged).is_none());
    let rules = world.rules();
    assert!(rules.iter().any(|rule| rule.name.as_str() == "detected-1"));
}

/// Plays a loop in one app that has a rule for two minutes, in which another app gets new users, and then
/// a flood in the name of that other app. Returns the share of its users' requests that are refused.
fn refused_of_new_users(come_after: f64) -> f64 {
    let mut world = World::new(45);
    world.spares = true;
    let others = devices(150, "4.1.0", "globex", 1.0, &mut world);
    world.background.extend(others);
    let loopers = devices(500, "3.2.1", "acme", 10.0, &mut world);
    world.loads.push(load(loopers, BEGIN, BEGIN + 140.0));
    world.run(BEGIN + come_after);
    // The others make room for them, so that no more is sent than is expected.
    let old = world.background.len() - 150;
    world.background.truncate(old);
    let new = devices(150, "4.1.0", "globex", 1.0, &mut world);
    world.background.extend(new);
    let flood = devices(1500, "4.1.0", "globex", 10.0, &mut world);
    world.loads.push(load(flood, BEGIN + 120.0, BEGIN + 140.0));
    world.run(BEGIN + 120.0);
    world.source = Some(("chat-android", "4.1.0".to_owned(), "globex".to_owned()));
    world.honest = Served::default();
    world.run(BEGIN + 140.0);
    world.honest.refused_share()
}

/// While any rule was in force nobody became known: new users of all other apps were strangers when
/// those were flooded. The control: who comes with the flood is none.
#[test]
fn new_users_get_known_while_a_rule_is_in_force_elsewhere() {
    let known = refused_of_new_users(20.0);
    assert!(known < 0.1, "{known}");
    let strangers = refused_of_new_users(119.5);
    assert!(strangers > 0.5, "{strangers}");
}

/// A small service that sends twice what was learnt of it flickers; chance is no surge upon a surge.
#[test]
fn what_flickers_in_a_small_surge_is_none_of_its_own() {
    for seed in 70..75 {
        let mut world = World::new(seed);
        world.background = background(20, 1.0, &mut world.random);
        world.run(BEGIN);
        let more = background(25, 1.0, &mut world.random);
        world.background.extend(more);
        world.run(BEGIN + 45.0);
        assert!(world.when(Happening::Surge).is_some());
        let mut ended = world
            .events
            .iter()
            .filter(|event| event.what == Happening::Ended);
        assert!(ended.all(|event| event.why.is_none()), "{:?}", world.events);
    }
}
