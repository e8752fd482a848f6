//! Lets the concurrency limit of each service follow the latency of its upstream.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tidegate_engine::capacity::{AdaptiveLimit, WindowSample};
use tidegate_engine::time::Instant;

use super::TICK;
use crate::service::{Lane, RECENT, VitalSigns};
use crate::setup::Setup;

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
    pub(super) fn tick(&mut self, setup: &Setup, now: Instant) {
        let follows = |name: &Arc<str>| {
            let mut services = setup.settings.services.iter();
            services.any(|service| service.spec.name == *name && service.concurrency.adaptive)
        };
        self.services.retain(|name, _| follows(name));
        for (settings, service) in setup.settings.services.iter().zip(&setup.services) {
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
