//! Headers on their way through: what ends here, what is added, what is passed on.

use std::cell::{Cell, RefCell};

use bytes::BytesMut;
use http::header::{
    CONNECTION, EXPECT, HOST, HeaderName, HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE,
    TRANSFER_ENCODING, UPGRADE, VIA,
};
use http::{HeaderMap, Version};

use super::address::X_FORWARDED_FOR;

/// `x-request-id`.
pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// `traceparent`.
pub(crate) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const VIA_OURS: HeaderValue = HeaderValue::from_static("1.1 tidegate");

/// Other ways to say who a client is, which upstreams may believe: a stranger's are dropped.
const CLIENT_CLAIMS: [&str; 5] = [
    "forwarded",
    "x-real-ip",
    "true-client-ip",
    "x-client-ip",
    "x-forwarded-port",
];

/// The longest request id that is kept, in bytes.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// Which of the fields that matter to a proxy a message has, found in one walk over its names: most
/// have hardly any, and asking for each by name costs a hash and a look-up.
#[derive(Clone, Copy, Debug, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "a set of independent findings"
)]
pub(crate) struct Fields {
    /// `Connection`.
    pub(crate) connection: bool,
    hop_by_hop: bool,
    underscored: bool,
    te: bool,
    via: bool,
    trace: bool,
    client_claims: bool,
    /// `Expect`.
    pub(crate) expect: bool,
    /// `Upgrade`.
    pub(crate) upgrade: bool,
    /// `Transfer-Encoding`.
    pub(crate) transfer_encoding: bool,
    /// `Host`.
    pub(crate) host: bool,
}

impl Fields {
    /// Looks for the fields.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let mut fields = Self::default();
        for name in headers.keys() {
            match name.as_str() {
                "connection" => fields.connection = true,
                "keep-alive"
                | "proxy-connection"
                | "proxy-authenticate"
                | "proxy-authorization" => fields.hop_by_hop = true,
                "te" => fields.te = true,
                "via" => fields.via = true,
                "traceparent" => fields.trace = true,
                "forwarded" | "x-real-ip" | "true-client-ip" | "x-client-ip"
                | "x-forwarded-port" => {
                    fields.client_claims = true;
                }
                "expect" => fields.expect = true,
                "upgrade" => fields.upgrade = true,
                "transfer-encoding" => fields.transfer_encoding = true,
                "host" => fields.host = true,
                name => fields.underscored |= name.contains('_'),
            }
        }
        fields
    }
}

/// Removes what belongs to one connection only: `Connection`, everything that it names, and the
/// fields that every proxy keeps to itself (RFC 9110, 7.6.1).
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap, fields: Fields) {
    if fields.connection {
        // Most servers say `keep-alive` and nothing else, which names no field but `Keep-Alive`.
        let mut lines = headers.get_all(CONNECTION).iter();
        let is_usual = lines.next().is_some_and(|line| line == "keep-alive") && lines.count() == 0;
        let named: Vec<HeaderName> = if is_usual {
            Vec::new()
        } else {
            connection_names(headers)
                // `Connection: host` must not take away what tells services apart.
                .filter(|name| *name != HOST)
                .collect()
        };
        headers.remove(CONNECTION);
        for name in named {
            headers.remove(name);
        }
    }
    if fields.hop_by_hop {
        for name in [
            KEEP_ALIVE,
            PROXY_CONNECTION,
            PROXY_AUTHENTICATE,
            PROXY_AUTHORIZATION,
        ] {
            headers.remove(name);
        }
    }
    if fields.upgrade {
        headers.remove(UPGRADE);
    }
    if fields.transfer_encoding {
        headers.remove(TRANSFER_ENCODING);
    }
}

/// Walks the fields that `Connection` names.
pub(crate) fn connection_names(headers: &HeaderMap) -> impl Iterator<Item = HeaderName> {
    headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
}

