//! Makes a policy of valid rules. Cannot fail: what could is checked where rules are read.
//!
//! A rule or limit that was in force before under the same name keeps its counters, and its buckets
//! too where the numbers that describe them are the same: a reload is no amnesty.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::SystemTime;

use ahash::RandomState;

use super::condition::Clauses;
use super::matcher::Matcher;
use super::sparing::{Places, SparingInForce, carry};
use super::{
    LimitCounters, LimitInForce, Policy, PolicyParts, RuleCounters, RuleInForce, Throttle, mix,
};
use crate::limit::{KEYS_MAX_DEFAULT, LimitSpec, Limiter};
use crate::rules::{Action, LimitRule, Rule};
use crate::time::Instant;

/// The share of a detected throttle's rate that one instance gets at most, and the least that it may
/// ask for: a twentieth, so that no loud one takes all; one request in 5 s, so that a small throttle
/// still serves somebody.
const FAIR_SHARE: f64 = 1.0 / 20.0;
const FAIR_PER_SECOND_MIN: f64 = 0.2;

/// Seconds of its share that an instance may use at once.
const FAIR_BURST_S: f64 = 2.0;

type ByName<'p, T> = HashMap<&'p str, &'p T, RandomState>;

impl Policy {
    /// Puts rules and limits in force, as of `now`, which is `wall` on the calendar.
    ///
    /// Rules whose time is over are left out. Rules and limits of `previous` hand over their
    /// counters by name, and their buckets if the rate, the burst and the key are unchanged.
    pub fn compile(
        parts: PolicyParts,
        previous: Option<&Self>,
        now: Instant,
        wall: SystemTime,
    ) -> Self {
        let old_rules: ByName<'_, RuleInForce> = previous
            .map(|policy| {
                let rules = policy.rules.iter();
                rules.map(|rule| (rule.rule.name.as_str(), rule)).collect()
            })
            .unwrap_or_default();
        let old_limits: ByName<'_, LimitInForce> = previous
            .map(|policy| {
                let limits = policy.limits.iter();
                limits
                    .map(|limit| (limit.limit.name.as_str(), limit))
                    .collect()
            })
            .unwrap_or_default();
        let staying = parts
            .rules
            .iter()
            .filter_map(|rule| old_rules.get(rule.name.as_str()))
            .map(|old| old.places());
        let mut places = Places::besides(staying);
        let mut rules: Vec<RuleInForce> = parts
            .rules
            .into_iter()
            .filter_map(|rule| {
                let old = old_rules.get(rule.name.as_str()).copied();
                RuleInForce::new(rule, old, &mut places, now, wall)
            })
            .collect();
        rules.sort_by_key(|rule| rank(&rule.rule.action));
        let limits = parts
            .limits
            .into_iter()
            .map(|limit| {
                let old = old_limits.get(limit.name.as_str()).copied();
                LimitInForce::new(limit, old)
            })
            .collect();
        Self {
            schema: parts.schema,
            services: parts.services,
            matcher: Matcher::new(&rules),
            rules,
            limits,
            generation: parts.generation,
        }
    }
}

/// The order in which rules are asked. `log` is first: it counts what comes, whatever happens to it.
fn rank(action: &Action) -> u8 {
    match action {
        Action::Log => 0,
        Action::Allow => 1,
        Action::Drop => 2,
        Action::Block { .. } => 3,
        Action::Tarpit => 4,
        Action::Throttle { .. } => 5,
    }
}

impl RuleInForce {
    /// Returns `None` for a rule whose time is over.
    fn new(
        rule: Rule,
        old: Option<&Self>,
        places: &mut Places,
        now: Instant,
        wall: SystemTime,
    ) -> Option<Self> {
        let until = match rule.until {
            Some(until) => {
                let left = until
                    .duration_since(wall)
                    .ok()
                    .filter(|left| !left.is_zero());
                now + left?
            }
            None => Instant::MAX,
        };
        let counters = old.map_or_else(
            || Arc::new(RuleCounters::since(wall)),
            |old| Arc::clone(&old.counters),
        );
        let sparing = rule.sparing.as_ref().map(|sparing| {
            SparingInForce::new(sparing, old.and_then(|old| old.sparing.as_ref()), places)
        });
        Some(Self {
            clauses: Clauses::new(&rule.when),
            name_hash: hash_name(rule.name.as_str()),
            throttle: Throttle::new(&rule, old.and_then(|old| old.throttle.as_ref()), places),
            sparing,
            until,
            counters,
            rule,
        })
    }

