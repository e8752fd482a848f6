//! What one decision costs: `cargo bench -p tidegate-engine --bench decide`.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use divan::{Bencher, black_box};
use ipnet::{IpNet, Ipv4Net};
use tidegate_engine::attribute::{AttributeId, AttributeKind, AttributeSpec, Schema, Side};
use tidegate_engine::policy::{Policy, PolicyParts, read_version};
use tidegate_engine::request::{HashKey, RequestFacts};
use tidegate_engine::rules::{
    Action, Condition, LimitRule, Mode, Origin, Rule, VersionCondition, When,
};
use tidegate_engine::source::Source;
use tidegate_engine::time::Instant;
use tidegate_engine::units::Rate;
use tidegate_engine::verdict::Name;

/// Live keys of both limits: each has as many buckets.
const LIVE_KEYS: u32 = 1_000_000;

/// The operator's attributes, which make 12 with those that every request has.
const OWN: [&str; 5] = ["sdk", "sdk_version", "app", "tenant", "platform"];

fn main() {
    divan::main();
}

fn schema() -> Schema {
    let mut schema = Schema::built_in();
    for name in OWN {
        let spec = AttributeSpec {
            name: name.into(),
            kind: AttributeKind::Text,
            side: Side::Who,
            secret: false,
        };
        schema.add(spec).expect("the names differ");
    }
    schema
}

fn policy(rules: u32, keys_max: u32) -> Policy {
    Policy::compile(
        parts(rules, keys_max),
        None,
        Instant::ZERO,
        SystemTime::UNIX_EPOCH,
    )
}

/// Rules that block one app in one version each, and two limits per address and per instance.
fn parts(rules: u32, keys_max: u32) -> PolicyParts {
    let schema = schema();
    let id = |name| schema.id(name).expect("an attribute of the schema");
    let rule = |number: u32| Rule {
        name: Name::new(&format!("rule-{number}")),
        when: When {
            conditions: vec![
                (id("sdk"), Condition::Is("chat-android".into())),
                (id("sdk_version"), Condition::Is("3.2.1".into())),
                (id("app"), Condition::Is(format!("bad-{number}").into())),
            ],
        },
        when_text: Source::everybody(),
        action: Action::Block { status: 403 },
        mode: Mode::Enforce,
        percent: 100,
        until: None,
        reason: None,
        origin: Origin::File,
        sparing: None,
    };
    let limit = |name, key| LimitRule {
        name: Name::new(name),
        key: vec![key],
        rate: Rate::new(1000, Duration::from_secs(1)).expect("not zero"),
        burst: 1000,
        keys_max: keys_max as usize,
        services: Vec::new(),
        when: When::default(),
        mode: Mode::Enforce,
    };
    PolicyParts {
        rules: (0..rules).map(rule).collect(),
        limits: vec![
            limit("per-address", AttributeId::IP),
            limit("per-instance", AttributeId::INSTANCE),
        ],
        services: Arc::from([]),
        generation: 1,
        schema: Arc::new(schema),
    }
}

/// The request of one device, with 12 attributes.
fn request<'a>(
    key: &'a HashKey,
    ids: &[AttributeId],
    device: u32,
    app: &'a str,
) -> RequestFacts<'a> {
    let mut facts = RequestFacts::new(key, IpAddr::V4(Ipv4Addr::from_bits(device)));
    let values = ["chat-android", "3.2.1", app, "acme", "android"];
    for (id, value) in ids.iter().zip(values) {
        facts.set(*id, Cow::Borrowed(value));
    }
    facts.set(AttributeId::INSTANCE, Cow::Owned(device.to_string()));
    facts.set(AttributeId::USER_AGENT, Cow::Borrowed("okhttp/4.9.3"));
    facts.set(AttributeId::SERVICE, Cow::Borrowed("chat"));
    facts.set(AttributeId::METHOD, Cow::Borrowed("GET"));
    facts.set(AttributeId::ROUTE, Cow::Borrowed("/v1/chat/"));
    facts
}

/// Decides about `keys` devices in random order; each bucket has room.
fn decide(bencher: Bencher<'_, '_>, rules: u32, keys: u32, app: &str) {
    let policy = policy(rules, 2 * keys);
    let key = HashKey::from_seed(1);
    let ids: Vec<_> = OWN
        .iter()
        .filter_map(|name| policy.schema().id(name))
        .collect();
    let now = Instant::from_secs_f64(1.0);
    for device in 0..keys {
        let _warm = policy.decide(&request(&key, &ids, device, "good"), now);
    }
    let mut number = 0_u32;
    let mut now = now;
    bencher
        .with_inputs(|| {
            number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            now = now + Duration::from_micros(10);
            (request(&key, &ids, (number >> 8) % keys, app), now)
        })
        .bench_local_refs(|(facts, now)| black_box(policy.decide(facts, *now)));
}

/// Forwarded: two buckets looked at and spent.
#[divan::bench(args = [0, 10, 10_000], sample_count = 1000, sample_size = 100)]
fn forward_under_two_limits_with_a_million_keys(bencher: Bencher<'_, '_>, rules: u32) {
    decide(bencher, rules, LIVE_KEYS, "good");
}

/// The same where all buckets are in the cache.
#[divan::bench(args = [10], sample_count = 1000, sample_size = 100)]
fn forward_under_two_limits_with_a_thousand_keys(bencher: Bencher<'_, '_>, rules: u32) {
    decide(bencher, rules, 1000, "good");
}

