//! How the endpoints of one upstream did in the last ten seconds, and which of them does so much worse
//! than the others that it should be out.

use std::collections::VecDeque;

/// Ticks of a second in the window.
const TICKS: usize = 10;
/// Fewer requests than this in the window say nothing.
const REQUESTS_MIN: u64 = 100;
/// Whoever succeeds less often than this is bad.
const SUCCESS_BAD: f64 = 0.5;
/// The others together must do at least as well: where all do badly, what is behind them is to blame.
const SUCCESS_FINE: f64 = 0.8;

/// What an endpoint answered since it is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Answered well.
    pub(crate) succeeded: u64,
    /// Answered 5xx, or not, or not to the end.
    pub(crate) failed: u64,
}

impl Tally {
    fn requests(self) -> u64 {
        self.succeeded + self.failed
    }

    fn success(self) -> f64 {
        self.succeeded as f64 / self.requests() as f64
    }

    fn since(self, earlier: Self) -> Self {
        Self {
            succeeded: self.succeeded.saturating_sub(earlier.succeeded),
            failed: self.failed.saturating_sub(earlier.failed),
        }
    }
}

/// The last ten seconds of one endpoint.
#[derive(Clone, Debug, Default)]
pub(crate) struct Window {
    /// What was counted at each tick, newest last.
    tallies: VecDeque<Tally>,
}

impl Window {
    /// Takes what is counted now, once a second. Returns what came in the window.
    pub(crate) fn tick(&mut self, tally: Tally) -> Tally {
        if self.tallies.len() > TICKS {
            self.tallies.pop_front();
        }
        self.tallies.push_back(tally);
        let first = self.tallies.front().copied().unwrap_or_default();
        tally.since(first)
    }

    /// Begins anew: what was before says nothing of what comes.
    pub(crate) fn forget(&mut self) {
        self.tallies.clear();
    }
}

/// Returns the places of those who do badly while the others do well, worst first.
pub(crate) fn misfits(tallies: &[Tally]) -> Vec<usize> {
    let is_misfit = |(place, tally): &(usize, &Tally)| {
        let others = tallies
            .iter()
            .enumerate()
            .filter(|(other, _)| other != place)
            .fold(Tally::default(), |sum, (_, other)| Tally {
                succeeded: sum.succeeded + other.succeeded,
                failed: sum.failed + other.failed,
            });
        tally.requests() >= REQUESTS_MIN
            && tally.success() < SUCCESS_BAD
            && others.requests() >= REQUESTS_MIN
            && others.success() >= SUCCESS_FINE
    };
    let mut found: Vec<_> = tallies.iter().enumerate().filter(is_misfit).collect();
    found.sort_by(|(_, a), (_, b)| a.success().total_cmp(&b.success()));
    found.into_iter().map(|(place, _)| place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(succeeded: u64, failed: u64) -> Tally {
        Tally { succeeded, failed }
    }

    #[test]
    fn whoever_fails_while_the_others_do_well_is_a_misfit() {
        assert_eq!(misfits(&[tally(500, 1), tally(40, 60)]), [1]);
        assert!(misfits(&[tally(500, 1), tally(50, 50)]).is_empty());
        assert_eq!(
            misfits(&[tally(30, 90), tally(900, 0), tally(900, 9), tally(0, 100)]),
            [3, 0]
        );
    }

    #[test]
    fn where_all_do_badly_or_little_came_nobody_is_a_misfit() {
        assert!(misfits(&[tally(10, 500), tally(10, 500)]).is_empty());
        assert!(
            misfits(&[tally(60, 40), tally(0, 100)]).is_empty(),
            "the others are not fine"
        );
        assert!(misfits(&[tally(1000, 0), tally(0, 99)]).is_empty());
        assert!(misfits(&[tally(99, 0), tally(0, 1000)]).is_empty());
        assert!(
            misfits(&[tally(0, 1000)]).is_empty(),
            "alone, there is nobody better"
        );
        assert!(misfits(&[]).is_empty());
    }

    #[test]
    fn the_window_is_ten_seconds_long() {
        let mut window = Window::default();
        for second in 0..30_u64 {
            let in_window = window.tick(tally(second * 7, second * second));
            let then = second.saturating_sub(10);
            assert_eq!(
                in_window,
                tally((second - then) * 7, second * second - then * then)
            );
        }
        window.forget();
        assert_eq!(window.tick(tally(1000, 1000)), Tally::default());
    }
}
