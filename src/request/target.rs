//! What a request asks for: method, host and path, checked before anything else looks at them.
//!
//! Services and rules see the path in a normal form, so that `/v1/%61uth/` cannot slip past a limit
//! on `/v1/auth/`. What is ambiguous (`..`, `%00`, two hosts) is refused rather than guessed at.

use std::borrow::Cow;

use http::header::{CONTENT_LENGTH, EXPECT, HOST, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, Method, Uri, Version};

use super::headers::Fields;

/// The longest request target, in bytes; more is answered 414.
const TARGET_BYTES_MAX: usize = 8 * 1024;

/// What a request asks for.
#[derive(Debug)]
pub(crate) struct Target<'a> {
    /// The host in lower case, without port; empty where an HTTP/1.0 client gave none.
    pub(crate) host: Cow<'a, str>,
    /// The path in normal form.
    pub(crate) path: Cow<'a, str>,
}

/// Why a request cannot be served as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Invalid {
    /// The HTTP status.
    pub(crate) status: u16,
    /// What the client is told.
    pub(crate) detail: &'static str,
}

const fn invalid(status: u16, detail: &'static str) -> Invalid {
    Invalid { status, detail }
}

impl<'a> Target<'a> {
    /// Reads the target of a request, or says why it cannot be served.
    pub(crate) fn read(
        method: &Method,
        uri: &'a Uri,
        version: Version,
        headers: &'a HeaderMap,
    ) -> Result<Self, Invalid> {
        if *method == Method::CONNECT {
            return Err(invalid(405, "CONNECT is not served here"));
        }
        if *method == Method::TRACE {
            return Err(invalid(405, "TRACE is not served here"));
        }
        let path = uri.path();
        if path == "*" && *method != Method::OPTIONS {
            return Err(invalid(400, "the target `*` is for OPTIONS only"));
        }
        if path.len() + uri.query().map_or(0, str::len) > TARGET_BYTES_MAX {
            return Err(invalid(414, "the request target is longer than 8 KiB"));
        }
        let host = host(uri, version, headers)?;
        Ok(Self {
            host,
            path: normal_path(path)?,
        })
    }
}

/// Reads the host: the target's where it has one, which must then be the `Host` header's too.
fn host<'a>(
    uri: &'a Uri,
    version: Version,
    headers: &'a HeaderMap,
) -> Result<Cow<'a, str>, Invalid> {
    let mut lines = headers.get_all(HOST).iter();
    let header = match (lines.next(), lines.next()) {
        (_, Some(_)) => return Err(invalid(400, "there is more than one Host header")),
        (Some(line), None) => Some(
            line.to_str()
                .map_err(|_not_text| invalid(400, "the Host header is not text"))?,
        ),
        (None, None) => None,
    };
    let header = header.map(bare_host).transpose()?;
    let authority = uri
        .authority()
        .map(|authority| bare_host(authority.as_str()))
        .transpose()?;
    let bare = match (authority, header) {
        (Some(authority), Some(header)) if !authority.eq_ignore_ascii_case(header) => {
            return Err(invalid(400, "the target's host and the Host header differ"));
        }
        (Some(authority), _) => authority,
        (None, Some(header)) => header,
        (None, None) if version == Version::HTTP_10 => "",
        (None, None) => return Err(invalid(400, "the Host header is missing")),
    };
    Ok(if bare.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(bare.to_ascii_lowercase())
    } else {
        Cow::Borrowed(bare)
    })
}

/// Takes the port and a last dot off a host: `name`, `name:port`, `[address]` or `[address]:port`.
fn bare_host(given: &str) -> Result<&str, Invalid> {
    let bad = invalid(400, "the Host header is not a host");
    let place = |wanted| given.bytes().position(|byte| byte == wanted);
    let end = match place(b']') {
        Some(bracket) => bracket + 1,
        None => place(b':').unwrap_or(given.len()),
    };
    let (name, port) = given.split_at_checked(end).ok_or(bad)?;
    let is_port = |port: &str| {
        port.strip_prefix(':')
            .is_some_and(|port| port.bytes().all(|byte| byte.is_ascii_digit()))
    };
    if !port.is_empty() && !is_port(port) {
        return Err(bad);
    }
    let is_name = match name.strip_prefix('[') {
        Some(address) => address
            .strip_suffix(']')
            .is_some_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok()),
        None => {
            !name.is_empty()
                && name
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte))
        }
    };
    if !is_name {
        return Err(bad);
    }
    Ok(name.strip_suffix('.').unwrap_or(name))
}

