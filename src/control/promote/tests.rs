//! A promoted rule hits whom the detected one hit, whatever clients call themselves.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::SystemTime;

use proptest::prelude::*;
use tidegate_engine::attribute::{AttributeKind, AttributeSpec, Schema, Side};
use tidegate_engine::policy::{Policy, PolicyParts};
use tidegate_engine::request::{HashKey, RequestFacts};
use tidegate_engine::rules::{
    Action, Condition, Mode, Origin, Rule, Rules, VersionCondition, When,
};
use tidegate_engine::rules_file::Vocabulary;
use tidegate_engine::source::Source;
use tidegate_engine::time::Instant;
use tidegate_engine::verdict::Name;

use super::{exact, text};
use crate::control::changes::Refused;

fn schema() -> Schema {
    let mut schema = Schema::built_in();
    for (name, kind) in [
        ("sdk", AttributeKind::Text),
        ("app", AttributeKind::Text),
        ("sdk_version", AttributeKind::Version),
        ("edge", AttributeKind::Address),
    ] {
        let spec = AttributeSpec {
            name: name.into(),
            kind,
            side: Side::Who,
            secret: false,
        };
        schema.add(spec).unwrap();
    }
    schema
}

/// Makes a rule as the detector does.
fn detected(source: Source) -> Rule {
    let schema = schema();
    let mut when = When::default();
    for (attribute, value) in source.iter() {
        let id = schema.id(attribute).unwrap();
        let text: Arc<str> = Arc::from(value);
        let condition = match schema.spec(id).unwrap().kind {
            AttributeKind::Text => Condition::Is(text),
            AttributeKind::Version => Condition::Version(VersionCondition::Exactly(text, None)),
            AttributeKind::Address => Condition::Network(value.parse().unwrap()),
        };
        when.conditions.push((id, condition));
    }
    for attribute in source.absent() {
        let id = schema.id(attribute).unwrap();
        when.conditions.push((id, Condition::Present(false)));
    }
    Rule {
        name: Name::new("detected-3"),
        when,
        when_text: source,
        action: Action::Block { status: 403 },
        mode: Mode::Enforce,
        percent: 1,
        until: None,
        reason: Some("incident 3: \"more\"".into()),
        origin: Origin::Detected,
        sparing: None,
    }
}

fn promoted(rule: &Rule) -> Result<String, Refused> {
    let mut vocabulary = Vocabulary::new(schema(), vec!["chat".into()]);
    let name = Name::new("loop-3");
    let conditions = exact::conditions(rule, &mut vocabulary)?;
    let provenance = text::Provenance {
        incident: None,
        by: "me\nrules: [x]",
        at: "2026-11-25T00:00:00Z",
    };
    let text = text::rule_file(rule, &name, &conditions, provenance);
    exact::check(&text, rule, &name, &mut vocabulary, SystemTime::UNIX_EPOCH)?;
    Ok(text)
}

fn read(text: &str) -> Rules {
    Rules::parse("p.yaml", text, &schema(), SystemTime::UNIX_EPOCH)
        .unwrap_or_else(|problems| panic!("{problems}\n{text}"))
}

fn policy(rules: Vec<Rule>) -> Policy {
    let parts = PolicyParts {
        schema: Arc::new(schema()),
        services: [].into(),
        rules,
        limits: Vec::new(),
        generation: 0,
    };
    let wall = SystemTime::UNIX_EPOCH;
    Policy::compile(parts, None, Instant::from_secs_f64(60.0), wall)
}

/// Returns whether a policy refuses a client whose attribute has this value.
fn refuses(policy: &Policy, attribute: &str, value: &str) -> bool {
    let key = HashKey::from_seed(1);
    let mut facts = RequestFacts::new(&key, "192.0.2.1".parse().unwrap());
    facts.set(schema().id(attribute).unwrap(), Cow::Borrowed(value));
    policy.decide(&facts, Instant::from_secs_f64(60.0)).word() == "block"
}

/// What clients may call themselves to be read as something else.
const NAMES: [&str; 40] = [
    "acme",
    "3.10",
    "null",
    "yes",
    "a: b",
    "# x",
    "{ x }",
    "\"",
    "\\",
    "é",
    "日本",
    "🎈",
    " x ",
    "a\u{2028}b",
    "- x",
    "*a",
    "&a",
    "!!str",
    "0x10",
    "1e3",
    "~",
    "a\u{7f}b",
    "a\nb",
    "<<",
    "",
    "^a$",
    ">=0.0.0",
    ">0",
    "*",
    "3.*",
    "1.x",
    "<2 || >1",
    "3.2",
    "3.2.0",
    "v3.2.0",
    "release-v3.2",
    "3..2",
    "=3.2.0, <9",
    "3.2.1.4.5",
    "hash:0123456789abcdef",
];

