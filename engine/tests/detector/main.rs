//! What the detector promises, in virtual time.

mod addresses;
mod crowds;
mod lives;
mod modes;
mod operators;
mod promises;
mod ramps;
mod restart;
mod rules;
mod slow;
mod world;

use std::time::Duration;

use tidegate_engine::detect::{DetectionSpec, Happening};
use world::{Client, Load, World, background, device};

/// When surges begin in these tests.
pub(crate) const BEGIN: f64 = 40.0;

const ANDROID: (&str, &str) = ("chat-android", "android");

pub(crate) fn devices(
    number: usize,
    version: &str,
    app: &str,
    rate: f64,
    world: &mut World,
) -> Vec<Client> {
    (0..number)
        .map(|_| device(ANDROID, version, app, rate, &mut world.random))
        .collect()
}

pub(crate) fn load(clients: Vec<Client>, from: f64, until: f64) -> Load {
    Load {
        from,
        until,
        clients,
        bad: true,
        exempt: false,
        forges: false,
        service: None,
    }
}

#[test]
fn the_loop_of_a_source_never_seen_is_named_throttled_blocked_and_released() {
    let mut world = World::new(1);
    world
        .background
        .extend(background(0, 1.0, &mut world.random));
    let loopers = devices(2000, "3.2.1", "acme", 10.0, &mut world);
    let known = devices(60, "4.1.0", "acme", 1.0, &mut world);
    world.background.extend(known);
    world.loads.push(load(loopers, BEGIN, BEGIN + 30.0));
    world.run(BEGIN + 30.0);
    assert_eq!(
        world.ruled(),
        ["app=acme, sdk=chat-android, sdk_version=3.2.1"]
    );
    let throttled = world.when(Happening::Throttled).unwrap() - BEGIN;
    let blocked = world.when(Happening::Blocked).unwrap() - BEGIN;
    assert!(throttled <= 1.0, "throttled after {throttled} s");
    assert!(blocked <= 3.0, "blocked after {blocked} s");
    assert!(world.others.refused == 0, "{:?}", world.others);
    assert!(world.bad.refused_share() > 0.95, "{:?}", world.bad);
    // The name is a label of metrics: it holds nothing that a client chose.
    assert_eq!(world.rules()[0].name.as_str(), "detected-1");
    world.run(BEGIN + 80.0);
    let released = world.when(Happening::Released).unwrap() - BEGIN - 30.0;
    assert!(
        (15.0..=25.0).contains(&released),
        "released after {released} s"
    );
    assert!(world.rules().is_empty());
    assert_eq!(world.ruled().len(), 1);
}

fn loop_of_a_source_with_honest_users(spares: bool) -> World {
    let mut world = World::new(2);
    world.spares = spares;
    let honest = devices(150, "4.1.0", "acme", 1.0, &mut world);
    world.background.extend(honest);
    let loopers = devices(1500, "4.1.0", "acme", 10.0, &mut world);
    world.loads.push(load(loopers, BEGIN, BEGIN + 20.0));
    world.source = Some(("chat-android", "4.1.0".to_owned(), "acme".to_owned()));
    world.run(BEGIN);
    world.honest = world::Served::default();
    world.run(BEGIN + 20.0);
    world
}

#[test]
fn honest_users_of_a_looping_source_keep_being_served() {
    let world = loop_of_a_source_with_honest_users(true);
    assert_eq!(
        world.ruled(),
        ["app=acme, sdk=chat-android, sdk_version=4.1.0"]
    );
    assert!(world.honest.refused_share() < 0.1, "{:?}", world.honest);
    assert!(world.others.refused == 0, "{:?}", world.others);
    assert!(world.bad.refused_share() > 0.9, "{:?}", world.bad);
}

/// The negative control: it is the memory of known instances that saves them.
#[test]
fn without_sparing_honest_users_of_a_looping_source_are_refused() {
    let world = loop_of_a_source_with_honest_users(false);
    assert!(world.honest.refused_share() > 0.5, "{:?}", world.honest);
}

#[test]
fn a_loop_of_everybody_is_not_localisable_and_makes_no_rule() {
    let mut world = World::new(17);
    let clients = background(1000, 10.0, &mut world.random);
    world.loads.push(load(clients, BEGIN, BEGIN + 40.0));
    world.run(BEGIN + 45.0);
    assert!(world.ruled().is_empty(), "{:?}", world.ruled());
    assert!(world.when(Happening::NotLocalisable).is_some());
}

