//! Who may use the admin listener.

use std::io;
use std::net::IpAddr;
use std::path::Path;

use http::HeaderMap;
use http::header::{AUTHORIZATION, HOST, ORIGIN};

use crate::bounded_file;

/// The shortest token that is taken, in bytes.
const TOKEN_BYTES_MIN: usize = 16;
/// The largest file of a token. Only its first line counts.
const TOKEN_FILE_BYTES_MAX: u64 = 64 << 10;

/// What operators show as `Authorization: Bearer …`.
pub struct Token(Vec<u8>);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(secret)")
    }
}

impl Token {
    /// Reads a token from the first line of a file.
    pub(super) fn read(path: &Path) -> io::Result<Self> {
        let bytes = bounded_file::read(path, TOKEN_FILE_BYTES_MAX)?;
        let text = String::from_utf8(bytes)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        let token = text.lines().next().unwrap_or_default().trim();
        if token.len() < TOKEN_BYTES_MIN {
            let text = format!("the token is shorter than {TOKEN_BYTES_MIN} characters");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(Self(token.as_bytes().to_vec()))
    }

    /// Compares without telling by the time it takes how much was right.
    fn is(&self, shown: &[u8]) -> bool {
        let differing = self
            .0
            .iter()
            .zip(shown)
            .fold(0, |sum, (one, other)| sum | (one ^ other));
        self.0.len() == shown.len() && differing == 0
    }
}

/// What a request may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Granted,
    /// The token is missing or wrong.
    Denied,
    /// The request was made for a name that is not this listener's: a page in an operator's browser
    /// can have its own name resolved to this address (DNS rebinding).
    ForeignHost,
}

/// Checks a request. Without a token, only names that nobody else can own are answered: addresses
/// and `localhost`.
pub(super) fn check(headers: &HeaderMap, token: Option<&Token>) -> Access {
    if let Some(token) = token {
        let line = headers
            .get(AUTHORIZATION)
            .map(http::HeaderValue::as_bytes)
            .unwrap_or_default();
        let shown = line
            .split_at_checked(7)
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer "))
            .map(|(_, shown)| shown);
        return if shown.is_some_and(|shown| token.is(shown.trim_ascii())) {
            Access::Granted
        } else {
            Access::Denied
        };
    }
    let Some(host) = headers.get(HOST) else {
        return Access::Granted;
    };
    let host = host.to_str().unwrap_or_default();
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    if name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok() {
        Access::Granted
    } else {
        Access::ForeignHost
    }
}

/// Returns whether a browser sent the request for a page of another site: its Origin is not this
/// listener. Programs send none.
pub(super) fn is_cross_site(headers: &HeaderMap) -> bool {
    if headers
        .get("sec-fetch-site")
        .is_some_and(|site| site != "same-origin" && site != "none")
    {
        return true;
    }
    let Some(origin) = headers.get(ORIGIN) else {
        return false;
    };
    let host = headers.get(HOST).map(http::HeaderValue::as_bytes);
    let own = origin.as_bytes().split(|byte| *byte == b'/').nth(2);
    own.is_none() || own != host
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: http::HeaderName, value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().unwrap());
        headers
    }

    #[test]
    fn only_the_whole_token_is_taken() {
        let token = Token(b"0123456789abcdef".to_vec());
        let with = |line: &str| check(&headers(AUTHORIZATION, line), Some(&token));
        assert_eq!(with("Bearer 0123456789abcdef"), Access::Granted);
        for wrong in [
            "Bearer 0123456789abcde",
            "Bearer 0123456789abcdefg",
            "0123456789abcdef",
            "Bearer ",
        ] {
            assert_eq!(with(wrong), Access::Denied, "{wrong}");
        }
        assert_eq!(
            with("bearer 0123456789abcdef"),
            Access::Granted,
            "schemes know no case"
        );
        assert_eq!(check(&HeaderMap::new(), Some(&token)), Access::Denied);
    }

    #[test]
    fn a_name_that_somebody_else_can_own_is_not_answered() {
        let with = |host: &str| check(&headers(HOST, host), None);
        for own in [
            "127.0.0.1:9900",
            "localhost:9900",
            "LOCALHOST",
            "[::1]:9900",
        ] {
            assert_eq!(with(own), Access::Granted, "{own}");
        }
        assert_eq!(with("evil.example.com:9900"), Access::ForeignHost);
    }

    #[test]
    fn a_page_of_another_site_is_told_by_its_origin() {
        let with = |lines: &[(&'static str, &str)]| {
            let mut headers = headers(HOST, "127.0.0.1:9900");
            for (name, value) in lines {
                headers.insert(*name, value.parse().unwrap());
            }
            is_cross_site(&headers)
        };
        assert!(!with(&[]), "no browser");
        assert!(!with(&[("origin", "http://127.0.0.1:9900")]));
        assert!(!with(&[("sec-fetch-site", "same-origin")]));
        for origin in [
            "http://evil.example.com",
            "http://127.0.0.1",
            "http://127.0.0.1:9901",
            "null",
        ] {
            assert!(with(&[("origin", origin)]), "{origin}");
        }
        assert!(with(&[("sec-fetch-site", "cross-site")]));
    }
}
