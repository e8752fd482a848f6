//! Which service a request belongs to. Knows nothing of rules.

use crate::policy::Policy;
use crate::service::{HostPattern, Match};

/// The service that a request belongs to, and by which match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route<'a> {
    /// The service's place in the settings.
    pub index: usize,
    /// The service's name.
    pub service: &'a str,
    /// The path of the match that applied, as written; `None` where the match has only a host.
    pub path: Option<&'a str>,
}

impl Policy {
    /// Returns the first service with a match for `host` (in lower case, without port) and `path`
    /// (without query), or `None`. Allocates nothing.
    pub fn route(&self, host: &str, path: &str) -> Option<Route<'_>> {
        self.services
            .iter()
            .enumerate()
            .find_map(|(index, service)| {
                let matched = service
                    .matches
                    .iter()
                    .find(|matched| matched.applies(host, path))?;
                Some(Route {
                    index,
                    service: &service.name,
                    path: matched.path.as_deref(),
                })
            })
    }
}

impl Match {
    /// Returns whether all that is given holds.
    fn applies(&self, host: &str, path: &str) -> bool {
        let path_holds = self
            .path
            .as_deref()
            .is_none_or(|prefix| is_below(prefix, path));
        path_holds && self.host.as_ref().is_none_or(|pattern| pattern.holds(host))
    }
}

impl HostPattern {
    fn holds(&self, host: &str) -> bool {
        match self {
            Self::Exact(exact) => **exact == *host,
            Self::Below(suffix) => host.len() > suffix.len() && host.ends_with(&**suffix),
        }
    }
}

/// Returns whether `path` is `prefix` or below it, by whole segments.
fn is_below(prefix: &str, path: &str) -> bool {
    let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
    path.strip_prefix(prefix)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_matches_at_a_segment_border_only() {
        for (prefix, path, expected) in [
            ("/v1/auth/", "/v1/auth", true),
            ("/v1/auth/", "/v1/auth/", true),
            ("/v1/auth/", "/v1/auth/x", true),
            ("/v1/auth/", "/v1/authx", false),
            ("/v1/auth", "/v1/auth/x", true),
            ("/v1/auth", "/v1/authx", false),
            ("/v1/auth/", "/V1/auth/x", false),
            ("/", "/anything", true),
            ("/", "/", true),
            ("/a/", "/", false),
        ] {
            assert_eq!(is_below(prefix, path), expected, "{prefix} {path}");
        }
    }

    #[test]
    fn a_host_suffix_needs_something_before_it() {
        let below = HostPattern::Below(".example.com".into());
        assert!(below.holds("a.example.com"));
        assert!(below.holds("a.b.example.com"));
        assert!(!below.holds("example.com"));
        assert!(!below.holds(".example.com"));
        assert!(!below.holds("badexample.com"));
        assert!(HostPattern::Exact("example.com".into()).holds("example.com"));
        assert!(!HostPattern::Exact("example.com".into()).holds("a.example.com"));
    }
}
