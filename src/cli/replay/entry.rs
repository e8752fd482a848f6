//! What a line of a log says of one request, whatever its format. The formats are [`super::own`] and
//! [`super::combined`].

use std::fmt;
use std::time::{Duration, SystemTime};

/// What a log's lines are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// Our own access log: JSON.
    Own,
    /// Apache's and nginx's `combined`.
    Combined,
    /// The same without referer and user agent.
    Common,
}

/// A moment, in nanoseconds since 1970. Until 2554.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Moment(pub(super) u64);

impl Moment {
    /// Makes it of a calendar's time; `None` before 1970 and after 2554.
    pub(super) fn of(wall: SystemTime) -> Option<Self> {
        let since = wall.duration_since(SystemTime::UNIX_EPOCH).ok()?;
        Some(Self(u64::try_from(since.as_nanos()).ok()?))
    }

    /// Returns the same on the calendar.
    pub(super) fn wall(self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_nanos(self.0)
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", humantime::format_rfc3339_seconds(self.wall()))
    }
}

/// Why a line cannot be read, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unreadable {
    #[error("the line is longer than 64 KiB, and was left out")]
    TooLong,
    #[error(
        "this is no line of an access log; write our own JSON lines, or `combined` or `common` as \
         Apache and nginx write them"
    )]
    NoLog,
    #[error("this is not JSON ({0}); was the line cut off?")]
    NoJson(serde_json::Error),
    #[error(
        "this is JSON, but has no `{0}`; of JSON lines only Tidegate's own are read, let the other \
         proxy write `combined`"
    )]
    NotOurs(&'static str),
    #[error("`{0}` is not a time; write it like `{1}`")]
    Time(String, &'static str),
    #[error("`{0}` is not an address; have the log written with addresses instead of names")]
    Address(String),
}

impl Unreadable {
    /// Returns where in the line it is, from 1.
    pub(super) fn column(&self) -> u32 {
        match self {
            Self::NoJson(error) => u32::try_from(error.column()).unwrap_or(u32::MAX).max(1),
            _ => 1,
        }
    }
}
