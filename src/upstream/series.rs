//! The series that tell of one upstream's endpoints.

use std::sync::Arc;

use prometheus::{IntCounter, IntGauge};
use tidegate_engine::time::Instant;

use super::endpoint::Endpoint;
use super::health::Standing;
use crate::metrics::Metrics;

/// Why an endpoint is left out.
#[derive(Clone, Copy, Debug)]
pub(crate) enum EjectionReason {
    /// Several requests in a row got no answer.
    ConsecutiveFailures,
    /// It fails much more often than the others.
    SuccessRate,
    /// It fails its health check.
    HealthCheck,
}

/// How an endpoint stands, in words.
pub(crate) const STATES: [&str; 5] = ["in", "slow_start", "ejected", "probing", "failing_checks"];

/// Returns one of [`STATES`].
pub(crate) fn state_of(endpoint: &Endpoint, now: Instant) -> &'static str {
    let view = endpoint.view();
    match view.standing {
        _ if view.fails_checks => "failing_checks",
        Standing::Out(_) => "ejected",
        Standing::Probing => "probing",
        standing if standing.share(now) < 1.0 => "slow_start",
        Standing::In(_) => "in",
    }
}

/// One upstream's series.
#[derive(Debug)]
pub(crate) struct Series {
    states: [IntGauge; STATES.len()],
    ejections: [IntCounter; 3],
    /// Requests that were not sent again, for too many were.
    pub(crate) retries_denied: IntCounter,
    /// Whether nobody connects.
    pub(crate) breaker_open: IntGauge,
}

impl Series {
    /// Finds the series of this upstream.
    pub(crate) fn new(metrics: &Metrics, upstream: &str) -> Self {
        let ejections = |reason| {
            metrics
                .upstream_ejections_total
                .with_label_values(&[upstream, reason])
        };
        Self {
            states: STATES.map(|state| {
                metrics
                    .upstream_endpoints
                    .with_label_values(&[upstream, state])
            }),
            ejections: ["consecutive_failures", "success_rate", "health_check"].map(ejections),
            retries_denied: metrics
                .upstream_retries_denied_total
                .with_label_values(&[upstream]),
            breaker_open: metrics.upstream_breaker_open.with_label_values(&[upstream]),
        }
    }

    /// Counts an endpoint that was taken out.
    pub(crate) fn ejected(&self, reason: EjectionReason) {
        let [failures, rate, check] = &self.ejections;
        match reason {
            EjectionReason::ConsecutiveFailures => failures.inc(),
            EjectionReason::SuccessRate => rate.inc(),
            EjectionReason::HealthCheck => check.inc(),
        }
    }

    /// Shows nothing any more: nobody looks after the endpoints.
    pub(crate) fn clear(&self) {
        self.breaker_open.set(0);
        for gauge in &self.states {
            gauge.set(0);
        }
    }

    /// Shows how many endpoints stand how.
    pub(crate) fn endpoints(&self, list: &[Arc<Endpoint>], now: Instant) {
        for (gauge, state) in self.states.iter().zip(STATES) {
            let count = list
                .iter()
                .filter(|one| state_of(one, now) == state)
                .count();
            gauge.set(count as i64);
        }
    }

    /// Returns how many were taken out, by reason.
    #[cfg(test)]
    pub(crate) fn ejections_for_tests(&self) -> [u64; 3] {
        std::array::from_fn(|at| self.ejections[at].get())
    }
}