    /// Returns the places for instances that it meters, and that it shares fairly.
    fn places(&self) -> (usize, usize) {
        let metered = self.sparing.as_ref().map(SparingInForce::metered_max);
        let fair = self
            .throttle
            .as_ref()
            .and_then(|throttle| throttle.fair.as_ref());
        (
            metered.unwrap_or(0),
            fair.map_or(0, |fair| fair.spec().keys_max()),
        )
    }
}

impl Throttle {
    fn new(rule: &Rule, old: Option<&Self>, places: &mut Places) -> Option<Self> {
        let Action::Throttle { rate, burst, per } = &rule.action else {
            return None;
        };
        let keys_max = if per.is_empty() { 1 } else { KEYS_MAX_DEFAULT };
        let spec = LimitSpec::new(*rate, *burst, keys_max);
        let old = old.filter(|old| old.per == *per);
        let fair = rule.sparing.is_some().then(|| {
            let share = (rate.per_second() * FAIR_SHARE).max(FAIR_PER_SECOND_MIN);
            let burst = (share * FAIR_BURST_S).max(1.0) as u32;
            let old = old.and_then(|old| old.fair.as_ref());
            let keys_max = places.fair(old.map(|old| old.spec().keys_max()));
            let spec = LimitSpec::per_second(share, burst, keys_max);
            carry(old, spec, Limiter::forgetful)
        });
        Some(Self {
            per: per.clone(),
            limiter: carry(old.map(|old| &old.limiter), spec, Limiter::new),
            shadow: carry(old.map(|old| &old.shadow), spec, Limiter::new),
            fair,
        })
    }
}

impl LimitInForce {
    fn new(limit: LimitRule, old: Option<&Self>) -> Self {
        let spec = LimitSpec::new(limit.rate, limit.burst, limit.keys_max);
        let same_key = old.filter(|old| old.limit.key == limit.key);
        Self {
            clauses: Clauses::new(&limit.when),
            limiter: carry(same_key.map(|old| &old.limiter), spec, Limiter::new),
            counters: old.map_or_else(Arc::default, |old| Arc::clone(&old.counters)),
            limit,
        }
    }
}

impl RuleCounters {
    fn since(created: SystemTime) -> Self {
        Self {
            created,
            matches: AtomicU64::new(0),
            shadow_matches: AtomicU64::new(0),
            refusals: AtomicU64::new(0),
            spared: AtomicU64::new(0),
        }
    }
}

impl Default for LimitCounters {
    fn default() -> Self {
        Self {
            refusals: AtomicU64::new(0),
            shadow_refusals: AtomicU64::new(0),
        }
    }
}

/// A hash of a rule's name that is the same in every process, for `percent`.
fn hash_name(name: &str) -> u64 {
    name.bytes()
        .fold(0, |hash, byte| mix(hash ^ u64::from(byte)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::attribute::Schema;
    use crate::rules::{Mode, Origin, Sparing, When};
    use crate::source::Source;
    use crate::units::Rate;
    use crate::verdict::Name;

    fn detected(number: usize) -> Rule {
        Rule {
            name: Name::new(&format!("detected-{number}")),
            when: When::default(),
            when_text: Source::everybody(),
            action: Action::Throttle {
                rate: Rate::new(10, Duration::from_secs(1)).unwrap(),
                burst: 10,
                per: Vec::new(),
            },
            mode: Mode::Enforce,
            percent: 100,
            until: None,
            reason: None,
            origin: Origin::Detected,
            sparing: Some(Sparing {
                expected_per_second: 10.0,
                usual_per_instance_per_second: 1.0,
                familiar: Arc::default(),
            }),
        }
    }

    fn compile(rules: usize, previous: Option<&Policy>) -> Policy {
        let parts = PolicyParts {
            schema: Arc::new(Schema::built_in()),
            services: Arc::from([]),
            rules: (0..rules).map(detected).collect(),
            limits: Vec::new(),
            generation: 1,
        };
        Policy::compile(parts, previous, Instant::ZERO, SystemTime::UNIX_EPOCH)
    }

    /// However many rules come, and in whatever steps: 1,310,720 + 786,432 places.
    #[test]
    fn all_detected_rules_together_have_so_many_places_for_instances() {
        let mut policy = compile(1, None);
        let first = policy.rules[0].places();
        for rules in 2..=64 {
            policy = compile(rules, Some(&policy));
        }
        let (metered, fair) = policy
            .rules
            .iter()
            .map(RuleInForce::places)
            .fold((0, 0), |sum, places| (sum.0 + places.0, sum.1 + places.1));
        assert!(metered <= 1_310_720 && fair <= 786_432, "{metered}, {fair}");
        assert_eq!(policy.rules[0].places(), first, "who came first keeps his");
        assert_eq!(first.0, 1 << 19);
    }
}
