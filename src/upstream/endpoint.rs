//! One endpoint as all workers and the control side share it. Its health changes seldom and under a
//! lock; what every request must know of it is one word beside that.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use parking_lot::Mutex;
use tidegate_engine::time::Instant;

use super::health::{Health, Standing};
use super::window::Tally;

/// One address of one place that the settings name.
#[derive(Debug)]
pub(crate) struct Endpoint {
    /// Host and port as they stand in the settings.
    pub(crate) name: Arc<str>,
    /// Where it is.
    pub(crate) address: SocketAddr,
    /// How much it gets compared with the others.
    pub(crate) weight: u32,
    /// What is known of it; outlives a change of its weight.
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    health: Mutex<Health>,
    /// A [`View`] of it, packed.
    view: AtomicU64,
    /// Rises where that makes a difference to which endpoint is chosen.
    generation: Generation,
    succeeded: AtomicU64,
    failed: AtomicU64,
    in_flight: AtomicI64,
}

/// What a request must know of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct View {
    /// Whether requests go there, as far as requests have shown.
    pub(crate) standing: Standing,
    /// Whether it fails its health checks.
    pub(crate) fails_checks: bool,
    /// Whether an answer from it would be news.
    pub(crate) is_troubled: bool,
}

const TAG_BITS: u64 = 0b11;
const OUT: u64 = 1;
const PROBING: u64 = 2;
const FAILS_CHECKS: u64 = 1 << 2;
const TROUBLED: u64 = 1 << 3;
/// Above them the time: 2^60 ns are 36 years of uptime.
const TIME_SHIFT: u32 = 4;

/// A number that rises when something has changed that whoever chooses must know.
#[derive(Clone, Debug, Default)]
pub(crate) struct Generation(Arc<AtomicU64>);

impl Generation {
    /// Returns the number. What was changed before it rose to this is seen by whoever reads it then.
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// Says that something has changed.
    pub(crate) fn rise(&self) {
        self.0.fetch_add(1, Ordering::Release);
    }
}

impl View {
    /// Returns whether time alone will not change whether requests go there, and how many.
    pub(crate) fn is_lasting(self) -> bool {
        self.fails_checks || self.standing == Standing::In(Instant::ZERO)
    }

    fn pack(self) -> u64 {
        let (tag, time) = match self.standing {
            Standing::In(since) => (0, since.as_nanos()),
            Standing::Out(until) => (OUT, until.as_nanos()),
            Standing::Probing => (PROBING, 0),
        };
        let flag = |is_set, bit| if is_set { bit } else { 0 };
        tag | flag(self.fails_checks, FAILS_CHECKS)
            | flag(self.is_troubled, TROUBLED)
            | (time << TIME_SHIFT)
    }

    fn unpack(packed: u64) -> Self {
        let time = Instant::from_nanos(packed >> TIME_SHIFT);
        Self {
            standing: match packed & TAG_BITS {
                OUT => Standing::Out(time),
                PROBING => Standing::Probing,
                _ => Standing::In(time),
            },
            fails_checks: packed & FAILS_CHECKS != 0,
            is_troubled: packed & TROUBLED != 0,
        }
    }
}

impl Endpoint {
    /// Begins as an endpoint that came at `since`; [`Instant::ZERO`]: that was there from the
    /// beginning.
    pub(crate) fn new(
        name: Arc<str>,
        address: SocketAddr,
        weight: u32,
        since: Instant,
        generation: Generation,
    ) -> Self {
        let state = State {
            health: Mutex::new(Health::since(since)),
            view: AtomicU64::new(0),
            generation,
            succeeded: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            in_flight: AtomicI64::new(0),
        };
        let endpoint = Self {
            name,
            address,
            weight,
            state: Arc::new(state),
        };
        endpoint.change(since, |_| ());
        endpoint
    }

    /// Is the same endpoint with another weight: what is known of it stays.
    pub(crate) fn weighing(&self, weight: u32) -> Self {
        Self {
            name: Arc::clone(&self.name),
            address: self.address,
            weight,
            state: Arc::clone(&self.state),
        }
    }

