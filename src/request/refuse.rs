//! The only place that writes refusals: problem documents (RFC 9457) with everything that a client
//! needs to behave, and nothing about how it was found out.

use std::cell::RefCell;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use http::{HeaderMap, Response, StatusCode};
use tidegate_engine::time::Instant;
use tidegate_engine::verdict::{LimitHit, Verdict};

use super::body::ReplyBody;
use super::headers::X_REQUEST_ID;
use super::observe::Observation;
use super::target::Invalid;
use crate::upstream::UpstreamError;

const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");
const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const PROBLEM_JSON: HeaderValue = HeaderValue::from_static("application/problem+json");
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");

/// Title and detail for a body that is too long.
const TOO_LARGE: (&str, &str) = (
    "Content Too Large",
    "The request's body is longer than the service takes.",
);
/// How long a blocked source is told to stay away at first.
const BLOCKED_RETRY_AFTER: Duration = Duration::from_mins(1);
/// How long a client is told to wait when an upstream has no room or no answer.
const UNAVAILABLE_RETRY_AFTER: Duration = Duration::from_secs(5);
/// The longest wait that a client is told.
const RETRY_AFTER_MAX: Duration = Duration::from_mins(10);

/// Writes refusals. One per worker.
#[derive(Debug)]
pub(crate) struct Refuse {
    impatience: RefCell<Impatience>,
    random: RefCell<fastrand::Rng>,
}

/// What a refusal says.
struct Problem<'a> {
    status: u16,
    kind: &'a str,
    title: &'a str,
    detail: &'a str,
    code: &'a str,
    /// `Proxy-Status` (RFC 9209).
    proxy_status: &'static str,
    retry_after: Option<Duration>,
    limit: Option<(&'a LimitHit, Duration)>,
}

impl Refuse {
    /// Begins with nobody known as impatient.
    pub(crate) fn new(random: u64) -> Self {
        Self {
            impatience: RefCell::new(Impatience::new()),
            random: RefCell::new(fastrand::Rng::with_seed(random)),
        }
    }

    /// Answers a verdict that is a refusal. `instance` is who asked, for waits that grow.
    pub(crate) fn verdict(
        &self,
        verdict: &Verdict,
        instance: u64,
        request_id: &HeaderValue,
        observation: Box<Observation>,
        now: Instant,
    ) -> Response<ReplyBody> {
        let (status, base) = match verdict {
            Verdict::Limit { retry_after, .. } | Verdict::Throttle { retry_after, .. } => {
                (429, *retry_after)
            }
            Verdict::Block { status, .. } => (*status, BLOCKED_RETRY_AFTER),
            Verdict::Forward
            | Verdict::Allow { .. }
            | Verdict::Tarpit { .. }
            | Verdict::Drop { .. } => (403, BLOCKED_RETRY_AFTER),
        };
        let wait = self.impatience.borrow_mut().wait(instance, base, now);
        let problem = match verdict {
            Verdict::Limit { limit, retry_after } => Problem {
                status,
                kind: "https://iana.org/assignments/http-problem-types#quota-exceeded",
                title: "Too many requests",
                detail: "A limit for this client is spent; wait as long as Retry-After says.",
                code: "rate_limited",
                proxy_status: "tidegate; error=http_request_denied",
                retry_after: Some(self.jittered(wait)),
                limit: Some((limit, *retry_after)),
            },
            Verdict::Throttle { .. } => Problem {
                status,
                kind: "https://iana.org/assignments/http-problem-types#abnormal-usage-detected",
                title: "Too many requests",
                detail: "Clients of this kind send more than can be served; wait as long as \
                         Retry-After says.",
                code: "throttled",
                proxy_status: "tidegate; error=http_request_denied",
                retry_after: Some(self.jittered(wait)),
                limit: None,
            },
            _ => Problem {
                status,
                kind: "about:blank",
                title: StatusCode::from_u16(status)
                    .ok()
                    .and_then(|status| status.canonical_reason())
                    .unwrap_or("Refused"),
                detail: "Requests of this kind are not served at present.",
                code: "blocked",
                proxy_status: "tidegate; error=http_request_denied",
                retry_after: Some(self.jittered(wait)),
                limit: None,
            },
        };
        problem.answer(request_id, observation)
    }

