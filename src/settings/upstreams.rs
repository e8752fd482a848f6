//! Where requests go, and how the endpoints there are cared for.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tidegate_engine::reader::Fields;
use tidegate_engine::units::{parse_duration, parse_percent};
use tidegate_engine::yaml::{Node, Value};

use super::endpoints::{Endpoint, parse_server_name};
use super::{Reading, unique};

const CONNECT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(1);
const RESPONSE_TIMEOUT_DEFAULT: Duration = Duration::from_secs(15);
const IDLE_TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
const MAX_AGE_DEFAULT: Duration = Duration::from_mins(5);
const RESOLVE_EVERY_DEFAULT: Duration = Duration::from_secs(10);
const HEALTH_INTERVAL_DEFAULT: Duration = Duration::from_secs(2);
/// The longest that a health check may take where nothing else is said.
const HEALTH_TIMEOUT_DEFAULT: Duration = Duration::from_secs(2);
/// What is done again and again is not done more often than ten times a second.
const EVERY_MIN: Duration = Duration::from_millis(100);
/// Connections that live shorter than this are not worth keeping.
const MAX_AGE_MIN: Duration = Duration::from_secs(1);
const EJECTION_LIKE: &str = "`{ consecutive_failures: 5, max_ejected: 50% }` or `off`";
const TLS_LIKE: &str = "`on` or `{ ca: tls/ca.pem, server_name: chat.internal }`";

/// A group of endpoints that serve the same.
#[derive(Clone, Debug, PartialEq)]
pub struct Upstream {
    /// Unique name.
    pub name: Arc<str>,
    /// Where it is, each place once; at least one.
    pub endpoints: Vec<Endpoint>,
    /// How long a connection may take.
    pub connect_timeout: Duration,
    /// How long a response head may take.
    pub response_timeout: Duration,
    /// How long may pass between body bytes.
    pub idle_timeout: Duration,
    /// How long a connection is used at most.
    pub max_age: Duration,
    /// How often names are looked up.
    pub resolve_every: Duration,
    /// How endpoints are probed, if they are.
    pub health: Option<Health>,
    /// When an endpoint is left out that fails requests, if ever.
    pub ejection: Option<Ejection>,
    /// How it is known that the endpoints are who they should be; `None`: plain TCP.
    pub tls: Option<Tls>,
}

/// How endpoints are probed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// The path asked for.
    pub path: Arc<str>,
    /// How often.
    pub interval: Duration,
    /// How long an answer may take; at most the interval.
    pub timeout: Duration,
}

/// When an endpoint is left out that fails requests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ejection {
    /// After so many failures in a row.
    pub consecutive_failures: u32,
    /// The share of the endpoints that may be out, above 0 to 1.
    pub max_ejected: f64,
}

impl Default for Ejection {
    fn default() -> Self {
        Self {
            consecutive_failures: 5,
            max_ejected: 0.5,
        }
    }
}

/// TLS to the endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// The file of the authorities that are believed; `None`: those of the system.
    pub ca: Option<PathBuf>,
    /// What that file holds, as a number that is another when the file says something else. Whoever reads
    /// the file sets it; before, it is 0.
    pub ca_digest: u64,
    /// The name that is asked for and must stand in the certificate; `None`: the endpoint's host.
    pub server_name: Option<Arc<str>>,
}

