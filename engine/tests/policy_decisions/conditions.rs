//! When a condition holds.

use regex::Regex;
use tidegate_engine::policy::read_version;
use tidegate_engine::rules::{Condition, VersionCondition, When};

use crate::world::{World, at, block, is, rule};

fn not(condition: Condition) -> Condition {
    Condition::Not(Box::new(condition))
}

fn network(text: &str) -> Condition {
    Condition::Network(text.parse().expect("a network"))
}

fn exactly(text: &str) -> Condition {
    Condition::Version(VersionCondition::Exactly(text.into(), read_version(text)))
}

fn range(text: &str) -> Condition {
    Condition::Version(VersionCondition::Range(text.parse().expect("a range")))
}

/// A condition that holds as part of a policy, which may ask it in another way, and by itself.
fn holds(attribute: &str, condition: &Condition, address: &str, value: Option<&str>) -> bool {
    let world = World::new();
    let values: Vec<(&str, &str)> = value.map(|value| (attribute, value)).into_iter().collect();
    let facts = world.request(address, &values);
    let alone = condition.holds(world.id(attribute), &facts);
    let when = world.when(attribute, condition.clone());
    let policy = world.policy(vec![rule("block", block(), when)], vec![]);
    let in_policy = policy.decide(&facts, at(0.0)).word() == "block";
    assert_eq!(alone, in_policy, "{condition:?} of {value:?}");
    alone
}

fn of_app(condition: &Condition, value: Option<&str>) -> bool {
    holds("app", condition, "192.0.2.7", value)
}

#[test]
fn an_absent_attribute_matches_only_absence_and_not() {
    let any = || Regex::new("").expect("a regex");
    for (condition, expected) in [
        (is(""), false),
        (is("acme"), false),
        (Condition::Prefix("".into()), false),
        (Condition::Regex(any()), false),
        (range("*"), false),
        (exactly("1.0.0"), false),
        (Condition::AnyOf(vec![is("a"), is("b")]), false),
        (
            Condition::AnyOf((0..20).map(|n| is(&n.to_string())).collect()),
            false,
        ),
        (Condition::Present(true), false),
        (Condition::Present(false), true),
        (not(is("acme")), true),
        (
            not(Condition::AnyOf(
                (0..20).map(|n| is(&n.to_string())).collect(),
            )),
            true,
        ),
        (not(Condition::Present(true)), true),
        (not(Condition::Present(false)), false),
        (
            Condition::AnyOf(vec![is("a"), Condition::Present(false)]),
            true,
        ),
    ] {
        assert_eq!(of_app(&condition, None), expected, "{condition:?}");
    }
}

#[test]
fn texts_are_compared_byte_by_byte() {
    let scrapy = Condition::Regex(Regex::new("(?i)scrapy").expect("a regex"));
    let many = Condition::AnyOf((0..20).map(|n| is(&format!("app-{n}"))).collect());
    for (condition, value, expected) in [
        (is("acme"), "acme", true),
        (is("acme"), "Acme", false),
        (is("3.1"), "3.10", false),
        (Condition::Prefix("ac".into()), "acme", true),
        (Condition::Prefix("ac".into()), "mac", false),
        (scrapy, "Mozilla Scrapy/2", true),
        (many.clone(), "app-19", true),
        (many.clone(), "app-20", false),
        (not(many), "app-20", true),
        (Condition::Present(true), "", true),
    ] {
        assert_eq!(
            of_app(&condition, Some(value)),
            expected,
            "{condition:?} {value}"
        );
    }
}

#[test]
fn versions_are_ranges_or_one_version_however_it_is_written() {
    for (condition, value, expected) in [
        (exactly("3.2.0"), "3.2.0", true),
        (exactly("3.2.0"), "release-v3.2", true),
        (exactly("release-v3.2"), "3.2.0", true),
        (exactly("3.1"), "3.10", false),
        (exactly("3.2.0"), "3.2.0-beta", false),
        (exactly("nightly"), "nightly", true),
        (exactly("nightly"), "weekly", false),
        (range(">=3.2.0, <3.2.4"), "v3.2.3", true),
        (range(">=3.2.0, <3.2.4"), "3.2.4", false),
        (range(">=3.2.0, <3.2.4"), "3.2", true),
        (range("*"), "nightly", false),
    ] {
        let held = holds("sdk_version", &condition, "192.0.2.7", Some(value));
        assert_eq!(held, expected, "{condition:?} {value}");
    }
}

#[test]
fn networks_hold_the_whole_address_however_many_there_are() {
    let list = |count: u8| {
        Condition::AnyOf(
            (0..count)
                .map(|n| network(&format!("10.{n}.0.0/16")))
                .collect(),
        )
    };
    for (condition, address, expected) in [
        (network("192.0.2.0/24"), "192.0.2.7", true),
        (network("192.0.2.0/24"), "192.0.3.7", false),
        (network("192.0.2.0/24"), "::ffff:192.0.2.7", true),
        (network("2001:db8::1/128"), "2001:db8::1", true),
        (network("2001:db8::1/128"), "2001:db8::2", false),
        (list(3), "10.2.1.1", true),
        (list(3), "10.3.1.1", false),
        (list(100), "10.99.1.1", true),
        (list(100), "10.100.1.1", false),
        (not(list(100)), "10.100.1.1", true),
        (Condition::Present(true), "192.0.2.7", true),
        (is("192.0.2.7"), "192.0.2.7", true),
    ] {
        assert_eq!(
            holds("ip", &condition, address, None),
            expected,
            "{condition:?} {address}"
        );
    }
    assert!(holds(
        "network",
        &network("192.0.2.0/25"),
        "192.0.2.7",
        None
    ));
}

#[test]
fn an_address_attribute_of_the_operators_is_read_from_its_text() {
    let inside = network("192.0.2.0/24");
    for (value, expected) in [
        (Some("192.0.2.7"), true),
        (Some("::ffff:192.0.2.7"), true),
        (Some("198.51.100.1"), false),
        (Some("nonsense"), false),
        (None, false),
    ] {
        assert_eq!(
            holds("origin_ip", &inside, "203.0.113.1", value),
            expected,
            "{value:?}"
        );
    }
}

#[test]
fn all_conditions_of_a_rule_must_hold() {
    let world = World::new();
    let when = When {
        conditions: vec![(world.id("app"), is("acme")), (world.id("sdk"), is("web"))],
    };
    let policy = world.policy(vec![rule("block", block(), when)], vec![]);
    let ask = |values: &[(&str, &'static str)]| {
        policy
            .decide(&world.request("192.0.2.7", values), at(0.0))
            .word()
    };
    assert_eq!(ask(&[("app", "acme"), ("sdk", "web")]), "block");
    assert_eq!(ask(&[("app", "acme")]), "forward");
    assert_eq!(ask(&[("sdk", "web")]), "forward");
}