    /// Answers a request that cannot be served as it is.
    pub(crate) fn invalid(
        invalid: Invalid,
        request_id: &HeaderValue,
        observation: Box<Observation>,
    ) -> Response<ReplyBody> {
        let reason = StatusCode::from_u16(invalid.status)
            .ok()
            .and_then(|s| s.canonical_reason());
        Problem {
            status: invalid.status,
            kind: "about:blank",
            title: reason.unwrap_or("Invalid request"),
            detail: invalid.detail,
            code: "invalid_request",
            proxy_status: "tidegate; error=http_request_error",
            retry_after: None,
            limit: None,
        }
        .answer(request_id, observation)
    }

    /// Answers a request that belongs to no service.
    pub(crate) fn unmatched(
        request_id: &HeaderValue,
        observation: Box<Observation>,
    ) -> Response<ReplyBody> {
        Problem {
            status: 404,
            kind: "about:blank",
            title: "Not Found",
            detail: "No service answers for this host and path.",
            code: "no_service",
            proxy_status: "tidegate; error=destination_not_found",
            retry_after: None,
            limit: None,
        }
        .answer(request_id, observation)
    }

    /// Answers a request whose body is longer than its service takes.
    pub(crate) fn too_large(
        request_id: &HeaderValue,
        observation: Box<Observation>,
    ) -> Response<ReplyBody> {
        Problem {
            status: 413,
            kind: "about:blank",
            title: TOO_LARGE.0,
            detail: TOO_LARGE.1,
            code: "body_too_large",
            proxy_status: "tidegate; error=http_request_error",
            retry_after: None,
            limit: None,
        }
        .answer(request_id, observation)
    }

    /// Answers a request for which its service has no place.
    pub(crate) fn shed(
        &self,
        request_id: &HeaderValue,
        observation: Box<Observation>,
    ) -> Response<ReplyBody> {
        Problem {
            status: 503,
            kind: "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity",
            title: "Service Unavailable",
            detail: "The service serves as many requests as it can.",
            code: "overloaded",
            proxy_status: "tidegate; error=connection_limit_reached",
            retry_after: Some(self.jittered(UNAVAILABLE_RETRY_AFTER)),
            limit: None,
        }
        .answer(request_id, observation)
    }

    /// Answers for an upstream that did not.
    pub(crate) fn upstream(
        &self,
        error: &UpstreamError,
        request_id: &HeaderValue,
        observation: Box<Observation>,
    ) -> Response<ReplyBody> {
        let status = error.status();
        let (title, detail) = match status {
            503 if matches!(error, UpstreamError::Unavailable) => (
                "Service Unavailable",
                "The service cannot be reached at present.",
            ),
            503 => (
                "Service Unavailable",
                "The service has no room for this request now.",
            ),
            504 => ("Gateway Timeout", "The service did not answer in time."),
            400 | 408 => (
                "Incomplete request",
                "The request's body did not arrive whole.",
            ),
            _ => (
                "Bad Gateway",
                "The service could not be reached or gave no valid answer.",
            ),
        };
        Problem {
            status,
            kind: if status == 503 {
                "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity"
            } else {
                "about:blank"
            },
            title,
            detail,
            code: error.word(),
            proxy_status: error.proxy_status(),
            retry_after: (status == 503 || status == 504)
                .then(|| self.jittered(UNAVAILABLE_RETRY_AFTER)),
            limit: None,
        }
        .answer(request_id, observation)
    }

    /// Adds up to a quarter, so that clients told at once do not come back at once.
    fn jittered(&self, wait: Duration) -> Duration {
        let wait = wait.max(Duration::from_millis(500));
        wait + wait.mul_f64(0.25 * self.random.borrow_mut().f64())
    }
}

