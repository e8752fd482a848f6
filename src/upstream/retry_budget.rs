//! How many requests may be sent again: a tenth of those of the last ten seconds, and three a second
//! whatever comes. An upstream that answers nobody gets 1.1 times what clients send and 3/s, and not
//! twice of it.

use std::collections::VecDeque;
use std::time::Duration;

use tidegate_engine::time::Instant;

/// Seconds that count.
const WINDOW_SECONDS: u64 = 10;
/// Of so many requests one may be sent again.
const REQUESTS_PER_RETRY: u64 = 10;
/// And so many a second besides.
const RETRIES_PER_SECOND: u64 = 3;

/// What was sent in one second.
#[derive(Clone, Copy, Debug)]
struct Second {
    number: u64,
    requests: u64,
    retries: u64,
}

/// The budget of one upstream.
#[derive(Debug, Default)]
pub(crate) struct RetryBudget {
    /// Newest last; at most [`WINDOW_SECONDS`].
    seconds: VecDeque<Second>,
}

impl RetryBudget {
    /// Counts requests that were sent for the first time.
    pub(crate) fn sent(&mut self, requests: u64, now: Instant) {
        self.count(now, requests, 0);
    }

    /// Spends one retry. False: there is none left.
    pub(crate) fn spend(&mut self, now: Instant) -> bool {
        self.forget(now);
        let (requests, retries) = self
            .seconds
            .iter()
            .fold((0, 0), |(requests, retries), second| {
                (requests + second.requests, retries + second.retries)
            });
        let most = requests / REQUESTS_PER_RETRY + RETRIES_PER_SECOND * WINDOW_SECONDS;
        let is_left = retries < most;
        if is_left {
            self.count(now, 0, 1);
        }
        is_left
    }

    fn count(&mut self, now: Instant, requests: u64, retries: u64) {
        self.forget(now);
        let number = number(now);
        match self.seconds.back_mut() {
            // Workers read the clock one after the other: a moment before is the same second.
            Some(last) if last.number >= number => {
                last.requests += requests;
                last.retries += retries;
            }
            _ => self.seconds.push_back(Second {
                number,
                requests,
                retries,
            }),
        }
    }

    fn forget(&mut self, now: Instant) {
        let number = number(now);
        while self
            .seconds
            .front()
            .is_some_and(|first| first.number + WINDOW_SECONDS <= number)
        {
            self.seconds.pop_front();
        }
    }
}

fn number(now: Instant) -> u64 {
    now.as_nanos() / Duration::from_secs(1).as_nanos() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(1_000_000_000_000 + millis * 1_000_000)
    }

    #[test]
    fn where_little_comes_three_a_second_may_be_sent_again() {
        let mut budget = RetryBudget::default();
        let spent = (0..100).filter(|_| budget.spend(at(0))).count();
        assert_eq!(spent, 30);
        assert!(!budget.spend(at(9_999)));
        let spent = (0..100).filter(|_| budget.spend(at(10_000))).count();
        assert_eq!(spent, 30);
    }

    #[test]
    fn a_tenth_of_the_requests_may_be_sent_again() {
        let mut budget = RetryBudget::default();
        budget.sent(10_000, at(0));
        let spent = (0..9_999).filter(|_| budget.spend(at(500))).count();
        assert_eq!(spent, 1_030);
    }

    proptest! {
        /// The obvious version: every request and every retry with its second.
        #[test]
        fn it_is_spent_as_if_everything_were_remembered(
            steps in proptest::collection::vec((0_u64..700, 0_u64..300, 0_u32..40), 1..50),
        ) {
            let mut budget = RetryBudget::default();
            let (mut now, mut requests, mut retries) = (0, Vec::new(), Vec::<u64>::new());
            for (wait, sent, tries) in steps {
                now += wait;
                let second = number(at(now));
                budget.sent(sent, at(now));
                requests.push((second, sent));
                for _ in 0..tries {
                    let in_window = |then: &u64| then + 10 > second;
                    let of: u64 = requests.iter().filter(|(then, _)| in_window(then)).map(|(_, n)| n).sum();
                    let spent = retries.iter().filter(|then| in_window(then)).count() as u64;
                    let may = spent < of / 10 + 30;
                    prop_assert_eq!(budget.spend(at(now)), may);
                    if may {
                        retries.push(second);
                    }
                }
                prop_assert!(budget.seconds.len() <= 10);
            }
        }
    }
}
