//! How much of what several use one of them may have. Knows nothing of what it is.

/// One part of so many of the whole is kept for those who have less than an equal share of it.
const KEPT_PART: usize = 4;

/// Returns whether one of so many `users` that has `own` of `whole` things gets another while `taken`
/// are taken in all. Whoever is alone gets everything; of several, none gets the last quarter who has an
/// equal part already. So one that takes whatever it can leaves something to each of the others.
pub fn may_take(whole: usize, taken: usize, own: impl FnOnce() -> usize, users: usize) -> bool {
    taken < whole - whole / KEPT_PART || taken < whole && own() < (whole / users.max(1)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lets the users ask in turn, each for as many as it wants. Returns what they got.
    fn fill<const N: usize>(whole: usize, wants: [usize; N]) -> [usize; N] {
        let mut have = [0; N];
        for user in 0..N {
            for _ in 0..wants[user] {
                let taken = have.iter().sum();
                if may_take(whole, taken, || have[user], N) {
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
            for users in 1..60 {
                let last = whole.max(1) - 1;
                assert_eq!(may_take(whole, last, || 0, users), whole > 0);
                assert!(!may_take(whole, whole, || 0, users));
            }
        }
    }
}
