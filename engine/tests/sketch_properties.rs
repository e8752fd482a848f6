//! The sketch against a map that counts exactly: what it claims of its accuracy.

use std::borrow::Cow;
use std::collections::BTreeMap;

use proptest::prelude::*;
use tidegate_engine::attribute::{AttributeId, Schema};
use tidegate_engine::request::{HashKey, RequestFacts};
use tidegate_engine::traffic::{CocoSketch, Columns, LeafKey, Random};

const BUCKETS: usize = 512;

struct Keys {
    hash: HashKey,
    columns: Columns,
}

impl Keys {
    fn new() -> Self {
        Self {
            hash: HashKey::from_seed(1),
            columns: Columns::of(&Schema::built_in()),
        }
    }

    fn key(&self, agent: u32, host: u32) -> LeafKey {
        let mut facts = RequestFacts::new(&self.hash, [192, 0, 2, 1].into());
        facts.set(AttributeId::USER_AGENT, Cow::Owned(agent.to_string()));
        facts.set(AttributeId::HOST, Cow::Owned(host.to_string()));
        self.columns.key(&facts, false)
    }

    fn host(&self, key: &LeafKey) -> u32 {
        let column = self.columns.of_attribute(AttributeId::HOST);
        key.value(column.unwrap_or(0))
    }
}

/// Counts exactly, and in a sketch.
fn count(requests: &[LeafKey], seed: u64) -> (BTreeMap<u64, (LeafKey, f64)>, CocoSketch) {
    let mut exact = BTreeMap::new();
    let mut sketch = CocoSketch::new(BUCKETS);
    let mut random = Random::from_seed(seed);
    for key in requests {
        exact.entry(key.tag()).or_insert((*key, 0.0)).1 += 1.0;
        sketch.add(key.tag(), key, 1.0, &mut random);
    }
    (exact, sketch)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_total_is_exact_and_no_key_is_counted_that_never_came(
        pairs in prop::collection::vec((0_u32..3000, 0_u32..5), 1..4000),
        seed in any::<u64>(),
    ) {
        let keys = Keys::new();
        let requests: Vec<LeafKey> = pairs.iter().map(|(agent, host)| keys.key(*agent, *host)).collect();
        let (exact, sketch) = count(&requests, seed);
        prop_assert!((sketch.total() - requests.len() as f64).abs() < 1e-6);
        prop_assert!((sketch.sum(|_| true) - sketch.total()).abs() < 1e-6);
        for (tag, key, _) in sketch.iter() {
            prop_assert_eq!(exact.get(&tag).map(|(known, _)| *known), Some(*key));
        }
    }

    /// With as few keys as a sixteenth of the buckets nearly all have one of their own.
    #[test]
    fn few_keys_are_counted_nearly_exactly(
        distinct in 1_u32..32,
        seed in any::<u64>(),
    ) {
        let keys = Keys::new();
        let requests: Vec<LeafKey> = (0..distinct * 20).map(|at| keys.key(at % distinct, at % distinct % 3)).collect();
        let (exact, sketch) = count(&requests, seed);
        let found = sketch.iter().filter(|(tag, _, count)| {
            exact.get(tag).is_some_and(|(_, came)| (came - count).abs() < 1e-9)
        });
        let share = found.count() as f64 / exact.len() as f64;
        prop_assert!(share > 0.7, "{} of {} keys", share, exact.len());
    }
}

/// A client cycles a value: all keys are distinct. The sum of any set is unbiased over many seeds, and
/// its relative error is what the documentation says, √((1−p)/(n·p)).
#[test]
fn under_full_cycling_sums_of_any_set_are_unbiased_and_as_exact_as_documented() {
    let keys = Keys::new();
    let requests: Vec<LeafKey> = (0..20_000)
        .map(|at| keys.key(at, u32::from(at % 100 < 20)))
        .collect();
    let host = keys.host(&keys.key(0, 1));
    let (p, seeds) = (0.2_f64, 200);
    let documented = ((1.0 - p) / (BUCKETS as f64 * p)).sqrt();
    let errors: Vec<f64> = (0..seeds)
        .map(|seed| {
            let (_, sketch) = count(&requests, seed);
            sketch.sum(|key| keys.host(key) == host) / (p * requests.len() as f64) - 1.0
        })
        .collect();
    let mean = errors.iter().sum::<f64>() / errors.len() as f64;
    let deviation =
        (errors.iter().map(|error| error * error).sum::<f64>() / errors.len() as f64).sqrt();
    assert!(
        mean.abs() < 4.0 * documented / f64::from(seeds as u32).sqrt(),
        "biased by {mean}"
    );
    assert!(
        deviation < 1.3 * documented,
        "{deviation} and not {documented}"
    );
}
