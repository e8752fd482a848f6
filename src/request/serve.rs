//! Serves one request: the whole way, in the order it happens.

use std::rc::Rc;
use std::sync::Arc;

use http::header::{CONNECTION, HeaderValue};
use http::{Request, Response};
use http_body::Body as _;
use hyper::body::Incoming;
use tidegate_engine::capacity::Flows;
use tidegate_engine::recent::RecentRecorder;
use tidegate_engine::traffic::Recorder;
use tidegate_engine::verdict::Verdict;

use super::accept::{Connection, READ_BUFFER_BYTES};
use super::admit::{Admission, admit};
use super::body::{BodyFault, BodyLimits, ReplyBody};
use super::decide::{Decided, Undecided};
use super::deliver::{Dropped, Tarpit, close_with_care, deliver, dropped};
use super::forward::{forward, prepare};
use super::headers::{Fields, RequestIds, request_id};
use super::identify::Identify;
use super::observe::{Observation, Observer};
use super::refuse::Refuse;
use super::service::Service;
use crate::clock::Clock;
use crate::faults::{self, Point};
use crate::handover::PolicyReader;
use crate::metrics::Metrics;
use crate::service::Lane;
use crate::upstream::{Upstream, UpstreamError, chain};

/// What a request that waits takes besides its head and body: its future, task and places in lists.
const REQUEST_BYTES: u64 = 8 * 1024;
/// What a field takes in a header map besides its text.
const FIELD_OVERHEAD_BYTES: usize = 104;

/// One worker under the settings in force: everything that a request meets on its way.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) clock: Clock,
    pub(crate) identify: Arc<Identify>,
    pub(crate) policy: PolicyReader,
    pub(crate) recorder: Recorder,
    pub(crate) recent: RecentRecorder,
    pub(crate) observer: Rc<Observer>,
    pub(crate) refuse: Rc<Refuse>,
    pub(crate) request_ids: Rc<RequestIds>,
    /// Where the requests of each service go, in the order of the policy.
    pub(crate) destinations: Vec<Rc<Destination>>,
    /// What makes a source, as far as sharing goes.
    pub(crate) flows: Flows,
    /// For requests that belong to none of them.
    pub(crate) no_service: Rc<Service>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) tarpit: Rc<Tarpit>,
}

/// Where the requests of one service go.
#[derive(Debug)]
pub(crate) struct Destination {
    pub(crate) service: Rc<Service>,
    pub(crate) upstream: Rc<Upstream>,
    pub(crate) bodies: BodyLimits,
}

/// What becomes of a request, as far as can be said at once.
enum Course {
    /// It asks for a place in this lane, for this flow.
    Forward(Rc<Destination>, Box<Observation>, Lane, u64),
    Refuse(Response<ReplyBody>),
    Tarpit(Box<Observation>),
    Drop(Box<Observation>),
}

impl Worker {
    /// Hands over what was counted, and closes connections that were not used for a while. Called ten
    /// times a second.
    pub(crate) fn flush(&self) {
        self.observer.flush();
        self.no_service.flush();
        for to in &self.destinations {
            to.service.flush();
            to.upstream.sweep();
        }
    }

    /// Returns whether requests are under way that began with it.
    pub(crate) fn is_busy(&self) -> bool {
        Rc::strong_count(&self.observer) > 1
    }

    /// Returns how many requests are in flight, those that began under settings of before included
    /// where their service is still there.
    pub(crate) fn in_flight(&self) -> u64 {
        let services = self.destinations.iter().map(|to| &to.service);
        let all = services.chain([&self.no_service]);
        all.map(|service| service.in_flight()).sum()
    }