/// Prepares a request's headers for the upstream. What is added is written after what is stripped,
/// so `Connection: x-forwarded-for` removes nothing of ours.
///
/// Returns how many fields with an underscore were dropped: many servers read `x_real_ip` and
/// `x-real-ip` as the same field, so one could be made to stand for the other.
pub(crate) fn prepare_request(
    headers: &mut HeaderMap,
    fields: Fields,
    facts: &ForwardedFacts<'_>,
    version: Version,
) -> usize {
    let trailers_welcome = fields.te
        && headers
            .get_all(TE)
            .iter()
            .any(|line| line.as_bytes().split(|byte| *byte == b',').any(is_trailers));
    if fields.trace {
        check_trace(headers);
    }
    strip_hop_by_hop(headers, fields);
    if fields.te {
        headers.remove(TE);
    }
    if fields.expect {
        headers.remove(EXPECT);
    }
    let dropped = if fields.underscored {
        drop_underscored(headers)
    } else {
        0
    };
    if trailers_welcome {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    if fields.client_claims && !facts.peer_is_trusted {
        for name in CLIENT_CLAIMS {
            headers.remove(name);
        }
    }
    append_forwarded_for(headers, facts);
    if !facts.peer_is_trusted || !headers.contains_key(X_FORWARDED_PROTO) {
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static("http"));
    }
    if (!facts.peer_is_trusted || !headers.contains_key(X_FORWARDED_HOST))
        && let Some(host) = headers.get(HOST).cloned()
    {
        headers.insert(X_FORWARDED_HOST, host);
    }
    append_via(headers, fields, version);
    headers.insert(X_REQUEST_ID, facts.request_id.clone());
    dropped
}

/// Prepares an answer's headers for the client.
pub(crate) fn prepare_response(
    headers: &mut HeaderMap,
    request_id: &HeaderValue,
    version: Version,
) {
    let fields = Fields::of(headers);
    strip_hop_by_hop(headers, fields);
    append_via(headers, fields, version);
    headers.insert(X_REQUEST_ID, request_id.clone());
}

/// What the forwarding headers say.
#[derive(Debug)]
pub(crate) struct ForwardedFacts<'a> {
    /// The peer's address as text.
    pub(crate) peer: &'a HeaderValue,
    /// Whether the peer's own forwarding headers are believed.
    pub(crate) peer_is_trusted: bool,
    /// The request id in force.
    pub(crate) request_id: &'a HeaderValue,
}

fn is_trailers(token: &[u8]) -> bool {
    let name = token.split(|byte| *byte == b';').next().unwrap_or_default();
    name.trim_ascii().eq_ignore_ascii_case(b"trailers")
}

fn drop_underscored(headers: &mut HeaderMap) -> usize {
    let names: Vec<HeaderName> = headers
        .keys()
        .filter(|name| name.as_str().contains('_'))
        .cloned()
        .collect();
    for name in &names {
        headers.remove(name);
    }
    names.len()
}

fn append_forwarded_for(headers: &mut HeaderMap, facts: &ForwardedFacts<'_>) {
    if facts.peer_is_trusted && headers.contains_key(X_FORWARDED_FOR) {
        let mut joined = Vec::with_capacity(64);
        for line in headers.get_all(X_FORWARDED_FOR) {
            joined.extend_from_slice(line.as_bytes());
            joined.extend_from_slice(b", ");
        }
        joined.extend_from_slice(facts.peer.as_bytes());
        if let Ok(value) = HeaderValue::from_bytes(&joined) {
            headers.insert(X_FORWARDED_FOR, value);
            return;
        }
    }
    headers.insert(X_FORWARDED_FOR, facts.peer.clone());
}

/// Appends this proxy to `Via`.
fn append_via(headers: &mut HeaderMap, fields: Fields, version: Version) {
    let ours = if version == Version::HTTP_10 {
        HeaderValue::from_static("1.0 tidegate")
    } else {
        VIA_OURS
    };
    if !fields.via {
        headers.insert(VIA, ours);
        return;
    }
    let mut joined = Vec::with_capacity(64);
    for line in headers.get_all(VIA) {
        joined.extend_from_slice(line.as_bytes());
        joined.extend_from_slice(b", ");
    }
    joined.extend_from_slice(ours.as_bytes());
    headers.insert(VIA, HeaderValue::from_bytes(&joined).unwrap_or(ours));
}