/// The same among rules for one network each, of which the last holds the address.
#[divan::bench(args = [10, 10_000], sample_count = 1000, sample_size = 100)]
fn block_by_network(bencher: Bencher<'_, '_>, rules: u32) {
    let mut parts = parts(rules, 1000);
    for (number, rule) in (0_u32..).zip(&mut parts.rules) {
        let network = Ipv4Net::new_assert(Ipv4Addr::from_bits((10 << 24) + (number << 8)), 24);
        let within = Condition::Network(IpNet::V4(network));
        rule.when.conditions = vec![(AttributeId::IP, within)];
    }
    let policy = Policy::compile(parts, None, Instant::ZERO, SystemTime::UNIX_EPOCH);
    let key = HashKey::from_seed(1);
    let device = (10 << 24) + ((rules - 1) << 8) + 7;
    let now = Instant::from_secs_f64(1.0);
    bencher
        .with_inputs(|| request(&key, &[], device, "good"))
        .bench_local_refs(|facts| black_box(policy.decide(facts, now)));
}

/// What the rules of one bench are about; each request is refused by the last of them.
#[derive(Clone, Copy, Debug)]
enum Shape {
    /// One of three apps.
    List,
    /// One of three networks.
    Networks,
    /// An app, and a range of versions.
    AppInRange,
    /// A range of versions alone; each version is in two of them.
    Range,
    /// One version alone.
    Version,
    /// What the app begins with.
    Prefix,
    /// A client's /24.
    NetworkOfClient,
}

impl Shape {
    fn when(self, number: u32, id: impl Fn(&str) -> AttributeId) -> Vec<(AttributeId, Condition)> {
        let app = |number: u32| Condition::Is(format!("bad-{number}").into());
        let prefix = |number: u32| Condition::Prefix(format!("bad-{number}-").into());
        let network = |number: u32, length| {
            let address = Ipv4Addr::from_bits((10 << 24) + (number << 8));
            Condition::Network(IpNet::V4(Ipv4Net::new_assert(address, length)))
        };
        let range = |number: u32| {
            let text = format!(">=3.{number}.0, <3.{}.0", number + 2);
            Condition::Version(VersionCondition::Range(text.parse().expect("a range")))
        };
        match self {
            Self::List => {
                let any = [0, 1, 2].map(|n| app(3 * number + n));
                vec![(id("app"), Condition::AnyOf(any.to_vec()))]
            }
            Self::Networks => {
                let any = [0, 20_000, 40_000].map(|n| network(number + n, 24));
                vec![(AttributeId::IP, Condition::AnyOf(any.to_vec()))]
            }
            Self::AppInRange => vec![(id("app"), app(number)), (id("sdk_version"), range(number))],
            Self::Range => vec![(id("sdk_version"), range(number))],
            Self::Version => {
                let text = format!("3.{number}.1");
                let version = read_version(&text);
                let exactly = VersionCondition::Exactly(text.into(), version);
                vec![(id("sdk_version"), Condition::Version(exactly))]
            }
            Self::Prefix => vec![(id("app"), prefix(number))],
            Self::NetworkOfClient => vec![(AttributeId::NETWORK, network(number, 24))],
        }
    }
}

/// Refused by the last rule, where none names one value of one attribute.
#[divan::bench(
    args = [
        Shape::List,
        Shape::Networks,
        Shape::AppInRange,
        Shape::Range,
        Shape::Version,
        Shape::Prefix,
        Shape::NetworkOfClient,
    ],
    consts = [10, 10_000],
    sample_count = 1000,
    sample_size = 10
)]
fn block_by<const RULES: u32>(bencher: Bencher<'_, '_>, shape: Shape) {
    let schema = schema();
    let mut parts = parts(RULES, 1000);
    for (number, rule) in (0_u32..).zip(&mut parts.rules) {
        let id = |name: &str| schema.id(name).expect("an attribute of the schema");
        rule.when.conditions = shape.when(number, id);
    }
    let policy = Policy::compile(parts, None, Instant::ZERO, SystemTime::UNIX_EPOCH);
    let last = RULES - 1;
    let app = match shape {
        Shape::List => format!("bad-{}", 3 * last + 2),
        Shape::Prefix => format!("bad-{last}-beta"),
        _ => format!("bad-{last}"),
    };
    let version = format!(
        "3.{}.1",
        if matches!(shape, Shape::Range) {
            RULES
        } else {
            last
        }
    );
    let key = HashKey::from_seed(1);
    let ids: Vec<_> = OWN.iter().filter_map(|name| schema.id(name)).collect();
    let now = Instant::from_secs_f64(1.0);
    let make = || {
        let mut facts = request(&key, &ids, (10 << 24) + (last << 8) + 7, &app);
        if let Some(id) = schema.id("sdk_version") {
            facts.set(id, Cow::Borrowed(&version));
        }
        facts
    };
    assert_eq!(policy.decide(&make(), now).word(), "block");
    bencher
        .with_inputs(make)
        .bench_local_refs(|facts| black_box(policy.decide(facts, now)));
}

/// Refused by the last rule.
#[divan::bench(args = [10, 10_000], sample_count = 1000, sample_size = 100)]
fn block(bencher: Bencher<'_, '_>, rules: u32) {
    decide(bencher, rules, 1000, &format!("bad-{}", rules - 1));
}

/// Makes a policy of rules that were read before.
#[divan::bench(args = [10, 10_000], sample_count = 20)]
fn compile(bencher: Bencher<'_, '_>, rules: u32) {
    let previous = policy(rules, 1000);
    bencher
        .with_inputs(|| parts(rules, 1000))
        .bench_values(|parts| {
            Policy::compile(
                parts,
                Some(&previous),
                Instant::ZERO,
                SystemTime::UNIX_EPOCH,
            )
        });
}
