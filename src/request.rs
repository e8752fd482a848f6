//! A request's way, in the order it goes it:
//!
//! 1. [`accept`]: a connection, with [`guard`]'s deadlines until a request is there;
//! 2. [`serve`]: the whole way of one request, calling the rest;
//! 3. [`target`]: is it a request that can be served at all, and what does it ask for;
//! 4. [`address`] and [`identify`]: who asks;
//! 5. the policy in force decides ([`decide`] asks the engine), and [`admit`] finds a place in the
//!    [`service`];
//! 6. [`forward`] sends it on ([`headers`], [`body`]), or [`refuse`] answers and [`deliver`] sees that
//!    the answer arrives;
//! 7. [`observe`] records it, exactly once ([`inflight`] until then).
//!
//! Nothing here waits for anything but the client, the upstream and a place, and nothing here knows of
//! [`crate::control`].

pub(crate) mod accept;
pub(crate) mod address;
mod admit;
mod body;
mod decide;
mod deliver;
mod forward;
mod guard;
mod headers;
pub mod identify;
mod inflight;
pub(crate) mod observe;
pub(crate) mod refuse;
mod repeat;
pub(crate) mod serve;
mod service;
mod target;
pub mod worker;

use std::net::IpAddr;

use http::{HeaderMap, Method, Uri, Version};
use tidegate_engine::attribute::AttributeId;
use tidegate_engine::policy::{Explanation, Policy, Route};
use tidegate_engine::request::RequestFacts;
use tidegate_engine::time::Instant;

pub(crate) use body::{BodyFault, RequestBody};
pub(crate) use repeat::HeadCopy;

/// Says what would become of a request, the way it would go: target, identity, service, policy.
///
/// # Errors
///
/// The status and text with which the request would be refused before anybody decides, or 404 where
/// no service answers.
pub fn explain(
    identify: &identify::Identify,
    policy: &Policy,
    address: IpAddr,
    request: (&Method, &Uri, &HeaderMap),
    now: Instant,
) -> Result<Explanation, (u16, &'static str)> {
    let explain = |facts: &mut RequestFacts<'_>| policy.explain(facts, now);
    with_facts(
        identify,
        policy,
        address,
        Version::HTTP_11,
        request,
        explain,
    )
}

/// Finds out what a request says of itself and which service it is for, and asks for an answer to
/// that. Only under HTTP/1.0 may it have no host.
///
/// # Errors
///
/// As for [`explain`].
pub(crate) fn with_facts<T>(
    identify: &identify::Identify,
    policy: &Policy,
    address: IpAddr,
    version: Version,
    (method, uri, headers): (&Method, &Uri, &HeaderMap),
    ask: impl FnOnce(&mut RequestFacts<'_>) -> T,
) -> Result<T, (u16, &'static str)> {
    let refused = |invalid: target::Invalid| (invalid.status, invalid.detail);
    let fields = headers::Fields::of(headers);
    target::check_framing(headers, fields, version, || false).map_err(refused)?;
    let target = target::Target::read(method, uri, version, headers).map_err(refused)?;
    let (host, path) = (&*target.host, &*target.path);
    let readable = identify::Readable {
        headers,
        uri,
        method: method.as_str(),
        host,
        path,
    };
    let mut facts = identify.begin(address);
    identify.read(&mut facts, readable).map_err(refused)?;
    let route = policy.route(host, path).ok_or(NO_SERVICE)?;
    set_route(&mut facts, &route);
    Ok(ask(&mut facts))
}

/// With what a request is answered that no service is for.
pub(crate) const NO_SERVICE: (u16, &str) = (404, "no service answers for this host and path");

/// Adds what the service's match says to the facts.
pub(crate) fn set_route<'a>(facts: &mut RequestFacts<'a>, route: &Route<'a>) {
    facts.set(AttributeId::SERVICE, route.service.into());
    if let Some(path) = route.path {
        facts.set(AttributeId::ROUTE, path.into());
    }
}
