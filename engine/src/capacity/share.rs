//! How much of what several use one of them may have. Knows nothing of what it is.

/// One part of so many of the whole is kept for those who have less than an equal share of it.
const KEPT_PART: usize = 4;

/// A whole that some users share. Whoever is alone gets everything; of several, none gets the last quarter
/// who has an equal part already. So one that takes whatever it can leaves something to each of the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// All there is.
    pub whole: usize,
    /// So much is anybody's who comes.
    pub open: usize,
    /// How much of the rest one may reach.
    pub equal: usize,
}

impl Share {
    /// Divides a whole among so many users.
    pub fn of(whole: usize, users: usize) -> Self {
        Self {
            whole,
            open: whole - whole / KEPT_PART,
            equal: (whole / users.max(1)).max(1),
        }
    }

    /// Makes it anybody's up to here at least.
    #[must_use]
    pub fn open_up_to(self, at_least: usize) -> Self {
        Self {
            open: self.open.max(at_least.min(self.whole)),
            ..self
        }
    }

    /// Returns whether a user that has `own` gets another while `taken` are taken in all.
    pub fn admits(self, taken: usize, own: impl FnOnce() -> usize) -> bool {
        taken < self.open || taken < self.whole && own() < self.equal
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lets the users ask in turn, each for as many as it wants. Returns what they got.
    fn fill<const N: usize>(whole: usize, wants: [usize; N]) -> [usize; N] {
        let (share, mut have) = (Share::of(whole, N), [0; N]);
        for user in 0..N {
            for _ in 0..wants[user] {
                if share.admits(have.iter().sum(), || have[user]) {
                    have[user] += 1;
                }
            }
        }
        have
    }

    #[test]
    fn whoever_takes_all_it_can_leaves_something_to_the_others() {
        assert_eq!(fill(100, [1000]), [100], "alone");
        assert_eq!(fill(100, [1000, 1000]), [75, 25]);
        assert_eq!(fill(100, [1000, 10, 10, 10]), [75, 10, 10, 5]);
        assert_eq!(fill(100, [1000, 1000, 1000, 1000]), [75, 25, 0, 0]);
        assert_eq!(fill(100, [20, 30, 10, 40]), [20, 30, 10, 25]);
    }

    #[test]
    fn however_few_there_are_all_of_them_can_be_used() {
        for whole in 0..40 {
            for users in 0..60 {
                let (share, last) = (Share::of(whole, users), whole.max(1) - 1);
                assert_eq!(share.admits(last, || 0), whole > 0);
                assert!(!share.admits(whole, || 0));
                assert_eq!(share.open_up_to(whole + 1).open, whole);
            }
        }
    }
}
