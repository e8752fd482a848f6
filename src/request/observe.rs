//! Records each request when it has ended, exactly once: counters, durations, the access log.
//!
//! An [`Observation`] travels with the answer and records itself when the answer is complete or
//! given up, whichever way that happens.

use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::HeaderValue;
use prometheus::local::LocalHistogram;
use tidegate_engine::attribute::{AttributeId, Schema};
use tidegate_engine::request::RequestFacts;
use tidegate_engine::time::Instant;

use super::admit::{Place, Shed};
use super::body::BodyProgress;
use super::guard::ConnectionState;
use super::inflight::Ticket;
use super::service::Service;
use crate::access_log::AccessLog;
use crate::clock::Clock;
use crate::metrics::Side;
use crate::service::{Ending, Lane};
use crate::upstream::Upstream;

/// The longest value in a log line, in bytes; the rest is cut and `…` put in its place.
const LOGGED_BYTES_MAX: usize = 512;
/// An answer that broke off or stalled, in metrics and logs.
const BROKE_OFF: &str = "http_response_incomplete";
/// No descriptor or port was left here.
const CONNECTION_LIMIT: &str = "connection_limit_reached";
/// Line buffers that are kept for the next requests.
const LINES_KEPT: usize = 64;

/// A worker's observer.
#[derive(Debug)]
pub(crate) struct Observer {
    pub(crate) clock: Clock,
    pub(crate) schema: Arc<Schema>,
    decisions: LocalHistogram,
    access_log: RefCell<AccessLog>,
    /// Buffers of finished lines, to be used again.
    lines: RefCell<Vec<Vec<u8>>>,
    /// The second that was written last, and its text up to the seconds.
    second: RefCell<(u64, String)>,
    /// The wall clock at the clock's zero, in nanoseconds, brought up to date with every flush.
    wall_at_zero: Cell<u64>,
    /// For each attribute `,"name":`.
    attribute_keys: Vec<Vec<u8>>,
}

impl Observer {
    /// Makes an observer.
    pub(crate) fn new(
        clock: Clock,
        schema: Arc<Schema>,
        decisions: LocalHistogram,
        access_log: AccessLog,
    ) -> Self {
        let key = |name: &str| {
            let mut key = vec![b','];
            push_json(&mut key, name.as_bytes());
            key.push(b':');
            key
        };
        Self {
            wall_at_zero: Cell::new(wall_at_zero(clock)),
            attribute_keys: schema.iter().map(|(_, spec)| key(&spec.name)).collect(),
            clock,
            schema,
            decisions,
            access_log: RefCell::new(access_log),
            lines: RefCell::default(),
            second: RefCell::default(),
        }
    }

    /// Hands over what was counted; called ten times a second.
    pub(crate) fn flush(&self) {
        self.wall_at_zero.set(wall_at_zero(self.clock));
        self.decisions.flush();
        self.access_log.borrow_mut().flush();
    }

    /// Notes how long a decision took.
    pub(crate) fn decided(&self, took: Duration) {
        self.decisions.observe(took.as_secs_f64());
    }

    /// Begins the observation of a request of a service.
    pub(crate) fn begin(
        self: &Rc<Self>,
        service: &Rc<Service>,
        began: Instant,
        connection: Rc<ConnectionState>,
    ) -> Box<Observation> {
        let ticket = service.begin(began);
        Box::new(Observation {
            observer: Rc::clone(self),
            connection,
            service: Rc::clone(service),
            began,
            ticket: Some(ticket),
            admitted: began,
            place: None,
            upload: None,
            answered: Answered::NotYet,
            outcome: "forward",
            status: 0,
            bytes_sent: 0,
            is_complete: Cell::new(false),
            fault: "",
            line: Vec::new(),
        })
    }

