//! What the detector knows outlives the process.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tidegate_engine::attribute::Schema;
use tidegate_engine::detect::{DetectionSpec, Detector, Happening, RestoreError};
use tidegate_engine::time::Instant;

use crate::world::{Served, World};
use crate::{BEGIN, devices, load};

/// A world that has learnt, and then loses its detector.
fn restarted(keeps: bool) -> World {
    let mut world = World::new(51);
    let honest = devices(150, "4.1.0", "acme", 1.0, &mut world);
    world.background.extend(honest);
    world.source = Some(("chat-android", "4.1.0".to_owned(), "acme".to_owned()));
    world.run(BEGIN);
    let snapshot = world.detector.snapshot();
    world.restart();
    if keeps {
        assert_eq!(world.detector.restore(&snapshot), Ok(()));
    }
    // The flood that ended the old process goes on.
    let loopers = devices(1500, "4.1.0", "acme", 10.0, &mut world);
    world.loads.push(load(loopers, BEGIN, BEGIN + 20.0));
    world.honest = Served::default();
    world.run(BEGIN + 10.0);
    world
}

#[test]
fn a_restart_in_the_midst_of_a_flood_finds_its_source_within_a_second() {
    let world = restarted(true);
    assert!(world.detector.is_warm());
    assert_eq!(
        world.ruled(),
        ["app=acme, sdk=chat-android, sdk_version=4.1.0"]
    );
    let throttled = world.when(Happening::Throttled).unwrap() - BEGIN;
    assert!(throttled <= 1.0, "throttled after {throttled} s");
    assert!(world.honest.refused_share() < 0.15, "{:?}", world.honest);
}

/// The control: without what was kept the flood is what is normal.
#[test]
fn a_restart_that_keeps_nothing_learns_the_flood() {
    let world = restarted(false);
    assert!(!world.detector.is_warm());
    assert!(world.ruled().is_empty(), "{:?}", world.ruled());
}

#[test]
fn what_is_restored_is_what_was_kept() {
    let mut world = World::new(52);
    world.run(BEGIN);
    let snapshot = world.detector.snapshot();
    let expected = world.detector.expected_per_second();
    world.restart();
    world.detector.restore(&snapshot).unwrap();
    assert!((world.detector.expected_per_second() / expected - 1.0).abs() < 1e-6);
    assert!(snapshot.len() < 4 << 20, "{} bytes", snapshot.len());
}

#[test]
fn an_old_level_is_not_expected_any_more() {
    let mut world = World::new(53);
    let at = |hours: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(hours * 3600);
    world.detector.set_clock(at(1), Instant::ZERO);
    world.run(BEGIN);
    let snapshot = world.detector.snapshot();
    world.restart();
    world
        .detector
        .set_clock(at(9), Instant::from_secs_f64(BEGIN));
    world.detector.restore(&snapshot).unwrap();
    let more = crate::world::background(4000, 1.0, &mut world.random);
    world.background.extend(more);
    world.run(BEGIN + 10.0);
    assert!(world.events.is_empty(), "{:?}", world.events);
}

#[test]
fn what_is_no_snapshot_is_refused_with_its_reason() {
    let mut world = World::new(54);
    world.run(5.0);
    let good = world.detector.snapshot();
    let detector = |schema: Schema| Detector::new(Arc::new(schema), DetectionSpec::default(), 1);
    let mut changed = good.clone();
    let middle = changed.len() / 2;
    changed[middle] ^= 1;
    let mut newer = good.clone();
    newer[8] = 99;
    let cases: [(&[u8], RestoreError); 5] = [
        (b"", RestoreError::NoSnapshot),
        (b"something else altogether", RestoreError::NoSnapshot),
        (&changed, RestoreError::Damaged),
        (&good[..good.len() - 9], RestoreError::Damaged),
        (&newer, RestoreError::Version(99)),
    ];
    world.restart();
    for (bytes, error) in cases {
        assert_eq!(world.detector.restore(bytes), Err(error));
        assert_eq!(world.detector.trained(), Duration::ZERO);
    }
    let other = detector(Schema::built_in()).restore(&good);
    assert_eq!(other, Err(RestoreError::OtherAttributes));
}