#[test]
fn a_promoted_rule_hits_exactly_whom_it_hit() {
    for attribute in ["app", "sdk_version", "method", "host"] {
        for value in NAMES {
            let lower = value.to_ascii_lowercase();
            let value = if attribute == "host" { &lower } else { value };
            let rule = detected(Source::everybody().with(attribute, value));
            let before = policy(vec![Rule {
                percent: 100,
                ..rule.clone()
            }]);
            let text = match promoted(&rule) {
                Ok(text) => text,
                // A method in small letters is a pattern, and this one would not see what is long.
                Err(Refused::NotExact(..))
                    if attribute == "method" && value.starts_with("hash:") =>
                {
                    continue;
                }
                Err(error) => panic!("{attribute} {value:?}: {error}"),
            };
            let after = policy(read(&text).rules);
            assert!(refuses(&after, attribute, value), "{value:?}\n{text}");
            for other in NAMES {
                assert_eq!(
                    refuses(&after, attribute, other),
                    refuses(&before, attribute, other),
                    "{attribute}: {value:?} and {other:?}\n{text}"
                );
            }
        }
    }
}

proptest! {
    /// The same of whatever else there is, above all of what looks like versions and ranges.
    #[test]
    fn a_promoted_rule_hits_no_neighbour(
        value in "([<>=^~]{0,2}[v0-9.*x, |-]{0,8}[a-z+]{0,3}|\\PC{0,12})",
        other in "([<>=^~]{0,2}[v0-9.*x, |-]{0,8}[a-z+]{0,3}|\\PC{0,12})",
    ) {
        for attribute in ["app", "sdk_version"] {
            let rule = detected(Source::everybody().with(attribute, &value));
            let text = promoted(&rule).map_err(|error| TestCaseError::fail(error.to_string()))?;
            let after = policy(read(&text).rules);
            prop_assert!(refuses(&after, attribute, &value), "{}", text);
            prop_assert_eq!(refuses(&after, attribute, &other), value == other, "{}", text);
        }
    }
}

/// They failed for every blocked IPv6 source: a network is no address to be tested with.
#[test]
fn the_tests_of_a_promoted_rule_are_read_and_pass() {
    let source = Source::everybody;
    for (source, given) in [
        (source().with("ip", "2001:db8::/64"), "ip: \"2001:db8::\""),
        (source().with("ip", "192.0.2.7/32"), "ip: \"192.0.2.7\""),
        (
            source().with("network", "2001:db8::/48"),
            "ip: \"2001:db8::\"",
        ),
        (
            source().with("network", "198.51.100.0/24"),
            "ip: \"198.51.100.1\"",
        ),
        (
            source()
                .with("ip", "198.51.100.7/32")
                .with("network", "198.51.100.0/24"),
            "ip: \"198.51.100.7\"",
        ),
        (source().with("edge", "10.1.2.3/32"), "edge: \"10.1.2.3\""),
        (source().with("app", "acme").lacking("sdk"), "app: acme"),
        (source().with("service", "chat"), "service: chat"),
    ] {
        let text = promoted(&detected(source)).unwrap_or_else(|error| panic!("{error}"));
        assert!(text.contains(&format!("given: {{ {given} }}")), "{text}");
        let rules = read(&text);
        assert_eq!(rules.tests.len(), 1);
        let passed = policy(rules.rules).run_test(&rules.tests[0], Instant::from_secs_f64(60.0));
        assert_eq!(passed, Ok(()), "{text}");
    }
    let absent = promoted(&detected(source().lacking("sdk"))).unwrap();
    assert_eq!(read(&absent).tests.len(), 0, "nothing can be given");
}

/// What never acted became a rule that acts for everybody.
#[test]
fn what_is_in_shadow_becomes_a_file_in_shadow() {
    let rule = Rule {
        mode: Mode::Shadow,
        ..detected(Source::everybody().with("app", "acme"))
    };
    let rules = read(&promoted(&rule).unwrap());
    assert_eq!(rules.rules[0].mode, Mode::Shadow);
    assert_eq!(rules.tests.len(), 0, "it refuses nobody");
    let acting = read(&promoted(&detected(rule.when_text)).unwrap());
    assert_eq!(acting.rules[0].mode, Mode::Enforce);
}

#[test]
fn what_a_file_cannot_say_exactly_is_not_said() {
    let schema = schema();
    let mut rule = detected(Source::everybody().with("app", "acme"));
    for condition in [
        Condition::Prefix("a".into()),
        // Bits beyond its length.
        Condition::Network("10.1.2.3/8".parse().unwrap()),
    ] {
        let (id, _) = rule.when.conditions[0];
        rule.when.conditions = vec![(id, condition)];
        let refused = promoted(&rule).unwrap_err();
        assert!(matches!(refused, Refused::NotExact(..)), "{refused}");
    }
    // The text would have been read as another rule than this one.
    let rule = detected(Source::everybody().with("app", "acme"));
    let other = promoted(&detected(Source::everybody().with("app", "zeta"))).unwrap();
    let mut vocabulary = Vocabulary::of_schema(schema);
    let name = Name::new("loop-3");
    let now = SystemTime::UNIX_EPOCH;
    let refused = exact::check(&other, &rule, &name, &mut vocabulary, now).unwrap_err();
    assert!(matches!(refused, Refused::NotExact(..)), "{refused}");
}
