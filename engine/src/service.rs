//! Services: what is isolated from what, and which request belongs to which.

use std::sync::Arc;

/// Which services keep their places when the process is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// Shed first.
    Low,
    /// The default.
    #[default]
    Normal,
    /// Before normal.
    High,
    /// Shed last.
    Critical,
}

impl Priority {
    /// Returns the word for it in YAML and JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Normal => "normal",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }
}

/// One way to belong to a service: all that are given must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Match {
    /// A path prefix that ends at a segment border: `/v1/auth/` matches `/v1/auth` and below.
    pub path: Option<Arc<str>>,
    /// A host, exact or `*.suffix`, in lower case.
    pub host: Option<HostPattern>,
}

/// A host as written in a match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostPattern {
    /// This host.
    Exact(Arc<str>),
    /// Any host below: the text is `.example.com` for `*.example.com`.
    Below(Arc<str>),
}

/// One service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceSpec {
    /// Unique name.
    pub name: Arc<str>,
    /// Ways to belong to it; the first service with one that holds wins.
    pub matches: Vec<Match>,
    /// Which services are shed first.
    pub priority: Priority,
}
