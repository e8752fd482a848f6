//! Every series that this program exposes, on one page. No label value comes from a client, except
//! the bounded gauge of top sources.
//!
//! Workers count into [`ServiceCounts`] and [`UpstreamFailures`] of their own without atomics and hand the sums over ten times a
//! second; the control thread sets gauges and reads everything for `/metrics`.

mod counts;

use std::collections::HashSet;
use std::sync::Arc;

use prometheus::core::{Collector, MetricVec, MetricVecBuilder};
use prometheus::proto::Metric;
use prometheus::{
    Encoder as _, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter,
    IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

pub(crate) use counts::{ServiceCounts, UpstreamFailures};

/// What `tidegate_requests_total` calls a request that belongs to no service.
pub const NO_SERVICE: &str = "none";

/// How a request ended, as `tidegate_requests_total{verdict}` and the access log call it. The first
/// six are the engine's verdicts.
pub const OUTCOMES: [&str; 9] = [
    "forward",
    "limit",
    "throttle",
    "block",
    "tarpit",
    "drop",
    "shed",
    "unmatched",
    "invalid",
];

/// Why the upstream gave no complete answer, as `tidegate_upstream_errors_total{error}` and
/// `Proxy-Status` call it (RFC 9209, 2.3).
pub const UPSTREAM_ERRORS: [&str; 11] = [
    "destination_unavailable",
    "dns_error",
    "tls_certificate_error",
    "tls_protocol_error",
    "connection_refused",
    "connection_timeout",
    "connection_terminated",
    "connection_limit_reached",
    "http_response_timeout",
    "http_protocol_error",
    "http_response_incomplete",
];

/// Why a request got no place, as `tidegate_shed_total{reason}` calls it.
pub const SHED_REASONS: [&str; 4] = ["full", "queue_timeout", "priority", "memory"];

/// Who let nothing move, as `tidegate_stalled_requests_total{side}` calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// The client: it did not send its body, or did not read its answer.
    Client,
    /// The upstream: its answer did not begin, or did not go on.
    Upstream,
}

const SIDES: [&str; 2] = ["client", "upstream"];

/// Upper bounds of request durations, in seconds.
const DURATION_BUCKETS: [f64; 15] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];
/// Upper bounds of waits for a place, in seconds.
const QUEUE_BUCKETS: [f64; 11] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
];
/// Upper bounds of decision times, in seconds.
const DECISION_BUCKETS: [f64; 10] = [2e-7, 5e-7, 1e-6, 2e-6, 5e-6, 1e-5, 2.5e-5, 1e-4, 1e-3, 1e-2];

