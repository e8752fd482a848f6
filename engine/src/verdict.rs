//! Everything that the engine can answer for one request.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// The name of a rule or a limit, as the operator wrote it or the detector made it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(transparent)]
pub struct Name(Arc<str>);

impl Name {
    /// Wraps a name that was checked where it was read.
    pub fn new(name: &str) -> Self {
        Self(Arc::from(name))
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What happens to one request. A refusal is a verdict, not an error.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// Goes to the upstream.
    Forward,
    /// Goes to the upstream because an `allow` rule says so, whatever else would have been said.
    Allow {
        /// The rule that spoke.
        rule: Name,
    },
    /// Refused by a limit; the source may come back after `retry_after`.
    Limit {
        /// The limit that was spent.
        limit: LimitHit,
        /// How long until one more request would be within the limit.
        retry_after: Duration,
    },
    /// Refused by a throttle rule; the source may come back after `retry_after`.
    Throttle {
        /// The rule that spoke.
        rule: Name,
        /// How long until one more request would be within the rule's rate.
        retry_after: Duration,
    },
    /// Refused by a block rule, with the status that the rule gives.
    Block {
        /// The rule that spoke.
        rule: Name,
        /// The HTTP status, 400 to 599.
        status: u16,
    },
    /// Answered late and with nothing, to cost the client time.
    Tarpit {
        /// The rule that spoke.
        rule: Name,
    },
    /// The connection is closed without an answer.
    Drop {
        /// The rule that spoke.
        rule: Name,
    },
}

/// The limit that refused, with what the client may learn of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitHit {
    /// The limit's name.
    pub name: Name,
    /// Requests allowed at once (`q` of `RateLimit-Policy`).
    pub quota: u32,
    /// Seconds in which the whole quota comes back (`w` of `RateLimit-Policy`), at least 1.
    pub window_s: u64,
}

impl Verdict {
    /// Returns the word for it in YAML tests, metrics and logs.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Forward | Self::Allow { .. } => "forward",
            Self::Limit { .. } => "limit",
            Self::Throttle { .. } => "throttle",
            Self::Block { .. } => "block",
            Self::Tarpit { .. } => "tarpit",
            Self::Drop { .. } => "drop",
        }
    }

    /// Returns the rule or limit that decided.
    pub fn cause(&self) -> Option<&Name> {
        match self {
            Self::Forward => None,
            Self::Limit { limit, .. } => Some(&limit.name),
            Self::Allow { rule }
            | Self::Throttle { rule, .. }
            | Self::Block { rule, .. }
            | Self::Tarpit { rule }
            | Self::Drop { rule } => Some(rule),
        }
    }
}
