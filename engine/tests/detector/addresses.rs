//! Clients that are told apart by their addresses.

use tidegate_engine::detect::{Happening, Nature};

use crate::world::{Load, World, background};
use crate::{BEGIN, devices, load};

#[test]
fn forged_instances_are_judged_by_their_addresses() {
    let mut world = World::new(8);
    let loopers = devices(200, "3.2.1", "acme", 50.0, &mut world);
    let forgers = Load {
        forges: true,
        ..load(loopers, BEGIN, BEGIN + 15.0)
    };
    world.loads.push(forgers);
    world.run(BEGIN + 15.0);
    assert_eq!(
        world.ruled(),
        ["app=acme, sdk=chat-android, sdk_version=3.2.1"]
    );
    let incident = &world.detector.incidents()[0];
    assert_eq!(incident.nature, Some(Nature::ForgedInstances));
    let throttled = world.when(Happening::Throttled).unwrap() - BEGIN;
    assert!(throttled <= 3.0, "throttled after {throttled} s");
    assert!(world.when(Happening::Blocked).unwrap() - BEGIN <= 10.0);
}

#[test]
fn a_single_device_is_named_by_its_address_and_its_source_is_left_alone() {
    let mut world = World::new(21);
    let one = devices(1, "3.1.0", "app-2", 3000.0, &mut world);
    let address = one[0].address.to_string();
    world.loads.push(load(one, BEGIN, BEGIN + 20.0));
    world.run(BEGIN + 20.0);
    assert_eq!(world.ruled(), [format!("ip={address}")]);
    assert!(world.when(Happening::Blocked).unwrap() - BEGIN <= 3.0);
    assert!(world.others.refused == 0, "{:?}", world.others);
    assert!(world.bad.refused_share() > 0.95, "{:?}", world.bad);
    world.run(BEGIN + 60.0);
    assert!(world.rules().is_empty());
    assert_eq!(world.ruled().len(), 1);
}

/// What the app's other clients send was shown as the one device's, and was missing among the others'.
#[test]
fn of_a_single_device_it_is_told_what_it_sends_and_not_what_its_app_does() {
    let mut world = World::new(24);
    let honest = devices(600, "3.1.0", "app-2", 1.0, &mut world);
    world.background.extend(honest);
    let one = devices(1, "3.1.0", "app-2", 3000.0, &mut world);
    let address = one[0].address.to_string();
    world.loads.push(load(one, BEGIN, BEGIN + 10.0));
    world.run(BEGIN + 10.0);
    assert_eq!(world.ruled(), [format!("ip={address}")]);
    let mut timeline = world.detector.incidents()[0].timeline.iter();
    let blocked = timeline.find(|moment| moment.what == Happening::Blocked);
    let effect = blocked.and_then(|blocked| blocked.effect).unwrap();
    let (source, others) = (effect.source, effect.others);
    assert!(
        (source.requests_per_second / 3000.0 - 1.0).abs() < 0.1,
        "{effect:?}"
    );
    assert!(
        (others.requests_per_second / 2600.0 - 1.0).abs() < 0.1,
        "{effect:?}"
    );
    assert_eq!((source.refused_share, others.refused_share), (None, None));
}

#[test]
fn two_devices_one_after_the_other_are_two_incidents() {
    let mut world = World::new(22);
    let first = devices(1, "3.1.0", "app-2", 3000.0, &mut world);
    let second = devices(1, "3.1.0", "app-2", 3000.0, &mut world);
    let addresses = [&first, &second].map(|device| format!("ip={}", device[0].address));
    world.loads.push(load(first, BEGIN, BEGIN + 20.0));
    world.loads.push(load(second, BEGIN + 5.0, BEGIN + 20.0));
    world.run(BEGIN + 20.0);
    assert_eq!(world.ruled(), addresses);
}

/// The busiest address was taken for the cause where what it always sends was as much as the excess:
/// whoever looped as loud as a gateway got the gateway blocked.
#[test]
fn a_gateway_as_busy_as_the_loop_is_not_taken_for_its_cause() {
    let mut world = World::new(26);
    let mut gateway = background(1200, 1.0, &mut world.random);
    for client in &mut gateway {
        client.address = [203, 0, 113, 7].into();
    }
    world.background.extend(gateway);
    let loopers = devices(120, "3.2.1", "acme", 10.0, &mut world);
    world.loads.push(load(loopers, BEGIN, BEGIN + 15.0));
    world.run(BEGIN + 15.0);
    assert_eq!(
        world.ruled(),
        ["app=acme, sdk=chat-android, sdk_version=3.2.1"]
    );
    assert!(world.others.refused == 0, "{:?}", world.others);
}