/// Takes a trusted proxy's request id, or makes one from a random process part and a counter.
pub(crate) fn request_id(
    headers: &HeaderMap,
    peer_is_trusted: bool,
    ids: &RequestIds,
) -> HeaderValue {
    if peer_is_trusted
        && let Some(id) = headers.get(X_REQUEST_ID)
        && id.len() <= REQUEST_ID_BYTES_MAX
        && !id.is_empty()
        && id.as_bytes().iter().all(u8::is_ascii_graphic)
    {
        return id.clone();
    }
    ids.next()
}

/// Removes a `traceparent` that is not one (W3C Trace Context: `00-32 hex-16 hex-2 hex`), with its
/// `tracestate`; passes a good one on untouched.
fn check_trace(headers: &mut HeaderMap) {
    let Some(parent) = headers.get(TRACEPARENT) else {
        return;
    };
    let hex = |text: &[u8]| text.iter().all(u8::is_ascii_hexdigit);
    let mut parts = parent.as_bytes().split(|byte| *byte == b'-');
    let good = [2, 32, 16, 2].iter().all(|length| {
        parts
            .next()
            .is_some_and(|part| part.len() == *length && hex(part))
    });
    if !good || headers.get_all(TRACEPARENT).iter().count() > 1 {
        headers.remove(TRACEPARENT);
        headers.remove(TRACESTATE);
    }
}

const HEX: &[u8; 16] = b"0123456789abcdef";

/// Makes request ids: 32 hexadecimal digits, of which the first half is random per worker.
///
/// Unique within the fleet by chance, and cheap: no random number is drawn on a request's way.
///
/// Their bytes are cut from a common piece, which saves two allocations for each.
#[derive(Debug)]
pub(crate) struct RequestIds {
    prefix: u64,
    next: Cell<u64>,
    text: RefCell<BytesMut>,
}

/// The length of an id, and how many are cut from one piece: 4 KiB, kept as long as one of them is.
const REQUEST_ID_BYTES: usize = 32;
const REQUEST_IDS_A_PIECE: usize = 128;

impl RequestIds {
    /// Begins a series from a random number.
    pub(crate) fn new(random: u64) -> Self {
        Self {
            prefix: random,
            next: Cell::new(random.rotate_left(17)),
            text: RefCell::default(),
        }
    }

    fn next(&self) -> HeaderValue {
        let number = self.next.get();
        self.next.set(number.wrapping_add(0x9E37_79B9_7F4A_7C15));
        let mut text = [0; REQUEST_ID_BYTES];
        let digits = [self.prefix, number].into_iter().flat_map(|half| {
            (0..16)
                .rev()
                .map(move |at| (half >> (4 * at)) as usize & 15)
        });
        for (place, digit) in text.iter_mut().zip(digits) {
            *place = HEX.get(digit).copied().unwrap_or(b'0');
        }
        let mut piece = self.text.borrow_mut();
        if piece.capacity() < REQUEST_ID_BYTES {
            *piece = BytesMut::with_capacity(REQUEST_IDS_A_PIECE * REQUEST_ID_BYTES);
        }
        piece.extend_from_slice(&text);
        HeaderValue::from_maybe_shared(piece.split().freeze())
            .unwrap_or(HeaderValue::from_static("0"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                value.parse().unwrap(),
            );
        }
        headers
    }

    fn prepared(lines: &[(&str, &str)], peer_is_trusted: bool) -> HeaderMap {
        let mut headers = headers(lines);
        let peer = HeaderValue::from_static("192.0.2.7");
        let request_id = HeaderValue::from_static("id");
        let facts = ForwardedFacts {
            peer: &peer,
            peer_is_trusted,
            request_id: &request_id,
        };
        let fields = Fields::of(&headers);
        prepare_request(&mut headers, fields, &facts, Version::HTTP_11);
        headers
    }

