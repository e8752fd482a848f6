//! What the detector may do, and from when on.

use std::time::Duration;

use tidegate_engine::detect::{DetectionMode, DetectionSpec, Happening};
use tidegate_engine::rules::{Action, Mode};

use crate::world::{World, honest};
use crate::{BEGIN, devices, load};

fn loop_under(mode: DetectionMode) -> World {
    let spec = DetectionSpec {
        mode,
        warmup: Duration::from_secs(20),
        ..DetectionSpec::default()
    };
    let mut world = World::with(9, spec);
    let loopers = devices(500, "3.2.1", "acme", 10.0, &mut world);
    world.loads.push(load(loopers, BEGIN, BEGIN + 15.0));
    world.run(BEGIN + 15.0);
    world
}

#[test]
fn mode_off_does_nothing() {
    let world = loop_under(DetectionMode::Off);
    assert!(world.events.is_empty() && world.rules().is_empty());
}

#[test]
fn mode_suggest_makes_rules_that_only_count() {
    let world = loop_under(DetectionMode::Suggest);
    assert_eq!(world.rules().len(), 1);
    assert_eq!(world.rules()[0].mode, Mode::Shadow);
    assert_eq!(world.bad.refused, 0);
}

#[test]
fn mode_throttle_never_blocks() {
    let world = loop_under(DetectionMode::Throttle);
    assert!(matches!(world.rules()[0].action, Action::Throttle { .. }));
    assert!(world.when(Happening::Blocked).is_none());
}

#[test]
fn before_the_warm_up_is_over_a_rule_throttles_at_most() {
    let spec = DetectionSpec {
        warmup: Duration::from_mins(10),
        ..DetectionSpec::default()
    };
    let mut world = World::with(10, spec);
    let loopers = devices(500, "3.2.1", "acme", 10.0, &mut world);
    world.loads.push(load(loopers, BEGIN, BEGIN + 15.0));
    world.run(BEGIN + 15.0);
    assert_eq!(world.ruled().len(), 1);
    assert!(world.when(Happening::Blocked).is_none());
}

/// What a short demonstration does: 10 s of calm traffic, then the loop.
#[test]
fn ten_calm_seconds_are_enough_for_a_demonstration() {
    let spec = DetectionSpec {
        warmup: Duration::from_secs(8),
        ..DetectionSpec::default()
    };
    let mut world = World::with(15, spec);
    world.background = (0..400).map(|_| honest(2.0, &mut world.random)).collect();
    let loopers = devices(1000, "3.2.1", "acme", 10.0, &mut world);
    world.loads.push(load(loopers, 11.0, 25.0));
    world.run(25.0);
    assert_eq!(
        world.ruled(),
        ["app=acme, sdk=chat-android, sdk_version=3.2.1"]
    );
    let throttled = world.when(Happening::Throttled).unwrap() - 11.0;
    let blocked = world.when(Happening::Blocked).unwrap() - 11.0;
    assert!(throttled <= 1.0, "throttled after {throttled} s");
    assert!(blocked <= 5.0, "blocked after {blocked} s");
    assert!(world.others.refused == 0, "{:?}", world.others);
}

#[test]
fn equal_seeds_and_traffic_give_equal_decisions() {
    let [first, second] = [(); 2].map(|()| loop_under(DetectionMode::Auto));
    assert!(!first.events.is_empty());
    assert_eq!(first.events, second.events);
    assert_eq!(first.detector.incidents(), second.detector.incidents());
}
