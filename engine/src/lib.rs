//! The decisions of Tidegate: pure and deterministic. No sockets, no files, no clock.
//!
//! A request's facts ([`request`]) meet the policy in force ([`policy`]), which answers a
//! [`verdict`]. Each arrival is counted ([`traffic`]); once a tick the detector ([`detect`]) looks at
//! the counts and says which sources must be throttled or blocked. Those are rules ([`rules`]) like
//! any other.

pub mod attribute;
pub mod detect;
pub mod request;
pub mod rules;
pub mod service;
pub mod source;
pub mod time;
pub mod traffic;
pub mod units;
pub mod verdict;
