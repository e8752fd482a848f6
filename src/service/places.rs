//! The places of a service: its concurrency budget, over all workers.
//!
//! A service that is full sheds: the others keep their places. The count is exact, because a place is
//! taken before it is looked at.

use std::sync::atomic::{AtomicUsize, Ordering};

/// The places of one service.
#[derive(Debug)]
pub(crate) struct Places {
    max: AtomicUsize,
    taken: AtomicUsize,
}

impl Places {
    /// Begins with `max` free places.
    pub(super) fn new(max: usize) -> Self {
        Self {
            max: AtomicUsize::new(max),
            taken: AtomicUsize::new(0),
        }
    }

    /// Changes how many places there are.
    pub(super) fn set_max(&self, max: usize) {
        self.max.store(max, Ordering::Relaxed);
    }

    /// Takes a place, to be given back with [`Self::leave`]. False: there is none.
    pub(crate) fn enter(&self) -> bool {
        let is_free = self.taken.fetch_add(1, Ordering::Relaxed) < self.max.load(Ordering::Relaxed);
        if !is_free {
            self.taken.fetch_sub(1, Ordering::Relaxed);
        }
        is_free
    }

    /// Gives a place back.
    pub(crate) fn leave(&self) {
        self.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_service_admits_nobody_until_somebody_leaves() {
        let places = Places::new(2);
        assert!(places.enter() && places.enter());
        assert!(!places.enter() && !places.enter());
        places.leave();
        assert!(places.enter(), "a place that was given back is free again");
        assert!(!places.enter(), "refusals leave no trace");
    }

    #[test]
    fn fewer_places_send_nobody_away_and_admit_nobody() {
        let places = Places::new(2);
        assert!(places.enter() && places.enter());
        places.set_max(1);
        places.leave();
        assert!(!places.enter(), "one is still in, and one may be");
        places.leave();
        assert!(places.enter());
    }
}
