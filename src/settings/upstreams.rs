//! Where requests go.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tidegate_engine::reader::Fields;
use tidegate_engine::units::parse_duration;
use tidegate_engine::yaml::{Node, Value};

use super::{Reading, unique};

const CONNECT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(1);
const RESPONSE_TIMEOUT_DEFAULT: Duration = Duration::from_secs(15);
const IDLE_TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
const HEALTH_INTERVAL_DEFAULT: Duration = Duration::from_secs(2);
const ENDPOINT_LIKE: &str = "`[\"127.0.0.1:9001\"]`";

/// A group of endpoints that serve the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// Unique name.
    pub name: Arc<str>,
    /// Hosts with port, each once; at least one.
    pub endpoints: Vec<Arc<str>>,
    /// How long a connection may take.
    pub connect_timeout: Duration,
    /// How long a response head may take.
    pub response_timeout: Duration,
    /// How long may pass between body bytes.
    pub idle_timeout: Duration,
    /// How endpoints are probed, if they are.
    pub health: Option<Health>,
}

/// How endpoints are probed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// The path asked for.
    pub path: Arc<str>,
    /// How often.
    pub interval: Duration,
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
            "health",
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
        let health = fields.get("health").and_then(|node| self.health(node));
        Some(Upstream {
            name: Arc::from(name?),
            endpoints: endpoints?,
            connect_timeout,
            response_timeout,
            idle_timeout,
            health,
        })
    }

    fn endpoints(&mut self, node: &Node) -> Option<Vec<Arc<str>>> {
        let items = self.reader.items("endpoints", node, ENDPOINT_LIKE)?;
        let mut endpoints: Vec<Arc<str>> = Vec::with_capacity(items.len());
        for item in items {
            let endpoint = self
                .reader
                .parsed("endpoints", item, ENDPOINT_LIKE, parse_endpoint);
            let Some(endpoint) = endpoint else { continue };
            if endpoints.contains(&endpoint) {
                self.reader.problem(
                    item.mark,
                    format!("the endpoint `{endpoint}` is given twice; keep one"),
                );
            }
            endpoints.push(endpoint);
        }
        (endpoints.len() == items.len()).then_some(endpoints)
    }

    fn health(&mut self, node: &Node) -> Option<Health> {
        let fields = self.reader.fields("health", node, &["path", "interval"])?;
        let path = fields
            .required(&mut self.reader, "path", "/healthz")
            .and_then(|node| self.reader.parsed("path", node, "`/healthz`", parse_path));
        let interval = self.duration(fields, "interval", HEALTH_INTERVAL_DEFAULT);
        self.not_in_force("upstreams: health");
        Some(Health {
            path: path?,
            interval,
        })
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

/// Reads a host and a port; the host is an address or a name.
fn parse_endpoint(text: &str) -> Result<Arc<str>, String> {
    let wrong = || {
        format!("`{text}` is not a host and a port; write it like `127.0.0.1:9001` or `chat:80`")
    };
    if text.contains("://") {
        return Err(format!(
            "`{text}` is a URL; write host and port alone, like `127.0.0.1:9001`"
        ));
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return if address.port() == 0 {
            Err(wrong())
        } else {
            Ok(Arc::from(address.to_string()))
        };
    }
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let port_is_fine = port.parse::<u16>().is_ok_and(|port| port != 0) && !port.starts_with('+');
    let host_is_fine = super::services::is_host(host);
    // `10.0.0:80` and `1.2.3.4.5:80` are slips of the hand, not names.
    let is_name = host.bytes().any(|byte| byte.is_ascii_alphabetic());
    if port_is_fine && host_is_fine && is_name {
        Ok(Arc::from(text.to_ascii_lowercase()))
    } else {
        Err(wrong())
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
