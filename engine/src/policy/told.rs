//! Decides, and tells of each rule and limit that had a part in it: for who wants to know more than
//! the counters keep. Decides nothing itself.

use super::judge::{Cause, Outcome, Witness, judge};
use super::{Counting, Policy};
use crate::limit::{Limiter, RetryAfter};
use crate::request::RequestFacts;
use crate::time::Instant;
use crate::verdict::{Name, Verdict};

/// What one rule or limit did with a request, or in shadow would have done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told<'p> {
    /// The name of the rule or limit.
    pub name: &'p Name,
    /// Whether it acts on this request; otherwise it only counts.
    pub enforced: bool,
    /// Whether it refuses the request, or in shadow would.
    pub refused: bool,
}

impl Policy {
    /// Decides like [`Policy::decide`], and tells of each rule and limit that matched, in the order in
    /// which they were asked. After a refusal only shadows are
    /// asked.
    pub fn decide_telling<'p>(
        &'p self,
        facts: &RequestFacts<'_>,
        now: Instant,
        tell: impl FnMut(Told<'p>),
    ) -> Verdict {
        judge(self, facts, now, Telling { tell }).conclude(now)
    }
}

/// Counts like any other request, and tells.
struct Telling<T> {
    tell: T,
}

impl<'p, T: FnMut(Told<'p>)> Witness<'p> for Telling<T> {
    fn saw(&mut self, cause: Cause<'p>, enforced: bool, outcome: Outcome) {
        Counting.saw(cause, enforced, outcome);
        (self.tell)(Told {
            name: match cause {
                Cause::Rule(rule) => &rule.rule.name,
                Cause::Limit(limit) => &limit.limit.name,
            },
            enforced,
            refused: matches!(outcome, Outcome::Refused(_)),
        });
    }

    fn meter(&mut self, meter: &Limiter, instance: u64, now: Instant) -> Result<(), RetryAfter> {
        Counting.meter(meter, instance, now)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::SystemTime;

    use super::*;
    use crate::attribute::Schema;
    use crate::policy::PolicyParts;
    use crate::request::HashKey;
    use crate::rules::Rules;

    const RULES: &str = "
rules:
  - { name: seen, when: { method: { present: true } }, action: log }
  - { name: looked, when: { method: POST }, action: block, mode: shadow }
  - { name: shut, when: { method: PUT }, action: block }
limits:
  - { name: few, key: [ip], rate: 1/h, burst: 2 }
  - { name: fewer, key: [ip], rate: 1/h, burst: 1, mode: shadow }
";

    fn policy() -> Policy {
        let schema = Schema::built_in();
        let wall = SystemTime::UNIX_EPOCH;
        let rules = Rules::parse("r.yaml", RULES, &schema, wall).unwrap();
        let parts = PolicyParts {
            schema: Arc::new(schema),
            services: Arc::from([]),
            rules: rules.rules,
            limits: rules.limits,
            generation: 0,
        };
        Policy::compile(parts, None, Instant::ZERO, wall)
    }

    #[test]
    fn it_decides_the_same_and_tells_what_the_counters_count() {
        let (quiet, telling) = (policy(), policy());
        let key = HashKey::from_seed(1);
        let mut told = Vec::new();
        for method in ["GET", "POST", "PUT", "GET"] {
            let mut facts = RequestFacts::new(&key, "192.0.2.7".parse().unwrap());
            facts.set(crate::attribute::AttributeId::METHOD, method.into());
            let now = Instant::from_secs_f64(1.0);
            let verdict = telling.decide_telling(&facts, now, |one| {
                told.push((one.name.to_string(), one.enforced, one.refused));
            });
            assert_eq!(verdict, quiet.decide(&facts, now));
        }
        let refusals = |name: &str, enforced: bool| {
            let of = |one: &&(String, bool, bool)| one.0 == name && one.1 == enforced && one.2;
            told.iter().filter(of).count() as u64
        };
        for rule in quiet.rules() {
            let name = rule.rule().name.as_str();
            assert_eq!(refusals(name, true), rule.refusals(), "{name}");
            let matched = told.iter().filter(|one| one.0 == name).count() as u64;
            assert_eq!(matched, rule.matches() + rule.shadow_matches(), "{name}");
        }
        for limit in quiet.limits() {
            let name = limit.limit().name.as_str();
            assert_eq!(refusals(name, true), limit.refusals(), "{name}");
            assert_eq!(refusals(name, false), limit.shadow_refusals(), "{name}");
        }
        assert_eq!(refusals("few", true), 1);
        assert_eq!(refusals("fewer", false), 2);
        assert_eq!(refusals("looked", false), 1);
    }
}