#[test]
fn what_an_operator_allows_is_never_judged() {
    let mut world = World::new(18);
    let loopers = devices(500, "3.2.1", "acme", 10.0, &mut world);
    let allowed = Load {
        exempt: true,
        ..load(loopers, BEGIN, BEGIN + 15.0)
    };
    world.loads.push(allowed);
    world.run(BEGIN + 15.0);
    assert!(world.events.is_empty(), "{:?}", world.events);
}

#[test]
fn a_loop_that_cycles_its_agents_and_versions_is_found_by_what_it_shares() {
    let mut world = World::new(19);
    let mut loopers = devices(1000, "3.1.0", "app-30", 10.0, &mut world);
    for (at, client) in loopers.iter_mut().enumerate() {
        client.agent = format!("agent {at}");
        client.version = format!("{at}.0.0");
    }
    world.loads.push(load(loopers, BEGIN, BEGIN + 15.0));
    world.run(BEGIN + 15.0);
    assert_eq!(world.ruled(), ["app=app-30, sdk=chat-android"]);
}

#[test]
fn the_loop_in_a_small_service_is_found() {
    let mut world = World::new(11);
    world.services = [0.69, 0.3, 0.01];
    let loopers = devices(30, "3.2.1", "acme", 10.0, &mut world);
    let mut load = load(loopers, BEGIN, BEGIN + 15.0);
    load.service = Some("login");
    world.loads.push(load);
    world.run(BEGIN + 15.0);
    assert_eq!(
        world.ruled(),
        ["app=acme, sdk=chat-android, sdk_version=3.2.1"]
    );
    assert!(world.when(Happening::Throttled).unwrap() - BEGIN <= 3.0);
    assert!(world.others.refused == 0, "{:?}", world.others);
}

#[test]
fn a_loop_on_a_small_deployment_is_found() {
    let mut world = World::new(12);
    world.background = background(40, 0.5, &mut world.random);
    let loopers = devices(30, "3.2.1", "acme", 10.0, &mut world);
    world.loads.push(load(loopers, BEGIN, BEGIN + 15.0));
    world.run(BEGIN + 15.0);
    assert_eq!(
        world.ruled(),
        ["app=acme, sdk=chat-android, sdk_version=3.2.1"]
    );
    assert!(world.when(Happening::Throttled).unwrap() - BEGIN <= 3.0);
    assert!(world.when(Happening::Blocked).unwrap() - BEGIN <= 10.0);
}

#[test]
fn two_loops_at_once_are_two_incidents() {
    let mut world = World::new(13);
    let first = devices(500, "3.2.1", "acme", 10.0, &mut world);
    let second: Vec<Client> = (0..400)
        .map(|_| {
            device(
                ("chat-ios", "ios"),
                "7.7.7",
                "globex",
                12.0,
                &mut world.random,
            )
        })
        .collect();
    world.loads.push(load(first, BEGIN, BEGIN + 15.0));
    world.loads.push(load(second, BEGIN, BEGIN + 15.0));
    world.run(BEGIN + 15.0);
    let mut ruled = world.ruled();
    ruled.sort();
    assert_eq!(
        ruled,
        [
            "app=acme, sdk=chat-android, sdk_version=3.2.1",
            "app=globex, sdk=chat-ios, sdk_version=7.7.7"
        ]
    );
    assert!(world.others.refused == 0, "{:?}", world.others);
}

#[test]
fn a_source_that_comes_back_stays_blocked_for_longer() {
    let mut world = World::new(14);
    let loopers = devices(500, "3.2.1", "acme", 10.0, &mut world);
    world.loads.push(load(loopers.clone(), BEGIN, BEGIN + 5.0));
    world.loads.push(load(loopers, BEGIN + 40.0, BEGIN + 45.0));
    world.run(BEGIN + 110.0);
    let released: Vec<f64> = world
        .events
        .iter()
        .filter(|event| event.what == Happening::Released)
        .map(|event| event.at.as_secs_f64() - BEGIN)
        .collect();
    assert_eq!(released.len(), 2, "{:?}", world.events);
    assert!(released[0] < 30.0 && released[1] > 75.0, "{released:?}");
}

