//! Which change is asked for, and which keys of the query mean something to it.

use http::Method;

/// What can be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action<'a> {
    Explain,
    Add,
    RevokeDetected,
    Revoke(&'a str),
    Approve(&'a str),
    Enforce(&'a str),
    Shadow(&'a str),
    Promote(&'a str),
}

impl<'a> Action<'a> {
    /// Returns what is asked for at a path that is served.
    pub(super) fn of(method: &Method, path: &'a str) -> Self {
        if path == "/api/v1/explain" {
            return Self::Explain;
        }
        let Some(rest) = path.strip_prefix("/api/v1/rules/") else {
            return if method == Method::DELETE {
                Self::RevokeDetected
            } else {
                Self::Add
            };
        };
        let (name, action) = rest.split_once('/').unwrap_or((rest, ""));
        match action {
            "" => Self::Revoke(name),
            "approve" => Self::Approve(name),
            "promote" => Self::Promote(name),
            "enforce" => Self::Enforce(name),
            _ => Self::Shadow(name),
        }
    }

    /// Returns the keys of the query that mean something.
    pub(super) fn keys(self) -> &'static [&'static str] {
        match self {
            Self::Explain => &[],
            Self::Add | Self::Approve(_) | Self::Enforce(_) => &["dry_run", "force", "reason"],
            Self::Promote(_) => &["dry_run", "force", "name", "reason"],
            Self::RevokeDetected => &["origin", "reason"],
            Self::Revoke(_) | Self::Shadow(_) => &["reason"],
        }
    }
}
