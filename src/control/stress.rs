//! Tells from how requests ended whether a service's upstream suffers, and from those that did not end
//! yet, too, how it did.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use tidegate_engine::detect::{Stress, UpstreamSigns};

use super::TICK;
use crate::service::{SharedService, VitalSigns};

/// Ticks in the window that is judged: 10 × 100 ms = 1 s.
const WINDOW_TICKS: usize = 10;
/// Fewer answers than this in the window say nothing.
const ANSWERS_MIN: u64 = 20;
/// The share of failed answers, and of requests that got no place, above which a service suffers.
const FAILED_RATIO_MAX: f64 = 0.05;
/// How many times slower than usual a suffering service is.
const SLOWDOWN: f64 = 3.0;
/// A mean duration below this is no suffering, however fast the service usually is.
const DURATION_FLOOR_US: f64 = 50_000.0;
/// The weight of one tick in what is usual: about a minute is remembered.
const USUAL_WEIGHT: f64 = 1.0 / 600.0;

/// Watches all services.
#[derive(Debug, Default)]
pub(super) struct StressWatch {
    services: HashMap<Arc<str>, ServiceWatch>,
}

/// What there is to read of a service at one moment.
#[derive(Clone, Copy, Debug, Default)]
struct Reading {
    ended: VitalSigns,
    /// Requests that the upstream has.
    in_flight: usize,
    /// Requests that wait for a place.
    waiting: usize,
}

impl Reading {
    fn of(service: &SharedService) -> Self {
        Self {
            ended: service.vital_signs(),
            in_flight: service.at_upstream(),
            waiting: service.waiting(),
        }
    }

    /// Returns how many requests have come for the upstream. Who gives up while he waits is left out.
    fn arrived(&self) -> f64 {
        (self.ended.finished + self.ended.shed) as f64 + (self.in_flight + self.waiting) as f64
    }
}

#[derive(Debug, Default)]
struct ServiceWatch {
    window: VecDeque<Reading>,
    /// The usual mean duration, in microseconds; learnt while the service does not suffer.
    usual_us: Option<f64>,
}

impl StressWatch {
    /// Takes the counts of this tick and says which services suffer, and how their upstreams did in the
    /// last second. Services that are no longer there are forgotten.
    pub(super) fn tick(&mut self, services: &[Arc<SharedService>]) -> Stress {
        self.services
            .retain(|name, _| services.iter().any(|service| service.name == *name));
        let (mut suffering, mut signs) = (Vec::new(), Vec::new());
        for service in services {
            let name = &service.name;
            let watch = self.services.entry(Arc::clone(name)).or_default();
            if watch.tick(Reading::of(service)) {
                suffering.push(Arc::clone(name));
            }
            signs.push((Arc::clone(name), watch.signs()));
        }
        Stress::on(suffering).with_signs(signs)
    }
}

impl ServiceWatch {
    /// Returns what the window says of the upstream.
    fn signs(&self) -> UpstreamSigns {
        let (Some(before), Some(now)) = (self.window.front(), self.window.back()) else {
            return UpstreamSigns::default();
        };
        let seconds = TICK.as_secs_f64() * (self.window.len().max(2) - 1) as f64;
        let arrived = (now.arrived() - before.arrived()).max(0.0);
        let (then, ended) = (before.ended, now.ended);
        let finished = (ended.finished - then.finished) as f64;
        let waited_s = (ended.duration_us - then.duration_us) as f64 / 1e6;
        let of = |part: f64| if finished > 0.0 { part / finished } else { 0.0 };
        UpstreamSigns {
            arrived_per_second: arrived / seconds,
            answered_per_second: finished / seconds,
            shed_per_second: (ended.shed - then.shed) as f64 / seconds,
            waiting: now.waiting as f64,
            in_flight: now.in_flight as f64,
            latency_s: of(waited_s),
            failed_share: of((ended.failed - then.failed) as f64),
        }
    }

