//! A schema of an operator's attributes, and short ways to make rules, limits and requests.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tidegate_engine::attribute::{AttributeId, AttributeKind, AttributeSpec, Schema, Side};
use tidegate_engine::policy::{Policy, PolicyParts};
use tidegate_engine::request::{HashKey, RequestFacts};
use tidegate_engine::rules::{Action, Condition, LimitRule, Mode, Origin, Rule, When};
use tidegate_engine::source::Source;
use tidegate_engine::time::Instant;
use tidegate_engine::units::Rate;
use tidegate_engine::verdict::Name;

pub(crate) const WALL: SystemTime = SystemTime::UNIX_EPOCH;

/// The attributes `sdk`, `sdk_version`, `app` and the secret `token`, beside the built-in ones.
pub(crate) struct World {
    pub(crate) schema: Arc<Schema>,
    key: HashKey,
}

impl World {
    pub(crate) fn new() -> Self {
        let mut schema = Schema::built_in();
        for (name, kind, secret) in [
            ("sdk", AttributeKind::Text, false),
            ("sdk_version", AttributeKind::Version, false),
            ("app", AttributeKind::Text, false),
            ("token", AttributeKind::Text, true),
            ("origin_ip", AttributeKind::Address, false),
        ] {
            let spec = AttributeSpec {
                name: name.into(),
                kind,
                side: Side::Who,
                secret,
            };
            schema.add(spec).expect("the names differ");
        }
        Self {
            schema: Arc::new(schema),
            key: HashKey::from_seed(1),
        }
    }

    pub(crate) fn id(&self, name: &str) -> AttributeId {
        self.schema.id(name).expect("an attribute of the schema")
    }

    /// A request from `address` with these attribute values.
    pub(crate) fn request<'a>(
        &'a self,
        address: &str,
        values: &[(&str, &'a str)],
    ) -> RequestFacts<'a> {
        let address: IpAddr = address.parse().expect("an address");
        let mut facts = RequestFacts::new(&self.key, address);
        for (name, value) in values {
            facts.set(self.id(name), Cow::Borrowed(value));
        }
        facts
    }

    /// `app` is `acme`.
    pub(crate) fn acme(&self) -> When {
        self.when("app", is("acme"))
    }

    pub(crate) fn when(&self, name: &str, condition: Condition) -> When {
        When {
            conditions: vec![(self.id(name), condition)],
        }
    }

    pub(crate) fn policy(&self, rules: Vec<Rule>, limits: Vec<LimitRule>) -> Policy {
        self.recompile(rules, limits, None, Instant::ZERO)
    }

    pub(crate) fn recompile(
        &self,
        rules: Vec<Rule>,
        limits: Vec<LimitRule>,
        previous: Option<&Policy>,
        now: Instant,
    ) -> Policy {
        let parts = PolicyParts {
            schema: Arc::clone(&self.schema),
            services: Arc::from([]),
            rules,
            limits,
            generation: 1,
        };
        Policy::compile(parts, previous, now, WALL + now.since(Instant::ZERO))
    }
}

pub(crate) fn is(text: &str) -> Condition {
    Condition::Is(text.into())
}

pub(crate) fn rule(name: &str, action: Action, when: When) -> Rule {
    Rule {
        name: Name::new(name),
        when,
        when_text: Source::everybody(),
        action,
        mode: Mode::Enforce,
        percent: 100,
        until: None,
        reason: None,
        origin: Origin::File,
        sparing: None,
    }
}

pub(crate) fn shadow(rule: Rule) -> Rule {
    Rule {
        mode: Mode::Shadow,
        ..rule
    }
}

pub(crate) fn block() -> Action {
    Action::Block { status: 403 }
}

pub(crate) fn throttle(burst: u32) -> Action {
    Action::Throttle {
        rate: per_second(1),
        burst,
        per: Vec::new(),
    }
}

/// A limit of 1/s per address.
pub(crate) fn limit(name: &str, burst: u32) -> LimitRule {
    LimitRule {
        name: Name::new(name),
        key: vec![AttributeId::IP],
        rate: per_second(1),
        burst,
        keys_max: 1000,
        services: Vec::new(),
        when: When::default(),
        mode: Mode::Enforce,
    }
}

pub(crate) fn per_second(requests: u32) -> Rate {
    Rate::new(requests, Duration::from_secs(1)).expect("not zero")
}

pub(crate) fn at(seconds: f64) -> Instant {
    Instant::from_secs_f64(seconds)
}
