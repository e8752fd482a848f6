//! Which endpoint the next request goes to: of two that are drawn at random, the one that has less
//! to do (power of two choices; Mitzenmacher, 2001). Leaves it to others who may be drawn.
//!
//! # Accuracy
//!
//! Each worker knows what it has under way itself, and nothing of the other workers: counting over
//! all of them would have every request write to memory that all workers share. What a slow endpoint
//! has too much of, every worker sees in its own part.

/// Somebody who may be drawn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate {
    /// What it gets compared with the others; 0: nothing.
    pub(crate) weight: f64,
    /// Requests under way.
    pub(crate) load: u32,
}

/// Draws two candidates by weight and returns the place of the one with less under way for its
/// weight, the first drawn where both are the same. `None`: nobody has a weight.
pub(crate) fn pick<C>(random: u64, candidates: &C) -> Option<usize>
where
    C: Fn(usize) -> Option<Candidate>,
{
    let total: f64 = walk(candidates, None).map(|(_, one)| one.weight).sum();
    let (first, one) = draw(unit(random as u32), total, candidates, None)?;
    let rest = total - one.weight;
    let Some((second, other)) = draw(unit((random >> 32) as u32), rest, candidates, Some(first))
    else {
        return Some(first);
    };
    let is_freer = f64::from(other.load) * one.weight < f64::from(one.load) * other.weight;
    Some(if is_freer { second } else { first })
}

/// Goes through everybody with a weight but `without`.
fn walk<C>(candidates: &C, without: Option<usize>) -> impl Iterator<Item = (usize, Candidate)>
where
    C: Fn(usize) -> Option<Candidate>,
{
    (0..)
        .map_while(move |place| Some((place, candidates(place)?)))
        .filter(move |(place, one)| one.weight > 0.0 && Some(*place) != without)
}

fn draw<C>(
    unit: f64,
    total: f64,
    candidates: &C,
    without: Option<usize>,
) -> Option<(usize, Candidate)>
where
    C: Fn(usize) -> Option<Candidate>,
{
    let mut left = unit * total;
    let mut last = None;
    for drawn in walk(candidates, without) {
        left -= drawn.1.weight;
        last = Some(drawn);
        if left < 0.0 {
            break;
        }
    }
    // Rounding may leave a bit over: it belongs to the last.
    last
}

/// Turns random bits into a number from 0 to below 1.
fn unit(bits: u32) -> f64 {
    f64::from(bits) / (f64::from(u32::MAX) + 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The same numbers in every run.
    fn randoms(count: usize) -> impl Iterator<Item = u64> {
        let mut random = fastrand::Rng::with_seed(7);
        std::iter::repeat_with(move || random.u64(..)).take(count)
    }

    fn list(of: &[(f64, u32)]) -> impl Fn(usize) -> Option<Candidate> {
        let of = of.to_vec();
        move |place| {
            of.get(place)
                .map(|&(weight, load)| Candidate { weight, load })
        }
    }

    #[test]
    fn nobody_with_a_weight_means_nobody_is_picked() {
        assert_eq!(pick(1, &list(&[])), None);
        assert_eq!(pick(1, &list(&[(0.0, 0), (0.0, 3)])), None);
        assert_eq!(
            pick(u64::MAX, &list(&[(0.0, 0), (1.0, 9), (0.0, 0)])),
            Some(1)
        );
    }

    #[test]
    fn without_load_the_weights_are_the_shares() {
        let idle = list(&[(1.0, 0), (3.0, 0), (4.0, 0)]);
        let mut picked = [0_u32; 3];
        for random in randoms(80_000) {
            picked[pick(random, &idle).unwrap()] += 1;
        }
        for (picked, wanted) in picked.iter().zip([10_000.0, 30_000.0, 40_000.0]) {
            let off = (f64::from(*picked) - wanted).abs() / wanted;
            assert!(off < 0.03, "{picked} of {wanted}");
        }
    }

    #[test]
    fn of_two_the_one_with_less_to_do_for_its_weight_is_always_picked() {
        for random in randoms(1000) {
            assert_eq!(pick(random, &list(&[(1.0, 2), (1.0, 1)])), Some(1));
            assert_eq!(pick(random, &list(&[(3.0, 5), (1.0, 2)])), Some(0));
            assert_eq!(pick(random, &list(&[(3.0, 7), (1.0, 2)])), Some(1));
        }
    }

    /// An endpoint that takes ten times as long has ten times as much under way when all get the
    /// same; picked by load, it gets little more than it can serve.
    #[test]
    fn a_slow_endpoint_gets_less() {
        let service_ticks = [10_u32, 10, 10, 100];
        let mut ends: [std::collections::VecDeque<u32>; 4] = Default::default();
        let mut served = [0_u32; 4];
        for (tick, random) in randoms(20_000).enumerate() {
            let tick = tick as u32;
            for queue in &mut ends {
                while queue.front().is_some_and(|end| *end <= tick) {
                    queue.pop_front();
                }
            }
            let load: Vec<(f64, u32)> = ends.iter().map(|q| (1.0, q.len() as u32)).collect();
            let place = pick(random, &list(&load)).unwrap();
            ends[place].push_back(tick + service_ticks[place]);
            served[place] += 1;
        }
        let fair = 20_000 / 4;
        assert!(served[3] < fair / 2, "{served:?}");
        assert!(served[..3].iter().all(|count| *count > fair), "{served:?}");
    }

    proptest! {
        /// The obvious version: everybody who can be drawn, with the better of each pair.
        #[test]
        fn whoever_is_picked_has_a_weight_and_is_not_the_worst_of_all(
            candidates in proptest::collection::vec((prop_oneof![Just(0.0), 0.1_f64..10.0], 0_u32..50), 0..12),
            random in any::<u64>(),
        ) {
            let usable: Vec<usize> = (0..candidates.len()).filter(|at| candidates[*at].0 > 0.0).collect();
            let picked = pick(random, &list(&candidates));
            prop_assert_eq!(picked.is_none(), usable.is_empty());
            if let Some(picked) = picked {
                prop_assert!(usable.contains(&picked));
                let pressure = |at: usize| f64::from(candidates[at].1) / candidates[at].0;
                let others = usable.iter().filter(|at| **at != picked);
                let is_strictly_worst = others.clone().count() > 0
                    && others.clone().all(|at| pressure(*at) < pressure(picked) - 1e-9);
                prop_assert!(!is_strictly_worst);
            }
        }
    }
}