    /// Begins a log line with what the request says of itself. Returns an empty buffer when there is
    /// no access log.
    pub(crate) fn line(&self, request: &Loggable<'_>) -> Vec<u8> {
        if !self.access_log.borrow().is_on() {
            return Vec::new();
        }
        let mut line = self
            .lines
            .borrow_mut()
            .pop()
            .unwrap_or_else(|| Vec::with_capacity(1024));
        line.extend_from_slice(b"{\"time\":\"");
        self.push_time(&mut line, request.began);
        line.extend_from_slice(b"\",\"request_id\":");
        push_json(&mut line, request.request_id.as_bytes());
        line.extend_from_slice(b",\"method\":");
        push_json(&mut line, request.method.as_bytes());
        line.extend_from_slice(b",\"host\":");
        push_json(&mut line, request.host.as_bytes());
        line.extend_from_slice(b",\"path\":");
        push_json(&mut line, request.path.as_bytes());
        if let Some(facts) = request.facts {
            self.push_attributes(&mut line, facts, request.peer);
        }
        line
    }

    /// Appends RFC 3339 with milliseconds. Dates are worked out once a second.
    fn push_time(&self, line: &mut Vec<u8>, at: Instant) {
        let since = Duration::from_nanos(self.wall_at_zero.get().wrapping_add(at.as_nanos()));
        let mut second = self.second.borrow_mut();
        if second.0 != since.as_secs() || second.1.is_empty() {
            let wall = std::time::SystemTime::UNIX_EPOCH + since;
            let mut text = humantime::format_rfc3339_seconds(wall).to_string();
            // The last character is the zone, which follows the milliseconds.
            text.pop();
            *second = (since.as_secs(), text);
        }
        line.extend_from_slice(second.1.as_bytes());
        let millis = since.subsec_millis();
        let digit = |value: u32| b'0' + (value % 10) as u8;
        line.extend_from_slice(&[
            b'.',
            digit(millis / 100),
            digit(millis / 10),
            digit(millis),
            b'Z',
        ]);
    }

    fn push_attributes(
        &self,
        line: &mut Vec<u8>,
        facts: &RequestFacts<'_>,
        (peer, peer_text): (IpAddr, &HeaderValue),
    ) {
        line.extend_from_slice(b",\"ip\":\"");
        if facts.address() == peer {
            line.extend_from_slice(peer_text.as_bytes());
        } else {
            push_display(line, facts.address());
        }
        line.push(b'"');
        for ((id, _), key) in self.schema.iter().zip(&self.attribute_keys) {
            // Method and host stand in the line already; a secret has no text.
            if matches!(id, AttributeId::METHOD | AttributeId::HOST) {
                continue;
            }
            let Some(value) = facts.value(id) else {
                continue;
            };
            line.extend_from_slice(key);
            push_json(line, value.as_bytes());
        }
    }
}

/// What a log line says of a request.
#[derive(Debug)]
pub(crate) struct Loggable<'a> {
    pub(crate) began: Instant,
    /// The peer's address, canonical, and as text.
    pub(crate) peer: (IpAddr, &'a HeaderValue),
    pub(crate) request_id: &'a HeaderValue,
    pub(crate) method: &'a str,
    pub(crate) host: &'a str,
    pub(crate) path: &'a str,
    pub(crate) facts: Option<&'a RequestFacts<'a>>,
}

/// Whether the upstream began its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answered {
    NotYet,
    /// Before it had the last byte of the request.
    Early,
    /// So long after that.
    After(Duration),
}

/// Returns how a forwarded request ended for the upstream.
fn ending(status: u16, fault: &str, answered: Answered) -> Ending {
    match (status, fault) {
        // That was for want of something here.
        (_, CONNECTION_LIMIT) => Ending::Unjudged,
        (502..=504, _) | (_, BROKE_OFF) => Ending::Overloaded,
        (500.., _) => Ending::Failed,
        _ if matches!(answered, Answered::After(_)) => Ending::Good,
        _ => Ending::Unjudged,
    }
}

/// One request's way, recorded when this is dropped.
#[derive(Debug)]
pub(crate) struct Observation {
    observer: Rc<Observer>,
    connection: Rc<ConnectionState>,
    service: Rc<Service>,
    pub(crate) began: Instant,
    ticket: Option<Ticket>,
    /// When it got its place; how long it waited for that is not the upstream's doing.
    admitted: Instant,
    /// Its place in the service, once it has one.
    pub(crate) place: Option<Place>,
    /// The request's body, on its way to the upstream.
    upload: Option<Rc<BodyProgress>>,
    /// Whether the upstream began its answer; how fast the client reads is not its doing.
    answered: Answered,
    /// One of [`crate::metrics::OUTCOMES`].
    pub(crate) outcome: &'static str,
    /// The status that the client gets; 0 until there is one.
    pub(crate) status: u16,
    /// Body bytes handed to the client's connection.
    pub(crate) bytes_sent: u64,
    is_complete: Cell<bool>,
    /// Why there was no complete answer; empty where there was.
    pub(crate) fault: &'static str,
    /// The log line so far.
    pub(crate) line: Vec<u8>,
}

