//! Which services still get a place when the whole process is nearly full. Knows nothing of who asks.

use super::Share;
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

/// What each priority may fill of the places of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PriorityPlaces([Share; SHARES.len()]);

impl PriorityPlaces {
    /// Divides `places` among priorities, given those of all services. The highest of them may fill
    /// every place: nobody is above it for whom any should stay free.
    ///
    /// What a priority may fill is shared by the services that may fill it, those of higher priority
    /// included; but where the next lower priority still gets in, a higher one does, however much it has.
    pub fn of(places: usize, services: &[Priority]) -> Self {
        let highest = services.iter().copied().max().unwrap_or_default();
        let mut below = 0;
        Self(SHARES.map(|(priority, share)| {
            let whole = if priority >= highest {
                places
            } else {
                // Rounded up, so that one place is everybody's.
                (places as u128 * share as u128).div_ceil(100) as usize
            };
            let users = services.iter().filter(|of| **of >= priority).count();
            let share = Share::of(whole, users).open_up_to(below);
            if services.contains(&priority) {
                below = whole;
            }
            share
        }))
    }

    /// Returns what requests of this priority may fill.
    pub fn of_priority(&self, priority: Priority) -> Share {
        let mut shares = SHARES.iter().zip(self.0);
        shares
            .find(|((of, _), _)| *of == priority)
            .map_or_else(Share::default, |(_, share)| share)
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
        let places = PriorityPlaces::of(1000, &ALL);
        let admits = |priority, in_flight| places.of_priority(priority).admits(in_flight, || 0);
        let first_refused =
            ALL.map(|priority| (0..=1000).find(|in_flight| !admits(priority, *in_flight)));
        assert_eq!(first_refused, [700, 800, 900, 1000].map(Some));
    }

    #[test]
    fn however_few_places_there_are_nobody_is_above_a_higher_one_and_each_gets_one() {
        for total in 1..500 {
            let places = PriorityPlaces::of(total, &ALL);
            let each = ALL.map(|priority| places.of_priority(priority).whole);
            assert!(each.is_sorted() && each[0] >= 1, "{each:?} of {total}");
            assert_eq!(each[3], total);
        }
        let none = PriorityPlaces::of(0, &ALL).of_priority(Priority::Critical);
        assert!(!none.admits(0, || 0));
    }

    /// Nine services of normal priority, all with an equal part of theirs, and a critical one.
    #[test]
    fn a_lone_critical_service_gets_in_wherever_others_do_and_then_everything() {
        let mut services = vec![Priority::Normal; 9];
        services.push(Priority::Critical);
        let places = PriorityPlaces::of(8192, &services);
        let [normal, critical] =
            [Priority::Normal, Priority::Critical].map(|priority| places.of_priority(priority));
        for taken in 0..8192 {
            assert!(critical.admits(taken, || taken), "{taken}");
        }
        assert_eq!((normal.whole, normal.equal), (6554, 655));
        // Of two, neither takes everything, but never is one refused where a normal one gets in.
        services.push(Priority::Critical);
        let critical = PriorityPlaces::of(8192, &services).of_priority(Priority::Critical);
        assert_eq!((critical.open, critical.equal), (6554, 4096));
    }

    #[test]
    fn nothing_is_kept_free_for_a_priority_that_no_service_has() {
        let places = PriorityPlaces::of(100, &[Priority::Normal, Priority::Low]);
        assert_eq!(places.of_priority(Priority::Normal).whole, 100);
        assert_eq!(places.of_priority(Priority::Low).whole, 70);
        let nobodys = PriorityPlaces::of(100, &[]);
        assert_eq!(nobodys.of_priority(Priority::Normal).whole, 100);
    }
}
