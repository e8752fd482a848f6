//! A request's way, in the order it goes it:
//!
//! 1. [`accept`]: a connection, with [`guard`]'s deadlines until a request is there;
//! 2. [`serve`]: the whole way of one request, calling the rest;
//! 3. [`target`]: is it a request that can be served at all, and what does it ask for;
//! 4. [`address`] and [`identify`]: who asks;
//! 5. the policy in force decides (the engine);
//! 6. [`forward`] sends it on ([`headers`], [`body`]), or [`refuse`] answers;
//! 7. [`observe`] records it, exactly once ([`inflight`] until then).
//!
//! Nothing here waits for anything but the client and the upstream, and nothing here knows of
//! [`crate::control`].

pub(crate) mod accept;
pub(crate) mod address;
mod body;
mod forward;
mod guard;
mod headers;
pub mod identify;
pub mod inflight;
pub(crate) mod observe;
pub(crate) mod refuse;
pub(crate) mod serve;
mod target;
pub mod worker;

pub(crate) use body::{BodyFault, RequestBody};
