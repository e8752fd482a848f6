//! What a rules file becomes when nothing is wrong with it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tidegate_engine::attribute::{AttributeId, AttributeKind, AttributeSpec, Schema, Side};
use tidegate_engine::problem::Problems;
use tidegate_engine::rules::{Action, Condition, Mode, Origin, Rules, VersionCondition};
use tidegate_engine::rules_file::{RulesFile, Vocabulary, parse_rule};

const WRITTEN: &str = r#"
limits:
  - name: per-address
    key: [ip]
    rate: 20/s
    burst: 40
    services: [chat, kb]
  - name: login-attempts
    key: [ip]
    when: { service: login, method: POST }
    rate: 10/m
    mode: shadow
rules:
  - name: acme-android-loop
    when: { sdk: chat-android, sdk_version: ">=3.2.0, <3.2.4", app: acme }
    action: block
    status: 451
    percent: 25
    until: 2026-12-01T00:00:00Z
    reason: "loop, ticket 4711"
  - name: slow-scrapers
    when: { user_agent: { regex: "(?i)scrapy" }, ip: { not: [192.0.2.0/24, "2001:db8::1"] } }
    action: throttle
    rate: 90/m
    ttl: 2h
tests:
  - given: { sdk: chat-android, sdk_version: 3.10, app: acme, ip: 198.51.100.7 }
    expect: { verdict: block, rule: acme-android-loop }
"#;

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000)
}

fn schema() -> Schema {
    let mut schema = Schema::built_in();
    for (name, kind) in [
        ("sdk", AttributeKind::Text),
        ("sdk_version", AttributeKind::Version),
        ("app", AttributeKind::Text),
    ] {
        let spec = AttributeSpec {
            name: Arc::from(name),
            kind,
            side: Side::Who,
            secret: false,
        };
        schema.add(spec).expect("names are distinct");
    }
    schema
}

fn parse(text: &str) -> Result<Rules, Problems> {
    Rules::parse("rules.yaml", text, &schema(), now())
}

#[test]
fn what_was_written_is_what_is_valid() {
    let schema = schema();
    let rules = parse(WRITTEN).unwrap();

    let [per_address, login] = &rules.limits[..] else {
        panic!("two limits")
    };
    assert_eq!(per_address.key, [AttributeId::IP]);
    assert_eq!(per_address.burst, 40);
    assert_eq!(per_address.keys_max, 500_000);
    assert_eq!(per_address.services, [Arc::from("chat"), Arc::from("kb")]);
    assert_eq!((login.burst, login.mode), (10, Mode::Shadow));

    let [block, throttle] = &rules.rules[..] else {
        panic!("two rules")
    };
    assert_eq!(block.action, Action::Block { status: 451 });
    assert_eq!((block.percent, block.origin), (25, Origin::File));
    assert_eq!(
        block.when_text.to_string(),
        "app=acme, sdk=chat-android, sdk_version=>=3.2.0, <3.2.4"
    );
    let (id, Condition::Version(VersionCondition::Range(range))) = &block.when.conditions[1] else {
        panic!("a version range")
    };
    assert_eq!(Some(*id), schema.id("sdk_version"));
    assert!(range.matches(&"3.2.3".parse().unwrap()));
    assert!(block.until.is_some());

    let Action::Throttle { rate, burst, per } = &throttle.action else {
        panic!("a throttle")
    };
    assert_eq!(
        rate.interval(),
        Duration::from_millis(666) + Duration::from_nanos(666_666)
    );
    assert_eq!(
        (*burst, per.len()),
        (2, 0),
        "what comes in a second, rounded up"
    );
    assert_eq!(throttle.until, Some(now() + Duration::from_hours(2)));

    let [test] = &rules.tests[..] else {
        panic!("one test")
    };
    assert_eq!(test.place.to_string(), "rules.yaml:27:5");
    assert_eq!(test.address.to_string(), "198.51.100.7");
    let version = &test
        .given
        .iter()
        .find(|(id, _)| Some(*id) == schema.id("sdk_version"));
    assert_eq!(&*version.unwrap().1, "3.10", "taken as written");
}

