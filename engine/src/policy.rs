//! What is in force: rules, limits and services. Immutable but for counters and buckets; replaced
//! whole. Knows nothing of files, sockets or how rules come about.
//!
//! Order: `log` rules count; `allow` ends it; then `drop`, `block`, `tarpit`, `throttle`; then all
//! limits. All throttles and limits are looked at before any is spent, so that a request that is
//! refused by one costs no token of another. Rules of the same action are asked in the order in
//! which they were given.

mod anchor;
mod compile;
mod condition;
mod explain;
mod judge;
mod lists;
mod matcher;
mod networks;
mod prefixes;
mod preview;
mod ranges;
mod route;
mod sparing;
mod told;
mod trial;
mod version;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

pub use self::explain::{AttributeShown, Explanation, Step};
pub use self::preview::{Met, NORMAL_SHARE_MAX, Preview};
pub use self::route::Route;
pub use self::told::Told;
pub use self::version::read_version;

use self::condition::Clauses;
use self::judge::{Cause, Judgement, Outcome, Witness, judge};
use self::matcher::Matcher;
use self::sparing::SparingInForce;
use crate::attribute::{AttributeId, Schema};
use crate::limit::{Limiter, RetryAfter};
use crate::request::RequestFacts;
use crate::rules::{Action, LimitRule, Mode, Origin, Rule};
use crate::service::ServiceSpec;
use crate::time::Instant;
use crate::verdict::{LimitHit, Verdict};

/// What a policy is made of.
#[derive(Clone, Debug)]
pub struct PolicyParts {
    /// The attributes that rules and limits name.
    pub schema: Arc<Schema>,
    /// Services in order.
    pub services: Arc<[ServiceSpec]>,
    /// Rules of all origins, in order.
    pub rules: Vec<Rule>,
    /// Limits in order.
    pub limits: Vec<LimitRule>,
    /// Counts the policies published.
    pub generation: u64,
}

/// Everything in force.
///
/// Not `Clone`: it is shared behind an `Arc` and replaced, so that a request reads one policy.
#[derive(Debug)]
pub struct Policy {
    schema: Arc<Schema>,
    services: Arc<[ServiceSpec]>,
    matcher: Matcher,
    rules: Vec<RuleInForce>,
    limits: Vec<LimitInForce>,
    generation: u64,
}

/// A rule in force, with what it did.
#[derive(Debug)]
pub struct RuleInForce {
    rule: Rule,
    clauses: Clauses,
    name_hash: u64,
    until: Instant,
    throttle: Option<Throttle>,
    sparing: Option<SparingInForce>,
    counters: Arc<RuleCounters>,
}

/// The buckets of a throttle rule.
#[derive(Debug)]
struct Throttle {
    per: Vec<AttributeId>,
    limiter: Arc<Limiter>,
    /// What the requests spend on which the rule does not act.
    shadow: Arc<Limiter>,
    /// A detected throttle's bucket per instance.
    fair: Option<Arc<Limiter>>,
}

#[derive(Debug)]
struct RuleCounters {
    created: SystemTime,
    matches: AtomicU64,
    shadow_matches: AtomicU64,
    refusals: AtomicU64,
    spared: AtomicU64,
}

/// A limit in force, with what it did.
#[derive(Debug)]
pub struct LimitInForce {
    limit: LimitRule,
    clauses: Clauses,
    limiter: Arc<Limiter>,
    counters: Arc<LimitCounters>,
}

#[derive(Debug)]
struct LimitCounters {
    refusals: AtomicU64,
    shadow_refusals: AtomicU64,
}

impl Policy {
    /// Decides: spends what the request costs, counts what matched, and answers.
    pub fn decide(&self, facts: &RequestFacts<'_>, now: Instant) -> Verdict {
        judge(self, facts, now, Counting).conclude(now)
    }

    /// Walks the rules in force, in the order in which they are asked.
    pub fn rules(&self) -> impl Iterator<Item = &RuleInForce> {
        self.rules.iter()
    }

    /// Walks the limits in force, in order.
    pub fn limits(&self) -> impl Iterator<Item = &LimitInForce> {
        self.limits.iter()
    }

    /// Returns the attributes.
    pub fn schema(&self) -> &Arc<Schema> {
        &self.schema
    }

    /// Returns the services in order.
    pub fn services(&self) -> &Arc<[ServiceSpec]> {
        &self.services
    }

    /// Returns which of the policies published this is.
    pub fn generation(&self) -> u64 {
        self.generation
    }
}

impl RuleInForce {
    /// Returns the rule.
    pub fn rule(&self) -> &Rule {
        &self.rule
    }

    /// Returns when a rule of this name first came into force.
    pub fn created(&self) -> SystemTime {
        self.counters.created
    }

    /// Returns how many requests it matched and acted on, whatever it did with them.
    pub fn matches(&self) -> u64 {
        self.counters.matches.load(Ordering::Relaxed)
    }

    /// Returns how many requests it matched in shadow, or outside of its `percent`.
    pub fn shadow_matches(&self) -> u64 {
        self.counters.shadow_matches.load(Ordering::Relaxed)
    }

