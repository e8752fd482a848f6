//! Asks a policy what it would do with the request of a line, as far as the line says what was asked.
//! Both formats go a request's own way through [`crate::request`]; the log's time is the only clock.

use std::time::Duration;

use http::header::{HOST, REFERER, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, Version};
use tidegate_engine::attribute::AttributeId;
use tidegate_engine::policy::Policy;
use tidegate_engine::request::{HashKey, RequestFacts};
use tidegate_engine::rules::Action;
use tidegate_engine::time::Instant;

use super::combined::CombinedLine;
use super::course::Slot;
use super::entry::Moment;
use super::own::OwnLine;
use super::tally::Tally;
use crate::request::identify::{Identify, Readable};
use crate::request::{NO_SERVICE, set_route, with_facts};
use crate::settings::AttributeSource;

/// When the first request comes: an hour after the engine's zero, as in the proxy.
pub(super) const BEGIN: Instant = Instant::from_nanos(3_600_000_000_000);

/// What a request is called that was not let through to a rule: 404 and 400.
const UNMATCHED: &str = "unmatched";
const INVALID: &str = "invalid";

/// A policy, and how requests are read for it.
#[derive(Debug)]
pub(super) struct Asking {
    policy: Policy,
    identify: Identify,
    /// What requests ask for whose log does not say it.
    host: Option<HeaderValue>,
    /// The moment of the first line.
    began: Moment,
    /// Secrets that a limit or throttle counts by. No log has them; the address stands in.
    stand_ins: Vec<AttributeId>,
    /// Used again for every line.
    headers: HeaderMap,
    root: Uri,
}

impl Asking {
    /// Asks this policy, which was compiled as of [`BEGIN`], about a log that begins at `began`.
    pub(super) fn new(
        policy: Policy,
        attributes: &[AttributeSource],
        host: Option<HeaderValue>,
        began: Moment,
    ) -> Self {
        let schema = policy.schema();
        // Always the same key: equal logs give equal answers.
        let identify = Identify::new(schema.clone(), HashKey::from_seed(0), attributes);
        let is_secret = |id: AttributeId| schema.spec(id).is_some_and(|spec| spec.secret);
        let mut stand_ins: Vec<AttributeId> =
            counted_by(&policy).filter(|id| is_secret(*id)).collect();
        stand_ins.sort_unstable();
        stand_ins.dedup();
        Self {
            policy,
            identify,
            host,
            began,
            stand_ins,
            headers: HeaderMap::new(),
            root: Uri::default(),
        }
    }

    pub(super) fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Asks about a line of ours. Attributes are as they were logged; only those that are not, and
    /// that host or path say, are read anew.
    pub(super) fn own(&mut self, line: &OwnLine<'_>, tally: &mut Tally) {
        // What the line before had, if that was of another format.
        self.headers.clear();
        let (at, slot) = tally.arrived(line.at);
        let outcome = self.ask_own(line, self.instant(at), slot, tally);
        let logged = line.verdict.map(|verdict| (verdict, line.rule.as_deref()));
        tally.ended(outcome, logged, slot);
    }

    fn ask_own(
        &self,
        line: &OwnLine<'_>,
        now: Instant,
        slot: Slot,
        tally: &mut Tally,
    ) -> &'static str {
        let Some(address) = line.address else {
            return INVALID;
        };
        let readable = Readable {
            headers: &self.headers,
            uri: &self.root,
            method: &line.method,
            host: &line.host,
            path: &line.path,
        };
        let mut facts = self.identify.begin(address);
        if self.identify.read(&mut facts, readable).is_err() {
            return INVALID;
        }
        let mut is_routed = false;
        for (id, value) in &line.values {
            if *id == AttributeId::SERVICE {
                let services = self.policy.services();
                is_routed = services.iter().any(|service| *service.name == **value);
            }
            facts.set(*id, (&**value).into());
        }
        if !is_routed {
            facts.unset(AttributeId::ROUTE);
            match self.policy.route(&line.host, &line.path) {
                Some(route) => set_route(&mut facts, &route),
                None => return UNMATCHED,
            }
        }
        decide(&self.policy, &self.stand_ins, &mut facts, now, slot, tally)
    }

    /// Asks about a line of another server's log, as if the request came now.
    pub(super) fn combined(&mut self, line: &CombinedLine<'_>, tally: &mut Tally) {
        let (at, slot) = tally.arrived(line.at);
        let outcome = self.ask_combined(line, self.instant(at), slot, tally);
        tally.ended(outcome, None, slot);
    }

    fn ask_combined(
        &mut self,
        line: &CombinedLine<'_>,
        now: Instant,
        slot: Slot,
        tally: &mut Tally,
    ) -> &'static str {
        let request = line.request.as_ref().and_then(|request| {
            let uri = Uri::try_from(&*request.target).ok()?;
            Some((Method::from_bytes(&request.method).ok()?, uri))
        });
        let Some((method, uri)) = request else {
            return INVALID;
        };
        let headers = &mut self.headers;
        headers.clear();
        let mut add = |name: HeaderName, value: Option<HeaderValue>| {
            if let Some(value) = value {
                headers.insert(name, value);
            }
        };
        let value = |bytes: &Option<_>| HeaderValue::from_bytes(bytes.as_deref()?).ok();
        add(USER_AGENT, value(&line.user_agent));
        add(REFERER, value(&line.referer));
        // The target's own host counts, where it has one.
        let host = self.host.clone().filter(|_| uri.authority().is_none());
        let has_host = host.is_some() || uri.authority().is_some();
        add(HOST, host);
        let version = if has_host {
            Version::HTTP_11
        } else {
            Version::HTTP_10
        };
        let (policy, stand_ins) = (&self.policy, self.stand_ins.as_slice());
        let answer = with_facts(
            &self.identify,
            policy,
            line.address,
            version,
            (&method, &uri, &self.headers),
            |facts| decide(policy, stand_ins, facts, now, slot, tally),
        );
        match answer {
            Ok(outcome) => outcome,
            Err(refused) if refused == NO_SERVICE => UNMATCHED,
            Err(_) => INVALID,
        }
    }

    fn instant(&self, at: Moment) -> Instant {
        BEGIN + Duration::from_nanos(at.0.saturating_sub(self.began.0))
    }
}

fn decide(
    policy: &Policy,
    stand_ins: &[AttributeId],
    facts: &mut RequestFacts<'_>,
    now: Instant,
    slot: Slot,
    tally: &mut Tally,
) -> &'static str {
    tally.saw(facts);
    let mut stood_in = false;
    for id in stand_ins {
        if !facts.is_present(*id) {
            facts.set_secret(*id, &facts.hash(AttributeId::IP).to_le_bytes());
            stood_in = true;
        }
    }
    tally.stood_in += u64::from(stood_in);
    let facts = &*facts;
    let verdict = policy.decide_telling(facts, now, |told| tally.told(told, facts, slot));
    verdict.word()
}

/// Walks the attributes by whose values limits and throttles count.
fn counted_by(policy: &Policy) -> impl Iterator<Item = AttributeId> {
    let throttles = policy.rules().flat_map(|rule| match &rule.rule().action {
        Action::Throttle { per, .. } => per.as_slice(),
        _ => &[],
    });
    let limits = policy.limits().flat_map(|limit| &limit.limit().key);
    throttles.chain(limits).copied()
}
