//! In which order rules and limits are asked, and what a refusal costs.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tidegate_engine::attribute::AttributeId;
use tidegate_engine::policy::{LimitInForce, Policy, RuleInForce};
use tidegate_engine::rules::{Action, LimitRule, Mode, Origin, Rule, When};
use tidegate_engine::units::Rate;
use tidegate_engine::verdict::{LimitHit, Name, Verdict};

use crate::world::{World, at, block, limit, per_second, rule, shadow, throttle};

const ADDRESS: &str = "192.0.2.7";
const ACME: &[(&str, &str)] = &[("app", "acme")];

fn word(policy: &Policy, world: &World, seconds: f64) -> &'static str {
    policy
        .decide(&world.request(ADDRESS, ACME), at(seconds))
        .word()
}

fn cause(policy: &Policy, world: &World) -> String {
    let verdict = policy.decide(&world.request(ADDRESS, ACME), at(0.0));
    verdict
        .cause()
        .map_or_else(|| "nobody".to_owned(), ToString::to_string)
}

#[test]
fn an_allow_rule_ends_the_decision() {
    let world = World::new();
    let everything = |allow: Vec<Rule>| {
        let mut rules = vec![
            rule("drop", Action::Drop, world.acme()),
            rule("block", block(), world.acme()),
            rule("throttle", throttle(1), world.acme()),
        ];
        rules.extend(allow);
        world.policy(rules, vec![limit("one", 1)])
    };
    let policy = everything(vec![rule("friends", Action::Allow, world.acme())]);
    for _ in 0..5 {
        assert_eq!(word(&policy, &world, 0.0), "forward");
    }
    assert!(
        policy.limits().all(|limit| limit.keys() == 0),
        "no limit is spent"
    );
    let matched: Vec<u64> = policy.rules().map(RuleInForce::matches).collect();
    assert_eq!(matched, [5, 0, 0, 0], "no later rule is asked");
    assert_eq!(
        word(&everything(vec![]), &world, 0.0),
        "drop",
        "the control"
    );
}

#[test]
fn the_hardest_action_is_asked_first_however_the_files_are_sorted() {
    let world = World::new();
    let mut rules = vec![
        rule("throttle", throttle(0), world.acme()),
        rule("tarpit", Action::Tarpit, world.acme()),
        rule("block", block(), world.acme()),
        rule("drop", Action::Drop, world.acme()),
        rule("allow", Action::Allow, world.acme()),
    ];
    for expected in ["allow", "drop", "block", "tarpit"] {
        assert_eq!(
            cause(&world.policy(rules.clone(), vec![]), &world),
            expected
        );
        rules.pop();
    }
}

#[test]
fn of_two_rules_with_one_action_the_first_speaks() {
    let world = World::new();
    let everybody = rule("everybody", block(), When::default());
    let acme = rule("acme", block(), world.acme());
    let policy = world.policy(vec![everybody.clone(), acme.clone()], vec![]);
    assert_eq!(cause(&policy, &world), "everybody");
    assert_eq!(
        cause(&world.policy(vec![acme, everybody], vec![]), &world),
        "acme"
    );
}

#[test]
fn a_log_rule_counts_what_comes_and_changes_nothing() {
    let world = World::new();
    let rules = vec![
        rule("block", block(), world.acme()),
        rule("log", Action::Log, world.acme()),
    ];
    let policy = world.policy(rules, vec![]);
    assert_eq!(cause(&policy, &world), "block");
    let log = policy
        .rules()
        .find(|rule| rule.rule().name.as_str() == "log")
        .unwrap();
    assert_eq!((log.matches(), log.refusals()), (1, 0));
}

#[test]
fn a_shadow_block_changes_nothing_but_its_counter() {
    let world = World::new();
    let policy = world.policy(vec![shadow(rule("block", block(), world.acme()))], vec![]);
    assert_eq!(word(&policy, &world, 0.0), "forward");
    let block = policy.rules().next().unwrap();
    assert_eq!(
        (block.matches(), block.shadow_matches(), block.refusals()),
        (0, 1, 0)
    );
}

#[test]
fn a_shadow_allow_does_not_allow() {
    let world = World::new();
    let rules = vec![
        shadow(rule("allow", Action::Allow, world.acme())),
        rule("block", block(), world.acme()),
    ];
    assert_eq!(cause(&world.policy(rules, vec![]), &world), "block");
}

