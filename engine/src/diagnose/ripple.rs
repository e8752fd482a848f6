//! Says each chosen source as exactly as its leaves allow: one value more, or one fewer?
//!
//! While sources are chosen, a leaf of a cause may lie anywhere on the cause's side. Leaves of one
//! cause have more in common than that: they share one deviation (the generalised ripple effect, Li et
//! al., "Squeeze", ISSRE 2019). So each chosen source is held against its neighbours among the
//! candidates, those that name one value more or fewer, each with the deviation of its own sums; what
//! changed less than half as much as the rest of a source then speaks against the wider one.

use super::lattice::Candidate;
use super::noise::{Noise, SPREAD_MAX, deviation};
use super::normal::{cumulative, density};
use super::table::Leaves;

/// Share of a cause's leaves that may lie anywhere all the same: small counts are rounded.
const ASTRAY: f64 = 0.1;

/// How far leaves of one cause stray around its deviation, as multiples of the forecast error: the
/// best of these is taken.
const WIDTHS: [f64; 4] = [1.0, 2.0, 4.0, 8.0];

/// Steps of one value; a source has at most four.
const STEPS_MAX: usize = 4;

/// Replaces chosen candidates by better neighbours.
pub(super) fn refine(
    leaves: &Leaves,
    noise: Noise,
    candidates: &[Candidate],
    mut chosen: Vec<usize>,
) -> Vec<usize> {
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
            let neighbours: Vec<(usize, &Candidate)> = (0..)
                .zip(candidates)
                .filter(|(other, candidate)| {
                    are_neighbours(leaves, current, candidate)
                        && may_be_better(current, candidate)
                        && !chosen.contains(other)
                })
                .collect();
            if neighbours.is_empty() {
                break;
            }
            cover(&mut covered, Some(current), u32::MAX);
            let own = gain(leaves, noise, &covered, current);
            let better = neighbours
                .into_iter()
                .map(|(other, candidate)| (gain(leaves, noise, &covered, candidate), other))
                .filter(|(gain, _)| *gain > own)
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
    for leaf in candidate
        .into_iter()
        .flat_map(|candidate| &candidate.leaves)
    {
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

/// Returns whether the leaves by which a narrower neighbour is smaller could do without the source: each
/// costs at most ln (4 / [`ASTRAY`]) more there than it scores, so where they score more than that they
/// cannot.
fn may_be_better(current: &Candidate, neighbour: &Candidate) -> bool {
    let rest = current.leaves.len() as f64 - neighbour.leaves.len() as f64;
    rest < 0.0 || current.score - neighbour.score < rest * (4.0 / ASTRAY).ln()
}

/// Returns how many nats shorter a source makes the description of its leaves, those left out that
/// another source covers.
fn gain(leaves: &Leaves, noise: Noise, covered: &[u32], candidate: &Candidate) -> f64 {
    let own: Vec<(f64, f64)> = candidate
        .leaves
        .iter()
        .filter(|leaf| {
            covered
                .get(**leaf as usize)
                .is_some_and(|count| *count == 0)
        })
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
            spread: (noise.spread * width).min(SPREAD_MAX),
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
    let affected = WIDTHS
        .iter()
        .map(affected)
        .fold(f64::NEG_INFINITY, f64::max);
    affected - normal - candidate.price
}

/// Returns the density of a bell between −2 and 2, of which what lies outside is cut off.
fn bell(x: f64, centre: f64, std: f64) -> f64 {
    let inside = cumulative((2.0 - centre) / std) - cumulative((-2.0 - centre) / std);
    density((x - centre) / std) / (std * inside)
}