impl Observation {
    /// Notes that the request has a place.
    pub(crate) fn admit(&mut self, place: Place) {
        self.admitted = place.since();
        self.place = Some(place);
    }

    /// Notes that the request gets no place, in which lane it asked for one.
    pub(crate) fn shed(&mut self, why: Shed, lane: Lane) {
        self.outcome = "shed";
        let by_its_limit = lane == Lane::Normal && matches!(why, Shed::Full | Shed::Waited);
        self.service.shed(why, by_its_limit);
    }

    /// Notes that the request is on its way to the upstream, its body behind it.
    pub(crate) fn forwarded(&mut self, upload: &Rc<BodyProgress>) {
        self.upload = Some(Rc::clone(upload));
    }

    /// Notes that the request is ended because nothing moved.
    pub(crate) fn stalled(&self, side: Side) {
        self.service.stalled(side);
    }

    /// Notes that the upstream has begun its answer.
    pub(crate) fn answered(&mut self, status: u16) {
        self.status = status;
        let waited = self.waited(self.observer.clock.now());
        self.answered = waited.map_or(Answered::Early, Answered::After);
    }

    /// Returns how long the upstream has had until now: from the last byte of the request on, for how fast
    /// a client sends is not its doing. `None` before that byte.
    fn waited(&self, now: Instant) -> Option<Duration> {
        let whole = now.since(self.admitted);
        match &self.upload {
            Some(upload) => upload.took().map(|took| whole.saturating_sub(took)),
            None => Some(whole),
        }
    }

    /// Ready when the client has taken what was handed to its connection so far.
    pub(crate) fn poll_client(&self, cx: &Context<'_>) -> Poll<()> {
        self.connection.outlet.poll_open(cx)
    }

    /// Notes that the answer's last byte was handed to the client's connection.
    pub(crate) fn complete(&self) {
        if !self.is_complete.replace(true) {
            self.connection.idle();
        }
    }

    /// Like [`Self::complete`], for an answer that came before the end of its request: the
    /// connection, which is returned, is idle when that has ended, too.
    pub(crate) fn complete_early(&self) -> Rc<ConnectionState> {
        self.is_complete.set(true);
        Rc::clone(&self.connection)
    }

    /// Notes that the upstream broke off or stalled in the middle of its answer.
    pub(crate) fn upstream_broke_off(&mut self, upstream: &Upstream) {
        self.fault = BROKE_OFF;
        upstream.failures.count(self.fault);
    }

    /// Adds the rule or limit that decided to the log line.
    pub(crate) fn log_cause(&mut self, rule: &str) {
        if !self.line.is_empty() {
            self.line.extend_from_slice(b",\"rule\":");
            push_json(&mut self.line, rule.as_bytes());
        }
    }
}

impl Drop for Observation {
    fn drop(&mut self) {
        let now = self.observer.clock.now();
        let duration = now.since(self.began);
        if let Some(ticket) = self.ticket.take() {
            self.service.end(ticket, self.outcome, duration);
        }
        self.place = None;
        if self.outcome == "forward" {
            let waited = match self.answered {
                Answered::After(waited) => waited,
                Answered::Early => Duration::ZERO,
                Answered::NotYet => self.waited(now).unwrap_or_default(),
            };
            let ending = ending(self.status, self.fault, self.answered);
            self.service.forwarded(ending, waited);
        }
        if !self.is_complete.get() && self.fault.is_empty() {
            self.fault = "client_gone";
            if self.connection.timed_out.get() {
                self.service.stalled(Side::Client);
            }
        }
        let mut line = std::mem::take(&mut self.line);
        if line.is_empty() {
            return;
        }
        line.extend_from_slice(b",\"verdict\":\"");
        line.extend_from_slice(self.outcome.as_bytes());
        line.extend_from_slice(b"\",\"status\":");
        push_number(&mut line, self.status);
        line.extend_from_slice(b",\"bytes\":");
        push_number(&mut line, self.bytes_sent);
        line.extend_from_slice(b",\"duration_us\":");
        push_number(&mut line, duration.as_micros() as u64);
        if !self.fault.is_empty() {
            line.extend_from_slice(b",\"error\":\"");
            line.extend_from_slice(self.fault.as_bytes());
            line.push(b'"');
        }
        line.extend_from_slice(b"}\n");
        self.observer.access_log.borrow_mut().line(&line);
        line.clear();
        let mut kept = self.observer.lines.borrow_mut();
        if kept.len() < LINES_KEPT && line.capacity() <= 16 * 1024 {
            kept.push(line);
        }
    }
}

