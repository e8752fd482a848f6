//! Tells from how requests ended whether a service's upstream suffers.

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

#[derive(Debug, Default)]
struct ServiceWatch {
    window: VecDeque<VitalSigns>,
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
            if watch.tick(service.vital_signs()) {
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
        let finished = (now.finished - before.finished) as f64;
        let waited_s = (now.duration_us - before.duration_us) as f64 / 1e6;
        let of = |part: f64| if finished > 0.0 { part / finished } else { 0.0 };
        UpstreamSigns {
            answered_per_second: finished / seconds,
            in_flight: waited_s / seconds,
            latency_s: of(waited_s),
            failed_share: of((now.failed - before.failed) as f64),
        }
    }

    fn tick(&mut self, signs: VitalSigns) -> bool {
        self.window.push_back(signs);
        if self.window.len() > WINDOW_TICKS + 1 {
            self.window.pop_front();
        }
        let Some(before) = self.window.front() else {
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
            suffers = watch.tick(*total);
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
        assert!(watch.tick(total));
    }

    #[test]
    fn a_few_answers_say_nothing() {
        let mut watch = ServiceWatch::default();
        let one = VitalSigns {
            finished: 5,
            failed: 5,
            ..VitalSigns::default()
        };
        watch.tick(VitalSigns::default());
        assert!(!watch.tick(one));
    }
}
