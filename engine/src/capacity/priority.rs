//! Which services still get a place when the whole process is nearly full. Knows nothing of who asks.

use crate::service::Priority;

/// What each priority may fill of all places, in percent, from low to critical.
///
/// A place that is held cannot be taken back: a service that must always get in needs places that
/// others cannot fill. So each priority stops a tenth before the next. The lowest stops at 70 % and not
/// at half, as what is kept free serves nobody in calm; and a tenth of a process that holds thousands is
/// more than comes for a place before others are given back.
const SHARES: [(Priority, usize); 4] = [
    (Priority::Low, 70),
    (Priority::Normal, 80),
    (Priority::High, 90),
    (Priority::Critical, 100),
];

/// How many places of the process each priority may fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PriorityPlaces([usize; SHARES.len()]);

impl PriorityPlaces {
    /// Divides `places` among priorities, given those of all services. The highest of them may fill
    /// every place: nobody is above it for whom any should stay free.
    pub fn of(places: usize, services: impl IntoIterator<Item = Priority>) -> Self {
        let highest = services.into_iter().max().unwrap_or_default();
        Self(SHARES.map(|(priority, share)| {
            if priority >= highest {
                places
            } else {
                // Rounded up, so that one place is everybody's.
                (places as u128 * share as u128).div_ceil(100) as usize
            }
        }))
    }

    /// Returns how many places may be taken for a request of this priority to get another.
    pub fn of_priority(&self, priority: Priority) -> usize {
        let mut places = SHARES.iter().zip(self.0);
        places
            .find(|((of, _), _)| *of == priority)
            .map_or(0, |(_, places)| places)
    }

    /// Returns whether a request of this priority gets a place while `in_flight` are taken.
    pub fn admits(&self, priority: Priority, in_flight: usize) -> bool {
        in_flight < self.of_priority(priority)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Priority; 4] = [
        Priority::Low,
        Priority::Normal,
        Priority::High,
        Priority::Critical,
    ];

    #[test]
    fn low_is_shed_first_and_critical_last() {
        let places = PriorityPlaces::of(1000, ALL);
        let first_refused =
            ALL.map(|priority| (0..=1000).find(|in_flight| !places.admits(priority, *in_flight)));
        assert_eq!(first_refused, [700, 800, 900, 1000].map(Some));
    }

    #[test]
    fn however_few_places_there_are_nobody_is_above_a_higher_one_and_each_gets_one() {
        for total in 1..500 {
            let places = PriorityPlaces::of(total, ALL);
            let each = ALL.map(|priority| places.of_priority(priority));
            assert!(each.is_sorted() && each[0] >= 1, "{each:?} of {total}");
            assert_eq!(each[3], total);
        }
        assert!(!PriorityPlaces::of(0, ALL).admits(Priority::Critical, 0));
    }

    #[test]
    fn nothing_is_kept_free_for_a_priority_that_no_service_has() {
        let places = PriorityPlaces::of(100, [Priority::Normal, Priority::Low]);
        assert_eq!(places.of_priority(Priority::Normal), 100);
        assert_eq!(places.of_priority(Priority::Low), 70);
        assert_eq!(
            PriorityPlaces::of(100, []).of_priority(Priority::Normal),
            100
        );
    }
}
