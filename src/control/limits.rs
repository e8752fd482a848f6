//! Lets the concurrency limit of each service follow the latency of its upstream.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tidegate_engine::capacity::{AdaptiveLimit, WindowSample};
use tidegate_engine::time::Instant;

use super::TICK;
use crate::service::{Lane, RECENT, SharedService, VitalSigns};
use crate::settings;

const _: () = assert!(
    RECENT.as_millis() == TICK.as_millis(),
    "what is counted is of one tick"
);

/// The limits of all services.
#[derive(Debug, Default)]
pub(super) struct Limits {
    services: HashMap<Arc<str>, Followed>,
}

/// One service's limit.
#[derive(Debug)]
struct Followed {
    limit: AdaptiveLimit,
    signs: VitalSigns,
}

impl Limits {
    /// Takes what was seen in this tick, and sets the limits of the services that follow.
    pub(super) fn tick(
        &mut self,
        settings: &[settings::Service],
        services: &[Arc<SharedService>],
        now: Instant,
    ) {
        let follows = |name: &Arc<str>| {
            let mut settings = settings.iter();
            settings.any(|service| service.spec.name == *name && service.concurrency.adaptive)
        };
        self.services.retain(|name, _| follows(name));
        for (settings, service) in settings.iter().zip(services) {
            let concurrency = settings.concurrency;
            if !concurrency.adaptive {
                continue;
            }
            let (min, max) = (concurrency.min, concurrency.max);
            let signs = service.vital_signs();
            let name = Arc::clone(&service.name);
            let followed = self.services.entry(name).or_insert_with(|| Followed {
                limit: AdaptiveLimit::new(min, max),
                signs,
            });
            followed.limit.set_bounds(min, max);
            let before = std::mem::replace(&mut followed.signs, signs);
            let waited_us = signs.duration_us - before.duration_us;
            let unanswered_us = signs.unanswered_us - before.unanswered_us;
            let failed = signs.overloaded - before.overloaded;
            let unjudged = signs.unjudged - before.unjudged;
            // As many as were there on the average (Little's law, 1961), or are now. Of who waited long,
            // only what was in this tick counts.
            let recent_us = signs.recent_us - before.recent_us;
            let on_average = recent_us as f64 / 1e6 / TICK.as_secs_f64();
            let waiting = service.lane(Lane::Normal).waiting();
            let sample = WindowSample {
                count: (signs.finished - before.finished).saturating_sub(failed + unjudged),
                latency_sum: Duration::from_micros(waited_us.saturating_sub(unanswered_us)),
                in_flight_max: (service.taken() as u64).max(on_average.ceil() as u64),
                failed,
                refused: signs.held_back - before.held_back + waiting as u64,
            };
            service.follow(followed.limit.tick(&sample, now), now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::Ending;

    /// A service with forty places, as the control side sees it.
    struct Bench {
        settings: settings::Settings,
        services: [Arc<SharedService>; 1],
        limits: Limits,
        now: Instant,
    }

    impl Bench {
        fn new(adaptive: &str) -> Self {
            let text = format!(
                "services: [{{ name: a, match: [{{ path: / }}], upstream: a, \
                 concurrency: {{ max: 40, min: 4, adaptive: {adaptive} }} }}]
upstreams: [{{ name: a, endpoints: [\"10.0.0.1:80\"] }}]"
            );
            let settings = settings::Settings::parse("tidegate.yaml", &text);
            let settings = settings.unwrap_or_else(|problems| panic!("{problems}"));
            let service = SharedService::new(&settings.services[0], 1);
            Self {
                services: [service],
                settings,
                limits: Limits::default(),
                now: Instant::ZERO,
            }
        }

        /// Lets so many seconds pass in which 500 requests a second end, each after so long.
        fn pass(&mut self, seconds: usize, ending: Ending, waited_ms: u64) {
            for _ in 0..seconds * 10 {
                for _ in 0..50 {
                    let waited = Duration::from_millis(waited_ms);
                    self.services[0].vitals(0).unwrap().finished(ending, waited);
                }
                self.now = self.now + TICK;
                let services = (&self.settings.services, &self.services);
                self.limits.tick(services.0, services.1, self.now);
            }
        }

        fn limit(&self) -> usize {
            self.services[0].limit()
        }
    }

    #[test]
    fn the_limit_of_a_service_that_follows_its_upstream_falls_when_that_is_slow() {
        for (adaptive, falls) in [("on", true), ("off", false)] {
            let mut bench = Bench::new(adaptive);
            bench.pass(20, Ending::Good, 10);
            assert_eq!(bench.limit(), 40);
            bench.pass(10, Ending::Good, 200);
            assert_eq!(bench.limit() < 40, falls, "{adaptive}: {}", bench.limit());
        }
    }

    /// They were taken for answers; so what they had waited became what is usual.
    #[test]
    fn clients_that_give_up_on_a_frozen_upstream_teach_nothing() {
        let mut bench = Bench::new("on");
        bench.pass(20, Ending::Good, 10);
        while bench.services[0].enter(Lane::Normal) {}
        bench.pass(60, Ending::Unjudged, 1000);
        assert_eq!(bench.limit(), 40, "nobody knows how it does");
        bench.pass(10, Ending::Good, 10);
        bench.pass(10, Ending::Good, 200);
        assert!(bench.limit() < 40, "{}", bench.limit());
    }

    #[test]
    fn what_is_refused_for_the_sake_of_the_process_does_not_keep_a_limit_from_learning() {
        for (held_back, learns) in [(false, true), (true, false)] {
            let mut bench = Bench::new("on");
            for _ in 0..20 {
                bench.services[0].vitals(0).unwrap().shed(held_back);
                bench.pass(1, Ending::Good, 10);
            }
            bench.pass(10, Ending::Good, 200);
            assert_eq!(bench.limit() < 40, learns, "{}", bench.limit());
        }
    }
}
