//! The walk from facts to a verdict, in the one order that there is. Changes nothing: what it would
//! spend and count it hands out, so that [`super::Policy::decide`] and
//! [`super::Policy::explain`] cannot disagree.

use std::ops::ControlFlow;
use std::time::Duration;

use super::{LimitInForce, Policy, RuleInForce};
use crate::limit::{Limiter, RetryAfter};
use crate::request::RequestFacts;
use crate::rules::Action;
use crate::time::Instant;
use crate::verdict::Verdict;

/// Charges kept in place; a request under more limits than that allocates. 12 × 40 B on the stack.
const CHARGES_IN_PLACE: usize = 12;

/// What decides: a rule or a limit.
#[derive(Clone, Copy, Debug)]
pub(super) enum Cause<'p> {
    Rule(&'p RuleInForce),
    Limit(&'p LimitInForce),
}

/// What a rule or limit that matched did, or in shadow would have done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Only counted.
    Logged,
    /// Ended the decision.
    Allowed,
    /// Let the request through, for a token.
    Admitted,
    /// Let the request through although the rule refuses its source.
    Spared,
    /// Refused; for a limit or throttle, until so long has passed.
    Refused(Duration),
}

/// Sees what happens on the walk.
pub(super) trait Witness<'p> {
    /// A rule or limit matched.
    fn saw(&mut self, cause: Cause<'p>, enforced: bool, outcome: Outcome);

    /// A known instance sent something: measures it, or only looks.
    fn meter(&mut self, meter: &Limiter, instance: u64, now: Instant) -> Result<(), RetryAfter>;
}

