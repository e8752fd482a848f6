//! What leaves speak for and what a source costs: the acceptance, apart from the walk.
//!
//! The walk ([`super::lattice`], [`super::cover`]) needs two things: a number for each leaf that adds up
//! (positive where the leaf speaks for being part of a cause, negative where against), and the price of
//! naming a source. Whatever has this shape can be searched for: [`LeafEvidence`] for tables, where many
//! small causes count as much as large ones; excess − λ·expected with a price per literal for surges.

use super::noise::{Noise, deviation};
use super::normal::{cumulative, cumulative_integral, density};
use super::table::Leaves;

/// Whether more came than expected, or less.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Observed above expected.
    Rise,
    /// Observed below expected.
    Fall,
}

/// Judges leaves and prices sources. Scores are comparable: a source is worth naming where the scores
/// of its leaves come to more than its price.
pub trait Scorer {
    /// Returns how much a leaf speaks for (positive) or against (negative) being part of a cause.
    fn score(&self, observed: f64, expected: f64) -> f64;

    /// Returns the price of a source that names one value of each of these attributes, given by how
    /// many values they have.
    fn price(&self, cardinalities: &[usize]) -> f64;
}

/// Evidence in nats that something happened to a leaf, and the length in nats of a source's
/// description: the minimum description length of the table (Rissanen 1978).
///
/// A leaf that nothing happened to strays as [`Noise`] says; one in `leaves` may be anywhere all the
/// same, which caps what a single leaf can say. A leaf of a cause lies anywhere on the cause's side.
#[derive(Clone, Copy, Debug)]
pub struct LeafEvidence {
    noise: Noise,
    direction: Direction,
    stray: f64,
    attributes: usize,
    /// Of a leaf that is large: where counting is no noise, of every leaf.
    large: Bell,
}

/// What depends on the standard deviation alone.
#[derive(Clone, Copy, Debug)]
struct Bell {
    std: f64,
    /// The part of a bell around 0 that lies between −2 and 2.
    inside: f64,
    /// The part of what is blurred from 0 to 2 that lies between −2 and 2.
    blurred_inside: f64,
}

impl Bell {
    fn new(std: f64) -> Self {
        let blurred = cumulative_integral(2.0, std)
            - cumulative_integral(-2.0, std)
            - cumulative_integral(0.0, std)
            + cumulative_integral(-4.0, std);
        Self {
            std,
            inside: 2.0 * cumulative(2.0 / std) - 1.0,
            blurred_inside: blurred / 2.0,
        }
    }
}

impl LeafEvidence {
    /// Makes the scorer of a table with this noise.
    pub fn new(leaves: &Leaves, noise: Noise, direction: Direction) -> Self {
        Self {
            noise,
            direction,
            stray: 1.0 / (leaves.len().max(2) as f64),
            attributes: leaves.codes.len(),
            large: Bell::new(noise.spread),
        }
    }
}

impl Scorer for LeafEvidence {
    fn score(&self, observed: f64, expected: f64) -> f64 {
        let sum = observed + expected;
        if sum <= 0.0 {
            return 0.0;
        }
        let toward = match self.direction {
            Direction::Rise => deviation(observed, expected),
            Direction::Fall => deviation(expected, observed),
        };
        let bell = if self.noise.counting > 0.0 {
            Bell::new(self.noise.deviation_std(sum))
        } else {
            self.large
        };
        let std = bell.std;
        let anywhere = self.stray / 4.0;
        let normal = (1.0 - self.stray) * density(toward / std) / (std * bell.inside) + anywhere;
        // Any deviation from 0 to 2, blurred by the noise; the blur is cut off at −2 and 2.
        let blurred = (cumulative(toward / std) - cumulative((toward - 2.0) / std)) / 2.0;
        let affected = (1.0 - self.stray) * blurred / bell.blurred_inside + anywhere;
        (affected / normal).ln()
    }

    fn price(&self, cardinalities: &[usize]) -> f64 {
        let attributes = self.attributes;
        // How many attributes, which ones, and one value of each.
        let which: f64 = (0..cardinalities.len())
            .map(|taken| ((attributes - taken) as f64 / (taken + 1) as f64).ln())
            .sum();
        let values: f64 = cardinalities.iter().map(|count| (*count as f64).ln()).sum();
        (attributes as f64 + 1.0).ln() + which + values
    }
}