/// Brings a path to normal form: escaped unreserved characters are unescaped, repeated slashes are
/// one. Segments `.` and `..`, a backslash and an escaped NUL or control character are refused.
fn normal_path(path: &str) -> Result<Cow<'_, str>, Invalid> {
    if is_plain(path.as_bytes()) {
        return Ok(Cow::Borrowed(path));
    }
    let normal = unescape(path)?;
    if normal.contains('\\') || normal.contains("%5C") || normal.contains("%5c") {
        return Err(invalid(400, "the path holds a backslash"));
    }
    // Some servers take `..;x` for `..`.
    let leads_up =
        |segment: &str| matches!(segment.split(';').next().unwrap_or_default(), "." | "..");
    if normal.contains("/.") && normal.split('/').any(leads_up) {
        return Err(invalid(400, "the path holds a segment `.` or `..`"));
    }
    Ok(Cow::Owned(normal))
}

/// Returns whether there is nothing in a path that has to be brought to normal form or refused. Most
/// paths are plain, and one walk says so.
fn is_plain(path: &[u8]) -> bool {
    let mut before = 0;
    path.iter().all(|byte| {
        let is_odd = matches!(byte, b'%' | b'\\' | 0x80..)
            || (before == b'/' && matches!(byte, b'/' | b'.'));
        before = *byte;
        !is_odd
    })
}

fn unescape(path: &str) -> Result<String, Invalid> {
    let bad = invalid(400, "the path holds `%` without two hexadecimal digits");
    let mut normal = String::with_capacity(path.len());
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            if !(byte == b'/' && normal.ends_with('/')) {
                push_byte(&mut normal, byte);
            }
            continue;
        }
        let (Some(high), Some(low)) = (bytes.next(), bytes.next()) else {
            return Err(bad);
        };
        let (Some(high_value), Some(low_value)) =
            (char::from(high).to_digit(16), char::from(low).to_digit(16))
        else {
            return Err(bad);
        };
        let value = (high_value * 16 + low_value) as u8;
        match value {
            0..=0x1f | 0x7f => {
                return Err(invalid(400, "the path holds an escaped control character"));
            }
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                normal.push(char::from(value));
            }
            _ => {
                normal.push('%');
                normal.push(char::from(high.to_ascii_uppercase()));
                normal.push(char::from(low.to_ascii_uppercase()));
            }
        }
    }
    Ok(normal)
}

/// Writes a byte above ASCII as an escape: visible and distinct, without guessing a character set.
fn push_byte(normal: &mut String, byte: u8) {
    const HEX: [char; 16] = [
        '0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'A', 'B', 'C', 'D', 'E', 'F',
    ];
    if byte.is_ascii() {
        normal.push(char::from(byte));
        return;
    }
    let digit = |nibble: u8| HEX.get(usize::from(nibble)).copied().unwrap_or('0');
    normal.extend(['%', digit(byte >> 4), digit(byte & 15)]);
}