impl Problem<'_> {
    fn answer(
        self,
        request_id: &HeaderValue,
        mut observation: Box<Observation>,
    ) -> Response<ReplyBody> {
        observation.status = self.status;
        let body = ReplyBody::own(self.document(request_id), observation);
        let mut response = Response::new(body);
        *response.status_mut() = StatusCode::from_u16(self.status).unwrap_or(StatusCode::FORBIDDEN);
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, PROBLEM_JSON);
        headers.insert(CACHE_CONTROL, NO_STORE);
        headers.insert(X_REQUEST_ID, request_id.clone());
        headers.insert(PROXY_STATUS, HeaderValue::from_static(self.proxy_status));
        if let Some(wait) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(whole_seconds(wait)));
        }
        if let Some((limit, reset)) = self.limit {
            let LimitHit {
                name,
                quota,
                window_s,
            } = limit;
            insert(
                headers,
                RATELIMIT_POLICY,
                format!("\"{name}\";q={quota};w={window_s}"),
            );
            insert(
                headers,
                RATELIMIT,
                format!("\"{name}\";r=0;t={}", whole_seconds(reset)),
            );
        }
        response
    }

    /// Writes the problem document. All parts are ours or checked (a request id is visible ASCII), so
    /// only quotes and backslashes need escaping.
    fn document(&self, request_id: &HeaderValue) -> Bytes {
        let Self {
            kind,
            title,
            detail,
            code,
            ..
        } = self;
        let mut text = String::with_capacity(512);
        for part in [
            "{\"type\":\"",
            kind,
            "\",\"title\":\"",
            title,
            "\",\"status\":",
        ] {
            text.push_str(part);
        }
        text.push_str(itoa::Buffer::new().format(self.status));
        for part in [",\"detail\":\"", detail, "\",\"instance\":\""] {
            text.push_str(part);
        }
        for byte in request_id.as_bytes() {
            if matches!(byte, b'"' | b'\\') {
                text.push('\\');
            }
            text.push(char::from(*byte));
        }
        for part in [
            "\",\"errors\":[{\"code\":\"",
            code,
            "\",\"message\":\"",
            detail,
            "\"}]}\n",
        ] {
            text.push_str(part);
        }
        Bytes::from(text)
    }
}

fn insert(headers: &mut HeaderMap, name: HeaderName, value: String) {
    if let Ok(value) = HeaderValue::try_from(value) {
        headers.insert(name, value);
    }
}

/// Rounds up: a client that comes back after the whole seconds it was told is never too early.
fn whole_seconds(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}

/// Who came back before the time that it was told. A fixed table, in which a newcomer displaces
/// whoever had its place: forgetting somebody only makes a wait shorter.
#[derive(Debug)]
struct Impatience {
    places: Vec<Place>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Place {
    instance: u64,
    not_before: Instant,
    doublings: u32,
}

/// 4,096 × 24 B = 96 KiB a worker.
const IMPATIENT_MAX: usize = 4096;

impl Impatience {
    fn new() -> Self {
        Self {
            places: vec![Place::default(); IMPATIENT_MAX],
        }
    }

    /// Returns how long `instance` is to wait: `base`, doubled for each time in a row that it came
    /// back too early, at most [`RETRY_AFTER_MAX`].
    fn wait(&mut self, instance: u64, base: Duration, now: Instant) -> Duration {
        let at = (instance as usize) % IMPATIENT_MAX;
        let Some(place) = self.places.get_mut(at) else {
            return base;
        };
        if place.instance != instance {
            *place = Place {
                instance,
                ..Place::default()
            };
        }
        place.doublings = if now < place.not_before {
            (place.doublings + 1).min(10)
        } else {
            0
        };
        let wait = base
            .saturating_mul(1 << place.doublings)
            .min(RETRY_AFTER_MAX);
        place.not_before = now + wait;
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_grows_for_a_source_that_does_not_wait_and_only_for_it() {
        let mut impatience = Impatience::new();
        let base = Duration::from_secs(2);
        let t0 = Instant::from_nanos(1_000_000_000_000);
        assert_eq!(impatience.wait(1, base, t0), base);
        assert_eq!(
            impatience.wait(1, base, t0 + Duration::from_secs(1)),
            base * 2
        );
        assert_eq!(
            impatience.wait(1, base, t0 + Duration::from_secs(1)),
            base * 4
        );
        assert_eq!(impatience.wait(2, base, t0), base);
        assert_eq!(impatience.wait(1, base, t0 + Duration::from_secs(61)), base);
    }

    #[test]
    fn the_wait_is_jittered_upwards_by_at_most_a_quarter() {
        let refuse = Refuse::new(7);
        let waits: Vec<_> = (0..100)
            .map(|_| refuse.jittered(Duration::from_secs(8)).as_secs_f64())
            .collect();
        assert!(waits.iter().all(|wait| (8.0..10.0).contains(wait)));
        assert!(waits.iter().any(|wait| *wait > 9.0) && waits.iter().any(|wait| *wait < 9.0));
    }

    #[test]
    fn seconds_are_rounded_up() {
        assert_eq!(whole_seconds(Duration::from_millis(1001)), 2);
        assert_eq!(whole_seconds(Duration::from_secs(1)), 1);
    }
}
