//! The policy beside a slow and obvious one: every rule asked about every request, by rank.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::SystemTime;

use ipnet::IpNet;
use proptest::prelude::*;
use tidegate_engine::attribute::{AttributeId, Schema};
use tidegate_engine::policy::{Policy, PolicyParts};
use tidegate_engine::request::{HashKey, RequestFacts};
use tidegate_engine::rules::{Action, Condition, Mode, Origin, Rule, VersionCondition, When};
use tidegate_engine::source::Source;
use tidegate_engine::time::Instant;
use tidegate_engine::verdict::Name;
use tidegate_engine::version::parse_version;

const ATTRIBUTES: [AttributeId; 4] = [
    AttributeId::USER_AGENT,
    AttributeId::JA4,
    AttributeId::HOST,
    AttributeId::METHOD,
];

/// Numbers, which are texts and versions, some of them the same version in another text.
fn text() -> impl Strategy<Value = Arc<str>> {
    prop_oneof![
        8 => (0_u8..12).prop_map(|n| Arc::from(n.to_string())),
        1 => (0_u8..12).prop_map(|n| Arc::from(format!("v{n}"))),
        1 => (0_u8..12).prop_map(|n| Arc::from(format!("{n}.0"))),
        1 => (0_u8..12).prop_map(|n| Arc::from(format!("{n}.0.0-rc.1"))),
        1 => (0_u8..12).prop_map(|n| Arc::from(format!("{n}.0.0.1"))),
    ]
}

/// Ones, which begin with one another, more deeply than rules hang.
fn ones() -> impl Strategy<Value = Arc<str>> {
    (0_usize..20).prop_map(|n| Arc::from("1".repeat(n)))
}

/// What a client sends: one of the texts, one of them padded, or an address.
fn value() -> impl Strategy<Value = Arc<str>> {
    prop_oneof![
        12 => text(),
        2 => ones(),
        1 => text().prop_map(|text| Arc::from(format!("{text}{}", "0".repeat(300)))),
        1 => address().prop_map(|address| Arc::from(address.to_string())),
    ]
}

fn version() -> impl Strategy<Value = Condition> {
    let operator = prop::sample::select(&["<", "<=", "=", ">", ">=", "^", "~"][..]);
    let range = (
        operator,
        0_u8..12,
        prop::sample::select(&["", ".0", ".0.0", ".0.0-rc.1"][..]),
    );
    let version = prop_oneof![
        2 => text().prop_map(|text| {
            let version = parse_version(&text);
            VersionCondition::Exactly(text, version)
        }),
        1 => range.prop_map(|(operator, number, rest)| {
            let text = format!("{operator}{number}{rest}");
            VersionCondition::Range(text.parse().expect("a range"))
        }),
    ];
    version.prop_map(Condition::Version)
}

fn condition() -> impl Strategy<Value = Condition> {
    let leaf = prop_oneof![
        4 => text().prop_map(Condition::Is),
        2 => version(),
        1 => text().prop_map(Condition::Prefix),
        2 => ones().prop_map(Condition::Prefix),
        1 => network(),
        1 => any::<bool>().prop_map(Condition::Present),
    ];
    leaf.prop_recursive(2, 20, 10, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..12).prop_map(Condition::AnyOf),
            prop::collection::vec(text().prop_map(Condition::Is), 8..12).prop_map(Condition::AnyOf),
            inner.prop_map(|one| Condition::Not(Box::new(one))),
        ]
    })
}

/// Few distinct bits, so that networks nest, deeply, and addresses hit them.
fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        4 => (0_u32..8).prop_map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits << 29 | bits))),
        1 => (0_u128..8).prop_map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits << 125 | bits))),
    ]
}

fn network() -> impl Strategy<Value = Condition> {
    (address(), 0_u8..=32).prop_map(|(address, length)| {
        Condition::Network(IpNet::new(address, length).expect("no longer than an address"))
    })
}

