//! A rule whose refusals fall on other clients than it promised is narrowed or withdrawn.

use tidegate_engine::detect::{Event, Happening};
use tidegate_engine::rules::Action;

use crate::world::{Client, Load, Served, World};
use crate::{BEGIN, devices, load};

const SOURCE: &str = "app=acme, sdk=chat-android, sdk_version=3.2.1";
const NARROWER: &str = "app=acme, sdk=chat-android, sdk_version=3.2.1, user_agent=android agent 9";

/// When the users of `acme` get the version that loops.
const ROLLOUT: f64 = BEGIN + 6.0;

/// A version of `acme` that nobody has yet loops on some devices and is blocked; then its users get it,
/// too, and do not loop. It promised to hit nobody.
struct Rollout {
    /// Devices that loop before the rollout, and after it.
    looping: [usize; 2],
    /// How many of a hundred that loop have this agent; the users have `android agent 0` to `2`.
    telling: (usize, &'static str),
    users: usize,
    /// Whether the users are those from before.
    known: bool,
}

impl Rollout {
    fn world(&self) -> World {
        let mut world = World::new(81);
        let users = devices(self.users, "4.1.0", "acme", 1.0, &mut world);
        let others = world.background.len();
        world.background.extend(users);
        let [before, after] = self.looping;
        let mut loopers = devices(before, "3.2.1", "acme", 10.0, &mut world);
        for (at, looper) in loopers.iter_mut().enumerate() {
            let (share, agent) = self.telling;
            if at % 100 < share {
                agent.clone_into(&mut looper.agent);
            }
        }
        let rest: Vec<Client> = loopers.iter().take(after).cloned().collect();
        world.loads.push(load(loopers, BEGIN, ROLLOUT));
        world.loads.push(load(rest, ROLLOUT, BEGIN + 600.0));
        world.run(ROLLOUT);
        assert_eq!(world.ruled(), [SOURCE]);
        assert!(world.when(Happening::Blocked).is_some());
        let mut users = world.background.split_off(others);
        if !self.known {
            users = devices(self.users, "3.2.1", "acme", 1.0, &mut world);
        }
        for user in &mut users {
            "3.2.1".clone_into(&mut user.version);
        }
        world.loads.push(Load {
            bad: false,
            ..load(users, ROLLOUT, BEGIN + 600.0)
        });
        world.source = Some(("chat-android", "3.2.1".to_owned(), "acme".to_owned()));
        world
    }
}

fn event(world: &World, what: Happening) -> &Event {
    let mut events = world.events.iter();
    events
        .find(|event| event.what == what)
        .expect("it happened")
}

#[test]
fn a_rule_that_hits_more_than_it_promised_is_narrowed_to_what_only_the_flood_has() {
    let rollout = Rollout {
        looping: [500, 500],
        telling: (100, "android agent 9"),
        users: 500,
        known: true,
    };
    let mut world = rollout.world();
    world.run(ROLLOUT + 2.0);
    assert!(world.honest.refused_share() > 0.9, "{:?}", world.honest);
    world.run(ROLLOUT + 12.0);
    let narrowed = event(&world, Happening::Narrowed);
    assert_eq!(narrowed.source.as_ref().unwrap().to_string(), NARROWER);
    assert!(narrowed.why.as_ref().unwrap().contains(SOURCE));
    // The same rule of the same incident, as firm as before.
    let [rule] = world.rules() else {
        panic!("{:?}", world.rules());
    };
    assert_eq!(rule.when_text.to_string(), NARROWER);
    assert_eq!(rule.name.as_str(), "detected-1");
    assert!(matches!(rule.action, Action::Block { .. }));
    let incident = &world.detector.incidents()[0];
    assert!(incident.active);
    assert_eq!(incident.source.as_ref().unwrap().to_string(), NARROWER);
    let rejected = &incident.evidence.rejected_candidates[0];
    assert_eq!(rejected.when.to_string(), SOURCE);
    world.honest = Served::default();
    world.bad = Served::default();
    world.run(ROLLOUT + 30.0);
    assert!(world.honest.refused == 0, "{:?}", world.honest);
    assert!(world.bad.refused_share() > 0.99, "{:?}", world.bad);
    assert!(world.when(Happening::Withdrawn).is_none());
    assert_eq!(world.ruled(), [SOURCE], "{:?}", world.events);
}

#[test]
fn a_rule_is_narrowed_rather_than_withdrawn() {
    let rollout = Rollout {
        looping: [500, 30],
        telling: (100, "android agent 9"),
        users: 500,
        known: true,
    };
    let mut world = rollout.world();
    world.run(ROLLOUT + 20.0);
    assert!(world.when(Happening::Narrowed).is_some());
    assert!(world.when(Happening::Withdrawn).is_none());
    assert_eq!(world.rules()[0].when_text.to_string(), NARROWER);
}

/// The control: no value tells the loop from the users, or nine tenths of it only, or all of it with too
/// many of the users; and most of what is refused is the loop's.
#[test]
fn where_nothing_narrower_keeps_the_flood_a_rule_stays_as_it_is() {
    for (looping, users, telling) in [
        (500, 500, (0, "")),
        (500, 500, (90, "android agent 9")),
        (150, 900, (100, "android agent 1")),
    ] {
        let rollout = Rollout {
            looping: [looping, looping],
            telling,
            users,
            known: true,
        };
        let mut world = rollout.world();
        world.run(ROLLOUT + 30.0);
        assert!(world.when(Happening::Narrowed).is_none(), "{telling:?}");
        assert!(world.when(Happening::Withdrawn).is_none(), "{telling:?}");
        assert_eq!(world.rules().len(), 1);
        assert!(world.bad.refused_share() > 0.95, "{:?}", world.bad);
    }
}

/// Who was told by one value and drops it must not go free for it.
#[test]
fn a_flood_that_goes_on_without_the_value_is_stopped_again() {
    let rollout = Rollout {
        looping: [500, 500],
        telling: (100, "android agent 9"),
        users: 500,
        known: true,
    };
    let mut world = rollout.world();
    world.run(ROLLOUT + 12.0);
    assert!(world.when(Happening::Narrowed).is_some());
    let others = devices(500, "3.2.1", "acme", 10.0, &mut world);
    world
        .loads
        .push(load(others, ROLLOUT + 12.0, ROLLOUT + 30.0));
    world.run(ROLLOUT + 16.0);
    world.bad = Served::default();
    world.run(ROLLOUT + 30.0);
    assert!(
        world.bad.refused_share() > 0.95,
        "{:?} {:?}",
        world.bad,
        world.events
    );
}

#[test]
fn a_rule_that_mostly_refuses_the_harmless_is_withdrawn_where_nothing_narrower_would_do() {
    let rollout = Rollout {
        looping: [500, 30],
        telling: (0, ""),
        users: 500,
        known: true,
    };
    let mut world = rollout.world();
    world.run(ROLLOUT + 20.0);
    let withdrawn = event(&world, Happening::Withdrawn);
    assert_eq!(withdrawn.source.as_ref().unwrap().to_string(), SOURCE);
    assert!(withdrawn.why.is_some());
    assert!(!world.detector.incidents()[0].active);
    world.honest = Served::default();
    world.run(ROLLOUT + 60.0);
    assert!(world.rules().is_empty(), "{:?}", world.rules());
    assert!(world.honest.refused == 0, "{:?}", world.honest);
    assert_eq!(world.ruled(), [SOURCE], "{:?}", world.events);
}

/// The control: of strangers it is not known that they are harmless.
#[test]
fn a_rule_that_refuses_strangers_is_not_withdrawn() {
    let rollout = Rollout {
        looping: [500, 30],
        telling: (0, ""),
        users: 500,
        known: false,
    };
    let mut world = rollout.world();
    world.run(ROLLOUT + 20.0);
    assert!(world.when(Happening::Withdrawn).is_none());
    assert!(world.when(Happening::Narrowed).is_none());
}