    fn line<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
        headers.get(name).map(|value| value.to_str().unwrap())
    }

    #[test]
    fn what_connection_names_ends_here_but_not_what_is_added() {
        let out = prepared(
            &[
                ("host", "acme"),
                ("connection", "x-secret, X-Forwarded-For, host"),
                ("x-secret", "1"),
                ("keep-alive", "timeout=5"),
                ("te", "trailers;q=0.5, gzip"),
                ("expect", "100-continue"),
            ],
            false,
        );
        assert_eq!(line(&out, "x-secret"), None);
        assert_eq!(line(&out, "keep-alive"), None);
        assert_eq!(line(&out, "expect"), None);
        assert_eq!(line(&out, "connection"), None);
        assert_eq!(line(&out, "te"), Some("trailers"));
        assert_eq!(line(&out, "host"), Some("acme"));
        assert_eq!(line(&out, "x-forwarded-for"), Some("192.0.2.7"));
        assert_eq!(line(&out, "x-forwarded-host"), Some("acme"));
        assert_eq!(line(&out, "via"), Some("1.1 tidegate"));
    }

    #[test]
    fn a_strangers_forwarding_headers_are_replaced_and_a_trusted_proxys_kept() {
        let lines = [
            ("host", "acme"),
            ("x-forwarded-for", "198.51.100.1"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "other"),
            ("via", "1.1 edge"),
            ("x-real-ip", "198.51.100.1"),
            ("forwarded", "for=198.51.100.1"),
        ];
        let stranger = prepared(&lines, false);
        assert_eq!(line(&stranger, "x-forwarded-for"), Some("192.0.2.7"));
        assert_eq!(line(&stranger, "x-forwarded-proto"), Some("http"));
        assert_eq!(line(&stranger, "x-forwarded-host"), Some("acme"));
        assert_eq!(line(&stranger, "x-real-ip"), None);
        assert_eq!(line(&stranger, "forwarded"), None);
        let trusted = prepared(&lines, true);
        assert_eq!(
            line(&trusted, "x-forwarded-for"),
            Some("198.51.100.1, 192.0.2.7")
        );
        assert_eq!(line(&trusted, "x-forwarded-proto"), Some("https"));
        assert_eq!(line(&trusted, "x-forwarded-host"), Some("other"));
        assert_eq!(line(&trusted, "x-real-ip"), Some("198.51.100.1"));
        assert_eq!(line(&trusted, "via"), Some("1.1 edge, 1.1 tidegate"));
    }

    #[test]
    fn a_field_with_an_underscore_is_dropped() {
        let out = prepared(
            &[("host", "acme"), ("x_forwarded_for", "198.51.100.1")],
            false,
        );
        assert_eq!(line(&out, "x_forwarded_for"), None);
    }

    #[test]
    fn only_a_trusted_proxys_request_id_is_kept() {
        let ids = RequestIds::new(7);
        let given = headers(&[("x-request-id", "abc")]);
        assert_eq!(request_id(&given, true, &ids), "abc");
        assert_ne!(request_id(&given, false, &ids), "abc");
        assert_eq!(request_id(&given, false, &ids).len(), 32);
        assert_ne!(
            request_id(&given, false, &ids),
            request_id(&given, false, &ids)
        );
        let bad = headers(&[("x-request-id", "a b")]);
        assert_ne!(request_id(&bad, true, &ids), "a b");
    }

    #[test]
    fn a_broken_traceparent_is_not_passed_on() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let mut kept = headers(&[("traceparent", good), ("tracestate", "a=1")]);
        check_trace(&mut kept);
        assert_eq!(line(&kept, "traceparent"), Some(good));
        let mut broken = headers(&[("traceparent", "00-xyz"), ("tracestate", "a=1")]);
        check_trace(&mut broken);
        assert!(broken.is_empty());
    }
}
