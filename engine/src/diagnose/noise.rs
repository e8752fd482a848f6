//! How far leaves stray that nothing happened to.
//!
//! A leaf's deviation is d = 2 (observed − expected) / (observed + expected), from −2 to 2: the same
//! size for a rise and the fall that undoes it. A leaf that nothing happened to strays around 0 with
//! the variance s² + φ/m, where m is the mean of its two counts: `s` is the share by which forecasts
//! err however large the leaf, `φ` how noisy the counting is (1 for independent events, 0 for
//! quantities that are no counts). Both are fitted by maximum likelihood, on a mixture in which a part
//! of the leaves may be anywhere: those do not widen what is normal.

use super::normal::{cumulative, density};
use super::table::Leaves;

/// Forecast errors that are tried: 0.5 % to a third, each 1.3 times the last. What errs by more than a
/// third is no forecast, and what it misses is a change.
const SPREAD_MIN: f64 = 0.005;
const SPREAD_STEP: f64 = 1.3;
const SPREADS: i32 = 17;
pub(super) const SPREAD_MAX: f64 = 0.333;

/// Counting noises that are tried. Never above that of independent events: what strays more is
/// forecast error, however it came about, and goes to the spread.
const COUNTINGS: [f64; 6] = [0.0, 0.01, 0.03, 0.1, 0.3, 1.0];

/// Shares of leaves that something may have happened to.
const AFFECTED: [f64; 2] = [0.05, 0.4];

/// Likelihoods that are multiplied before a logarithm is taken: 1e±2 to the 16th is far from overflow.
const FACTORS: usize = 16;

/// Leaves looked at for the first estimate, and around it for the final one. A spread fitted on 512
/// leaves errs by 1 / √1024 = 3 %.
const SAMPLE_COARSE: usize = 128;
const SAMPLE_FINE: usize = 512;

/// The fitted noise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Noise {
    /// Forecast error as a share, whatever the size of the leaf.
    pub spread: f64,
    /// Variance / mean of counting.
    pub counting: f64,
}

/// Returns the deviation of a leaf, or 0 where there is nothing.
pub(super) fn deviation(observed: f64, expected: f64) -> f64 {
    let sum = observed + expected;
    if sum > 0.0 {
        2.0 * (observed - expected) / sum
    } else {
        0.0
    }
}

impl Noise {
    /// Returns the standard deviation of the deviation of a leaf whose counts come to `sum`.
    pub(super) fn deviation_std(&self, sum: f64) -> f64 {
        (self.spread * self.spread + 2.0 * self.counting / sum).sqrt()
    }

    /// Fits the noise of these leaves.
    pub fn fit(leaves: &Leaves) -> Self {
        let coarse = sample(leaves, SAMPLE_COARSE);
        let spreads: Vec<f64> = (0..SPREADS)
            .step_by(2)
            .map(|step| SPREAD_MIN * SPREAD_STEP.powi(step))
            .collect();
        let all = spreads.iter().flat_map(|spread| {
            COUNTINGS.map(|counting| Self {
                spread: *spread,
                counting,
            })
        });
        let first = best(all, &coarse);
        let fine = sample(leaves, SAMPLE_FINE);
        let near = [-2, -1, 0, 1, 2].into_iter().flat_map(|step| {
            let spread = (first.spread * SPREAD_STEP.powi(step)).min(SPREAD_MAX);
            let near = |counting: &f64| {
                (counting - first.counting).abs() <= 2.0 * first.counting.max(0.005)
            };
            COUNTINGS
                .into_iter()
                .filter(near)
                .map(move |counting| Self { spread, counting })
        });
        best(near, &fine)
    }

    /// Returns the log likelihood of a sample, with the share of affected leaves that suits it best.
    fn likelihood(&self, sample: &[(f64, f64)]) -> f64 {
        // The logarithm of a product is as good as the sum of logarithms and costs one of them: the
        // factors lie between 1e-2 and 1e2.
        let mut sums = [0.0; AFFECTED.len()];
        for some in sample.chunks(FACTORS) {
            let mut products = [1.0; AFFECTED.len()];
            for (deviation, sum) in some {
                let std = self.deviation_std(*sum);
                // The part of the bell that lies between −2 and 2.
                let inside = 2.0 * cumulative(2.0 / std) - 1.0;
                let bell = density(deviation / std) / (std * inside);
                for (product, affected) in products.iter_mut().zip(AFFECTED) {
                    *product *= (1.0 - affected) * bell + affected / 4.0;
                }
            }
            for (sum, product) in sums.iter_mut().zip(products) {
                *sum += product.ln();
            }
        }
        sums.into_iter().fold(f64::NEG_INFINITY, f64::max)
    }
}

fn best(candidates: impl Iterator<Item = Noise>, sample: &[(f64, f64)]) -> Noise {
    candidates
        .map(|noise| (noise.likelihood(sample), noise))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map_or(
            Noise {
                spread: 1.0,
                counting: 1.0,
            },
            |(_, noise)| noise,
        )
}

/// Returns deviations and sums of at most `most` leaves, spread over the table without following its
/// order (a fixed stride could meet one value of an attribute only).
fn sample(leaves: &Leaves, most: usize) -> Vec<(f64, f64)> {
    let count = leaves.len() as u64;
    let take = most.min(leaves.len()) as u64;
    let scattered = |at: u64| {
        if take == count {
            return at;
        }
        // SplitMix64's last step.
        let mut bits = (at + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (bits ^ (bits >> 31)) % count
    };
    (0..take)
        .map(|at| {
            let (observed, expected) = leaves.count(scattered(at) as u32);
            (deviation(observed, expected), observed + expected)
        })
        .collect()
}