/// All series.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests_total: IntCounterVec,
    request_duration_seconds: HistogramVec,
    shed_total: IntCounterVec,
    stalled_requests_total: IntCounterVec,
    queue_wait_seconds: HistogramVec,
    /// Requests that wait for a place, by service.
    pub waiting_requests: IntGaugeVec,
    /// Requests that may be in a service at once.
    pub concurrency_limit: IntGaugeVec,
    /// Client connections that were turned away.
    pub(crate) connections_refused_total: IntCounterVec,
    /// How short memory is, 0 to 3.
    pub memory_pressure: IntGauge,
    /// The memory that the judgement of it counts with; 0 where nothing bounds it.
    pub memory_ceiling_bytes: IntGauge,
    pub(crate) decision_seconds: Histogram,
    /// Requests being served, by service.
    pub inflight_requests: IntGaugeVec,
    /// Age of the oldest request being served, by service.
    pub oldest_inflight_seconds: GaugeVec,
    upstream_errors_total: IntCounterVec,
    /// Requests that were sent a second time on a new connection.
    pub upstream_retries_total: IntCounterVec,
    /// Requests that were not sent again because too many were.
    pub upstream_retries_denied_total: IntCounterVec,
    /// Endpoints, by how they stand.
    pub upstream_endpoints: IntGaugeVec,
    /// Endpoints that were taken out, by why.
    pub upstream_ejections_total: IntCounterVec,
    /// Whether nobody connects to the upstream.
    pub upstream_breaker_open: IntGaugeVec,
    /// Connections to upstreams, open.
    pub upstream_connections: IntGaugeVec,
    /// Client connections, open.
    pub connections: IntGauge,
    /// Client connections accepted.
    pub connections_total: IntCounter,
    /// Requests to the admin listener without the token.
    pub admin_denied_total: IntCounter,
    /// Accepting failed (for example no descriptor was left).
    pub accept_errors_total: IntCounter,
    /// Client connections that did not end in good order: garbage, a timeout, a broken body.
    pub client_errors_total: IntCounterVec,
    /// Header fields dropped because of an underscore in the name.
    pub headers_dropped_total: IntCounter,
    /// Requests that a rule matched, by rule (shadow included).
    pub rule_matches_total: IntCounterVec,
    /// Requests that a limit refused, by limit.
    pub limit_refusals_total: IntCounterVec,
    /// Requests that a limit in shadow would have refused, by limit.
    pub limit_shadow_refusals_total: IntCounterVec,
    /// Distinct keys that a limit remembers.
    pub limit_keys: IntGaugeVec,
    /// Rules in force.
    pub rules: IntGaugeVec,
    /// Whether an incident is under way (number of open incidents).
    pub incident_active: IntGauge,
    /// From the start of a surge to the first rule.
    pub incident_time_to_rule_seconds: Histogram,
    /// Detected rules that refused more normal traffic than they promised, by what became of them.
    pub detected_rules_corrected_total: IntCounterVec,
    /// Unix time of the policy in force.
    pub policy_published_timestamp_seconds: Gauge,
    /// Reloads that were refused.
    pub reload_failures_total: IntCounter,
    /// Whether the last reload was accepted.
    pub reload_last_successful: IntGauge,
    /// Panics: each is a bug of ours.
    pub panics_total: IntCounter,
    /// Access log lines that were dropped because the writer was behind.
    pub access_log_dropped_total: IntCounter,
    /// The twenty busiest sources, and `other`.
    pub top_source_requests_per_second: GaugeVec,
    /// Time that the detector's last tick took.
    pub detector_tick_seconds: Histogram,
    /// Seconds of normal traffic that the detector has learnt from.
    pub detector_trained_seconds: Gauge,
    /// Whether everything that was to be kept is kept.
    pub state_writable: IntGauge,
    /// Writes under `state` that failed.
    pub state_write_failures_total: IntCounter,
    /// Lines of the audit trail for which there was no room.
    pub state_audit_lines_lost_total: IntCounter,
}

