//! Which endpoint the next request goes to: of two that are drawn at random, the one that has less
//! to do (power of two choices; Mitzenmacher, 2001). Leaves it to others who may be drawn.
//!
//! # Accuracy
//!
//! Each worker knows what it has under way itself, and nothing of the other workers: counting over
//! all of them would have every request write to memory that all workers share. What a slow endpoint
//! has too much of, every worker sees in its own part.

/// What is drawn from: one lot for each candidate, as large as what it gets compared with the others.
///
/// Drawing takes time that grows with the logarithm of how many there are; memory is 8 B for each.
#[derive(Debug, Default)]
pub(super) struct Lots {
    /// Where each lot ends; it begins where the one before ends.
    ends: Vec<f64>,
}

impl Lots {
    /// Makes the lots anew. One of no size is never drawn.
    pub(super) fn renew(&mut self, weights: impl Iterator<Item = f64>) {
        self.ends.clear();
        let mut end = 0.0;
        self.ends.extend(weights.map(|weight| {
            end += weight;
            end
        }));
    }

    /// Returns whether nobody can be drawn.
    pub(super) fn is_blank(&self) -> bool {
        self.total() <= 0.0
    }

    /// Draws two candidates and returns the place of the one with less under way for its weight, the first
    /// drawn where both are the same (but for rounding, where weights are no whole numbers). `None`: nobody
    /// has a lot.
    pub(super) fn pick(
        &self,
        random: impl FnOnce() -> u64,
        load: impl Fn(usize) -> u32,
    ) -> Option<usize> {
        if self.is_blank() {
            return None;
        }
        if self.ends.len() == 1 {
            return Some(0);
        }
        let random = random();
        let first = self.at(unit(random as u32) * self.total())?;
        let (begin, weight) = self.lot(first)?;
        // As if the first lot had been taken out.
        let mut point = unit((random >> 32) as u32) * (self.total() - weight);
        if point >= begin {
            point += weight;
        }
        let second = self.at(point).filter(|second| *second != first);
        let Some((second, (_, other))) = second.and_then(|at| Some((at, self.lot(at)?))) else {
            return Some(first);
        };
        let is_freer = f64::from(load(second)) * weight < f64::from(load(first)) * other;
        Some(if is_freer { second } else { first })
    }

    fn total(&self) -> f64 {
        self.ends.last().copied().unwrap_or_default()
    }

    /// Returns whose lot a point is in. `None`: rounding has put it behind the last.
    fn at(&self, point: f64) -> Option<usize> {
        let at = self.ends.partition_point(|end| *end <= point);
        (at < self.ends.len()).then_some(at)
    }

    /// Returns where a lot begins, and its size.
    fn lot(&self, at: usize) -> Option<(f64, f64)> {
        let end = self.ends.get(at)?;
        let begin = at.checked_sub(1).and_then(|before| self.ends.get(before));
        let begin = begin.copied().unwrap_or_default();
        Some((begin, end - begin))
    }
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

    /// Picks among candidates of these weights and loads.
    fn pick(random: u64, of: &[(f64, u32)]) -> Option<usize> {
        let mut lots = Lots::default();
        lots.renew(of.iter().map(|one| one.0));
        lots.pick(|| random, |place| of[place].1)
    }

    #[test]
    fn nobody_with_a_weight_means_nobody_is_picked() {
        assert_eq!(pick(1, &[]), None);
        assert_eq!(pick(1, &[(0.0, 0), (0.0, 3)]), None);
        assert_eq!(pick(u64::MAX, &[(0.0, 0), (1.0, 9), (0.0, 0)]), Some(1));
    }

    #[test]
    fn without_load_the_weights_are_the_shares() {
        let idle = [(1.0, 0), (3.0, 0), (4.0, 0)];
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
            assert_eq!(pick(random, &[(1.0, 2), (1.0, 1)]), Some(1));
            assert_eq!(pick(random, &[(3.0, 5), (1.0, 2)]), Some(0));
            assert_eq!(pick(random, &[(3.0, 7), (1.0, 2)]), Some(1));
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
            let place = pick(random, &load).unwrap();
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
            let picked = pick(random, &candidates);
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
