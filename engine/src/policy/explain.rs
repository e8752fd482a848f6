//! Says what a policy would do with a request, and why. Spends nothing and counts nothing.

use std::sync::Arc;

use serde::{Serialize, Serializer};

use super::Policy;
use super::judge::{Cause, Judgement, Outcome, Witness, judge};
use crate::limit::{Limiter, RetryAfter};
use crate::request::RequestFacts;
use crate::rules::Mode;
use crate::time::Instant;
use crate::verdict::{Name, Verdict};

/// What would happen to one request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// The attributes that the request has, in the schema's order.
    pub attributes: Vec<AttributeShown>,
    /// The rules and limits that match, in the order in which they are asked.
    pub steps: Vec<Step>,
    /// What comes out: the word of [`Verdict::word`] in JSON.
    #[serde(serialize_with = "as_word")]
    pub verdict: Verdict,
    /// The rule or limit that decides.
    pub rule: Option<Name>,
}

/// One attribute of the request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AttributeShown {
    /// Its name.
    pub name: Arc<str>,
    /// Its value; `(secret)` for one that is never shown.
    pub value: String,
}

/// One rule or limit that matches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// Its name.
    pub name: Name,
    /// `rule` or `limit`.
    pub kind: &'static str,
    /// The rule's action; `limit` for a limit.
    pub action: &'static str,
    /// Whether it acts on this request.
    pub mode: Mode,
    /// What it does, or in shadow would do: `logged`, `allowed`, `admitted`, `spared` or `refused`.
    pub outcome: &'static str,
    /// How long until it would admit the request, where it refuses for a time.
    pub retry_after_ms: Option<u64>,
}

impl Policy {
    /// Says what [`Policy::decide`] would answer now, and which rules and limits have a part in it.
    pub fn explain(&self, facts: &RequestFacts<'_>, now: Instant) -> Explanation {
        let mut steps = Vec::new();
        let verdict = match judge(self, facts, now, Explainer { steps: &mut steps }) {
            Judgement::Allowed(rule) => Verdict::Allow {
                rule: rule.rule.name.clone(),
            },
            Judgement::Admitted(_) => Verdict::Forward,
            Judgement::Refused(cause, wait) => cause.refuse(wait),
        };
        Explanation {
            attributes: self.attributes_of(facts),
            steps,
            rule: verdict.cause().cloned(),
            verdict,
        }
    }

    fn attributes_of(&self, facts: &RequestFacts<'_>) -> Vec<AttributeShown> {
        let shown = self.schema.iter().filter_map(|(id, spec)| {
            let value = facts.text(id)?;
            Some(AttributeShown {
                name: Arc::clone(&spec.name),
                value: if spec.secret {
                    "(secret)".to_owned()
                } else {
                    value.into_owned()
                },
            })
        });
        shown.collect()
    }
}

struct Explainer<'s> {
    steps: &'s mut Vec<Step>,
}

impl<'p> Witness<'p> for Explainer<'_> {
    fn saw(&mut self, cause: Cause<'p>, enforced: bool, outcome: Outcome) {
        let (name, kind, action) = match cause {
            Cause::Rule(rule) => (&rule.rule.name, "rule", rule.rule.action.word()),
            Cause::Limit(limit) => (&limit.limit.name, "limit", "limit"),
        };
        let (outcome, wait) = match outcome {
            Outcome::Logged => ("logged", None),
            Outcome::Allowed => ("allowed", None),
            Outcome::Admitted => ("admitted", None),
            Outcome::Spared => ("spared", None),
            Outcome::Refused(wait) => ("refused", Some(wait).filter(|wait| !wait.is_zero())),
        };
        self.steps.push(Step {
            name: name.clone(),
            kind,
            action,
            mode: if enforced {
                Mode::Enforce
            } else {
                Mode::Shadow
            },
            outcome,
            retry_after_ms: wait.map(|wait| wait.as_nanos().div_ceil(1_000_000) as u64),
        });
    }

    fn meter(&mut self, meter: &Limiter, instance: u64, now: Instant) -> Result<(), RetryAfter> {
        meter.peek(instance, now)
    }
}

fn as_word<S: Serializer>(verdict: &Verdict, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(verdict.word())
}
