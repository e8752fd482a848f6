//! Runs the tests that stand in rule files.

use std::borrow::Cow;

use super::Policy;
use crate::request::{HashKey, RequestFacts};
use crate::rules::RuleTest;
use crate::time::Instant;

impl Policy {
    /// Decides the request that a test gives, and says what came out instead of what was expected.
    ///
    /// Each test wants a policy of its own: deciding spends.
    pub fn run_test(&self, test: &RuleTest, now: Instant) -> Result<(), String> {
        let key = HashKey::from_seed(0);
        let mut facts = RequestFacts::new(&key, test.address);
        for (id, value) in &test.given {
            facts.set(*id, Cow::Borrowed(&**value));
        }
        let verdict = self.decide(&facts, now);
        let came_out = |what: &str| {
            let by = verdict
                .cause()
                .map(|rule| format!(" by `{rule}`"))
                .unwrap_or_default();
            format!(
                "the test expects {what}, but the verdict is `{}`{by}",
                verdict.word()
            )
        };
        if verdict.word() != &*test.verdict {
            return Err(came_out(&format!("the verdict `{}`", test.verdict)));
        }
        match &test.rule {
            Some(rule) if verdict.cause() != Some(rule) => {
                Err(came_out(&format!("`{}` by `{rule}`", test.verdict)))
            }
            _ => Ok(()),
        }
    }
}
