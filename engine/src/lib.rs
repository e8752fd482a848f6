//! The decisions of Tidegate: pure and deterministic. No sockets, no files, no clock.
//!
//! A request's facts ([`request`]) meet the policy in force ([`policy`]), which answers a
//! [`verdict`]. Each arrival is counted ([`traffic`]); once a tick the detector ([`detect`]) looks at
//! the counts and says which sources must be throttled or blocked. Those are rules ([`rules`]) like any other.
//!
//! What operators write is read by [`rules_file`] and the proxy's settings over the same positioned
//! tree ([`yaml`], [`reader`]), so that every [`problem`] has its place.

pub mod attribute;
pub mod capacity;
pub mod detect;
pub mod diagnose;
pub mod limit;
pub mod policy;
pub mod problem;
pub mod reader;
pub mod recent;
pub mod request;
pub mod rules;
pub mod rules_file;
pub mod service;
pub mod simulate;
pub mod source;
pub mod time;
pub mod traffic;
pub mod units;
pub mod verdict;
pub mod version;
pub mod yaml;
