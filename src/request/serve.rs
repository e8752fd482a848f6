//! Serves one request: the whole way, in the order it happens.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONNECTION, CONTENT_LENGTH, HOST, HeaderValue};
use http::{Request, Response, Uri, Version};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tidegate_engine::capacity::Flows;
use tidegate_engine::recent::RecentRecorder;
use tidegate_engine::traffic::{Arrival, Recorder, Standing};
use tidegate_engine::verdict::Verdict;

use super::accept::{Connection, READ_BUFFER_BYTES};
use super::admit::{Admission, admit};
use super::body::{BodyFault, BodyLimits, ReplyBody};
use super::forward::forward;
use super::headers::{Fields, ForwardedFacts, RequestIds, prepare_request, request_id};
use super::identify::{Identify, Readable};
use super::observe::{Loggable, Observation, Observer};
use super::refuse::Refuse;
use super::service::Service;
use super::set_route;
use super::target::{Invalid, Target, check_framing};
use crate::clock::Clock;
use crate::faults::{self, Point};
use crate::handover::PolicyReader;
use crate::metrics::Metrics;
use crate::service::Lane;
use crate::upstream::{Upstream, UpstreamError, chain};

/// How long a tarpitted request is held before its connection is closed.
const TARPIT_DELAY: Duration = Duration::from_secs(20);
/// The most requests that a worker holds in the tarpit; the rest are dropped at once.
const TARPIT_MAX: u64 = 1000;
/// A body up to this size is read before a refusal is written, so that the connection can be used
/// again and the client is sure to see the answer.
const SMALL_BODY_BYTES: u64 = 64 * 1024;
/// How long reading it may take.
const SMALL_BODY_TIMEOUT: Duration = Duration::from_millis(500);

/// What a request that waits takes besides its head and body: its future, task and places in lists.
const REQUEST_BYTES: u64 = 8 * 1024;
/// What a field takes in a header map besides its text.
const FIELD_OVERHEAD_BYTES: usize = 104;

/// Ends a connection without an answer.
#[derive(Debug, thiserror::Error)]
#[error("the connection is closed without an answer")]
pub(crate) struct Dropped;

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
    pub(crate) tarpitted: Rc<std::cell::Cell<u64>>,
}

/// Where the requests of one service go.
#[derive(Debug)]
pub(crate) struct Destination {
    pub(crate) service: Rc<Service>,
    pub(crate) upstream: Rc<Upstream>,
    pub(crate) bodies: BodyLimits,
}

/// What was decided about a request, and what later stages need of it.
struct Decided {
    verdict: Verdict,
    to: Rc<Destination>,
    /// The source, as far as sharing goes.
    flow: u64,
    instance: u64,
    observation: Observation,
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

    /// Serves one request.
    pub(crate) async fn serve(
        self: Rc<Self>,
        request: Request<Incoming>,
        connection: Rc<Connection>,
    ) -> Result<Response<ReplyBody>, Dropped> {
        connection.state.serving(!request.body().is_end_stream());
        let id = request_id(request.headers(), connection.is_trusted, &self.request_ids);
        let fields = Fields::of(request.headers());
        let decided = match self.decide(&request, fields, &connection, &id) {
            Ok(decided) => decided,
            Err(undecided) => {
                let (refusal, observation) = *undecided;
                let response = match refusal {
                    NoDecision::Invalid(invalid) => {
                        // Whoever framed this request so may mean something else by what follows.
                        let mut response = Refuse::invalid(invalid, &id, observation);
                        let close = HeaderValue::from_static("close");
                        response.headers_mut().insert(CONNECTION, close);
                        response
                    }
                    NoDecision::NoService => Refuse::unmatched(&id, observation),
                };
                return Ok(self.answer(request, response, &connection).await);
            }
        };
        let Decided {
            verdict,
            to,
            flow,
            instance,
            mut observation,
        } = decided;
        match verdict {
            Verdict::Forward | Verdict::Allow { .. } => {
                let announced = request.body().size_hint().exact();
                if announced.is_some_and(|bytes| bytes > to.bodies.max) {
                    observation.outcome = "invalid";
                    let response = Refuse::too_large(&id, observation);
                    return Ok(self.answer(request, response, &connection).await);
                }
                let asks = (flow, observation.began);
                let bytes = || held_bytes(&request, announced);
                let lane = if announced.is_some_and(|bytes| bytes > to.bodies.large) {
                    Lane::Large
                } else {
                    Lane::Normal
                };
                let place = match admit(&to.service, lane, asks, bytes) {
                    Admission::Admitted(place) => Ok(place),
                    Admission::Waits(pending) => {
                        Box::pin(pending.wait(to.bodies.queue_timeout)).await
                    }
                    Admission::Shed(why) => Err(why),
                };
                match place {
                    Ok(place) => {
                        observation.admit(place);
                        faults::point(Point::Request);
                        Ok(self
                            .forward(request, fields, &to, &connection, &id, observation)
                            .await)
                    }
                    Err(why) => {
                        observation.shed(why, lane);
                        let response = self.refuse.shed(&id, observation);
                        Ok(self.answer(request, response, &connection).await)
                    }
                }
            }
            Verdict::Drop { .. } => Err(dropped(&observation)),
            Verdict::Tarpit { .. } => Err(Box::pin(self.tarpit(observation)).await),
            refusal => {
                let now = self.clock.now();
                let response = self
                    .refuse
                    .verdict(&refusal, instance, &id, observation, now);
                Ok(self.answer(request, response, &connection).await)
            }
        }
    }

