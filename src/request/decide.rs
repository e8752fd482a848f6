//! Identifies the client of a request and asks the policy about it. Everything here happens at once.

use std::rc::Rc;

use http::Request;
use http::header::HeaderValue;
use hyper::body::Incoming;
use tidegate_engine::traffic::{Arrival, Standing};
use tidegate_engine::verdict::Verdict;

use super::accept::Connection;
use super::headers::Fields;
use super::identify::Readable;
use super::observe::{Loggable, Observation};
use super::serve::{Destination, Worker};
use super::service::Service;
use super::set_route;
use super::target::{Invalid, Target, check_framing};

/// What was decided about a request, and what later stages need of it.
pub(super) struct Decided {
    pub(super) verdict: Verdict,
    pub(super) to: Rc<Destination>,
    /// The source, as far as sharing goes.
    pub(super) flow: u64,
    pub(super) instance: u64,
    pub(super) observation: Box<Observation>,
}

/// Why no verdict was asked for.
pub(super) enum Undecided {
    Invalid(Invalid),
    NoService,
}

impl Worker {
    /// Identifies the client and asks the policy.
    pub(super) fn decide(
        &self,
        request: &Request<Incoming>,
        fields: Fields,
        connection: &Connection,
        id: &HeaderValue,
    ) -> Result<Decided, (Undecided, Box<Observation>)> {
        let began = self.clock.now();
        let observe = |service: &Rc<Service>| {
            self.observer
                .begin(service, began, Rc::clone(&connection.state))
        };
        let method = request.method().as_str();
        let (uri, headers) = (request.uri(), request.headers());
        let read = check_framing(headers, fields, request.version(), || {
            connection.state.head_has_content_length(method)
        })
        .and_then(|()| {
            if fields.connection {
                self.identify.check_connection(headers)
            } else {
                Ok(())
            }
        })
        .and_then(|()| Target::read(request.method(), uri, request.version(), headers));
        let refuse = |invalid, host: &str| {
            let mut observation = observe(&self.no_service);
            observation.outcome = "invalid";
            let path = uri.path();
            let loggable = Loggable {
                began,
                peer: (connection.peer, &connection.peer_text),
                request_id: id,
                method,
                host,
                path,
                facts: None,
            };
            observation.line = self.observer.line(&loggable);
            (Undecided::Invalid(invalid), observation)
        };
        let target = read.map_err(|invalid| refuse(invalid, ""))?;
        let (host, path) = (&*target.host, &*target.path);
        let address = connection.trusted.client(connection.peer, headers);
        let readable = Readable {
            headers,
            uri,
            method,
            host,
            path,
        };
        self.policy.read(|policy| {
            let mut facts = self.identify.begin(address);
            self.identify
                .read(&mut facts, readable)
                .map_err(|invalid| refuse(invalid, host))?;
            if connection.is_trusted && connection.trusted.contains(address) {
                facts.mark_trusted_proxy();
            }
            let route = policy.route(host, path);
            let to = route.and_then(|route| self.destinations.get(route.index));
            if let Some(route) = &route {
                set_route(&mut facts, route);
            }
            let mut observation = observe(to.map_or(&self.no_service, |to| &to.service));
            let loggable = Loggable {
                began,
                peer: (connection.peer, &connection.peer_text),
                request_id: id,
                method,
                host,
                path,
                facts: Some(&facts),
            };
            observation.line = self.observer.line(&loggable);
            let Some(to) = to else {
                observation.outcome = "unmatched";
                return Err((Undecided::NoService, observation));
            };
            let verdict = policy.decide(&facts, began);
            self.recorder.record(
                &facts,
                Arrival {
                    standing: standing(&verdict),
                },
            );
            self.recent.note(&facts, &verdict, id.as_bytes(), began);
            self.observer.decided(self.clock.now().since(began));
            observation.outcome = verdict.word();
            if let Some(cause) = verdict.cause() {
                observation.log_cause(cause.as_str());
            }
            Ok(Decided {
                verdict,
                to: Rc::clone(to),
                flow: self.flows.flow_of(&facts),
                instance: facts.instance(),
                observation,
            })
        })
    }
}

/// Says how a request stands with the rules, for what may be learnt from it.
fn standing(verdict: &Verdict) -> Standing {
    match verdict {
        Verdict::Forward => Standing::Passed,
        Verdict::Allow { .. } => Standing::Exempt,
        _ => Standing::Refused,
    }
}
