//! What became of requests. All of them are kept (48 B each, half a million at most in one
//! experiment), so that percentiles are exact and phases can be cut out by when a request was due.

use std::time::Duration;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// A whole answer.
    Status(u16),
    /// A whole answer that belongs to another request.
    Foreign,
    /// The answer broke off.
    Incomplete,
    /// No connection, or it was closed without an answer.
    Broken,
    /// No answer for as long as the client had patience.
    Silence,
}

impl End {
    /// Returns whether the client got what it asked for.
    pub(crate) fn is_good(self) -> bool {
        self == Self::Status(200)
    }

    /// Returns whether the proxy said that it does not serve this now.
    pub(crate) fn is_refusal(self) -> bool {
        matches!(self, Self::Status(403 | 429 | 503))
    }
}

/// What became of one request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outcome {
    /// When it was due on the stage.
    pub(crate) due: Duration,
    /// How long it took from then.
    pub(crate) took: Duration,
    /// How it ended.
    pub(crate) end: End,
    /// How often it was sent.
    pub(crate) attempts: u8,
}

/// What became of many.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcomes(Vec<Outcome>);

impl Outcomes {
    /// Takes them in any order.
    pub(crate) fn new(mut outcomes: Vec<Outcome>) -> Self {
        outcomes.sort_by_key(|outcome| outcome.due);
        Self(outcomes)
    }

    /// Adds others.
    pub(crate) fn with(&self, others: &Self) -> Self {
        Self::new(self.0.iter().chain(&others.0).copied().collect())
    }

    /// Returns those that were due from here to there.
    pub(crate) fn between(&self, from: Duration, to: Duration) -> Self {
        let is_inside = |outcome: &&Outcome| (from..to).contains(&outcome.due);
        Self(self.0.iter().filter(is_inside).copied().collect())
    }

    /// Returns how many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns how many ended so.
    pub(crate) fn count(&self, is: impl Fn(End) -> bool) -> usize {
        self.0.iter().filter(|outcome| is(outcome.end)).count()
    }

    /// Returns how many got what they asked for.
    pub(crate) fn good(&self) -> usize {
        self.count(End::is_good)
    }

    /// Returns how many did not.
    pub(crate) fn errors(&self) -> usize {
        self.len() - self.good()
    }

    /// Returns the share of those that got what they asked for, 0 to 1.
    pub(crate) fn success(&self) -> f64 {
        self.good() as f64 / self.len().max(1) as f64
    }

    /// Returns how often something was sent for each request.
    pub(crate) fn attempts_per_request(&self) -> f64 {
        let attempts: u64 = self
            .0
            .iter()
            .map(|outcome| u64::from(outcome.attempts))
            .sum();
        attempts as f64 / self.len().max(1) as f64
    }

    /// Returns a percentile (0 to 1) of how long those took that ended so; zero where none did.
    pub(crate) fn percentile(&self, share: f64, is: impl Fn(End) -> bool) -> Duration {
        let chosen = self.0.iter().filter(|outcome| is(outcome.end));
        let mut times: Vec<Duration> = chosen.map(|outcome| outcome.took).collect();
        times.sort_unstable();
        let at = (share * times.len() as f64).ceil() as usize;
        times.get(at.saturating_sub(1)).copied().unwrap_or_default()
    }

    /// Returns the time that 99 of 100 good answers took at most.
    pub(crate) fn p99(&self) -> Duration {
        self.percentile(0.99, End::is_good)
    }

    /// Returns the first moment after `from` from which on all is well: in each `step` at least
    /// `success` of the requests are answered, within `limit` for 9 of 10. `None`: not before the end.
    pub(crate) fn well_from(
        &self,
        from: Duration,
        to: Duration,
        step: Duration,
        success: f64,
        limit: Duration,
    ) -> Option<Duration> {
        let mut well_since = None;
        let mut at = from;
        while at + step <= to {
            let part = self.between(at, at + step);
            let is_well = part.len() > 0
                && part.success() >= success
                && part.percentile(0.9, |_| true) <= limit;
            if !is_well {
                well_since = None;
            } else if well_since.is_none() {
                well_since = Some(at.saturating_sub(from));
            }
            at += step;
        }
        well_since
    }

    /// Says how the requests ended, the commonest way first.
    pub(crate) fn ends(&self) -> String {
        let mut counts: Vec<(End, usize)> = Vec::new();
        for outcome in &self.0 {
            match counts.iter_mut().find(|(end, _)| *end == outcome.end) {
                Some((_, count)) => *count += 1,
                None => counts.push((outcome.end, 1)),
            }
        }
        counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let words = counts.iter().map(|(end, count)| match end {
            End::Status(status) => format!("{status} x {count}"),
            other => format!("{other:?} x {count}").to_lowercase(),
        });
        words.collect::<Vec<String>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(due_ms: u64, took_ms: u64, end: End) -> Outcome {
        Outcome {
            due: Duration::from_millis(due_ms),
            took: Duration::from_millis(took_ms),
            end,
            attempts: 1,
        }
    }

    #[test]
    fn percentiles_are_those_of_a_sorted_list() {
        let all = (1..=200).map(|n| outcome(n, n, End::Status(200)));
        let mut all: Vec<Outcome> = all.collect();
        all.push(outcome(0, 9999, End::Silence));
        let outcomes = Outcomes::new(all);
        assert_eq!(outcomes.p99(), Duration::from_millis(198));
        assert_eq!((outcomes.good(), outcomes.errors()), (200, 1));
        assert_eq!(Outcomes::default().p99(), Duration::ZERO);
    }

    #[test]
    fn well_from_is_after_the_last_bad_step() {
        let end = |n: u64| {
            if n == 25 {
                End::Silence
            } else {
                End::Status(200)
            }
        };
        let outcomes = Outcomes::new((0..50).map(|n| outcome(n * 10, 1, end(n))).collect());
        let ms = Duration::from_millis;
        let well = |to| outcomes.well_from(ms(100), ms(to), ms(100), 1.0, ms(5));
        assert_eq!(well(500), Some(ms(200)));
        assert_eq!(well(300), None, "it ends badly");
        assert_eq!(well(200), Some(ms(0)), "it has not begun to be bad");
    }
}
