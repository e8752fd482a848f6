//! Says each chosen source as exactly as its leaves allow: one value more, or one fewer?
//!
//! While sources are chosen, a leaf of a cause may lie anywhere on the cause's side. Leaves of one
//! cause have more in common than that: they share one deviation (the generalised ripple effect, Li et
//! al., "Squeeze", ISSRE 2019). So each chosen source is held against its neighbours among the
//! candidates, those that name one value more or fewer, each with the deviation of its own sums; what
//! changed less than half as much as the rest of a source then speaks against the wider one.

use super::lattice::Candidate;
use super::noise::{Noise, deviation};
use super::normal::{cumulative, density};
use super::scorer::Scorer;
use super::table::Leaves;

/// Share of a cause's leaves that may lie anywhere all the same: small counts are rounded.
const ASTRAY: f64 = 0.1;

/// How far leaves of one cause stray around its deviation, as multiples of the forecast error: the
/// best of these is taken.
const WIDTHS: [f64; 4] = [1.0, 2.0, 4.0, 8.0];

/// Steps of one value; a source has at most four.
const STEPS_MAX: usize = 4;

/// What a neighbour must be better by, in nats: it has a deviation and a width of its own to tell.
const BETTER_MIN: f64 = 1.0;

/// Replaces chosen candidates by better neighbours.
pub(super) fn refine(
    leaves: &Leaves,
    noise: Noise,
    scorer: &impl Scorer,
    candidates: &[Candidate],
    mut chosen: Vec<usize>,
) -> Vec<usize> {
    let _ = scorer;
    let mut covered = vec![0_u32; leaves.len()];
    for place in &chosen {
        cover(&mut covered, candidates.get(*place), 1);
    }
    for at in 0..chosen.len() {
        for _ in 0..STEPS_MAX {
            let Some(place) = chosen.get(at).copied() else {
                break;
            };
            let Some(current) = candidates.get(place) else {
                break;
            };
            cover(&mut covered, Some(current), u32::MAX);
            let own = gain(leaves, noise, &covered, current);
            let better = (0..)
                .zip(candidates)
                .filter(|(other, candidate)| {
                    are_neighbours(leaves, current, candidate) && !chosen.contains(other)
                })
                .map(|(other, candidate)| (gain(leaves, noise, &covered, candidate), other))
                .filter(|(gain, _)| *gain > own + BETTER_MIN)
                .max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)));
            let next = better.map_or(place, |(_, other)| other);
            cover(&mut covered, candidates.get(next), 1);
            if next == place {
                break;
            }
            if let Some(slot) = chosen.get_mut(at) {
                *slot = next;
            }
        }
    }
    chosen
}

fn cover(covered: &mut [u32], candidate: Option<&Candidate>, by: u32) {
    for leaf in candidate.into_iter().flat_map(|candidate| &candidate.leaves) {
        if let Some(count) = covered.get_mut(*leaf as usize) {
            *count = count.wrapping_add(by);
        }
    }
}

/// Returns whether one names all that the other names, and one value more.
fn are_neighbours(leaves: &Leaves, one: &Candidate, other: &Candidate) -> bool {
    let (wide, narrow) = if one.attributes.len() < other.attributes.len() {
        (one, other)
    } else {
        (other, one)
    };
    if wide.attributes.len() + 1 != narrow.attributes.len() {
        return false;
    }
    let (Some(a), Some(b)) = (wide.leaves.first(), narrow.leaves.first()) else {
        return false;
    };
    wide.attributes.iter().all(|attribute| {
        narrow.attributes.contains(attribute)
            && leaves.code(*attribute, *a) == leaves.code(*attribute, *b)
    })
}

/// Returns how many nats shorter a source makes the description of its leaves, those left out that
/// another source covers.
fn gain(leaves: &Leaves, noise: Noise, covered: &[u32], candidate: &Candidate) -> f64 {
    let own: Vec<(f64, f64)> = candidate
        .leaves
        .iter()
        .filter(|leaf| covered.get(**leaf as usize).is_some_and(|count| *count == 0))
        .map(|leaf| leaves.count(*leaf))
        .collect();
    let (mut observed, mut expected) = (0.0, 0.0);
    for (o, e) in &own {
        observed += o;
        expected += e;
    }
    let centre = deviation(observed, expected);
    let stray = 1.0 / (leaves.len().max(2) as f64);
    let normal: f64 = own
        .iter()
        .map(|(o, e)| {
            let std = noise.deviation_std(o + e);
            let bell = bell(deviation(*o, *e), 0.0, std);
            ((1.0 - stray) * bell + stray / 4.0).ln()
        })
        .sum();
    let affected = |width: &f64| -> f64 {
        let noise = Noise {
            spread: noise.spread * width,
            ..noise
        };
        own.iter()
            .map(|(o, e)| {
                let std = noise.deviation_std(o + e);
                let bell = bell(deviation(*o, *e), centre, std);
                ((1.0 - ASTRAY) * bell + ASTRAY / 4.0).ln()
            })
            .sum()
    };
    let affected = WIDTHS.iter().map(affected).fold(f64::NEG_INFINITY, f64::max);
    affected - normal - candidate.price
}

/// Returns the density of a bell between −2 and 2, of which what lies outside is cut off.
fn bell(x: f64, centre: f64, std: f64) -> f64 {
    let inside = cumulative((2.0 - centre) / std) - cumulative((-2.0 - centre) / std);
    density((x - centre) / std) / (std * inside)
}