    fn tick(&mut self, reading: Reading) -> bool {
        let signs = reading.ended;
        self.window.push_back(reading);
        if self.window.len() > WINDOW_TICKS + 1 {
            self.window.pop_front();
        }
        let Some(before) = self.window.front().map(|before| before.ended) else {
            return false;
        };
        let finished = signs.finished - before.finished;
        let shed = signs.shed - before.shed;
        if finished + shed < ANSWERS_MIN {
            return false;
        }
        let failed = signs.failed - before.failed + shed;
        let failed_ratio = failed as f64 / (finished + shed) as f64;
        let mean_us = (signs.duration_us - before.duration_us) as f64 / finished.max(1) as f64;
        let usual_us = *self.usual_us.get_or_insert(mean_us);
        let is_slow = mean_us > DURATION_FLOOR_US && mean_us > SLOWDOWN * usual_us;
        let suffers = failed_ratio > FAILED_RATIO_MAX || is_slow;
        if !suffers {
            self.usual_us = Some(usual_us + USUAL_WEIGHT * (mean_us - usual_us));
        }
        suffers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(ended: VitalSigns) -> Reading {
        Reading {
            ended,
            ..Reading::default()
        }
    }

    /// An upstream that hung was shown as one that nobody asked: only what ended was counted.
    #[test]
    fn an_upstream_that_hangs_is_seen_to_be_asked() {
        let mut watch = ServiceWatch::default();
        let mut reading = Reading::default();
        for tick in 0..30 {
            watch.tick(reading);
            reading.in_flight = 50.min(10 * tick);
            reading.waiting = (10 * tick - reading.in_flight).min(100);
            if tick > 15 {
                reading.ended.shed += 10;
            }
        }
        let signs = watch.signs();
        assert_eq!((signs.in_flight, signs.waiting), (50.0, 100.0));
        assert!((signs.arrived_per_second - 100.0).abs() < 1.0, "{signs:?}");
        assert!((signs.shed_per_second - 100.0).abs() < 1.0, "{signs:?}");
        assert!(signs.answered_per_second < 0.1);
    }

    #[test]
    fn what_is_answered_has_arrived() {
        let mut watch = ServiceWatch::default();
        let mut reading = Reading::default();
        for _ in 0..20 {
            reading.ended.finished += 40;
            reading.ended.duration_us += 40 * 20_000;
            reading.in_flight = 8;
            watch.tick(reading);
        }
        let signs = watch.signs();
        assert!((signs.arrived_per_second - 400.0).abs() < 1.0, "{signs:?}");
        assert!((signs.answered_per_second - 400.0).abs() < 1.0, "{signs:?}");
        assert!((signs.latency_s - 0.02).abs() < 1e-9, "{signs:?}");
    }

    /// Runs ticks of 100 answers each, with this many failures and this mean duration.
    fn run(
        watch: &mut ServiceWatch,
        total: &mut VitalSigns,
        ticks: usize,
        failed: u64,
        mean_us: u64,
    ) -> bool {
        let mut suffers = false;
        for _ in 0..ticks {
            total.finished += 100;
            total.failed += failed;
            total.duration_us += 100 * mean_us;
            suffers = watch.tick(ended(*total));
        }
        suffers
    }

    #[test]
    fn a_service_suffers_when_it_fails_or_slows_down_and_not_otherwise() {
        let mut watch = ServiceWatch::default();
        let mut total = VitalSigns::default();
        assert!(!run(&mut watch, &mut total, 100, 0, 20_000));
        assert!(run(&mut watch, &mut total, 20, 10, 20_000), "10 % fail");
        assert!(!run(&mut watch, &mut total, 20, 0, 20_000));
        assert!(
            run(&mut watch, &mut total, 20, 0, 200_000),
            "ten times slower"
        );
        assert!(
            run(&mut watch, &mut total, 2000, 0, 200_000),
            "and this is never learnt as usual"
        );
        assert!(
            !run(&mut watch, &mut total, 20, 0, 30_000),
            "half as slow again is no suffering"
        );
    }

    #[test]
    fn a_service_that_is_full_suffers() {
        let mut watch = ServiceWatch::default();
        let mut total = VitalSigns::default();
        assert!(!run(&mut watch, &mut total, 20, 0, 20_000));
        total.shed += 200;
        assert!(watch.tick(ended(total)));
    }

    #[test]
    fn a_few_answers_say_nothing() {
        let mut watch = ServiceWatch::default();
        let one = VitalSigns {
            finished: 5,
            failed: 5,
            ..VitalSigns::default()
        };
        watch.tick(Reading::default());
        assert!(!watch.tick(ended(one)));
    }
}