/// A flood that is blocked when the process ends, `down` before the next one begins.
fn carried(down: f64, carries: bool) -> (World, usize) {
    let mut world = World::new(55);
    let loopers = devices(1500, "4.1.0", "acme", 10.0, &mut world);
    world.loads.push(load(loopers, BEGIN, BEGIN + 60.0));
    world.source = Some(("chat-android", "4.1.0".to_owned(), "acme".to_owned()));
    world.run(BEGIN + 10.0);
    assert!(world.when(Happening::Blocked).is_some());
    let count = world.restart_later(down, carries);
    world.run(BEGIN + 10.3);
    (world, count)
}

fn in_force(world: &World) -> Vec<String> {
    let rules = world.rules().iter();
    rules
        .map(|rule| format!("{} {}", rule.action.word(), rule.when_text))
        .collect()
}

#[test]
fn a_restart_in_the_midst_of_an_incident_keeps_its_rule_in_force() {
    let (mut world, count) = carried(5.0, true);
    assert_eq!(count, 1);
    assert_eq!(
        in_force(&world),
        ["block app=acme, sdk=chat-android, sdk_version=4.1.0"]
    );
    assert!(
        world.events.is_empty(),
        "nothing is new: {:?}",
        world.events
    );
    let incidents = world.detector.incidents();
    assert!(incidents.iter().any(|incident| incident.active));
    assert_eq!(
        incidents.iter().map(|one| one.id.0).max(),
        Some(incidents.len() as u64)
    );
    // And it goes as it would have gone: with the flood.
    world.run(BEGIN + 60.0 + 45.0);
    assert!(
        world.when(Happening::Released).is_some(),
        "{:?}",
        world.events
    );
    assert!(in_force(&world).is_empty());
}

/// The controls: without it nothing is in force at once; and what is over is over.
#[test]
fn what_was_not_carried_or_is_long_ago_is_not_in_force() {
    let (world, _) = carried(5.0, false);
    assert!(in_force(&world).is_empty());
    let (world, count) = carried(120.0, true);
    assert_eq!(count, 0);
    assert!(in_force(&world).is_empty());
    let incidents = world.detector.incidents();
    assert!(!incidents.is_empty() && incidents.iter().all(|incident| !incident.active));
    let last = incidents[0].timeline.last();
    let why = last.and_then(|last| last.why.as_deref());
    assert_eq!(why, Some("the tale is over"));
}

#[test]
fn a_source_whose_rule_was_revoked_is_left_alone_after_a_restart_too() {
    // The control: who does not know it acts within seconds.
    for carries in [true, false] {
        let mut world = World::new(56);
        let loopers = devices(500, "3.2.1", "acme", 10.0, &mut world);
        world.loads.push(load(loopers, BEGIN, BEGIN + 1000.0));
        world.run(BEGIN + 8.0);
        let now = Instant::from_secs_f64(world.now);
        assert!(world.detector.revoke("detected-1", "alice: a test", now));
        world.run(BEGIN + 9.0);
        assert!(world.rules().is_empty());
        world.restart_later(5.0, carries);
        world.bad = Served::default();
        world.run(BEGIN + 40.0);
        assert_eq!(world.ruled().is_empty(), carries, "{:?}", world.events);
        assert_eq!(world.bad.refused == 0, carries, "{:?}", world.bad);
    }
}

#[test]
fn a_rule_that_sleeps_wakes_after_a_restart_too() {
    for carries in [true, false] {
        let mut world = World::new(57);
        let loopers = devices(500, "3.2.1", "acme", 10.0, &mut world);
        world.loads.push(load(loopers.clone(), BEGIN, BEGIN + 10.0));
        world.run(BEGIN + 50.0);
        assert!(world.when(Happening::Released).is_some());
        assert_eq!(world.restart_later(1.0, carries), 0);
        world.run(BEGIN + 53.0);
        world.loads.push(load(loopers, BEGIN + 53.0, BEGIN + 60.0));
        world.run(BEGIN + 60.0);
        let mut events = world.events.iter();
        let throttled = events.find(|event| event.what == Happening::Throttled);
        let why = throttled.expect("it is found in any case").why.as_deref();
        let woke = Some("it is back before its rule was forgotten");
        assert_eq!(why == woke, carries, "{:?}", world.events);
    }
}
