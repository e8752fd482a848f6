//! Where in a request a value stands, and how it is read there.
//!
//! A value given twice is one value where both are the same, and refused where they differ.

use std::borrow::Cow;
use std::net::IpAddr;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as URL_SAFE_NO_PAD;
use http::HeaderMap;
use http::header::{AUTHORIZATION, COOKIE, HeaderName};

use super::Readable;
use crate::request::guard::HEAD_BYTES_MAX;
use crate::request::target::Invalid;
use crate::settings::ValueFrom;

/// The longest JWT that is looked into: as long as a head can be, so that no padding hides a claim.
const JWT_BYTES_MAX: usize = HEAD_BYTES_MAX;

const AMBIGUOUS: Invalid = Invalid {
    status: 400,
    detail: "a field that identifies the client is given twice",
};

/// Returns whether a place is in this header.
pub(super) fn names(place: &ValueFrom, header: &HeaderName) -> bool {
    match place {
        ValueFrom::Header(name) => name == header,
        ValueFrom::Cookie(_) => *header == COOKIE,
        ValueFrom::JwtClaim(_) => *header == AUTHORIZATION,
        ValueFrom::FirstOf(places) => places.iter().any(|place| names(place, header)),
        ValueFrom::Query(_) | ValueFrom::HostLabel(_) | ValueFrom::PathSegment(_) => false,
    }
}

/// Reads the value at a place.
pub(super) fn read_from<'a>(
    place: &ValueFrom,
    request: &Readable<'a>,
) -> Result<Option<Cow<'a, str>>, Invalid> {
    match place {
        ValueFrom::Header(name) => header(request.headers, name),
        ValueFrom::Query(name) => query(request.uri.query().unwrap_or_default(), name),
        ValueFrom::Cookie(name) => cookie(request.headers, name),
        ValueFrom::HostLabel(number) => Ok(host_label(request.host, *number).map(Cow::Borrowed)),
        ValueFrom::PathSegment(number) => {
            let mut segments = request
                .path
                .split('/')
                .filter(|segment| !segment.is_empty());
            Ok(segments.nth(number.saturating_sub(1)).map(Cow::Borrowed))
        }
        ValueFrom::JwtClaim(claim) => {
            let token = header(request.headers, &AUTHORIZATION)?;
            Ok(token
                .and_then(|token| jwt_claim(&token, claim))
                .map(Cow::Owned))
        }
        // Places within places are refused where the settings are read.
        ValueFrom::FirstOf(_) => Ok(None),
    }
}

/// Returns a header's value. The same value twice is one value; two values are refused.
pub(super) fn header<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
) -> Result<Option<Cow<'a, str>>, Invalid> {
    let mut lines = headers.get_all(name).iter();
    let Some(first) = lines.next() else {
        return Ok(None);
    };
    if lines.any(|other| other != first) {
        return Err(AMBIGUOUS);
    }
    Ok(Some(text(first.as_bytes())))
}

/// Returns bytes as text. Bytes that are no UTF-8 are written as escapes; a client that writes such an
/// escape itself counts as the same, which gains it nothing.
fn text(bytes: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Cow::Borrowed(text.trim()),
        Err(_) => Cow::Owned(bytes.escape_ascii().to_string()),
    }
}

/// Returns a query parameter, unescaped. Given twice with different values, it is refused.
fn query<'a>(query: &'a str, name: &str) -> Result<Option<Cow<'a, str>>, Invalid> {
    let mut found: Option<Cow<'a, str>> = None;
    for pair in query.split('&') {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        if unescape_query(key) != name {
            continue;
        }
        let value = unescape_query(value);
        match &found {
            Some(first) if *first != value => return Err(AMBIGUOUS),
            Some(_) => {}
            None => found = Some(value),
        }
    }
    Ok(found)
}

/// Undoes `%xx` and `+`; an escape that is none stays as it is.
fn unescape_query(text: &str) -> Cow<'_, str> {
    if !text.bytes().any(|byte| byte == b'%' || byte == b'+') {
        return Cow::Borrowed(text);
    }
    let spaced = text.replace('+', " ");
    let bytes: Vec<u8> = percent_encoding::percent_decode_str(&spaced).collect();
    match String::from_utf8(bytes) {
        Ok(text) => Cow::Owned(text),
        Err(error) => Cow::Owned(error.as_bytes().escape_ascii().to_string()),
    }
}

/// Returns a cookie. Given twice with different values, it is refused.
fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<Cow<'a, str>>, Invalid> {
    let mut found: Option<&'a [u8]> = None;
    let pairs = headers
        .get_all(COOKIE)
        .iter()
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b';'));
    for pair in pairs {
        let mut halves = pair.splitn(2, |byte| *byte == b'=');
        if halves.next().unwrap_or_default().trim_ascii() != name.as_bytes() {
            continue;
        }
        let value = halves.next().unwrap_or_default().trim_ascii();
        match found {
            Some(first) if first != value => return Err(AMBIGUOUS),
            _ => found = Some(value),
        }
    }
    Ok(found.map(text))
}

/// Returns the n-th label of a host, counted from 1; an address has none.
fn host_label(host: &str, number: usize) -> Option<&str> {
    if host.starts_with('[') || host.parse::<IpAddr>().is_ok() {
        return None;
    }
    host.split('.')
        .nth(number.checked_sub(1)?)
        .filter(|label| !label.is_empty())
}

/// Reads a claim of a JWT's payload without verifying anything: the claim says who the client
/// pretends to be, which is all that an attribute ever says.
fn jwt_claim(token: &str, claim: &str) -> Option<String> {
    let token = token.strip_prefix("Bearer ").unwrap_or(token).trim();
    if token.len() > JWT_BYTES_MAX {
        return None;
    }
    let payload = URL_SAFE_NO_PAD
        .decode(token.split('.').nth(1)?.trim_end_matches('='))
        .ok()?;
    let claims: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&payload).ok()?;
    match claims.get(claim)? {
        serde_json::Value::String(text) => Some(text.clone()),
        serde_json::Value::Number(number) => Some(number.to_string()),
        serde_json::Value::Bool(value) => Some(value.to_string()),
        _ => None,
    }
}