fn when() -> impl Strategy<Value = When> {
    let of = |id, often| {
        prop::option::weighted(often, condition()).prop_map(move |one| one.map(|one| (id, one)))
    };
    let networks = prop_oneof![
        3 => network(),
        1 => prop::collection::vec(network(), 0..12).prop_map(Condition::AnyOf),
        1 => network().prop_map(|one| Condition::Not(Box::new(one))),
        1 => address().prop_map(|address| Condition::Is(address.to_string().into())),
    ];
    let whose = prop::sample::select(&[AttributeId::IP, AttributeId::NETWORK][..]);
    let within = prop::option::weighted(0.5, (whose, networks));
    let texts = prop_oneof![
        2 => ATTRIBUTES.map(|id| of(id, 0.4)),
        1 => ATTRIBUTES.map(|id| of(id, 0.05)),
    ];
    let many = (texts, within).prop_map(|(texts, within)| When {
        conditions: texts.into_iter().flatten().chain(within).collect(),
    });
    // Many rules of one kind about one attribute: what lies inside what.
    let alone = prop_oneof![
        4 => ones().prop_map(|ones| (ATTRIBUTES[0], Condition::Prefix(ones))),
        1 => version().prop_map(|version| (ATTRIBUTES[0], version)),
        2 => (0_u8..20).prop_map(|length| {
            let all = IpNet::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), length);
            let network = all.expect("no longer than an address");
            (AttributeId::IP, Condition::Network(network))
        }),
    ];
    let alone = alone.prop_map(|one| When {
        conditions: vec![one],
    });
    prop_oneof![1 => many, 1 => alone]
}

fn rules() -> impl Strategy<Value = Vec<Rule>> {
    let action = prop_oneof![
        Just(Action::Allow),
        Just(Action::Drop),
        Just(Action::Block { status: 403 }),
        Just(Action::Tarpit),
        Just(Action::Log),
    ];
    let mode = prop_oneof![4 => Just(Mode::Enforce), 1 => Just(Mode::Shadow)];
    let one = (when(), action, mode);
    prop::collection::vec(one, 0..40).prop_map(|all| {
        let rules = all.into_iter().enumerate();
        rules
            .map(|(at, (when, action, mode))| Rule {
                name: Name::new(&at.to_string()),
                when,
                when_text: Source::everybody(),
                action,
                mode,
                percent: 100,
                until: None,
                reason: None,
                origin: Origin::File,
                sparing: None,
            })
            .collect()
    })
}

/// The name of the rule that decides, and how often each rule matched.
fn obvious(rules: &[Rule], facts: &RequestFacts<'_>) -> (Option<Name>, Vec<Name>) {
    let mut matched = Vec::new();
    for word in ["log", "allow", "drop", "block", "tarpit"] {
        for rule in rules.iter().filter(|rule| rule.action.word() == word) {
            let conditions = &rule.when.conditions;
            if !conditions
                .iter()
                .all(|(id, condition)| condition.holds(*id, facts))
            {
                continue;
            }
            matched.push(rule.name.clone());
            if rule.mode == Mode::Enforce && word != "log" {
                return (Some(rule.name.clone()), matched);
            }
        }
    }
    (None, matched)
}

proptest! {
    #[test]
    fn the_policy_decides_as_a_walk_over_all_rules_does(
        rules in rules(),
        requests in prop::collection::vec(
            ([(); 4].map(|()| prop::option::of(value())), address()),
            1..20
        )
    ) {
        let parts = PolicyParts {
            schema: Arc::new(Schema::built_in()),
            services: Arc::from([]),
            rules: rules.clone(),
            limits: Vec::new(),
            generation: 1,
        };
        let policy = Policy::compile(parts, None, Instant::ZERO, SystemTime::UNIX_EPOCH);
        let key = HashKey::from_seed(1);
        for (values, address) in &requests {
            let mut facts = RequestFacts::new(&key, *address);
            for (id, value) in ATTRIBUTES.into_iter().zip(values) {
                if let Some(value) = value {
                    facts.set(id, Cow::Borrowed(value));
                }
            }
            let (decides, matched) = obvious(&rules, &facts);
            let explained = policy.explain(&facts, Instant::ZERO);
            let steps: Vec<Name> = explained.steps.iter().map(|step| step.name.clone()).collect();
            prop_assert_eq!(steps, matched);
            let verdict = policy.decide(&facts, Instant::ZERO);
            prop_assert_eq!(verdict.cause(), decides.as_ref());
        }
    }
}