#[test]
fn a_byte_order_mark_and_windows_line_ends_change_nothing() {
    let windows = format!("\u{feff}{}", WRITTEN.replace('\n', "\r\n"));
    let (plain, windows) = (parse(WRITTEN).unwrap(), parse(&windows).unwrap());
    assert_eq!(format!("{plain:?}"), format!("{windows:?}"));
}

#[test]
fn a_commit_hash_is_a_version_of_its_own() {
    let sha = "3fa94bcd0e0d4bfb9f0c7b3f0c7b3f0c7b3f0c7b";
    let rules = parse(&format!(
        "rules: [{{ name: a, when: {{ sdk_version: {sha} }}, action: log }}]"
    ));
    let Condition::Version(condition) = &rules.unwrap().rules[0].when.conditions[0].1 else {
        panic!("a version")
    };
    assert_eq!(*condition, VersionCondition::Exactly(Arc::from(sha), None));
}

#[test]
fn without_settings_any_attribute_is_taken_and_ranges_are_understood() {
    let mut vocabulary = Vocabulary::lenient();
    let file = RulesFile::parse("rules.yaml", WRITTEN, &mut vocabulary, now()).unwrap();
    let rules = RulesFile::join(vec![file]).unwrap();
    assert!(matches!(
        rules.rules[0].when.conditions[1].1,
        Condition::Version(VersionCondition::Range(_))
    ));
    assert!(vocabulary.schema().id("sdk_version").is_some());
}

#[test]
fn files_of_a_folder_share_their_names() {
    let read = |path: &str, text: &str| {
        RulesFile::parse(path, text, &mut Vocabulary::of_schema(schema()), now()).unwrap()
    };
    let rule = "rules: [{ name: loop, when: { app: acme }, action: log }]";
    let limit = "limits: [{ name: loop, key: [ip], rate: 1/s }]";
    let test = "tests: [{ given: {}, expect: { verdict: limit, rule: loop } }]";
    let other = "tests: [{ given: {}, expect: { verdict: limit, rule: other } }]";
    assert!(RulesFile::join(vec![read("a.yaml", limit), read("b.yaml", test)]).is_ok());
    let problems = RulesFile::join(vec![
        read("a.yaml", rule),
        read("b.yaml", limit),
        read("c.yaml", other),
    ]);
    assert_eq!(
        problems.unwrap_err().to_string(),
        "b.yaml:1:18: the name `loop` is given twice, first at a.yaml:1:17; rules and limits share \
         their names, choose another\n\
         c.yaml:1:54: there is no rule or limit `other`; write one that exists"
    );
}

#[test]
fn a_rule_alone_may_be_json() {
    let json = r#"{"name":"loop","when":{"app":["acme","zeta"],"sdk":{"present":false}},"action":"throttle","rate":"5/s","ttl":"1h"}"#;
    let mut vocabulary = Vocabulary::of_schema(schema());
    let rule = parse_rule("body", json, &mut vocabulary, now(), Origin::Operator).unwrap();
    assert_eq!(rule.origin, Origin::Operator);
    assert_eq!(
        rule.when_text.to_string(),
        "app=[acme, zeta], sdk={ present: false }"
    );
    let twice = r#"{"name":"loop","name":"loop","acton":"block"}"#;
    let problems = parse_rule("body", twice, &mut vocabulary, now(), Origin::Operator);
    assert_eq!(problems.unwrap_err().len(), 4, "name, acton, when, action");
}

#[test]
fn ten_thousand_rules_are_read() {
    use std::fmt::Write;
    let mut text = "rules:\n".to_owned();
    for n in 0..10_000 {
        writeln!(
            text,
            "  - name: rule-{n}\n    when: {{ sdk: chat-android, sdk_version: \">=3.{n}.0, <3.{n}.4\", app: [acme-{n}, zeta] }}\n    action: block\n    until: 2026-12-01T00:00:00Z\n    reason: \"loop, ticket {n}\"",
        )
        .unwrap();
    }
    assert_eq!(parse(&text).unwrap().rules.len(), 10_000);
}