    /// Returns how many requests it refused.
    pub fn refusals(&self) -> u64 {
        self.counters.refusals.load(Ordering::Relaxed)
    }

    /// Returns how many requests of its source it let through because of who sent them.
    pub fn spared(&self) -> u64 {
        self.counters.spared.load(Ordering::Relaxed)
    }

    fn matches_now(&self, facts: &RequestFacts<'_>, now: Instant) -> bool {
        now < self.until && !self.must_not_touch(facts) && self.clauses.hold(facts)
    }

    /// The operator's own proxies: behind one of them is everybody.
    fn must_not_touch(&self, facts: &RequestFacts<'_>) -> bool {
        self.rule.origin == Origin::Detected
            && facts.is_trusted_proxy()
            && !matches!(self.rule.action, Action::Allow | Action::Log)
    }

    /// Returns whether the rule acts on an instance, or only counts. An instance stays on its side
    /// while `percent` grows.
    fn acts_on(&self, instance: u64) -> bool {
        if self.rule.mode == Mode::Shadow {
            return false;
        }
        let drawn = u128::from(mix(self.name_hash ^ instance));
        self.rule.percent >= 100 || (drawn * 100) >> 64 < u128::from(self.rule.percent)
    }
}

impl Throttle {
    fn key(&self, facts: &RequestFacts<'_>) -> u64 {
        key_of(&self.per, facts)
    }
}

impl LimitInForce {
    /// Returns the limit.
    pub fn limit(&self) -> &LimitRule {
        &self.limit
    }

    /// Returns how many requests it refused.
    pub fn refusals(&self) -> u64 {
        self.counters.refusals.load(Ordering::Relaxed)
    }

    /// Returns how many requests it would have refused while in shadow.
    pub fn shadow_refusals(&self) -> u64 {
        self.counters.shadow_refusals.load(Ordering::Relaxed)
    }

    /// Returns how many keys have a place; at most the limit's `keys_max`.
    pub fn keys(&self) -> usize {
        self.limiter.keys()
    }

    fn is_enforced(&self) -> bool {
        self.limit.mode == Mode::Enforce
    }

    fn applies(&self, facts: &RequestFacts<'_>) -> bool {
        let services = &self.limit.services;
        let in_service = services.is_empty()
            || facts
                .value(AttributeId::SERVICE)
                .is_some_and(|service| services.iter().any(|one| **one == *service));
        in_service && self.clauses.hold(facts)
    }

    fn key(&self, facts: &RequestFacts<'_>) -> u64 {
        key_of(&self.limit.key, facts)
    }

    /// What a client may learn of the limit.
    fn hit(&self) -> LimitHit {
        let spec = self.limiter.spec();
        let window_s = spec.window().as_nanos().div_ceil(1_000_000_000);
        LimitHit {
            name: self.limit.name.clone(),
            quota: spec.burst(),
            window_s: u64::try_from(window_s).unwrap_or(u64::MAX).max(1),
        }
    }
}

impl Judgement<'_> {
    /// Spends what an admitted request costs, and answers.
    #[inline]
    fn conclude(self, now: Instant) -> Verdict {
        match self {
            Self::Allowed(rule) => Verdict::Allow {
                rule: rule.rule.name.clone(),
            },
            Self::Refused(cause, wait) => cause.refuse(wait),
            Self::Admitted(charges) => match charges.spend(now) {
                Ok(()) => Verdict::Forward,
                Err((cause, RetryAfter(wait))) => {
                    cause.count_refusal(true);
                    cause.refuse(wait)
                }
            },
        }
    }
}

impl Cause<'_> {
    fn count_refusal(self, enforced: bool) {
        let counter = match (self, enforced) {
            (Self::Rule(rule), true) => &rule.counters.refusals,
            (Self::Limit(limit), true) => &limit.counters.refusals,
            (Self::Limit(limit), false) => &limit.counters.shadow_refusals,
            (Self::Rule(_), false) => return,
        };
        count(counter);
    }
}

/// Counts what the walk sees.
struct Counting;

impl<'p> Witness<'p> for Counting {
    fn saw(&mut self, cause: Cause<'p>, enforced: bool, outcome: Outcome) {
        if let Cause::Rule(rule) = cause {
            count(if enforced {
                &rule.counters.matches
            } else {
                &rule.counters.shadow_matches
            });
            if outcome == Outcome::Spared {
                count(&rule.counters.spared);
            }
        }
        if matches!(outcome, Outcome::Refused(_)) {
            cause.count_refusal(enforced);
        }
    }

    fn meter(&mut self, meter: &Limiter, instance: u64, now: Instant) -> Result<(), RetryAfter> {
        meter.meter(instance, now)
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Returns the bucket's key: one number for the values of the attributes, in order. An absent
/// attribute is a value of its own. No attributes: one bucket for all.
fn key_of(attributes: &[AttributeId], facts: &RequestFacts<'_>) -> u64 {
    let hashes = attributes.iter().map(|id| facts.hash(*id));
    hashes.fold(0, |key, hash| mix(key ^ hash))
}

/// Spreads a number over all 64 bits, one to one (the finaliser of `SplitMix64`).
fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}
