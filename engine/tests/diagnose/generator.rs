//! Tables with known causes, after the published recipes: forecasts with errors, and causes each of
//! which changes all its leaves by one factor.

use std::collections::BTreeSet;

use tidegate_engine::diagnose::{Table, TableBuilder};
use tidegate_engine::traffic::Random;

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

/// How a table is made.
#[derive(Clone, Debug)]
pub(crate) struct Recipe {
    /// Values of each attribute.
    pub cardinalities: Vec<usize>,
    /// Values that a cause names.
    pub literals: usize,
    /// How many causes there are.
    pub causes: usize,
    /// Forecast error as a share.
    pub noise: f64,
    /// Share of leaves with nothing in them.
    pub empty: f64,
    /// Falls of a cause, as a share.
    pub severities: (f64, f64),
    /// Leaves of a cause are whole counts.
    pub whole: bool,
}

/// A table with its truth.
#[derive(Clone, Debug)]
pub(crate) struct Specimen {
    cardinalities: Vec<usize>,
    rows: Vec<(Vec<usize>, f64, f64)>,
    /// Its causes, as `attribute=value&…`.
    pub causes: BTreeSet<String>,
}

impl Recipe {
    /// 21,600 leaves of counts, a third of them empty, forecast within 1 %.
    pub(crate) fn counts(literals: usize, causes: usize) -> Self {
        Self {
            cardinalities: vec![6, 36, 10, 10],
            literals,
            causes,
            noise: 0.01,
            empty: 0.36,
            severities: (0.4, 1.0),
            whole: true,
        }
    }

    /// 48,000 leaves, forecast within up to 12 %, with causes as small as a fall by a fifth.
    pub(crate) fn hard(seed: u64) -> Self {
        let mut random = Random::from_seed(seed + 1000);
        Self {
            cardinalities: vec![10, 12, 10, 8, 5],
            literals: 1 + (random.bits() % 3) as usize,
            causes: 1 + (random.bits() % 3) as usize,
            noise: 0.12 * share(&mut random),
            empty: 0.25 * share(&mut random),
            severities: (0.2, 1.0),
            whole: false,
        }
    }

    /// Makes a table.
    pub(crate) fn specimen(&self, seed: u64) -> Specimen {
        let mut random = Random::from_seed(seed);
        let causes: Vec<(Vec<Option<usize>>, f64)> =
            (0..self.causes).map(|_| self.cause(&mut random)).collect();
        let mut rows = Vec::new();
        let leaves: usize = self.cardinalities.iter().product();
        for leaf in 0..leaves {
            let mut rest = leaf;
            let mut values = Vec::new();
            for cardinality in &self.cardinalities {
                values.push(rest % cardinality);
                rest /= cardinality;
            }
            if share(&mut random) < self.empty {
                continue;
            }
            // Weibull with a long tail: few large leaves, many small ones.
            let size = 100.0 * (-share(&mut random).max(1e-12).ln()).powf(1.5);
            let cause = causes.iter().find(|(source, _)| {
                let mut literals = source.iter().zip(&values);
                literals.all(|(wanted, value)| wanted.is_none_or(|wanted| wanted == *value))
            });
            let observed = match cause {
                Some((_, severity)) if self.whole => (size * (1.0 - severity)).round(),
                Some((_, severity)) => size * (1.0 - severity),
                None => size,
            };
            let expected = (size * (1.0 + self.noise * normal(&mut random))).max(0.0);
            rows.push((values, observed, expected));
        }
        let name = |source: &Vec<Option<usize>>| {
            let literals: Vec<String> = NAMES
                .iter()
                .zip(source)
                .filter_map(|(name, value)| Some(format!("{name}={name}{}", (*value)?)))
                .collect();
            literals.join("&")
        };
        Specimen {
            cardinalities: self.cardinalities.clone(),
            rows,
            causes: causes.iter().map(|(source, _)| name(source)).collect(),
        }
    }

    fn cause(&self, random: &mut Random) -> (Vec<Option<usize>>, f64) {
        let attributes = self.cardinalities.len();
        let mut source = vec![None; attributes];
        while source.iter().flatten().count() < self.literals {
            let attribute = (random.bits() as usize) % attributes;
            if let (Some(slot), Some(count)) =
                (source.get_mut(attribute), self.cardinalities.get(attribute))
            {
                *slot = Some((random.bits() as usize) % count);
            }
        }
        let (least, most) = self.severities;
        (source, least + (most - least) * share(random))
    }
}

impl Specimen {
    /// The table as it is.
    pub(crate) fn table(&self) -> Table {
        self.build(None, |observed, expected| (observed, expected))
    }

    /// The table with observed and expected exchanged: falls become rises.
    pub(crate) fn mirrored(&self) -> Table {
        self.build(None, |observed, expected| (expected, observed))
    }

    /// The table without one of its attributes.
    pub(crate) fn without(&self, attribute: &str) -> Table {
        self.build(Some(attribute), |observed, expected| (observed, expected))
    }

    fn build(&self, without: Option<&str>, counts: impl Fn(f64, f64) -> (f64, f64)) -> Table {
        let kept: Vec<usize> = (0..self.cardinalities.len())
            .filter(|at| NAMES.get(*at).copied() != without)
            .collect();
        let names: Vec<&str> = kept
            .iter()
            .filter_map(|at| NAMES.get(*at).copied())
            .collect();
        let mut table = TableBuilder::new(names.iter().copied()).expect("attributes");
        for (values, observed, expected) in &self.rows {
            let values: Vec<String> = kept
                .iter()
                .zip(&names)
                .filter_map(|(at, name)| Some(format!("{name}{}", values.get(*at)?)))
                .collect();
            let (observed, expected) = counts(*observed, *expected);
            table
                .add(values.iter().map(String::as_str), observed, expected)
                .expect("a row");
        }
        table.finish()
    }
}

/// From 0 to 1.
fn share(random: &mut Random) -> f64 {
    (random.bits() >> 11) as f64 / (1_u64 << 53) as f64
}

/// Standard normal (Box and Muller).
fn normal(random: &mut Random) -> f64 {
    let radius = (-2.0 * share(random).max(1e-300).ln()).sqrt();
    radius * (std::f64::consts::TAU * share(random)).cos()
}
