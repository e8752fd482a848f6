//! What outlives a change of the rules, and what does not.

use std::time::Duration;

use tidegate_engine::attribute::AttributeId;
use tidegate_engine::policy::{LimitInForce, Policy};
use tidegate_engine::rules::{Action, LimitRule, Mode, Rule};

use crate::world::{WALL, World, at, block, limit, per_second, rule, throttle};

fn word(policy: &Policy, world: &World, seconds: f64) -> &'static str {
    let facts = world.request("192.0.2.7", &[("app", "acme")]);
    policy.decide(&facts, at(seconds)).word()
}

/// Spends a limit of one, replaces it, and says what the next request is answered.
fn after_replacing(new: LimitRule) -> &'static str {
    let world = World::new();
    let policy = world.policy(vec![], vec![limit("one", 1)]);
    assert_eq!(word(&policy, &world, 0.0), "forward");
    assert_eq!(word(&policy, &world, 0.0), "limit");
    let policy = world.recompile(vec![], vec![new], Some(&policy), at(0.5));
    assert_eq!(
        policy.limits().map(LimitInForce::refusals).sum::<u64>(),
        1,
        "counters are kept"
    );
    word(&policy, &world, 0.5)
}

#[test]
fn an_unchanged_limit_keeps_its_buckets_across_a_recompile() {
    assert_eq!(after_replacing(limit("one", 1)), "limit");
    let world = World::new();
    let with_other_condition = LimitRule {
        when: world.acme(),
        ..limit("one", 1)
    };
    assert_eq!(after_replacing(with_other_condition), "limit");
}

#[test]
fn a_limit_with_other_numbers_or_another_key_starts_anew() {
    assert_eq!(after_replacing(limit("one", 2)), "forward");
    let faster = LimitRule {
        rate: per_second(100),
        ..limit("one", 1)
    };
    assert_eq!(after_replacing(faster), "forward");
    let by_network = LimitRule {
        key: vec![AttributeId::NETWORK],
        ..limit("one", 1)
    };
    assert_eq!(after_replacing(by_network), "forward");
}

#[test]
fn a_limit_with_another_key_starts_with_no_keys() {
    let world = World::new();
    let policy = world.policy(vec![], vec![limit("one", 1)]);
    assert_eq!(word(&policy, &world, 0.0), "forward");
    let by_network = LimitRule {
        key: vec![AttributeId::NETWORK],
        ..limit("one", 1)
    };
    for (new, expected) in [(limit("one", 1), 1), (by_network, 0)] {
        let policy = world.recompile(vec![], vec![new], Some(&policy), at(0.5));
        assert_eq!(
            policy.limits().map(LimitInForce::keys).sum::<usize>(),
            expected
        );
    }
}

#[test]
fn a_limit_that_is_promoted_from_shadow_keeps_what_was_spent() {
    let world = World::new();
    let in_shadow = LimitRule {
        mode: Mode::Shadow,
        ..limit("one", 1)
    };
    let policy = world.policy(vec![], vec![in_shadow]);
    assert_eq!(word(&policy, &world, 0.0), "forward");
    let policy = world.recompile(vec![], vec![limit("one", 1)], Some(&policy), at(0.5));
    assert_eq!(word(&policy, &world, 0.5), "limit");
}

#[test]
fn a_limit_under_another_name_starts_anew() {
    let world = World::new();
    let policy = world.policy(vec![], vec![limit("one", 1)]);
    assert_eq!(word(&policy, &world, 0.0), "forward");
    let policy = world.recompile(vec![], vec![limit("another", 1)], Some(&policy), at(0.5));
    assert_eq!(word(&policy, &world, 0.5), "forward");
}

#[test]
fn an_unchanged_throttle_keeps_its_bucket_and_a_rule_its_counters() {
    let world = World::new();
    let slow = rule("slow", throttle(1), world.acme());
    let policy = world.policy(vec![slow.clone()], vec![]);
    assert_eq!(word(&policy, &world, 0.0), "forward");
    let policy = world.recompile(vec![slow], vec![], Some(&policy), at(0.5));
    assert_eq!(word(&policy, &world, 0.5), "throttle");
    let blocked = rule("slow", block(), world.acme());
    let policy = world.recompile(vec![blocked], vec![], Some(&policy), at(0.6));
    assert_eq!(word(&policy, &world, 0.6), "block");
    let rule = policy.rules().next().unwrap();
    assert_eq!((rule.matches(), rule.refusals()), (3, 2));
    assert_eq!(
        rule.created(),
        WALL,
        "in force under this name since the beginning"
    );
}

#[test]
fn a_rule_whose_time_is_over_is_left_out() {
    let world = World::new();
    let until = |seconds| Rule {
        until: Some(WALL + Duration::from_secs(seconds)),
        ..rule("block", block(), world.acme())
    };
    let compiled_at_10 = |rule| world.recompile(vec![rule], vec![], None, at(10.0));
    assert_eq!(compiled_at_10(until(9)).rules().count(), 0);
    assert_eq!(compiled_at_10(until(10)).rules().count(), 0);
    assert_eq!(compiled_at_10(until(11)).rules().count(), 1);
}

#[test]
fn a_rule_ends_on_time_without_a_recompile() {
    let world = World::new();
    let block = Rule {
        until: Some(WALL + Duration::from_mins(1)),
        ..rule("block", block(), world.acme())
    };
    let policy = world.recompile(vec![block], vec![], None, at(10.0));
    assert_eq!(word(&policy, &world, 59.999), "block");
    assert_eq!(word(&policy, &world, 60.0), "forward");
}

#[test]
fn an_allow_rule_that_is_added_lifts_a_block_at_once() {
    let world = World::new();
    let block = rule("block", block(), world.acme());
    let policy = world.policy(vec![block.clone()], vec![]);
    assert_eq!(word(&policy, &world, 0.0), "block");
    let allow = rule("sorry", Action::Allow, world.acme());
    let policy = world.recompile(vec![block, allow], vec![], Some(&policy), at(1.0));
    assert_eq!(word(&policy, &world, 1.0), "forward");
}
