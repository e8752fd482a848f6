//! Clients that send seldom, as most do.

use tidegate_engine::detect::Happening;

use crate::world::{World, background};
use crate::{BEGIN, devices, load};

/// 10,000 clients that send once in ten seconds: 1,000 requests a second.
fn quiet_world(seed: u64) -> World {
    let mut world = World::new(seed);
    world.background = background(10_000, 0.1, &mut world.random);
    world
}

#[test]
fn clients_that_send_five_times_as_often_as_usual_are_throttled_within_two_seconds() {
    let mut world = quiet_world(41);
    let loopers = devices(2400, "3.2.1", "acme", 0.5, &mut world);
    world.loads.push(load(loopers, BEGIN, BEGIN + 14.0));
    world.run(BEGIN + 14.0);
    assert_eq!(
        world.ruled(),
        ["app=acme, sdk=chat-android, sdk_version=3.2.1"]
    );
    let throttled = world.when(Happening::Throttled).unwrap() - BEGIN;
    assert!(throttled <= 2.0, "throttled after {throttled} s");
    let blocked = world.when(Happening::Blocked).unwrap() - BEGIN;
    assert!(blocked <= 10.0, "blocked after {blocked} s");
    assert!(world.others.refused == 0, "{:?}", world.others);
}

/// The control: as many requests from clients that send as usual.
#[test]
fn as_many_requests_from_clients_that_send_as_usual_make_no_rule() {
    let mut world = quiet_world(41);
    let crowd = devices(12_000, "3.2.1", "acme", 0.1, &mut world);
    world.loads.push(load(crowd, BEGIN, BEGIN + 14.0));
    world.run(BEGIN + 14.0);
    assert!(world.when(Happening::Surge).is_some());
    assert!(world.ruled().is_empty(), "{:?}", world.ruled());
}

#[test]
fn a_surge_that_grows_over_a_minute_is_found() {
    let mut world = quiet_world(42);
    for step in 0..60 {
        let loopers = devices(40, "3.2.1", "acme", 1.0, &mut world);
        let from = BEGIN + f64::from(step);
        world.loads.push(load(loopers, from, BEGIN + 60.0));
    }
    // It adds half of what was expected after 12.5 s.
    world.run(BEGIN + 30.0);
    assert_eq!(
        world.ruled(),
        ["app=acme, sdk=chat-android, sdk_version=3.2.1"]
    );
    let throttled = world.when(Happening::Throttled).unwrap() - BEGIN;
    assert!(throttled <= 15.5, "throttled after {throttled} s");
}

/// The few that began under a new name must not say of themselves what is usual there: the flood after
/// them would be a crowd by its own word.
#[test]
fn a_name_under_which_a_few_loop_first_does_not_say_what_is_usual() {
    let mut world = quiet_world(43);
    let few = devices(36, "3.2.1", "acme", 0.5, &mut world);
    world.loads.push(load(few, BEGIN, BEGIN + 32.0));
    let flood = devices(2400, "3.2.1", "acme", 0.5, &mut world);
    world.loads.push(load(flood, BEGIN + 12.0, BEGIN + 32.0));
    world.run(BEGIN + 32.0);
    assert_eq!(
        world.ruled(),
        ["app=acme, sdk=chat-android, sdk_version=3.2.1"]
    );
    let throttled = world.when(Happening::Throttled).unwrap() - BEGIN - 12.0;
    assert!(throttled <= 3.0, "throttled after {throttled} s");
    assert!(world.when(Happening::Blocked).is_some());
}

/// Twice as often as usual, and five times everybody's traffic from one source.
#[test]
fn a_drastic_loop_of_clients_twice_as_busy_as_usual_is_throttled_within_two_seconds() {
    let mut world = quiet_world(46);
    let loopers = devices(25_000, "3.2.1", "acme", 0.2, &mut world);
    world.loads.push(load(loopers, BEGIN, BEGIN + 5.0));
    world.run(BEGIN + 5.0);
    assert_eq!(
        world.ruled(),
        ["app=acme, sdk=chat-android, sdk_version=3.2.1"]
    );
    let throttled = world.when(Happening::Throttled).unwrap() - BEGIN;
    // Before the typical client can be asked.
    assert!(throttled < 2.0, "throttled after {throttled} s");
}

/// The control: as many requests from clients that send as usual.
#[test]
fn a_drastic_crowd_makes_no_rule() {
    let mut world = quiet_world(46);
    let crowd = devices(50_000, "3.2.1", "acme", 0.1, &mut world);
    world.loads.push(load(crowd, BEGIN, BEGIN + 5.0));
    world.run(BEGIN + 5.0);
    assert!(world.when(Happening::Surge).is_some());
    assert!(world.ruled().is_empty(), "{:?}", world.ruled());
}
