//! The normal distribution.

/// 1 / √(2π).
const PEAK: f64 = 0.398_942_280_401_432_7;

/// Further out the density is below 1e-300, and the processor slow to say so.
const NOTHING_BEYOND: f64 = 37.0;

/// Returns the density at `x`.
pub(super) fn density(x: f64) -> f64 {
    if x.abs() > NOTHING_BEYOND {
        return 0.0;
    }
    PEAK * (-0.5 * x * x).exp()
}

/// Returns the probability of at most `x`. Abramowitz and Stegun 26.2.17; errs by less than 1e-7.
pub(super) fn cumulative(x: f64) -> f64 {
    if x < 0.0 {
        return 1.0 - cumulative(-x);
    }
    if x > 6.0 {
        return 1.0;
    }
    let t = 1.0 / (1.0 + 0.231_641_9 * x);
    let series = t
        * (0.319_381_530
            + t * (-0.356_563_782
                + t * (1.781_477_937 + t * (-1.821_255_978 + t * 1.330_274_429))));
    1.0 - density(x) * series
}

/// Returns the integral of [`cumulative`] up to `x`, of a bell of the standard deviation `std`.
pub(super) fn cumulative_integral(x: f64, std: f64) -> f64 {
    x * cumulative(x / std) + std * density(x / std)
}