    /// Returns the host that the settings name, an IPv6 address without brackets.
    pub(crate) fn host(&self) -> &str {
        let host = self.name.rsplit_once(':').map_or("", |(host, _)| host);
        host.trim_matches(['[', ']'])
    }

    /// Returns what a request must know of it.
    pub(crate) fn view(&self) -> View {
        View::unpack(self.state.view.load(Ordering::Relaxed))
    }

    /// Changes its health, and what requests see of it.
    pub(crate) fn change<T>(&self, now: Instant, change: impl FnOnce(&mut Health) -> T) -> T {
        let mut health = self.state.health.lock();
        let changed = change(&mut health);
        let standing = match health.standing() {
            standing @ Standing::In(_) if standing.share(now) >= 1.0 => Standing::In(Instant::ZERO),
            standing => standing,
        };
        let view = View {
            standing,
            fails_checks: health.fails_checks(),
            is_troubled: health.failures_in_a_row() > 0
                || health.connect_failures_in_a_row() > 0
                || health.standing() == Standing::Probing,
        };
        let view = view.pack();
        let before = self.state.view.swap(view, Ordering::Relaxed);
        if (before ^ view) & !TROUBLED != 0 {
            self.state.generation.rise();
        }
        changed
    }

    /// Looks at its health.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&Health) -> T) -> T {
        look(&self.state.health.lock())
    }

    /// Adds what a worker has counted; a count may go down where an answer that began well broke off.
    pub(crate) fn count(&self, succeeded: i64, failed: i64, in_flight: i64) {
        let state = &self.state;
        for (sum, more) in [(&state.succeeded, succeeded), (&state.failed, failed)] {
            if more != 0 {
                sum.fetch_add(more as u64, Ordering::Relaxed);
            }
        }
        if in_flight != 0 {
            state.in_flight.fetch_add(in_flight, Ordering::Relaxed);
        }
    }

    /// Returns what it answered so far.
    pub(crate) fn tally(&self) -> Tally {
        Tally {
            succeeded: self.state.succeeded.load(Ordering::Relaxed),
            failed: self.state.failed.load(Ordering::Relaxed),
        }
    }

    /// Returns requests under way, a tenth of a second late.
    pub(crate) fn in_flight(&self) -> u64 {
        self.state.in_flight.load(Ordering::Relaxed).max(0) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_view_is_read_as_it_was_written(tag in 0..3, time in 0_u64..1 << 59, flags in any::<(bool, bool)>()) {
            let standing = match tag {
                0 => Standing::In(Instant::from_nanos(time)),
                1 => Standing::Out(Instant::from_nanos(time)),
                _ => Standing::Probing,
            };
            let view = View { standing, fails_checks: flags.0, is_troubled: flags.1 };
            prop_assert_eq!(View::unpack(view.pack()), view);
        }
    }

    #[test]
    fn an_endpoint_settles_when_its_slow_start_is_over() {
        let began = Instant::from_secs_f64(1e6);
        let at = |seconds| began + std::time::Duration::from_secs(seconds);
        let address = SocketAddr::from(([127, 0, 0, 1], 80));
        let generation = Generation::default();
        let endpoint = Endpoint::new("a:80".into(), address, 1, began, generation.clone());
        let is_lasting = || endpoint.view().is_lasting();
        assert!(!is_lasting());
        endpoint.change(at(9), |_| ());
        assert!(!is_lasting());
        let before = generation.get();
        endpoint.change(at(10), |_| ());
        assert!(is_lasting());
        assert!(generation.get() > before, "whoever chooses must know");
        let before = generation.get();
        endpoint.change(at(11), |health| health.failed(at(11)));
        assert!(endpoint.view().is_troubled, "its next answer is news");
        endpoint.change(at(12), |health| health.answered(at(12)));
        assert!(!endpoint.view().is_troubled);
        assert_eq!(generation.get(), before, "to nobody who chooses");
    }
}
