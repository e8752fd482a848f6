//! Random draws: Poisson counts, weighted choices, log-normal ranks. Seeded, so equal seeds give
//! equal draws.

use crate::traffic::Random;

/// Above this mean a Poisson count is drawn from a normal distribution of the same mean and variance.
const POISSON_EXACT_MAX: f64 = 64.0;

/// Draws a Poisson count.
pub(super) fn poisson(mean: f64, random: &mut Random) -> u64 {
    if mean <= 0.0 {
        return 0;
    }
    if mean > POISSON_EXACT_MAX {
        let drawn = mean + mean.sqrt() * normal(random) + 0.5;
        return drawn.max(0.0) as u64;
    }
    // Knuth: multiply until below e^-mean.
    let limit = (-mean).exp();
    let mut product = random.unit();
    let mut count = 0;
    while product > limit {
        product *= random.unit();
        count += 1;
    }
    count
}

/// Draws from the standard normal distribution (Box and Muller, 1958).
fn normal(random: &mut Random) -> f64 {
    let radius = (-2.0 * (1.0 - random.unit()).ln()).sqrt();
    radius * (std::f64::consts::TAU * random.unit()).cos()
}

/// Spreads a number over all 64 bits, one to one (the finaliser of `SplitMix64`).
pub(super) fn mix(number: u64) -> u64 {
    Random::from_seed(number).bits()
}