#[test]
fn a_shadow_throttle_refuses_nobody_and_spends_its_own_bucket() {
    let world = World::new();
    let enforced = rule("slow", throttle(2), world.acme());
    let in_shadow = shadow(rule("slower", throttle(1), world.acme()));
    let policy = world.policy(vec![in_shadow, enforced], vec![]);
    let words: Vec<_> = (0..3).map(|_| word(&policy, &world, 0.0)).collect();
    assert_eq!(words, ["forward", "forward", "throttle"]);
}

#[test]
fn a_shadow_limit_refuses_nobody_and_counts_whom_it_would_refuse() {
    let world = World::new();
    let in_shadow = LimitRule {
        mode: Mode::Shadow,
        ..limit("shadow", 2)
    };
    let policy = world.policy(vec![], vec![in_shadow]);
    for _ in 0..5 {
        assert_eq!(word(&policy, &world, 0.0), "forward");
    }
    let counted = policy.limits().next().unwrap();
    assert_eq!((counted.refusals(), counted.shadow_refusals()), (0, 3));
}

#[test]
fn a_request_that_is_refused_costs_a_shadow_limit_nothing() {
    let world = World::new();
    let in_shadow = LimitRule {
        mode: Mode::Shadow,
        ..limit("shadow", 2)
    };
    for limits in [
        vec![in_shadow.clone(), limit("one", 1)],
        vec![limit("one", 1), in_shadow],
    ] {
        let policy = world.policy(vec![], limits);
        for _ in 0..10 {
            policy.explain(&world.request(ADDRESS, ACME), at(0.0));
            let _either = word(&policy, &world, 0.0);
        }
        let refused: u64 = policy.limits().map(LimitInForce::shadow_refusals).sum();
        assert_eq!(
            refused, 0,
            "one was forwarded, so one of the two tokens is left"
        );
    }
}

#[test]
fn a_request_refused_by_one_limit_spends_no_token_of_another() {
    let world = World::new();
    for limits in [
        vec![limit("wide", 3), limit("narrow", 1)],
        vec![limit("narrow", 1), limit("wide", 3)],
    ] {
        let policy = world.policy(vec![], limits.clone());
        assert_eq!(cause(&policy, &world), "nobody");
        for _ in 0..10 {
            assert_eq!(cause(&policy, &world), "narrow");
        }
        let wide = limits
            .into_iter()
            .filter(|limit| limit.name.as_str() == "wide")
            .collect();
        let alone = world.recompile(vec![], wide, Some(&policy), at(0.0));
        let words: Vec<_> = (0..3).map(|_| word(&alone, &world, 0.0)).collect();
        assert_eq!(
            words,
            ["forward", "forward", "limit"],
            "only the one that was forwarded paid"
        );
    }
}

#[test]
fn of_two_limits_that_refuse_the_first_speaks_and_alone_is_counted() {
    let world = World::new();
    let policy = world.policy(vec![], vec![limit("first", 1), limit("second", 1)]);
    assert_eq!(cause(&policy, &world), "nobody");
    assert_eq!(cause(&policy, &world), "first");
    let refusals: Vec<u64> = policy.limits().map(LimitInForce::refusals).collect();
    assert_eq!(refusals, [1, 0]);
}

#[test]
fn a_request_refused_by_a_limit_spends_no_token_of_a_throttle() {
    let world = World::new();
    let slow = rule("slow", throttle(2), world.acme());
    let policy = world.policy(vec![slow.clone()], vec![limit("narrow", 1)]);
    let causes: Vec<_> = (0..5).map(|_| cause(&policy, &world)).collect();
    assert_eq!(causes, ["nobody", "narrow", "narrow", "narrow", "narrow"]);
    let alone = world.recompile(vec![slow], vec![], Some(&policy), at(0.0));
    assert_eq!(word(&alone, &world, 0.0), "forward");
    assert_eq!(
        word(&alone, &world, 0.0),
        "throttle",
        "the control: it had two tokens"
    );
}

