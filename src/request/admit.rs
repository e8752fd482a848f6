//! Admits requests into their service, up to its concurrency budget.
//!
//! A service that is full sheds: the others keep their places. Places are counted over all workers;
//! the count is exact, because a place is taken before it is looked at.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The places of all services.
#[derive(Debug)]
pub struct Admission {
    services: Vec<Places>,
}

#[derive(Debug)]
struct Places {
    max: usize,
    taken: AtomicUsize,
}

impl Admission {
    /// Gives each service this many places.
    pub fn new(max: impl IntoIterator<Item = usize>) -> Arc<Self> {
        let places = |max| Places {
            max,
            taken: AtomicUsize::new(0),
        };
        Arc::new(Self {
            services: max.into_iter().map(places).collect(),
        })
    }

    /// Takes a place, to be given back with [`Admission::leave`]. False: there is none.
    pub(crate) fn enter(&self, service: usize) -> bool {
        let Some(places) = self.services.get(service) else {
            return false;
        };
        let is_free = places.taken.fetch_add(1, Ordering::Relaxed) < places.max;
        if !is_free {
            places.taken.fetch_sub(1, Ordering::Relaxed);
        }
        is_free
    }

    /// Gives a place back.
    pub(crate) fn leave(&self, service: usize) {
        if let Some(places) = self.services.get(service) {
            places.taken.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_service_admits_nobody_and_the_others_are_not_touched() {
        let admission = Admission::new([2, 1]);
        assert!(admission.enter(0) && admission.enter(0));
        assert!(!admission.enter(0) && !admission.enter(0));
        assert!(admission.enter(1));
        admission.leave(0);
        assert!(
            admission.enter(0),
            "a place that was given back is free again"
        );
        assert!(!admission.enter(0), "refusals leave no trace");
    }
}