#[test]
fn the_busiest_sources_are_shown_by_any_attributes() {
    let mut world = World::new(16);
    world.run(5.0);
    let by = [world.id("sdk"), world.id("platform")];
    let top = world.detector.top_sources(&by, 2);
    assert_eq!(top.len(), 2);
    assert_eq!(top[0].0.to_string(), "platform=android, sdk=chat-android");
    assert!((top[0].1 / 900.0 - 1.0).abs() < 0.2, "{}", top[0].1);
}

#[test]
fn an_incident_tells_its_evidence_and_what_was_refused() {
    let mut world = World::new(23);
    let loopers = devices(1000, "3.2.1", "app-2", 10.0, &mut world);
    world.loads.push(load(loopers, BEGIN, BEGIN + 5.0));
    world.run(BEGIN + 5.0);
    let incident = &world.detector.incidents()[0];
    let evidence = &incident.evidence;
    assert!(
        evidence.coverage > 0.9 && evidence.collateral < 0.001,
        "{evidence:?}"
    );
    assert!(
        evidence.observed_rate > 5000.0 && evidence.expected_rate < 1.0,
        "{evidence:?}"
    );
    assert!(evidence.requests_per_instance > 2.0, "{evidence:?}");
    let refused: Vec<String> = evidence
        .rejected_candidates
        .iter()
        .map(|candidate| candidate.when.to_string())
        .collect();
    assert!(
        refused.contains(&"app=app-2, sdk=chat-android".to_owned()),
        "{refused:?}"
    );
    assert!(
        refused.contains(&"sdk=chat-android".to_owned()),
        "{refused:?}"
    );
}

#[test]
fn the_first_event_of_a_surge_tells_what_came_and_what_was_expected() {
    let mut world = World::new(24);
    let loopers = devices(1000, "3.2.1", "app-2", 10.0, &mut world);
    world.loads.push(load(loopers, BEGIN, BEGIN + 2.0));
    world.run(BEGIN + 2.0);
    let surge = &world.events[0];
    assert_eq!(surge.what, Happening::Surge);
    let (observed, expected) = (surge.evidence.observed_rate, surge.evidence.expected_rate);
    assert!((observed / 12_000.0 - 1.0).abs() < 0.1, "{observed}");
    assert!((expected / 2000.0 - 1.0).abs() < 0.1, "{expected}");
}

/// A tick longer than the second that rates are taken over was no part of that second: nothing was
/// seen to come, no surge began, and a blocked source that went on looked calm.
#[test]
fn a_detector_that_is_held_up_finds_the_loop_and_keeps_its_rule() {
    let mut world = World::new(25);
    let loopers = devices(500, "3.2.1", "acme", 10.0, &mut world);
    world.loads.push(load(loopers, BEGIN, BEGIN + 60.0));
    world.run(BEGIN);
    world.tick = Duration::from_millis(1500);
    world.run(BEGIN + 50.0);
    assert_eq!(
        world.ruled(),
        ["app=acme, sdk=chat-android, sdk_version=3.2.1"]
    );
    assert!(world.when(Happening::Blocked).is_some());
    assert!(
        world.when(Happening::Released).is_none(),
        "{:?}",
        world.events
    );
}

/// As in a demonstration: 400 honest requests a second, and 900 devices that loop about eight times a
/// second each. The source was found only after half a second, when each had sent three times.
#[test]
fn a_loud_loop_is_throttled_before_its_devices_have_sent_three_times() {
    for seed in 0..4 {
        let spec = DetectionSpec {
            warmup: Duration::from_secs(7),
            ..DetectionSpec::default()
        };
        let mut world = World::with(seed, spec);
        world.background = background(400, 1.0, &mut world.random);
        let loopers = devices(900, "3.2.1", "acme", 7500.0 / 900.0, &mut world);
        world.loads.push(load(loopers, 12.95, 14.0));
        world.run(14.0);
        assert_eq!(
            world.ruled(),
            ["app=acme, sdk=chat-android, sdk_version=3.2.1"]
        );
        let throttled = world.when(Happening::Throttled).unwrap() - 13.0;
        assert!(throttled <= 0.35, "throttled after {throttled} s");
    }
}
