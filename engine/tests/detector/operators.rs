//! What operators say of detected rules, and what services say for themselves.

use std::sync::Arc;
use std::time::Duration;

use tidegate_engine::detect::{DetectionMode, DetectionSpec, Event, Happening};
use tidegate_engine::rules::{Action, Mode};
use tidegate_engine::time::Instant;

use crate::world::{Served, World, background};
use crate::{BEGIN, devices, load};

const SOURCE: &str = "app=acme, sdk=chat-android, sdk_version=3.2.1";

fn spec(mode: DetectionMode) -> DetectionSpec {
    DetectionSpec {
        mode,
        warmup: Duration::from_secs(20),
        ..DetectionSpec::default()
    }
}

/// A loop that goes on for as long as anybody looks.
fn loop_in(mut world: World, service: Option<&'static str>) -> World {
    let loopers = devices(500, "3.2.1", "acme", 10.0, &mut world);
    let mut load = load(loopers, BEGIN, BEGIN + 10_000.0);
    load.service = service;
    world.loads.push(load);
    world
}

fn now(world: &World) -> Instant {
    Instant::from_secs_f64(world.now)
}

fn event(world: &World, what: Happening) -> &Event {
    let mut events = world.events.iter();
    events
        .find(|event| event.what == what)
        .expect("it happened")
}

#[test]
fn a_suggested_rule_refuses_nobody_until_it_is_approved_and_then_blocks() {
    let mut world = loop_in(World::with(61, spec(DetectionMode::Suggest)), None);
    world.run(BEGIN + 10.0);
    assert_eq!(
        event(&world, Happening::Suggested)
            .source
            .as_ref()
            .unwrap()
            .to_string(),
        SOURCE
    );
    assert!(world.when(Happening::Throttled).is_none());
    assert_eq!(
        (world.rules()[0].mode, world.bad.refused),
        (Mode::Shadow, 0)
    );
    assert!(!world.detector.approve("detected-9", "", now(&world)));
    let at = now(&world);
    assert!(world.detector.approve("detected-1", "alice: it loops", at));
    world.bad = Served::default();
    world.run(BEGIN + 15.0);
    assert_eq!(world.rules()[0].mode, Mode::Enforce);
    assert!(matches!(world.rules()[0].action, Action::Block { .. }));
    assert!(world.bad.refused_share() > 0.9, "{:?}", world.bad);
    let why = event(&world, Happening::Approved).why.as_deref();
    assert_eq!(why, Some("alice: it loops"));
}

#[test]
fn a_rule_is_put_into_shadow_and_back() {
    let mut world = loop_in(World::new(62), None);
    world.run(BEGIN + 8.0);
    for (mode, refuses, what) in [
        (Mode::Shadow, false, Happening::Shadowed),
        (Mode::Enforce, true, Happening::Approved),
    ] {
        let at = now(&world);
        assert!(
            world
                .detector
                .set_mode_of_rule("detected-1", mode, "bob", at)
        );
        // Said twice, told once.
        world
            .detector
            .set_mode_of_rule("detected-1", mode, "bob", at);
        world.run(world.now + 0.1);
        world.bad = Served::default();
        world.run(world.now + 4.0);
        assert_eq!(world.rules()[0].mode, mode);
        assert_eq!(world.bad.refused_share() > 0.9, refuses, "{:?}", world.bad);
        assert!(refuses || world.bad.refused == 0);
        let told = world.events.iter().filter(|event| event.what == what);
        assert_eq!(told.count(), 1);
    }
    assert_eq!(world.ruled(), [SOURCE]);
}

#[test]
fn a_source_whose_rule_was_revoked_is_left_alone_while_its_surge_goes_on() {
    let mut world = loop_in(World::new(63), None);
    world.run(BEGIN + 8.0);
    let at = now(&world);
    assert!(!world.detector.revoke("detected-9", "alice", at));
    assert!(world.detector.revoke("detected-1", "alice: a test", at));
    world.run(BEGIN + 8.1);
    world.bad = Served::default();
    let expected = world.detector.expected_per_second();
    world.run(BEGIN + 30.0);
    assert!(world.rules().is_empty(), "{:?}", world.events);
    assert_eq!(world.bad.refused, 0);
    let revoked = event(&world, Happening::Revoked);
    assert_eq!(revoked.why.as_deref(), Some("alice: a test"));
    assert!(!world.detector.incidents()[0].active);
    // Nothing is learnt from it either.
    let learnt = world.detector.expected_per_second();
    assert!((learnt / expected - 1.0).abs() < 0.1, "{expected} {learnt}");
    // Others are not left alone.
    let others = devices(500, "7.7.7", "globex", 10.0, &mut world);
    world.loads.push(load(others, BEGIN + 30.0, BEGIN + 40.0));
    world.run(BEGIN + 36.0);
    let other = "app=globex, sdk=chat-android, sdk_version=7.7.7";
    assert_eq!(world.ruled(), [SOURCE, other]);
}