    /// Serves one request. What can be done at once is done before the future begins, for a future is
    /// moved for every request, and has its room in every connection. So a request is decided on and counted
    /// whose client has closed its connection meanwhile, but goes no further.
    pub(crate) fn serve(
        self: Rc<Self>,
        mut request: Request<Incoming>,
        connection: Rc<Connection>,
    ) -> impl Future<Output = Result<Response<ReplyBody>, Dropped>> {
        connection.state.serving(!request.body().is_end_stream());
        let id = request_id(request.headers(), connection.is_trusted, &self.request_ids);
        let fields = Fields::of(request.headers());
        let course = match self.decide(&request, fields, &connection, &id) {
            Ok(decided) => self.course(decided, &request, &id),
            Err((Undecided::NoService, observation)) => {
                Course::Refuse(Refuse::unmatched(&id, observation))
            }
            Err((Undecided::Invalid(invalid), observation)) => {
                // Whoever framed this request so may mean something else by what follows.
                let mut response = Refuse::invalid(invalid, &id, observation);
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(CONNECTION, close);
                Course::Refuse(response)
            }
        };
        async move {
            let (to, mut observation, lane, flow) = match course {
                Course::Forward(to, observation, lane, flow) => (to, observation, lane, flow),
                Course::Refuse(response) => {
                    return Ok(deliver(request, response, &connection).await);
                }
                Course::Tarpit(observation) => {
                    return Err(Box::pin(self.tarpit.hold(observation)).await);
                }
                Course::Drop(observation) => return Err(dropped(&observation)),
            };
            // Not before: hyper polls this only when the client has taken its answer to what it asked before,
            // and whoever does not read is to hold no place meanwhile.
            let bytes = || held_bytes(&request);
            let place = match admit(&to.service, lane, (flow, self.clock.now()), bytes) {
                Admission::Admitted(place) => Ok(place),
                Admission::Waits(pending) => Box::pin(pending.wait(to.bodies.queue_timeout)).await,
                Admission::Shed(why) => Err(why),
            };
            match place {
                Ok(place) => observation.admit(place),
                Err(why) => {
                    observation.shed(why, lane);
                    let response = self.refuse.shed(&id, observation);
                    return Ok(deliver(request, response, &connection).await);
                }
            }
            faults::point(Point::Request);
            let (upstream, has_body) = (&to.upstream, !request.body().is_end_stream());
            let write_timeout = upstream.spec.idle_timeout;
            connection.state.set_write_timeout(write_timeout);
            let fields_dropped = prepare(&mut request, fields, &upstream.spec, &connection, &id);
            if fields_dropped > 0 {
                let sum = &self.metrics.headers_dropped_total;
                sum.inc_by(fields_dropped as u64);
            }
            let retried = || {
                let retries = &self.metrics.upstream_retries_total;
                retries.with_label_values(&[&*upstream.spec.name]).inc();
            };
            match forward(upstream, request, to.bodies, &id, observation, retried).await {
                Ok(response) => Ok(response),
                Err((error, observation)) => {
                    let mut response = self.unanswered(error, upstream, &id, observation);
                    if has_body {
                        // Bytes of it may still be under way, and their sender must see the answer.
                        close_with_care(&mut response, &connection);
                    }
                    Ok(response)
                }
            }
        }
    }

    /// Carries a verdict out, as far as that goes at once.
    fn course(&self, decided: Decided, request: &Request<Incoming>, id: &HeaderValue) -> Course {
        let Decided {
            verdict,
            to,
            flow,
            instance,
            mut observation,
        } = decided;
        match verdict {
            Verdict::Forward | Verdict::Allow { .. } => {}
            Verdict::Drop { .. } => return Course::Drop(observation),
            Verdict::Tarpit { .. } => return Course::Tarpit(observation),
            refusal => {
                let now = self.clock.now();
                let refuse = &self.refuse;
                return Course::Refuse(refuse.verdict(&refusal, instance, id, observation, now));
            }
        }
        let announced = request.body().size_hint().exact();
        if announced.is_some_and(|bytes| bytes > to.bodies.max) {
            observation.outcome = "invalid";
            return Course::Refuse(Refuse::too_large(id, observation));
        }
        let lane = if announced.is_some_and(|bytes| bytes > to.bodies.large) {
            Lane::Large
        } else {
            Lane::Normal
        };
        Course::Forward(to, observation, lane, flow)
    }

    /// Answers a request for which its upstream had no answer.
    fn unanswered(
        &self,
        error: UpstreamError,
        upstream: &Upstream,
        id: &HeaderValue,
        mut observation: Box<Observation>,
    ) -> Response<ReplyBody> {
        tracing::debug!(upstream = %upstream.spec.name, error = %chain(&error), "no answer");
        match error {
            // As where the length was announced: the upstream has no part in these.
            UpstreamError::ClientBody(BodyFault::Shed(why)) => {
                observation.shed(why, Lane::Large);
                self.refuse.shed(id, observation)
            }
            UpstreamError::ClientBody(BodyFault::TooLarge) => {
                observation.outcome = "invalid";
                Refuse::too_large(id, observation)
            }
            error => {
                upstream.failures.count(error.word());
                observation.fault = error.word();
                if let Some(side) = error.stalled() {
                    observation.stalled(side);
                }
                self.refuse.upstream(&error, id, observation)
            }
        }
    }
}

/// Returns how much memory a request takes that waits: its head, and what of its body hyper reads ahead.
fn held_bytes(request: &Request<Incoming>) -> u64 {
    let announced = request.body().size_hint().exact();
    let fields = request.headers().iter();
    let head: usize = fields
        .map(|(name, value)| name.as_str().len() + value.len() + FIELD_OVERHEAD_BYTES)
        .sum();
    let ahead = READ_BUFFER_BYTES as u64;
    REQUEST_BYTES + head as u64 + announced.unwrap_or(ahead).min(ahead)
}