/// Refuses framing and expectations that could mean two things to two readers.
pub(crate) fn check_framing(
    headers: &HeaderMap,
    fields: Fields,
    version: Version,
    head_has_content_length: impl FnOnce() -> bool,
) -> Result<(), Invalid> {
    let mut encodings = headers.get_all(TRANSFER_ENCODING).iter();
    if fields.transfer_encoding
        && let Some(encoding) = encodings.next()
    {
        if version == Version::HTTP_10 {
            return Err(invalid(400, "Transfer-Encoding is not part of HTTP/1.0"));
        }
        if headers.contains_key(CONTENT_LENGTH) || head_has_content_length() {
            return Err(invalid(
                400,
                "Content-Length and Transfer-Encoding are both given",
            ));
        }
        // The body is sent on chunked, so another coding would be lost without a word.
        if encodings.next().is_some() || !encoding.as_bytes().eq_ignore_ascii_case(b"chunked") {
            return Err(invalid(
                501,
                "no Transfer-Encoding is understood but chunked alone",
            ));
        }
    }
    if fields.expect
        && let Some(expect) = headers.get(EXPECT)
        && !expect.as_bytes().eq_ignore_ascii_case(b"100-continue")
    {
        return Err(invalid(
            417,
            "the only expectation that is met is 100-continue",
        ));
    }
    if fields.upgrade
        && let Some(upgrade) = headers.get(UPGRADE)
        && upgrade.as_bytes().eq_ignore_ascii_case(b"websocket")
    {
        return Err(invalid(
            501,
            "WebSocket connections are not served here yet",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(path: &str) -> Result<String, u16> {
        normal_path(path)
            .map(Cow::into_owned)
            .map_err(|invalid| invalid.status)
    }

    #[test]
    fn an_escaped_letter_is_the_letter() {
        assert_eq!(path("/v1/%61uth/%2F%3fx"), Ok("/v1/auth/%2F%3Fx".into()));
    }

    #[test]
    fn a_byte_beyond_ascii_is_its_escape() {
        assert_eq!(path("/v1/é"), Ok("/v1/%C3%A9".into()));
        assert_eq!(path("/v1/%c3%a9"), Ok("/v1/%C3%A9".into()));
    }

    #[test]
    fn repeated_slashes_are_one() {
        assert_eq!(path("//v1///auth"), Ok("/v1/auth".into()));
    }

    #[test]
    fn ways_up_and_control_characters_are_refused() {
        for bad in [
            "/a/../b",
            "/a/%2e%2E/b",
            "/a/.",
            "/a/..;x/b",
            "/%00",
            "/a\\b",
            "/a%5cb",
            "/%0d%0a",
            "/%zz",
            "/%1",
        ] {
            assert_eq!(path(bad), Err(400), "{bad}");
        }
        assert_eq!(path("/.well-known/x..y"), Ok("/.well-known/x..y".into()));
    }

    fn target(uri: &str, hosts: &[&str]) -> Result<String, u16> {
        let uri: Uri = uri.parse().unwrap();
        let mut headers = HeaderMap::new();
        for host in hosts {
            headers.append(HOST, host.parse().unwrap());
        }
        Target::read(&Method::GET, &uri, Version::HTTP_11, &headers)
            .map(|target| target.host.into_owned())
            .map_err(|invalid| invalid.status)
    }

    #[test]
    fn the_host_is_one_and_in_lower_case_without_port() {
        assert_eq!(
            target("/", &["ACME.Example.com:8443"]),
            Ok("acme.example.com".into())
        );
        assert_eq!(
            target("/", &["acme.example.com."]),
            Ok("acme.example.com".into())
        );
        assert_eq!(
            target("/", &["[2001:db8::1]:80"]),
            Ok("[2001:db8::1]".into())
        );
        assert_eq!(target("/", &["a", "b"]), Err(400));
        assert_eq!(target("/", &[]), Err(400));
        assert_eq!(target("/", &["a b"]), Err(400));
        assert_eq!(target("/", &["user@a"]), Err(400));
        assert_eq!(target("/", &["a:80:80"]), Err(400));
        assert_eq!(target("/", &["[::1]x"]), Err(400));
    }

    #[test]
    fn an_absolute_target_must_agree_with_the_host_header() {
        assert_eq!(
            target("http://acme.example.com/x", &["acme.example.com"]),
            Ok("acme.example.com".into())
        );
        assert_eq!(
            target("http://a.example.com:80/x", &["a.example.com"]),
            Ok("a.example.com".into())
        );
        assert_eq!(
            target("http://evil.example.com/x", &["acme.example.com"]),
            Err(400)
        );
    }
}