/// Turns 64 random bits into a number from 0 to below 1.
pub(super) fn unit(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

/// Turns 64 random bits into a whole number below `n`, or 0 where `n` is 0.
pub(super) fn below(bits: u64, n: usize) -> usize {
    ((u128::from(bits) * n as u128) >> 64) as usize
}

/// Choices with weights, each drawn in constant time (Walker's alias method, 1977).
#[derive(Clone, Debug, Default)]
pub(super) struct Alias {
    /// The share of its own place that a choice keeps, and who has the rest.
    places: Vec<(f32, u32)>,
}

impl Alias {
    /// Makes the choices `0..weights.len()`. Weights need not sum up to anything.
    pub(super) fn new(weights: &[f64]) -> Self {
        let total: f64 = weights.iter().sum();
        let scale = weights.len() as f64 / total.max(f64::MIN_POSITIVE);
        let mut left: Vec<f64> = weights.iter().map(|weight| weight * scale).collect();
        let mut places: Vec<(f32, u32)> = (0..weights.len()).map(|at| (1.0, at as u32)).collect();
        let (mut small, mut large): (Vec<usize>, Vec<usize>) =
            (0..left.len()).partition(|at| left.get(*at).is_some_and(|left| *left < 1.0));
        while let (Some(poor), Some(rich)) = (small.pop(), large.pop()) {
            let share = left.get(poor).copied().unwrap_or(1.0);
            if let Some(place) = places.get_mut(poor) {
                *place = (share as f32, rich as u32);
            }
            let Some(rest) = left.get_mut(rich) else {
                break;
            };
            *rest -= 1.0 - share;
            if *rest < 1.0 {
                small.push(rich);
            } else {
                large.push(rich);
            }
        }
        Self { places }
    }

    /// Chooses by 64 random bits.
    pub(super) fn choose(&self, bits: u64) -> usize {
        let scaled = u128::from(bits) * self.places.len() as u128;
        let at = (scaled >> 64) as usize;
        let rest = (scaled as u64 >> 40) as f32 / (1_u32 << 24) as f32;
        match self.places.get(at) {
            Some((share, other)) if rest >= *share => *other as usize,
            _ => at,
        }
    }
}

/// How uneven clients are: the standard deviation of the logarithm of their rates. The busiest of
/// 50,000 sends 36 times the mean, half of them less than 0.6 times.
const SIGMA: f64 = 1.0;

/// Points of the table of [`Ranks`].
const POINTS: usize = 1 << 14;

/// Draws which client sends the next request, where the rates of clients are log-normal.
///
/// The sender of a random request has the normal score `z + sigma` where a random client has `z`: so
/// its rank is `Φ(sigma + Φ⁻¹(u))`, tabulated, and no rate of any client need be kept.
#[derive(Clone, Debug)]
pub(super) struct Ranks {
    points: Vec<f32>,
}

impl Ranks {
    pub(super) fn new() -> Self {
        // The busiest first: rank 0 is z = infinity.
        let step = 16.0 / (8.0 * POINTS as f64);
        let mut points = Vec::with_capacity(POINTS + 1);
        let (mut z, mut sent, mut rank) = (8.0_f64, 0.0, 0.0);
        // Walks z down, adding up the share of requests and of clients above it.
        let density = |z: f64| (-z * z / 2.0).exp() / std::f64::consts::TAU.sqrt();
        points.push(0.0);
        while points.len() < POINTS {
            z -= step;
            sent += density(z - SIGMA) * step;
            rank += density(z) * step;
            while points.len() < POINTS && sent * POINTS as f64 >= points.len() as f64 {
                points.push(rank.min(1.0) as f32);
            }
            if z < -8.0 {
                break;
            }
        }
        points.resize(POINTS, 1.0);
        points.push(1.0);
        Self { points }
    }

    /// Returns the place, below `clients`, of the client that sends; the busiest is 0.
    pub(super) fn sender(&self, clients: f64, bits: u64) -> u32 {
        let scaled = unit(bits) * POINTS as f64;
        let at = scaled as usize;
        let low = self.points.get(at).copied().unwrap_or(0.0);
        let high = self.points.get(at + 1).copied().unwrap_or(1.0);
        let rank = f64::from(low) + f64::from(high - low) * scaled.fract();
        (rank * clients).min((clients - 1.0).max(0.0)) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_come_as_often_as_their_weights_say() {
        let weights = [5.0, 0.0, 3.0, 2.0];
        let alias = Alias::new(&weights);
        let mut random = Random::from_seed(1);
        let mut counts = [0_u32; 4];
        for _ in 0..100_000 {
            counts[alias.choose(random.bits())] += 1;
        }
        for (count, weight) in counts.iter().zip(weights) {
            let wanted = weight * 10_000.0;
            assert!((f64::from(*count) - wanted).abs() < 500.0, "{counts:?}");
        }
    }

    #[test]
    fn poisson_counts_have_their_mean_and_variance() {
        let mut random = Random::from_seed(2);
        for mean in [0.3, 20.0, 500.0] {
            let counts: Vec<f64> = (0..20_000)
                .map(|_| poisson(mean, &mut random) as f64)
                .collect();
            let average = counts.iter().sum::<f64>() / 20_000.0;
            let variance = counts.iter().map(|c| (c - average).powi(2)).sum::<f64>() / 20_000.0;
            assert!((average / mean - 1.0).abs() < 0.03, "{mean}: {average}");
            assert!((variance / mean - 1.0).abs() < 0.06, "{mean}: {variance}");
        }
        assert_eq!(poisson(0.0, &mut random), 0);
    }

    /// The closed form: the busiest 1 % of a log-normal population with sigma 1 sends Φ(1 - 2.326) =
    /// 9.2 % of all requests, and the quieter half 15.9 %.
    #[test]
    fn senders_are_as_uneven_as_documented() {
        let ranks = Ranks::new();
        let mut random = Random::from_seed(3);
        let (mut busiest, mut quiet) = (0_u32, 0_u32);
        for _ in 0..200_000 {
            let sender = ranks.sender(10_000.0, random.bits());
            assert!(sender < 10_000);
            busiest += u32::from(sender < 100);
            quiet += u32::from(sender >= 5000);
        }
        let share = |count: u32| f64::from(count) / 200_000.0;
        assert!((share(busiest) - 0.092).abs() < 0.005, "{busiest}");
        assert!((share(quiet) - 0.159).abs() < 0.005, "{quiet}");
    }
}