/// Returns the wall clock at the clock's zero, in nanoseconds since 1970.
fn wall_at_zero(clock: Clock) -> u64 {
    let since = clock
        .wall()
        .duration_since(std::time::SystemTime::UNIX_EPOCH);
    let nanos = since.unwrap_or_default().as_nanos() as u64;
    nanos.wrapping_sub(clock.now().as_nanos())
}

/// Appends text, which cannot fail on a `Vec`.
fn push_display(line: &mut Vec<u8>, value: impl std::fmt::Display) {
    use std::io::Write as _;
    let written = write!(line, "{value}");
    debug_assert!(written.is_ok());
}

/// Appends a whole number.
fn push_number(line: &mut Vec<u8>, number: impl itoa::Integer) {
    line.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// Appends a JSON string. Control characters are escaped, bytes that are no UTF-8 become U+FFFD,
/// and more than [`LOGGED_BYTES_MAX`] is cut: one request is one line, whatever it holds.
fn push_json(line: &mut Vec<u8>, bytes: &[u8]) {
    let shown = bytes.get(..LOGGED_BYTES_MAX).unwrap_or(bytes);
    line.push(b'"');
    // Without a way out in the middle, many bytes are looked at in one step.
    let is_plain = |byte: u8| (0x20..0x7f).contains(&byte) && byte != b'"' && byte != b'\\';
    if shown.iter().fold(true, |all, byte| all & is_plain(*byte)) {
        line.extend_from_slice(shown);
    } else {
        for character in String::from_utf8_lossy(shown).chars() {
            match character {
                '"' => line.extend_from_slice(b"\\\""),
                '\\' => line.extend_from_slice(b"\\\\"),
                character
                    if character.is_control() || matches!(character, '\u{2028}' | '\u{2029}') =>
                {
                    push_display(line, format_args!("\\u{:04x}", character as u32));
                }
                character => {
                    line.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                }
            }
        }
    }
    if shown.len() < bytes.len() {
        line.extend_from_slice("…".as_bytes());
    }
    line.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_what_an_upstream_did_with_a_whole_request_is_held_for_or_against_it() {
        let after = Answered::After(Duration::from_millis(3));
        for (status, fault, answered, expected) in [
            (200, "", after, Ending::Good),
            (404, "", after, Ending::Good),
            (200, "", Answered::Early, Ending::Unjudged),
            (500, "", Answered::Early, Ending::Failed),
            (503, "", after, Ending::Overloaded),
            (200, BROKE_OFF, after, Ending::Overloaded),
            (
                504,
                "http_response_timeout",
                Answered::NotYet,
                Ending::Overloaded,
            ),
            (503, CONNECTION_LIMIT, Answered::NotYet, Ending::Unjudged),
            (
                408,
                "http_request_error",
                Answered::NotYet,
                Ending::Unjudged,
            ),
            (0, "", Answered::NotYet, Ending::Unjudged),
        ] {
            assert_eq!(
                ending(status, fault, answered),
                expected,
                "{status} {fault} {answered:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn whatever_a_client_sends_is_one_json_string_on_one_line(bytes in proptest::collection::vec(any::<u8>(), 0..700)) {
            let mut line = Vec::new();
            push_json(&mut line, &bytes);
            let text = String::from_utf8(line).unwrap();
            let is_one_line = !text.contains(['\n', '\u{2028}']);
            prop_assert!(is_one_line);
            let read: String = serde_json::from_str(&text).unwrap();
            if bytes.len() <= LOGGED_BYTES_MAX {
                prop_assert_eq!(read, String::from_utf8_lossy(&bytes).into_owned());
            }
        }
    }
}