/// What came out.
#[expect(
    clippy::large_enum_variant,
    reason = "lives for one request, on the stack; a box would allocate for each"
)]
pub(super) enum Judgement<'p> {
    /// This allow rule ended it: nothing is spent.
    Allowed(&'p RuleInForce),
    /// Refused, because of this: nothing is spent.
    Refused(Cause<'p>, Duration),
    /// Forwarded, if all of this can be spent.
    Admitted(Charges<'p>),
}

/// A token that must be spent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Charge<'p> {
    pub(super) limiter: &'p Limiter,
    pub(super) key: u64,
    pub(super) kind: ChargeKind<'p>,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum ChargeKind<'p> {
    /// Without it the request is refused.
    Enforced(Cause<'p>),
    /// Taken if it is there, once the request is sure to be forwarded.
    Shadow,
    /// Taken by force: what is spared counts in the throttle's rate.
    Drawn,
}

/// All tokens that one request costs.
#[derive(Debug, Default)]
pub(super) struct Charges<'p> {
    in_place: [Option<Charge<'p>>; CHARGES_IN_PLACE],
    used: usize,
    more: Vec<Charge<'p>>,
}

impl<'p> Charges<'p> {
    fn push(&mut self, charge: Charge<'p>) {
        match self.in_place.get_mut(self.used) {
            Some(slot) => {
                *slot = Some(charge);
                self.used += 1;
            }
            None => self.more.push(charge),
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Charge<'p>> {
        let in_place = self.in_place.iter().take(self.used).flatten();
        in_place.chain(&self.more)
    }

    /// Spends all, or nothing: if another worker was faster at one, the others are given back.
    /// Shadow buckets are spent only after that.
    pub(super) fn spend(&self, now: Instant) -> Result<(), (Cause<'p>, RetryAfter)> {
        for (at, charge) in self.iter().enumerate() {
            let ChargeKind::Enforced(cause) = charge.kind else {
                continue;
            };
            if let Err(wait) = charge.limiter.spend(charge.key, now) {
                for spent in self.iter().take(at) {
                    if matches!(spent.kind, ChargeKind::Enforced(_)) {
                        spent.limiter.refund(spent.key);
                    }
                }
                return Err((cause, wait));
            }
        }
        for charge in self.iter() {
            match charge.kind {
                ChargeKind::Enforced(_) => {}
                ChargeKind::Drawn => charge.limiter.draw(charge.key, now),
                // Who was admitted stays so, even if another worker was faster at this one.
                ChargeKind::Shadow => drop(charge.limiter.spend(charge.key, now)),
            }
        }
        Ok(())
    }
}

impl Cause<'_> {
    /// Returns the verdict by which this refuses.
    pub(super) fn refuse(self, retry_after: Duration) -> Verdict {
        let rule = match self {
            Self::Limit(limit) => {
                return Verdict::Limit {
                    limit: limit.hit(),
                    retry_after,
                };
            }
            Self::Rule(rule) => &rule.rule,
        };
        let name = rule.name.clone();
        match rule.action {
            Action::Block { status } => Verdict::Block { rule: name, status },
            Action::Tarpit => Verdict::Tarpit { rule: name },
            Action::Drop => Verdict::Drop { rule: name },
            Action::Throttle { .. } => Verdict::Throttle {
                rule: name,
                retry_after,
            },
            Action::Allow | Action::Log => Verdict::Forward,
        }
    }
}

/// One walk.
struct Walk<'p, 'f, W> {
    facts: &'f RequestFacts<'f>,
    now: Instant,
    witness: W,
    charges: Charges<'p>,
    refusal: Option<(Cause<'p>, Duration)>,
}

/// Walks the policy: rules by rank, then limits. Throttles and limits are only looked at; what they
/// cost is in the judgement.
pub(super) fn judge<'p, W: Witness<'p>>(
    policy: &'p Policy,
    facts: &RequestFacts<'_>,
    now: Instant,
    witness: W,
) -> Judgement<'p> {
    let mut walk = Walk {
        facts,
        now,
        witness,
        charges: Charges::default(),
        refusal: None,
    };
    let ended = policy
        .matcher
        .visit(&policy.rules, facts, now, |rule| walk.meet_rule(rule));
    if let ControlFlow::Break(judgement) = ended {
        return judgement;
    }
    for limit in &policy.limits {
        walk.meet_limit(limit);
    }
    match walk.refusal {
        Some((cause, wait)) => Judgement::Refused(cause, wait),
        None => Judgement::Admitted(walk.charges),
    }
}

impl<'p, W: Witness<'p>> Walk<'p, '_, W> {
    fn meet_rule(&mut self, rule: &'p RuleInForce) -> ControlFlow<Judgement<'p>> {
        let cause = Cause::Rule(rule);
        let enforced = rule.acts_on(self.facts.instance());
        let judgement = match rule.rule.action {
            Action::Log => {
                self.witness.saw(cause, enforced, Outcome::Logged);
                None
            }
            Action::Allow => {
                self.witness.saw(cause, enforced, Outcome::Allowed);
                Some(Judgement::Allowed(rule))
            }
            Action::Drop | Action::Block { .. } | Action::Tarpit => {
                if enforced && self.spare(rule) {
                    return ControlFlow::Continue(());
                }
                self.witness
                    .saw(cause, enforced, Outcome::Refused(Duration::ZERO));
                Some(Judgement::Refused(cause, Duration::ZERO))
            }
            Action::Throttle { .. } => {
                self.meet_throttle(rule, enforced);
                None
            }
        };
        match judgement {
            Some(judgement) if enforced => ControlFlow::Break(judgement),
            _ => ControlFlow::Continue(()),
        }
    }

    /// Looks at the rule's buckets: they are enforced, or those of its shadow.
    fn meet_throttle(&mut self, rule: &'p RuleInForce, enforced: bool) {
        let Some(throttle) = &rule.throttle else {
            return;
        };
        let key = throttle.key(self.facts);
        if enforced && self.refusal.is_some() {
            return;
        }
        if enforced && self.spare(rule) {
            self.charges.push(Charge {
                limiter: &throttle.limiter,
                key,
                kind: ChargeKind::Drawn,
            });
            return;
        }
        if !enforced {
            self.look(Cause::Rule(rule), false, &[(&throttle.shadow, key)]);
        } else if let Some(fair) = &throttle.fair {
            let share = (&**fair, self.facts.instance());
            self.look(Cause::Rule(rule), true, &[share, (&throttle.limiter, key)]);
        } else {
            self.look(Cause::Rule(rule), true, &[(&throttle.limiter, key)]);
        }
    }

    fn meet_limit(&mut self, limit: &'p LimitInForce) {
        let enforced = limit.is_enforced();
        if (enforced && self.refusal.is_some()) || !limit.applies(self.facts) {
            return;
        }
        let key = limit.key(self.facts);
        self.look(Cause::Limit(limit), enforced, &[(&limit.limiter, key)]);
    }

    /// Looks whether all buckets would admit the request, and notes what to spend or who refuses.
    fn look(&mut self, cause: Cause<'p>, enforced: bool, buckets: &[(&'p Limiter, u64)]) {
        let refused = buckets
            .iter()
            .find_map(|(limiter, key)| limiter.peek(*key, self.now).err());
        if let Some(RetryAfter(wait)) = refused {
            self.witness.saw(cause, enforced, Outcome::Refused(wait));
            if enforced {
                self.refusal = Some((cause, wait));
            }
            return;
        }
        self.witness.saw(cause, enforced, Outcome::Admitted);
        for (limiter, key) in buckets {
            self.charges.push(Charge {
                limiter,
                key: *key,
                kind: if enforced {
                    ChargeKind::Enforced(cause)
                } else {
                    ChargeKind::Shadow
                },
            });
        }
    }

    /// Returns whether the rule spares this request, and notes what that costs.
    fn spare(&mut self, rule: &'p RuleInForce) -> bool {
        let Some(sparing) = &rule.sparing else {
            return false;
        };
        let (instance, now) = (self.facts.instance(), self.now);
        let witness = &mut self.witness;
        let bucket = sparing.spares(instance, now, |usual| witness.meter(usual, instance, now));
        let Some(limiter) = bucket else {
            return false;
        };
        let cause = Cause::Rule(rule);
        self.witness.saw(cause, true, Outcome::Spared);
        self.charges.push(Charge {
            limiter,
            key: 0,
            kind: ChargeKind::Enforced(cause),
        });
        true
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::sync::Arc;
    use std::time::SystemTime;

    use super::*;
    use crate::attribute::{AttributeId, Schema};
    use crate::policy::PolicyParts;
    use crate::request::HashKey;
    use crate::rules::{LimitRule, Mode, When};
    use crate::units::Rate;
    use crate::verdict::Name;

    struct Blind;

    impl<'p> Witness<'p> for Blind {
        fn saw(&mut self, _: Cause<'p>, _: bool, _: Outcome) {}

        fn meter(&mut self, _: &Limiter, _: u64, _: Instant) -> Result<(), RetryAfter> {
            Ok(())
        }
    }

    #[test]
    fn a_request_that_loses_a_race_for_one_limit_gets_its_token_of_another_back() {
        let limit = |name| LimitRule {
            name: Name::new(name),
            key: vec![AttributeId::IP],
            rate: Rate::new(1, Duration::from_secs(1)).unwrap(),
            burst: 3,
            keys_max: 1000,
            services: Vec::new(),
            when: When::default(),
            mode: Mode::Enforce,
        };
        let parts = PolicyParts {
            schema: Arc::new(Schema::built_in()),
            services: Arc::from([]),
            rules: Vec::new(),
            limits: vec![limit("first"), limit("second"), limit("third")],
            generation: 1,
        };
        let now = Instant::ZERO;
        let policy = Policy::compile(parts, None, now, SystemTime::UNIX_EPOCH);
        let key = HashKey::from_seed(1);
        let facts = RequestFacts::new(&key, IpAddr::V4(Ipv4Addr::LOCALHOST));
        let Judgement::Admitted(charges) = judge(&policy, &facts, now, Blind) else {
            panic!("all buckets are full");
        };
        let [first, second, third] = policy.limits.as_slice() else {
            panic!("there are three");
        };
        while second.limiter.spend(second.key(&facts), now).is_ok() {}
        let (cause, _) = charges.spend(now).unwrap_err();
        assert_eq!(
            cause.refuse(Duration::ZERO).cause(),
            Some(&Name::new("second"))
        );
        for limit in [first, third] {
            assert_eq!(limit.limiter.remaining(limit.key(&facts), now), 3);
        }
    }

    #[test]
    fn a_request_under_more_limits_than_there_is_room_for_pays_all_of_them() {
        let limiters: Vec<_> = (0..CHARGES_IN_PLACE as u64 + 3)
            .map(|_| {
                let rate = Rate::new(1, Duration::from_secs(1)).unwrap();
                Limiter::new(crate::limit::LimitSpec::new(rate, 1, 1))
            })
            .collect();
        let mut charges = Charges::default();
        for limiter in &limiters {
            charges.push(Charge {
                limiter,
                key: 0,
                kind: ChargeKind::Shadow,
            });
        }
        assert!(charges.spend(Instant::ZERO).is_ok());
        assert!(
            limiters
                .iter()
                .all(|limiter| limiter.peek(0, Instant::ZERO).is_err())
        );
    }
}