#[test]
fn workers_that_decide_at_once_admit_no_more_than_the_limit() {
    let world = World::new();
    let policy = world.policy(vec![], vec![limit("wide", 1000), limit("narrow", 100)]);
    let forwarded = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..500 {
                    let admitted = word(&policy, &world, 0.0) == "forward";
                    forwarded.fetch_add(u32::from(admitted), Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(forwarded.into_inner(), 100);
    let refused: u64 = policy.limits().map(LimitInForce::refusals).sum();
    assert_eq!(refused, 4 * 500 - 100, "each refusal is counted once");
    let wide = world.recompile(vec![], vec![limit("wide", 1000)], Some(&policy), at(0.0));
    let left = (0..1000)
        .filter(|_| word(&wide, &world, 0.0) == "forward")
        .count();
    assert_eq!(left, 900, "what was forwarded is what was paid");
}

#[test]
fn a_limit_says_what_it_is_and_when_to_come_back() {
    let world = World::new();
    let ten_a_minute = LimitRule {
        rate: Rate::new(10, Duration::from_mins(1)).unwrap(),
        ..limit("login", 3)
    };
    let policy = world.policy(vec![], vec![ten_a_minute]);
    for _ in 0..3 {
        assert_eq!(word(&policy, &world, 0.0), "forward");
    }
    let expected = Verdict::Limit {
        limit: LimitHit {
            name: Name::new("login"),
            quota: 3,
            window_s: 18,
        },
        retry_after: Duration::from_secs(5),
    };
    assert_eq!(
        policy.decide(&world.request(ADDRESS, ACME), at(1.0)),
        expected
    );
    assert_eq!(word(&policy, &world, 5.999), "limit");
    assert_eq!(word(&policy, &world, 6.0), "forward");
}

#[test]
fn addresses_of_one_64_share_a_limit_and_others_do_not() {
    let world = World::new();
    let policy = world.policy(vec![], vec![limit("one", 1)]);
    let ask = |address| policy.decide(&world.request(address, &[]), at(0.0)).word();
    assert_eq!(ask("2001:db8::1"), "forward");
    assert_eq!(ask("2001:db8::2"), "limit");
    assert_eq!(ask("2001:db8:0:1::1"), "forward");
    assert_eq!(ask("192.0.2.1"), "forward");
    assert_eq!(ask("::ffff:192.0.2.1"), "limit");
}

#[test]
fn an_absent_attribute_of_a_key_is_a_value_of_its_own() {
    let world = World::new();
    let per_app_and_sdk = LimitRule {
        key: vec![world.id("app"), world.id("sdk")],
        ..limit("pair", 1)
    };
    let policy = world.policy(vec![], vec![per_app_and_sdk]);
    let ask = |values: &[(&str, &'static str)]| {
        policy
            .decide(&world.request(ADDRESS, values), at(0.0))
            .word()
    };
    for values in [
        &[][..],
        &[("app", "a")],
        &[("sdk", "a")],
        &[("app", "a"), ("sdk", "b")],
        &[("app", "b"), ("sdk", "a")],
    ] {
        assert_eq!(ask(values), "forward", "{values:?}");
        assert_eq!(ask(values), "limit", "{values:?}");
    }
}

#[test]
fn a_limit_of_one_service_leaves_others_alone() {
    let world = World::new();
    let chat_only = LimitRule {
        services: vec!["chat".into()],
        ..limit("chat", 1)
    };
    let policy = world.policy(vec![], vec![chat_only]);
    let ask = |values: &[(&str, &'static str)]| {
        policy
            .decide(&world.request(ADDRESS, values), at(0.0))
            .word()
    };
    let chat = [("service", "chat")];
    assert_eq!([ask(&chat), ask(&chat)], ["forward", "limit"]);
    let login = [("service", "login")];
    assert_eq!([ask(&login), ask(&login), ask(&[])], ["forward"; 3]);
}

#[test]
fn a_throttle_has_one_bucket_for_all_or_one_per_value() {
    let world = World::new();
    let slow = |per| {
        let action = Action::Throttle {
            rate: per_second(1),
            burst: 1,
            per,
        };
        world.policy(vec![rule("slow", action, world.acme())], vec![])
    };
    let ask =
        |policy: &Policy, address| policy.decide(&world.request(address, ACME), at(0.0)).word();
    let shared = slow(vec![]);
    assert_eq!(ask(&shared, "192.0.2.1"), "forward");
    assert_eq!(ask(&shared, "192.0.2.2"), "throttle");
    let each = slow(vec![AttributeId::IP]);
    assert_eq!(ask(&each, "192.0.2.1"), "forward");
    assert_eq!(ask(&each, "192.0.2.2"), "forward");
    assert_eq!(ask(&each, "192.0.2.2"), "throttle");
}

#[test]
fn a_ramp_acts_on_its_share_of_instances_and_keeps_them_as_it_grows() {
    let world = World::new();
    let ramp = |percent| {
        let block = Rule {
            percent,
            ..rule("ramp", block(), When::default())
        };
        world.policy(vec![block], vec![])
    };
    let refused_at = |percent| -> Vec<bool> {
        let policy = ramp(percent);
        let refused = (0..10_000_u32).map(|device| {
            let name = device.to_string();
            let facts = world.request(ADDRESS, &[("instance", &name)]);
            policy.decide(&facts, at(0.0)) != Verdict::Forward
        });
        let refused = refused.collect();
        let rule = policy.rules().next().unwrap();
        assert_eq!(rule.matches() + rule.shadow_matches(), 10_000);
        refused
    };
    let count = |refused: &[bool]| refused.iter().filter(|refused| **refused).count();
    let (ten, fifty) = (refused_at(10), refused_at(50));
    assert!((900..1100).contains(&count(&ten)), "{}", count(&ten));
    assert!((4800..5200).contains(&count(&fifty)), "{}", count(&fifty));
    assert!(ten.iter().zip(&fifty).all(|(ten, fifty)| !ten || *fifty));
    assert_eq!(count(&refused_at(0)), 0);
    assert_eq!(count(&refused_at(100)), 10_000);
}

#[test]
fn the_instances_outside_of_a_throttles_ramp_leave_its_bucket_alone() {
    let world = World::new();
    let half = Rule {
        percent: 50,
        ..rule("half", throttle(100), When::default())
    };
    let policy = world.policy(vec![half], vec![]);
    let mut forwarded = 0;
    for device in 0..1000_u32 {
        let name = device.to_string();
        let facts = world.request(ADDRESS, &[("instance", &name)]);
        forwarded += u64::from(policy.decide(&facts, at(0.0)) == Verdict::Forward);
    }
    let half = policy.rules().next().unwrap();
    assert!(half.shadow_matches() > 400, "{}", half.shadow_matches());
    assert_eq!(forwarded, half.shadow_matches() + 100, "and the burst");
}

#[test]
fn a_detected_rule_never_touches_a_trusted_proxy() {
    let world = World::new();
    let by = |origin| {
        let rule = Rule {
            origin,
            ..rule("block", block(), When::default())
        };
        let policy = world.policy(vec![rule], vec![]);
        let mut facts = world.request(ADDRESS, ACME);
        facts.mark_trusted_proxy();
        policy.decide(&facts, at(0.0)).word()
    };
    assert_eq!(by(Origin::Detected), "forward");
    assert_eq!(by(Origin::Operator), "block", "the operator's word holds");
}

#[test]
fn an_explanation_agrees_with_the_decision_and_leaves_no_trace() {
    let world = World::new();
    let rules = vec![
        shadow(rule("shadow", block(), world.acme())),
        rule("slow", throttle(3), world.acme()),
    ];
    let policy = world.policy(rules, vec![limit("two", 2)]);
    let facts = world.request(ADDRESS, &[("app", "acme"), ("token", "hunter2")]);
    for _ in 0..5 {
        for _ in 0..10 {
            policy.explain(&facts, at(0.0));
        }
        let explained = policy.explain(&facts, at(0.0));
        assert_eq!(policy.decide(&facts, at(0.0)), explained.verdict);
    }
    assert_eq!(
        policy.rules().map(RuleInForce::shadow_matches).sum::<u64>(),
        5
    );
    let explained = policy.explain(&facts, at(0.0));
    let steps: Vec<_> = explained
        .steps
        .iter()
        .map(|step| (step.name.as_str(), step.action, step.mode, step.outcome))
        .collect();
    assert_eq!(
        steps,
        [
            ("shadow", "block", Mode::Shadow, "refused"),
            ("slow", "throttle", Mode::Enforce, "admitted"),
            ("two", "limit", Mode::Enforce, "refused"),
        ]
    );
    assert_eq!(explained.rule, Some(Name::new("two")));
    let token = explained
        .attributes
        .iter()
        .find(|shown| *shown.name == *"token")
        .unwrap();
    assert_eq!(token.value, "(secret)");
}