/// Registers a series. The names are constants, so a failure is a mistake in this file, which every
/// test would hit.
fn register<C: Collector + Clone + 'static>(
    registry: &Registry,
    series: prometheus::Result<C>,
) -> C {
    let series = series.expect("series are named by constants");
    registry
        .register(Box::new(series.clone()))
        .expect("each series is registered once");
    series
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Makes all series, at zero.
    #[expect(clippy::too_many_lines, reason = "a table, read top to bottom")]
    pub fn new() -> Self {
        let registry = Registry::new();
        let r = &registry;
        let counter = |name, help| register(r, IntCounter::new(name, help));
        let counters = |name, help, labels: &[&str]| {
            register(r, IntCounterVec::new(Opts::new(name, help), labels))
        };
        let gauge = |name, help| register(r, IntGauge::new(name, help));
        let gauges = |name, help, labels: &[&str]| {
            register(r, IntGaugeVec::new(Opts::new(name, help), labels))
        };
        let real = |name, help| register(r, Gauge::new(name, help));
        let reals =
            |name, help, labels: &[&str]| register(r, GaugeVec::new(Opts::new(name, help), labels));
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            register(
                r,
                Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec())),
            )
        };
        let build = gauges("tidegate_build_info", "The running version.", &["version"]);
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        Self {
            requests_total: counters(
                "tidegate_requests_total",
                "Requests answered, by service and verdict.",
                &["service", "verdict"],
            ),
            request_duration_seconds: register(
                r,
                HistogramVec::new(
                    HistogramOpts::new(
                        "tidegate_request_duration_seconds",
                        "Seconds from the end of a forwarded request's head to the end of its answer.",
                    )
                    .buckets(DURATION_BUCKETS.to_vec()),
                    &["service"],
                ),
            ),
            shed_total: counters(
                "tidegate_shed_total",
                "Requests that got no place, by reason.",
                &["service", "reason"],
            ),
            stalled_requests_total: counters(
                "tidegate_stalled_requests_total",
                "Requests ended because nothing moved for idle_timeout (or response_timeout), by who did not.",
                &["service", "side"],
            ),
            queue_wait_seconds: register(
                r,
                HistogramVec::new(
                    HistogramOpts::new(
                        "tidegate_queue_wait_seconds",
                        "Seconds that requests waited which got a place after a while.",
                    )
                    .buckets(QUEUE_BUCKETS.to_vec()),
                    &["service"],
                ),
            ),
            waiting_requests: gauges(
                "tidegate_waiting_requests",
                "Requests that wait for a place.",
                &["service"],
            ),
            concurrency_limit: gauges(
                "tidegate_concurrency_limit",
                "Requests that may be in the service at once.",
                &["service"],
            ),
            connections_refused_total: counters(
                "tidegate_connections_refused_total",
                "Client connections turned away, by reason.",
                &["reason"],
            ),
            memory_pressure: gauge(
                "tidegate_memory_pressure",
                "How short memory is: 0 not, 1 from 80 % of the ceiling on, 2 from 90 %, 3 from 95 %.",
            ),
            memory_ceiling_bytes: gauge(
                "tidegate_memory_ceiling_bytes",
                "Resident memory that may not be reached: `memory_max`, or what the control groups \
                 allow; 0 where nothing bounds it.",
            ),
            decision_seconds: histogram(
                "tidegate_decision_seconds",
                "Seconds from the end of the request head to the verdict.",
                &DECISION_BUCKETS,
            ),
            inflight_requests: gauges(
                "tidegate_inflight_requests",
                "Requests being served.",
                &["service"],
            ),
            oldest_inflight_seconds: reals(
                "tidegate_oldest_inflight_seconds",
                "Age of the oldest request being served.",
                &["service"],
            ),
            upstream_errors_total: counters(
                "tidegate_upstream_errors_total",
                "Requests that got no complete answer from their upstream, by cause.",
                &["upstream", "error"],
            ),
            upstream_retries_total: counters(
                "tidegate_upstream_retries_total",
                "Requests sent again because a kept-alive connection turned out closed.",
                &["upstream"],
            ),
            upstream_retries_denied_total: counters(
                "tidegate_upstream_retries_denied_total",
                "Requests not sent again because a tenth of the requests was already.",
                &["upstream"],
            ),
            upstream_endpoints: gauges(
                "tidegate_upstream_endpoints",
                "Endpoints of the upstream, by how they stand.",
                &["upstream", "state"],
            ),
            upstream_ejections_total: counters(
                "tidegate_upstream_ejections_total",
                "Endpoints that were taken out, by cause.",
                &["upstream", "reason"],
            ),
            upstream_breaker_open: gauges(
                "tidegate_upstream_breaker_open",
                "Whether no endpoint of the upstream can be reached (1), so that nobody tries but once a second.",
                &["upstream"],
            ),
            upstream_connections: gauges(
                "tidegate_upstream_connections",
                "Connections to the upstream, open.",
                &["upstream"],
            ),
            connections: gauge("tidegate_connections", "Client connections, open."),
            connections_total: counter(
                "tidegate_connections_total",
                "Client connections accepted.",
            ),
            admin_denied_total: counter(
                "tidegate_admin_denied_total",
                "Requests to the admin listener without the right token.",
            ),
            accept_errors_total: counter(
                "tidegate_accept_errors_total",
                "Connections that could not be accepted, for example for want of descriptors.",
            ),
            client_errors_total: counters(
                "tidegate_client_errors_total",
                "Client connections that did not end in good order, by cause.",
                &["error"],
            ),
            headers_dropped_total: counter(
                "tidegate_headers_dropped_total",
                "Request header fields dropped because of an underscore in their name.",
            ),
            rule_matches_total: counters(
                "tidegate_rule_matches_total",
                "Requests that a rule matched, shadow rules included.",
                &["rule"],
            ),
            limit_refusals_total: counters(
                "tidegate_limit_refusals_total",
                "Requests that a limit refused.",
                &["limit"],
            ),
            limit_shadow_refusals_total: counters(
                "tidegate_limit_shadow_refusals_total",
                "Requests that a limit in shadow would have refused.",
                &["limit"],
            ),
            limit_keys: gauges(
                "tidegate_limit_keys",
                "Distinct keys that a limit remembers.",
                &["limit"],
            ),
            rules: gauges("tidegate_rules", "Rules in force.", &["origin", "action"]),
            incident_active: gauge("tidegate_incident_active", "Incidents under way."),
            incident_time_to_rule_seconds: histogram(
                "tidegate_incident_time_to_rule_seconds",
                "Seconds from the start of a surge to the first rule of its incident.",
                &[0.1, 0.2, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 30.0],
            ),
            detected_rules_corrected_total: counters(
                "tidegate_detected_rules_corrected_total",
                "Detected rules that refused more normal traffic than promised: narrowed, or withdrawn.",
                &["what"],
            ),
            policy_published_timestamp_seconds: real(
                "tidegate_policy_published_timestamp_seconds",
                "Unix time at which the policy in force was published.",
            ),
            reload_failures_total: counter(
                "tidegate_reload_failures_total",
                "Reloads that were refused; the last good policy stays in force.",
            ),
            reload_last_successful: gauge(
                "tidegate_reload_last_successful",
                "Whether the last reload was accepted (1) or refused (0).",
            ),
            panics_total: counter("tidegate_panics_total", "Panics; each is a bug of ours."),
            access_log_dropped_total: counter(
                "tidegate_access_log_dropped_total",
                "Access log lines dropped because the writer was behind.",
            ),
            top_source_requests_per_second: reals(
                "tidegate_top_source_requests_per_second",
                "Offered load of the busiest sources; at most 20, and other.",
                &["source"],
            ),
            detector_tick_seconds: histogram(
                "tidegate_detector_tick_seconds",
                "Seconds that one tick of the detector took.",
                &[1e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.5],
            ),
            detector_trained_seconds: real(
                "tidegate_detector_trained_seconds",
                "Seconds of normal traffic that the detector has learnt from.",
            ),
            state_writable: gauge(
                "tidegate_state_writable",
                "Whether everything that was to be kept under `state` is kept (1) or waits (0).",
            ),
            state_write_failures_total: counter(
                "tidegate_state_write_failures_total",
                "Writes under `state` that failed, for example for want of room.",
            ),
            state_audit_lines_lost_total: counter(
                "tidegate_state_audit_lines_lost_total",
                "Changes that the audit trail will never show: too many waited for the disk.",
            ),
            registry,
        }
    }

    /// Writes all series in Prometheus' text format.
    pub fn text(&self) -> Vec<u8> {
        let mut text = Vec::with_capacity(16 * 1024);
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "metrics could not be written");
        }
        text
    }

    /// Counts a panic wherever it happens, and logs it.
    pub fn count_panics(self: &Arc<Self>) {
        let metrics = Arc::clone(self);
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            metrics.panics_total.inc();
            before(panic);
        }));
    }
}

/// Removes the series of those that are no longer in force. The family has one label.
pub(crate) fn forget_but<B: MetricVecBuilder>(live: &HashSet<&str>, series: &MetricVec<B>) {
    for family in series.collect() {
        for label in family.get_metric().iter().flat_map(Metric::get_label) {
            let name = label.value();
            if !live.contains(name)
                && let Err(error) = series.remove_label_values(&[name])
            {
                tracing::debug!(%error, name, "a series could not be removed");
            }
        }
    }
}

/// Brings a counter up to a total that is kept elsewhere. Counters never fall.
pub fn raise_to(counter: &IntCounter, total: u64) {
    counter.inc_by(total.saturating_sub(counter.get()));
}