impl Reading<'_> {
    pub(super) fn upstreams(&mut self, node: &Node) -> Option<Vec<Upstream>> {
        let items = self
            .reader
            .items("upstreams", node, "`- name: chat`, with `endpoints`")?;
        let mut upstreams = Vec::with_capacity(items.len());
        for item in items {
            self.about("upstream", item);
            if let Some(upstream) = self.upstream(item, &upstreams) {
                upstreams.push(upstream);
            }
        }
        (upstreams.len() == items.len()).then_some(upstreams)
    }

    fn upstream(&mut self, node: &Node, before: &[Upstream]) -> Option<Upstream> {
        const KEYS: &[&str] = &[
            "name",
            "endpoints",
            "connect_timeout",
            "response_timeout",
            "idle_timeout",
            "max_age",
            "resolve_every",
            "health",
            "ejection",
            "tls",
        ];
        let fields = self.reader.fields("an upstream", node, KEYS)?;
        let name = fields
            .required(&mut self.reader, "name", "chat")
            .and_then(|node| unique(&mut self.reader, node, before, |other| &other.name));
        let endpoints = fields
            .required(&mut self.reader, "endpoints", "[\"127.0.0.1:9001\"]")
            .and_then(|node| self.endpoints(node));
        let connect_timeout = self.duration(fields, "connect_timeout", CONNECT_TIMEOUT_DEFAULT);
        let response_timeout = self.duration(fields, "response_timeout", RESPONSE_TIMEOUT_DEFAULT);
        let idle_timeout = self.duration(fields, "idle_timeout", IDLE_TIMEOUT_DEFAULT);
        let max_age = self.duration_from(fields, "max_age", MAX_AGE_MIN, MAX_AGE_DEFAULT);
        let resolve_every =
            self.duration_from(fields, "resolve_every", EVERY_MIN, RESOLVE_EVERY_DEFAULT);
        let health = fields.get("health").and_then(|node| self.health(node));
        let ejection = match fields.get("ejection") {
            Some(node) => self.ejection(node),
            None => Some(Ejection::default()),
        };
        let tls = fields.get("tls").and_then(|node| self.upstream_tls(node));
        Some(Upstream {
            name: Arc::from(name?),
            endpoints: endpoints?,
            connect_timeout,
            response_timeout,
            idle_timeout,
            max_age,
            resolve_every,
            health,
            ejection,
            tls,
        })
    }

    fn health(&mut self, node: &Node) -> Option<Health> {
        let fields = self
            .reader
            .fields("health", node, &["path", "interval", "timeout"])?;
        let path = fields
            .required(&mut self.reader, "path", "/healthz")
            .and_then(|node| self.reader.parsed("path", node, "`/healthz`", parse_path));
        let interval = self.duration_from(fields, "interval", EVERY_MIN, HEALTH_INTERVAL_DEFAULT);
        let timeout = self.duration(fields, "timeout", interval.min(HEALTH_TIMEOUT_DEFAULT));
        if timeout > interval {
            let at = fields.get("timeout").map_or(node.mark, |node| node.mark);
            self.reader.problem(
                at,
                format!(
                    "`timeout` of a check is longer than its `interval`; write at most `{}`",
                    humantime::format_duration(interval)
                ),
            );
        }
        Some(Health {
            path: path?,
            interval,
            timeout,
        })
    }

    /// Reads `off` as `None`.
    fn ejection(&mut self, node: &Node) -> Option<Ejection> {
        if matches!(node.value, Value::Text(_)) {
            return self
                .reader
                .parsed("ejection", node, EJECTION_LIKE, |text| match text {
                    "off" => Ok(None),
                    _ => Err(format!(
                        "unknown word `{text}`; write it like {EJECTION_LIKE}"
                    )),
                })
                .flatten();
        }
        let mut ejection = Ejection::default();
        let keys = &["consecutive_failures", "max_ejected"];
        let fields = self.reader.fields("ejection", node, keys)?;
        let failures = match fields.get("consecutive_failures") {
            Some(node) => self.reader.whole("consecutive_failures", node, 1..=1000),
            None => Some(ejection.consecutive_failures),
        };
        if let Some(node) = fields.get("max_ejected") {
            let read = self
                .reader
                .parsed("max_ejected", node, "`50%`", parse_percent);
            ejection.max_ejected = read.unwrap_or(ejection.max_ejected);
            if ejection.max_ejected == 0.0 {
                self.reader.problem(
                    node.mark,
                    "`max_ejected` of 0 % would eject nothing; write `ejection: off`",
                );
            }
        }
        ejection.consecutive_failures = failures?;
        Some(ejection)
    }

    fn upstream_tls(&mut self, node: &Node) -> Option<Tls> {
        if matches!(node.value, Value::Text(_)) {
            return self
                .reader
                .parsed("tls", node, TLS_LIKE, |text| match text {
                    "on" => Ok(Tls::default()),
                    _ => Err(format!("unknown word `{text}`; write {TLS_LIKE}")),
                });
        }
        let fields = self.reader.fields("tls", node, &["ca", "server_name"])?;
        let ca = fields
            .get("ca")
            .and_then(|node| self.path("ca", node, "`tls/ca.pem`"));
        let server_name = fields.get("server_name").and_then(|node| {
            self.reader
                .parsed("server_name", node, "`chat.internal`", parse_server_name)
        });
        Some(Tls {
            ca,
            ca_digest: 0,
            server_name,
        })
    }

    /// Reads a duration of at least `least`, or gives the default; a bad one has left a problem.
    fn duration_from(
        &mut self,
        fields: Fields<'_>,
        key: &str,
        least: Duration,
        default: Duration,
    ) -> Duration {
        let duration = self.duration(fields, key, default);
        if duration < least
            && let Some(node) = fields.get(key)
        {
            let least = humantime::format_duration(least);
            self.reader.problem(
                node.mark,
                format!("`{key}` is too short; write at least `{least}`"),
            );
        }
        duration
    }

    /// Reads a duration above zero, or gives the default; a bad one has left a problem.
    pub(super) fn duration(
        &mut self,
        fields: Fields<'_>,
        key: &str,
        default: Duration,
    ) -> Duration {
        self.duration_if_any(fields, key).unwrap_or(default)
    }

    /// Reads a duration above zero, where it is given; a bad one has left a problem.
    pub(super) fn duration_if_any(&mut self, fields: Fields<'_>, key: &str) -> Option<Duration> {
        let node = fields.get(key)?;
        self.reader.parsed(key, node, "`15s`", parse_duration)
    }

    /// Names what the next problems are about, as well as it can be named.
    pub(super) fn about(&mut self, what: &str, node: &Node) {
        let name = match &node.value {
            Value::Map(entries) => entries.iter().find(|entry| entry.key == "name"),
            _ => None,
        };
        match name.map(|entry| &entry.value.value) {
            Some(Value::Text(name)) => self.reader.about(format_args!("{what} `{name}`")),
            _ => self.reader.about(what),
        }
    }
}

/// Reads a path as it stands in a request.
pub(super) fn parse_path(text: &str) -> Result<Arc<str>, String> {
    if !text.starts_with('/') {
        return Err(format!(
            "`{text}` does not begin with `/`; write it like `/{text}`"
        ));
    }
    let odd = |letter: char| {
        letter.is_whitespace() || letter.is_control() || matches!(letter, '?' | '#' | '*')
    };
    if text.contains(odd) {
        return Err(format!(
            "`{text}` holds more than a path; write a prefix without `?`, `#`, `*` or blanks, like `/v1/chat/`"
        ));
    }
    Ok(Arc::from(text))
}
