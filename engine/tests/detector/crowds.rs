//! What is no loop: crowds, rollouts, calm days.

use std::sync::Arc;

use tidegate_engine::detect::{Happening, Nature, Stress};

use crate::world::{World, background};
use crate::{BEGIN, devices, load};

#[test]
fn a_slow_daily_rise_makes_no_surge() {
    let mut world = World::new(20);
    for step in 0..300 {
        world.run(BEGIN + f64::from(step));
        for client in &mut world.background {
            client.rate = 1.0 + f64::from(step) / 100.0;
        }
    }
    assert!(world.events.is_empty(), "{:?}", world.events);
}

#[test]
fn a_crowd_over_all_apps_makes_no_rule() {
    let mut world = World::new(3);
    let clients = background(4000, 1.0, &mut world.random);
    world.loads.push(load(clients, BEGIN, BEGIN + 40.0));
    world.run(BEGIN + 45.0);
    assert!(world.ruled().is_empty(), "{:?}", world.ruled());
    assert!(world.when(Happening::Surge).is_some());
    assert!(world.when(Happening::Crowd).is_some());
}

#[test]
fn a_crowd_inside_one_app_makes_no_rule_while_nobody_suffers() {
    let mut world = World::new(4);
    let known = devices(150, "4.1.0", "acme", 1.0, &mut world);
    world.background.extend(known);
    let clients = devices(3000, "4.1.0", "acme", 1.0, &mut world);
    world.loads.push(load(clients, BEGIN, BEGIN + 40.0));
    world.run(BEGIN + 45.0);
    assert!(world.ruled().is_empty(), "{:?}", world.ruled());
    assert!(world.when(Happening::Crowd).is_some());
}

/// The negative control of the one above: the same arrivals from a tenth of the instances are a loop.
#[test]
fn the_same_arrivals_from_fewer_instances_make_a_rule() {
    let mut world = World::new(4);
    let known = devices(150, "4.1.0", "acme", 1.0, &mut world);
    world.background.extend(known);
    let clients = devices(300, "4.1.0", "acme", 10.0, &mut world);
    world.loads.push(load(clients, BEGIN, BEGIN + 20.0));
    world.run(BEGIN + 20.0);
    assert_eq!(
        world.ruled(),
        ["app=acme, sdk=chat-android, sdk_version=4.1.0"]
    );
}

#[test]
fn a_crowd_is_throttled_and_never_blocked_while_the_upstream_suffers() {
    let mut world = World::new(5);
    let known = devices(150, "4.1.0", "acme", 1.0, &mut world);
    world.background.extend(known);
    let clients = devices(4000, "4.1.0", "acme", 1.0, &mut world);
    world.loads.push(load(clients, BEGIN, BEGIN + 30.0));
    world.run(BEGIN);
    world.stress = Stress::on(vec![Arc::from("chat")]);
    world.run(BEGIN + 20.0);
    assert_eq!(world.ruled().len(), 1);
    assert!(world.when(Happening::Blocked).is_none());
    assert_eq!(world.detector.incidents()[0].nature, Some(Nature::Crowd));
    world.stress = Stress::none();
    world.run(BEGIN + 45.0);
    assert!(world.rules().is_empty());
}

#[test]
fn a_rollout_at_constant_total_makes_no_rule() {
    let mut world = World::new(6);
    let steps = 24;
    for step in 0..steps {
        world.run(BEGIN + 5.0 * f64::from(step));
        for (at, client) in world.background.iter_mut().enumerate() {
            // 60 % of all Android clients move to the new version, over two minutes.
            if client.sdk == "chat-android" && at % 100 < (step as usize + 1) * 60 / steps as usize
            {
                client.version = "9.0.0".to_owned();
            }
        }
    }
    world.run(BEGIN + 5.0 * f64::from(steps) + 20.0);
    assert!(world.ruled().is_empty(), "{:?}", world.ruled());
}

#[test]
fn ten_calm_minutes_make_no_rule_and_no_surge() {
    let mut world = World::new(7);
    world.run(600.0);
    assert!(world.events.is_empty(), "{:?}", world.events);
    assert!(world.detector.is_warm());
    let expected = world.detector.expected_per_second();
    assert!((expected / 2000.0 - 1.0).abs() < 0.05, "{expected}");
}

/// What a short window must not be taken in by: a crowd whose clients open with one to three requests at
/// once, where clients usually send one a second.
#[test]
fn a_crowd_whose_clients_open_with_two_requests_makes_no_rule() {
    let mut world = World::new(27);
    let clients = devices(3000, "4.1.0", "acme", 1.0, &mut world);
    for (tenth, clients) in (0_u32..).zip(clients.chunks(150)) {
        let from = BEGIN + f64::from(tenth) / 10.0 + 0.05;
        let mut opening = clients.to_vec();
        for client in &mut opening {
            client.rate = 22.0;
        }
        world.loads.push(load(opening, from, from + 0.1));
        let clients = clients.to_vec();
        world.loads.push(load(clients, from + 0.1, BEGIN + 20.0));
    }
    world.run(BEGIN + 20.0);
    assert!(world.ruled().is_empty(), "{:?}", world.ruled());
}

/// A process is there before its clients: what was learnt of the silence, and of the first who came, was half
/// of what came then, and stayed so, for nothing is learnt of a surge.
#[test]
fn traffic_that_begins_after_the_process_is_no_surge() {
    for (seed, silence, takes, rate) in [
        (100, 0.5, 0.0, 1.0),
        (101, 1.0, 0.0, 1.0),
        (102, 1.5, 0.0, 0.5),
        (103, 2.2, 0.0, 5.0),
        (104, 0.0, 2.0, 1.0),
        (105, 1.0, 2.0, 10.0),
        (106, 20.0, 2.0, 10.0),
        (107, 1.0, 3.0, 5.0),
        (108, 1.0, 3.0, 5.0),
        (109, 1.0, 3.0, 5.0),
        (110, 1.0, 3.0, 5.0),
    ] {
        let said = (silence, takes, rate);
        let mut world = World::new(seed);
        world.background.clear();
        world.run(1.0 + silence);
        for _ in 0..4 {
            let more = background(10, rate, &mut world.random);
            world.background.extend(more);
            world.run(world.now + takes / 4.0);
        }
        world.run(60.0);
        assert!(world.events.is_empty(), "{said:?}: {:?}", world.events);
        let level = world.detector.expected_per_second();
        let right = (level / (40.0 * rate) - 1.0).abs() < 0.2;
        assert!(right, "{said:?}: {level}");
    }
}