    /// Identifies the client and asks the policy. Everything here happens without waiting.
    fn decide(
        &self,
        request: &Request<Incoming>,
        fields: Fields,
        connection: &Connection,
        id: &HeaderValue,
    ) -> Result<Decided, Box<(NoDecision, Observation)>> {
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
            Box::new((NoDecision::Invalid(invalid), observation))
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
                return Err(Box::new((NoDecision::NoService, observation)));
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

    async fn forward(
        &self,
        mut request: Request<Incoming>,
        fields: Fields,
        to: &Destination,
        connection: &Rc<Connection>,
        id: &HeaderValue,
        observation: Observation,
    ) -> Response<ReplyBody> {
        let upstream = &to.upstream;
        connection
            .state
            .set_write_timeout(upstream.spec.idle_timeout);
        if !fields.host
            && let Some(host) = upstream
                .spec
                .endpoints
                .first()
                .and_then(|at| at.address.parse().ok())
        {
            // Only HTTP/1.0 clients may leave it out; the upstream is asked in HTTP/1.1.
            request.headers_mut().insert(HOST, host);
        }
        let has_body = !request.body().is_end_stream();
        prepare(&mut request, fields, connection, id, &self.metrics);
        let retries = || {
            self.metrics
                .upstream_retries_total
                .with_label_values(&[&*upstream.spec.name])
                .inc();
        };
        match forward(upstream, request, to.bodies, id, observation, retries).await {
            Ok(response) => response,
            Err((error, mut observation)) => {
                tracing::debug!(upstream = %upstream.spec.name, error = %chain(&error), "no answer");
                let mut response = match error {
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
                };
                if has_body {
                    // Bytes of it may still be under way, and their sender must see the answer.
                    connection.state.linger.set(true);
                    response
                        .headers_mut()
                        .insert(CONNECTION, HeaderValue::from_static("close"));
                }
                response
            }
        }
    }

    /// Sends a refusal. Most requests have no body that would be in its way.
    async fn answer(
        &self,
        request: Request<Incoming>,
        response: Response<ReplyBody>,
        connection: &Connection,
    ) -> Response<ReplyBody> {
        if request.body().is_end_stream() {
            return response;
        }
        Box::pin(self.make_room(request, response, connection)).await
    }

    /// Makes sure that a client which is still sending a body gets to read its refusal: a small body
    /// is read first, a large one is cut off and the connection closed with care.
    async fn make_room(
        &self,
        request: Request<Incoming>,
        mut response: Response<ReplyBody>,
        connection: &Connection,
    ) -> Response<ReplyBody> {
        let expects_to_be_asked = request.headers().contains_key(http::header::EXPECT);
        let is_small = request.headers().contains_key(CONTENT_LENGTH)
            && request
                .body()
                .size_hint()
                .exact()
                .is_some_and(|bytes| bytes <= SMALL_BODY_BYTES);
        if is_small && !expects_to_be_asked {
            let mut body = request.into_body();
            let read = async { while let Some(Ok(_)) = body.frame().await {} };
            if tokio::time::timeout(SMALL_BODY_TIMEOUT, read).await.is_ok() && body.is_end_stream()
            {
                return response;
            }
        }
        connection.state.linger.set(true);
        response
            .headers_mut()
            .insert(CONNECTION, HeaderValue::from_static("close"));
        response
    }

    /// Holds a request, then closes its connection.
    async fn tarpit(&self, observation: Observation) -> Dropped {
        if self.tarpitted.get() < TARPIT_MAX {
            self.tarpitted.set(self.tarpitted.get() + 1);
            let _held = Held(&self.tarpitted);
            tokio::time::sleep(TARPIT_DELAY).await;
        }
        dropped(&observation)
    }
}

/// Counts one tarpitted request as long as it lives, however its future ends.
struct Held<'a>(&'a std::cell::Cell<u64>);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Why no verdict was asked for.
enum NoDecision {
    Invalid(Invalid),
    NoService,
}

/// Returns how much memory a request takes that waits: its head, and what of its body hyper reads ahead.
fn held_bytes(request: &Request<Incoming>, announced: Option<u64>) -> u64 {
    let fields = request.headers().iter();
    let head: usize = fields
        .map(|(name, value)| name.as_str().len() + value.len() + FIELD_OVERHEAD_BYTES)
        .sum();
    let ahead = READ_BUFFER_BYTES as u64;
    REQUEST_BYTES + head as u64 + announced.unwrap_or(ahead).min(ahead)
}

/// Says how a request stands with the rules, for what may be learnt from it.
fn standing(verdict: &Verdict) -> Standing {
    match verdict {
        Verdict::Forward => Standing::Passed,
        Verdict::Allow { .. } => Standing::Exempt,
        _ => Standing::Refused,
    }
}

fn dropped(observation: &Observation) -> Dropped {
    observation.complete();
    Dropped
}

/// Turns the client's request into the one for the upstream.
fn prepare(
    request: &mut Request<Incoming>,
    fields: Fields,
    connection: &Connection,
    id: &HeaderValue,
    metrics: &Metrics,
) {
    if request.uri().authority().is_some() {
        // The absolute form is for proxies that choose the destination by it; we do not.
        let host = request
            .uri()
            .authority()
            .and_then(|host| host.as_str().parse().ok());
        if let Some(host) = host {
            request.headers_mut().insert(HOST, host);
        }
        let origin = request
            .uri()
            .path_and_query()
            .map_or("/", |target| target.as_str());
        if let Ok(uri) = origin.parse::<Uri>() {
            *request.uri_mut() = uri;
        }
    }
    let version = request.version();
    let facts = ForwardedFacts {
        peer: &connection.peer_text,
        peer_is_trusted: connection.is_trusted,
        request_id: id,
    };
    let dropped = prepare_request(request.headers_mut(), fields, &facts, version);
    if dropped > 0 {
        metrics.headers_dropped_total.inc_by(dropped as u64);
    }
    *request.version_mut() = Version::HTTP_11;
}