#[test]
fn after_ten_minutes_a_revoked_source_that_goes_on_is_found_anew() {
    let mut world = World::new(64);
    world.background = background(40, 0.5, &mut world.random);
    let loopers = devices(30, "3.2.1", "acme", 10.0, &mut world);
    world.loads.push(load(loopers, BEGIN, BEGIN + 700.0));
    world.run(BEGIN + 8.0);
    let at = now(&world);
    assert_eq!(world.detector.revoke_all("alice", at), 1);
    assert_eq!(world.detector.revoke_all("alice", at), 0);
    world.run(BEGIN + 605.0);
    assert_eq!(world.ruled(), [SOURCE]);
    world.run(BEGIN + 620.0);
    assert_eq!(world.ruled(), [SOURCE, SOURCE]);
}

#[test]
fn a_long_reason_is_cut_between_two_letters() {
    let mut world = loop_in(World::new(65), None);
    world.run(BEGIN + 4.0);
    let at = now(&world);
    let why = format!("x{}", "ü".repeat(500));
    assert!(world.detector.revoke("detected-1", &why, at));
    world.run(BEGIN + 4.1);
    let told = event(&world, Happening::Revoked).why.clone().unwrap();
    assert_eq!(told.len(), 255);
    assert!(why.starts_with(&*told));
}

fn with_mode_of(service: &str, mode: DetectionMode) -> World {
    let spec = DetectionSpec {
        services: vec![(Arc::from(service), mode)],
        ..spec(DetectionMode::Auto)
    };
    World::with(66, spec)
}

#[test]
fn a_service_has_a_mode_of_its_own() {
    for (service, waits) in [("login", true), ("chat", false)] {
        let world = with_mode_of("login", DetectionMode::Suggest);
        let mut world = loop_in(world, Some(service));
        world.run(BEGIN + 6.0);
        assert_eq!(world.when(Happening::Suggested).is_some(), waits);
        assert!(waits || world.when(Happening::Blocked).is_some());
        assert_eq!(world.bad.refused == 0, waits, "{:?}", world.bad);
    }
}

/// Six tenths of everything go to `chat`, three to `kb` and one to `login`.
#[test]
fn of_a_source_that_goes_to_several_services_those_with_a_fifth_of_it_have_a_say() {
    for (service, mode, throttled, blocked) in [
        ("kb", DetectionMode::Throttle, true, false),
        ("kb", DetectionMode::Off, false, false),
        ("login", DetectionMode::Off, true, true),
    ] {
        let mut world = loop_in(with_mode_of(service, mode), None);
        world.run(BEGIN + 6.0);
        let said = (service, mode);
        assert_eq!(!world.ruled().is_empty(), throttled, "{said:?}");
        assert_eq!(
            world.when(Happening::Blocked).is_some(),
            blocked,
            "{said:?}"
        );
        let left_alone = world.when(Happening::LeftAlone).is_some();
        assert_eq!(
            left_alone,
            mode == DetectionMode::Off && !throttled,
            "{said:?}"
        );
    }
}

/// The rest of the world is off: only what goes to the service is looked at.
#[test]
fn a_service_may_be_the_only_one_that_is_protected() {
    for (service, ruled) in [("chat", true), ("kb", false)] {
        let spec = DetectionSpec {
            services: vec![(Arc::from("chat"), DetectionMode::Auto)],
            ..spec(DetectionMode::Off)
        };
        let mut world = loop_in(World::with(67, spec), Some(service));
        world.run(BEGIN + 4.0);
        assert_eq!(!world.ruled().is_empty(), ruled, "{service}");
    }
}
