//! A block comes over the throttle, step by step, and each step tells what it did.

use std::sync::Arc;

use tidegate_engine::detect::{Happening, Incident, Stress, UpstreamSigns};
use tidegate_engine::rules::Mode;

use crate::world::{Served, World};
use crate::{BEGIN, devices, load};

fn flooded(until: f64) -> World {
    let mut world = World::new(61);
    let loopers = devices(1500, "4.1.0", "acme", 10.0, &mut world);
    world.loads.push(load(loopers, BEGIN, BEGIN + 60.0));
    world.run(until);
    world
}

fn incident(world: &World) -> &Incident {
    let ruled = |incident: &&Incident| incident.rule.is_some();
    world.detector.incidents().iter().find(ruled).expect("one")
}

#[test]
fn a_block_counts_first_then_acts_on_some_and_at_last_on_all() {
    let mut world = flooded(BEGIN);
    let mut seen = Vec::new();
    for tick in 1..100 {
        world.run(BEGIN + 0.1 * f64::from(tick));
        let rules = world.rules().iter();
        let now: Vec<_> = rules
            .map(|rule| {
                let percent = if rule.mode == Mode::Shadow {
                    0
                } else {
                    rule.percent
                };
                format!("{} {} {percent}", rule.name, rule.action.word())
            })
            .collect();
        if !now.is_empty() && seen.last() != Some(&now) {
            seen.push(now);
        }
    }
    let beside = |percent| {
        vec![
            format!("detected-1-ramp block {percent}"),
            "detected-1 throttle 100".to_owned(),
        ]
    };
    let alone = |what: &str| vec![format!("detected-1 {what} 100")];
    let steps = [
        alone("throttle"),
        beside(0),
        beside(10),
        beside(50),
        alone("block"),
    ];
    assert_eq!(seen, steps);
    let (ramped, blocked) = (Happening::Ramped, Happening::Blocked);
    let took = world.when(blocked).unwrap() - world.when(ramped).unwrap();
    assert!((0.5..=0.8).contains(&took), "{took}");
    assert!(world.when(blocked).unwrap() - BEGIN <= 10.0);
}

/// Whoever the block does not act on yet is under the throttle: nobody goes free because of the ramp.
#[test]
fn nobody_goes_free_while_a_block_comes() {
    let mut world = flooded(BEGIN);
    while world.when(Happening::Ramped).is_none() {
        world.run(world.now + 0.1);
    }
    world.bad = Served::default();
    world.others = Served::default();
    world.run(world.now + 0.6);
    assert!(world.bad.refused_share() > 0.9, "{:?}", world.bad);
    assert_eq!(world.others.refused, 0, "{:?}", world.others);
}

#[test]
fn each_step_tells_what_was_seen_before_it() {
    let mut world = flooded(BEGIN);
    let signs = UpstreamSigns {
        arrived_per_second: 2010.0,
        answered_per_second: 2000.0,
        shed_per_second: 0.0,
        waiting: 3.0,
        in_flight: 20.0,
        latency_s: 0.01,
        failed_share: 0.0,
    };
    world.stress = Stress::none().with_signs(vec![(Arc::from("chat"), signs)]);
    world.run(BEGIN + 10.0);
    let effect = |what| {
        let mut timeline = incident(&world).timeline.iter();
        let moment = timeline.find(|moment| moment.what == what);
        moment.and_then(|moment| moment.effect).expect("an effect")
    };
    let before = effect(Happening::Throttled);
    assert!(before.source.refused_share.unwrap() < 0.01, "{before:?}");
    assert!(before.others.requests_per_second > 1000.0, "{before:?}");
    let under_the_throttle = effect(Happening::Ramped);
    assert!(
        under_the_throttle.source.refused_share.unwrap() > 0.8,
        "{under_the_throttle:?}"
    );
    assert!(under_the_throttle.others.refused_share.unwrap() < 0.001);
    assert_eq!(under_the_throttle.upstream, Some(signs));
}
