//! The admin listener: health, metrics and the API, on the control thread and on an address of its
//! own, so that it answers however busy the workers are. [`api`] shows, [`change`] changes, [`auth`] says
//! who may.

mod action;
mod api;
mod auth;
mod change;
mod events;
mod explain;
mod query;
mod rules;

use std::cell::RefCell;
use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
#[cfg(target_os = "linux")]
use socket2::SockRef;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

use self::auth::{Access, Token};
use self::events::EventStream;
use crate::control::Control;
use crate::endpoint_board::EndpointBoard;
use crate::faults::{self, Point};

/// The most connections of the admin listener.
const CONNECTIONS_MAX: usize = 64;
/// How long a request head may take, and a connection be idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may take nothing of its answer, or acknowledge nothing; then the kernel closes the
/// connection. Without an end, 64 clients that do not read would keep everybody else out.
#[cfg(target_os = "linux")]
const TAKE_TIMEOUT: Duration = Duration::from_secs(30);

type Answer = Response<Either<Full<Bytes>, EventStream>>;

/// What the admin side shows.
#[derive(Debug)]
pub struct Admin {
    /// Policy, detector, settings.
    pub control: Rc<RefCell<Control>>,
    /// How the endpoints of the upstreams stand.
    pub endpoints: Arc<EndpointBoard>,
    /// Whether the process is being drained.
    pub drain: watch::Receiver<bool>,
    /// The token that operators show; `None` on loopback, where the machine's users are trusted.
    pub token: Option<Token>,
    /// Workers that are running.
    pub workers: usize,
}

impl Admin {
    /// Reads the bearer token of a file.
    ///
    /// # Errors
    ///
    /// The file cannot be read or holds no usable token.
    pub fn read_token(path: &Path) -> std::io::Result<Token> {
        Token::read(path)
    }

    /// Serves until the process ends.
    pub async fn serve(self, listener: StdListener) -> std::io::Result<()> {
        let listener = TcpListener::from_std(listener)?;
        let admin = Rc::new(self);
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            // The semaphore is never closed.
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                return Ok(());
            };
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "the admin listener cannot accept");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            #[cfg(target_os = "linux")]
            if let Err(error) = SockRef::from(&stream).set_tcp_user_timeout(Some(TAKE_TIMEOUT)) {
                tracing::debug!(%error, "an admin connection could not be set up as it should be");
            }
            let admin = Rc::clone(&admin);
            tokio::task::spawn_local(async move {
                let service = service_fn(|request| {
                    let answer = Rc::clone(&admin).answer(request, peer);
                    async move { Ok::<_, Infallible>(answer.await) }
                });
                let served = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEAD_TIMEOUT)
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
                if let Err(error) = served {
                    tracing::debug!(%error, "an admin connection ended");
                }
                drop(place);
            });
        }
    }

    async fn answer(self: Rc<Self>, request: Request<Incoming>, peer: SocketAddr) -> Answer {
        faults::point(Point::Admin);
        let path = request.uri().path();
        let is_probe = matches!(path, "/healthz" | "/readyz");
        match auth::check(request.headers(), self.token.as_ref()) {
            Access::Granted => {}
            Access::ForeignHost => {
                return problem(
                    421,
                    "this Host is not one of this listener's",
                    "use its address",
                );
            }
            Access::Denied if is_probe => {}
            Access::Denied => {
                self.control.borrow().metrics().admin_denied_total.inc();
                tracing::debug!(%peer, path, "admin access without the token");
                let mut answer = problem(
                    401,
                    "the bearer token is missing or wrong",
                    "see admin.token_file",
                );
                answer
                    .headers_mut()
                    .insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
                return answer;
            }
        }
        let method = request.method();
        let is_read = matches!(*method, Method::GET | Method::HEAD);
        let Some(allowed) = api::methods_at(path) else {
            return problem(404, "there is nothing at this path", api::SEE_PATHS);
        };
        let asked = if is_read { "GET" } else { method.as_str() };
        if !allowed.split(", ").any(|allowed| allowed == asked) {
            let mut answer = problem(405, "this cannot be done here", &format!("use {allowed}"));
            let allowed = HeaderValue::from_str(allowed);
            if let Ok(allowed) = allowed {
                answer.headers_mut().insert(ALLOW, allowed);
            }
            return answer;
        }
        if is_read {
            return self.read(&request);
        }
        if auth::is_cross_site(request.headers()) {
            return problem(
                403,
                "the request comes from a page of another site",
                "send it without Origin, or from this listener's own page",
            );
        }
        change::change(self, request, peer).await
    }

    fn read(&self, request: &Request<Incoming>) -> Answer {
        let path = request.uri().path();
        match path {
            "/" => answer(
                StatusCode::OK,
                "text/html; charset=utf-8",
                Bytes::from_static(include_bytes!("admin/overview.html")),
            ),
            "/healthz" => text(StatusCode::OK, "ok\n"),
            "/readyz" if *self.drain.borrow() => {
                text(StatusCode::SERVICE_UNAVAILABLE, "draining\n")
            }
            "/readyz" => text(StatusCode::OK, "ready\n"),
            "/metrics" => {
                let text = api::metrics(&self.control.borrow());
                let kind = "text/plain; version=0.0.4; charset=utf-8";
                answer(StatusCode::OK, kind, Bytes::from(text))
            }
            "/api/openapi.json" => answer(
                StatusCode::OK,
                "application/json",
                Bytes::from_static(include_bytes!("admin/openapi.json")),
            ),
            "/api/v1/events" => self.events(),
            _ => api::read(self, path, request.uri().query().unwrap_or_default()),
        }
    }

    fn events(&self) -> Answer {
        let (sender, stream) = EventStream::new();
        if !self.control.borrow_mut().listen(sender) {
            return problem(503, "too many listen to events already", "ask again later");
        }
        let mut answer = Response::new(Either::Right(stream));
        let headers = answer.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        answer
    }
}

fn answer(status: StatusCode, kind: &'static str, body: Bytes) -> Answer {
    let mut answer = Response::new(Either::Left(Full::new(body)));
    *answer.status_mut() = status;
    answer
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
        .headers_mut()
        .insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

fn text(status: StatusCode, text: &'static str) -> Answer {
    answer(
        status,
        "text/plain; charset=utf-8",
        Bytes::from_static(text.as_bytes()),
    )
}

fn json_answer(value: &serde_json::Value) -> Answer {
    json_with(StatusCode::OK, value)
}

fn json_with(status: StatusCode, value: &serde_json::Value) -> Answer {
    answer(
        status,
        "application/json",
        Bytes::from(format!("{value:#}\n")),
    )
}

fn problem(status: u16, what: &str, way_out: &str) -> Answer {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST);
    let body = json!({
        "type": "about:blank",
        "title": status.canonical_reason(),
        "status": status.as_u16(),
        "detail": format!("{what}; {way_out}"),
    });
    answer(
        status,
        "application/problem+json",
        Bytes::from(format!("{body}\n")),
    )
}
