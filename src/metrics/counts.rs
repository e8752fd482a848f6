//! What one worker counts by itself, without atomics, and hands over ten times a second.

use std::time::Duration;

use prometheus::IntCounter;
use prometheus::local::{LocalHistogram, LocalIntCounter};

use super::{Metrics, OUTCOMES, SHED_REASONS, SIDES, Side, UPSTREAM_ERRORS};

/// One worker's counts of one service; not shared, so counting costs no atomics.
#[derive(Debug)]
pub(crate) struct ServiceCounts {
    /// By outcome, in the order of [`OUTCOMES`].
    requests: [LocalIntCounter; OUTCOMES.len()],
    durations: LocalHistogram,
    waits: LocalHistogram,
    /// In the order of [`SHED_REASONS`]; seldom counted, so shared.
    shed: [IntCounter; SHED_REASONS.len()],
    /// In the order of [`Side`].
    stalled: [IntCounter; SIDES.len()],
}

impl ServiceCounts {
    /// Prepares the counts of a service.
    pub(crate) fn new(metrics: &Metrics, service: &str) -> Self {
        let count = |outcome| {
            let labels = [service, outcome];
            metrics.requests_total.with_label_values(&labels).local()
        };
        let durations = &metrics.request_duration_seconds;
        let waits = &metrics.queue_wait_seconds;
        let shed = |reason| metrics.shed_total.with_label_values(&[service, reason]);
        let stalled = |side| {
            let labels = [service, side];
            metrics.stalled_requests_total.with_label_values(&labels)
        };
        Self {
            waits: waits.with_label_values(&[service]).local(),
            shed: SHED_REASONS.map(shed),
            stalled: SIDES.map(stalled),
            requests: OUTCOMES.map(count),
            durations: durations.with_label_values(&[service]).local(),
        }
    }

    /// Counts a finished request.
    pub(crate) fn finished(&self, outcome: &str, duration: Duration) {
        let mut counts = OUTCOMES.iter().zip(&self.requests);
        if let Some((_, count)) = counts.find(|(word, _)| **word == outcome) {
            count.inc();
        }
        // Refusals take microseconds: in a flood they would hide how everybody else fares.
        if outcome == "forward" {
            self.durations.observe(duration.as_secs_f64());
        }
    }

    /// Counts a request that got no place, for the reason of this place in [`SHED_REASONS`].
    pub(crate) fn shed(&self, reason: usize) {
        if let Some(count) = self.shed.get(reason) {
            count.inc();
        }
    }

    /// Notes how long a request waited for its place.
    pub(crate) fn waited(&self, duration: Duration) {
        self.waits.observe(duration.as_secs_f64());
    }

    /// Counts a request that was ended because nothing moved.
    pub(crate) fn stalled(&self, side: Side) {
        if let Some(count) = self.stalled.get(side as usize) {
            count.inc();
        }
    }

    /// Hands the counts over.
    pub(crate) fn flush(&self) {
        for count in &self.requests {
            count.flush();
        }
        self.waits.flush();
        self.durations.flush();
    }
}

/// One worker's counts of what one upstream failed to answer.
#[derive(Debug)]
pub(crate) struct UpstreamFailures {
    /// In the order of [`UPSTREAM_ERRORS`].
    by_error: [LocalIntCounter; UPSTREAM_ERRORS.len()],
}

impl UpstreamFailures {
    /// Prepares the counts of an upstream.
    pub(crate) fn new(metrics: &Metrics, upstream: &str) -> Self {
        let errors = &metrics.upstream_errors_total;
        let count = |error| errors.with_label_values(&[upstream, error]).local();
        Self {
            by_error: UPSTREAM_ERRORS.map(count),
        }
    }

    /// Counts a request without a complete answer.
    pub(crate) fn count(&self, error: &str) {
        let mut counts = UPSTREAM_ERRORS.iter().zip(&self.by_error);
        if let Some((_, count)) = counts.find(|(word, _)| **word == error) {
            count.inc();
        }
    }

    /// Hands the counts over.
    pub(crate) fn flush(&self) {
        for count in &self.by_error {
            count.flush();
        }
    }
}
