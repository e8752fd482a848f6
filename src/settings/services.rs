//! What is isolated from what.

use std::sync::Arc;
use std::time::Duration;

use tidegate_engine::detect::DetectionMode;
use tidegate_engine::reader::nearest;
use tidegate_engine::service::{HostPattern, Match, Priority, ServiceSpec};
use tidegate_engine::yaml::Node;

use super::upstreams::parse_path;
use super::{Bodies, Concurrency, DETECTION_MODES, Reading, Upstream, unique};

const PRIORITIES: &[(&str, Priority)] = &[
    ("critical", Priority::Critical),
    ("high", Priority::High),
    ("normal", Priority::Normal),
    ("low", Priority::Low),
];

/// One service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name, what belongs to it, and when it is shed.
    pub spec: ServiceSpec,
    /// The name of its upstream, which exists.
    pub upstream: Arc<str>,
    /// How much may be in flight.
    pub concurrency: Concurrency,
    /// How large bodies may be.
    pub bodies: Bodies,
    /// How long a response head may take; `None`: as long as the upstream's.
    pub response_timeout: Option<Duration>,
    /// How long nothing may move in a body; `None`: as long as the upstream's.
    pub idle_timeout: Option<Duration>,
    /// What the detector may do about sources that flood it; `None`: what it may do in general.
    pub detection: Option<DetectionMode>,
}

impl Reading<'_> {
    /// Reads services; `upstreams` are `None` where they could not be read.
    pub(super) fn services(
        &mut self,
        node: &Node,
        upstreams: Option<&[Upstream]>,
    ) -> Option<Vec<Service>> {
        let items = self.reader.items(
            "services",
            node,
            "`- name: chat`, with `match` and `upstream`",
        )?;
        let mut services = Vec::with_capacity(items.len());
        for item in items {
            self.about("service", item);
            if let Some(service) = self.service(item, &services, upstreams) {
                services.push(service);
            }
        }
        (services.len() == items.len()).then_some(services)
    }

    fn service(
        &mut self,
        node: &Node,
        before: &[Service],
        upstreams: Option<&[Upstream]>,
    ) -> Option<Service> {
        const KEYS: &[&str] = &[
            "name",
            "match",
            "upstream",
            "priority",
            "concurrency",
            "body_max",
            "large_body",
            "large_bodies_max",
            "response_timeout",
            "idle_timeout",
            "detection",
        ];
        let fields = self.reader.fields("a service", node, KEYS)?;
        let name = fields
            .required(&mut self.reader, "name", "chat")
            .and_then(|node| unique(&mut self.reader, node, before, |other| &other.spec.name));
        let matches = fields
            .required(&mut self.reader, "match", "[{ path: /v1/chat/ }]")
            .and_then(|node| self.matches(node, before));
        let upstream = fields
            .required(&mut self.reader, "upstream", "chat")
            .and_then(|node| self.upstream_of(node, upstreams));
        let priority = match fields.get("priority") {
            Some(node) => self.reader.word("priority", node, PRIORITIES),
            None => Some(Priority::default()),
        };
        let concurrency = match fields.get("concurrency") {
            Some(node) => self.concurrency(node),
            None => Some(Concurrency::default()),
        };
        let bodies = self.bodies(fields);
        let response_timeout = self.duration_if_any(fields, "response_timeout");
        let idle_timeout = self.duration_if_any(fields, "idle_timeout");
        let detection = match fields.get("detection") {
            Some(node) => self.detection_of_service(node).map(Some),
            None => Some(None),
        };
        Some(Service {
            spec: ServiceSpec {
                name: Arc::from(name?),
                matches: matches?,
                priority: priority?,
            },
            upstream: upstream?,
            concurrency: concurrency?,
            bodies: bodies?,
            response_timeout,
            idle_timeout,
            detection: detection?,
        })
    }

    fn upstream_of(&mut self, node: &Node, upstreams: Option<&[Upstream]>) -> Option<Arc<str>> {
        let name = self.reader.text("upstream", node, "`chat`")?;
        let Some(upstreams) = upstreams else {
            return Some(Arc::from(name));
        };
        let known: Vec<&str> = upstreams.iter().map(|upstream| &*upstream.name).collect();
        if !known.contains(&name) {
            let way_out = match nearest(name, &known) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("write one under `upstreams`, like `- name: {name}`"),
            };
            self.reader
                .problem(node.mark, format!("unknown upstream `{name}`; {way_out}"));
            return None;
        }
        Some(Arc::from(name))
    }

    fn matches(&mut self, node: &Node, before: &[Service]) -> Option<Vec<Match>> {
        let items = self
            .reader
            .items("match", node, "`[{ path: /v1/chat/ }]`")?;
        let mut matches: Vec<Match> = Vec::with_capacity(items.len());
        for item in items {
            let Some(one) = self.one_match(item) else {
                continue;
            };
            let earlier = before
                .iter()
                .find(|other| other.spec.matches.contains(&one));
            if let Some(earlier) = earlier {
                let text = format!(
                    "service `{}` has this match already and is first; remove one of them",
                    earlier.spec.name
                );
                self.reader.problem(item.mark, text);
            } else if matches.contains(&one) {
                self.reader
                    .problem(item.mark, "this match is given twice; keep one");
            }
            matches.push(one);
        }
        (matches.len() == items.len()).then_some(matches)
    }

    fn one_match(&mut self, node: &Node) -> Option<Match> {
        let fields = self.reader.fields("a match", node, &["path", "host"])?;
        if fields.get("path").is_none() && fields.get("host").is_none() {
            self.reader.problem(
                node.mark,
                "a match needs a `path` or a `host`; write `{ path: / }` for everything",
            );
            return None;
        }
        let path = fields
            .get("path")
            .map(|node| self.reader.parsed("path", node, "`/v1/chat/`", parse_path));
        let host = fields.get("host").map(|node| {
            self.reader
                .parsed("host", node, "`api.example.com`", parse_host)
        });
        // Given but not read: a problem was said.
        if path == Some(None) || host == Some(None) {
            return None;
        }
        Some(Match {
            path: path.flatten(),
            host: host.flatten(),
        })
    }

    /// Reads the one key that a service may set for itself: shares and warm-up are of the whole.
    fn detection_of_service(&mut self, node: &Node) -> Option<DetectionMode> {
        let fields = self
            .reader
            .fields("detection of a service", node, &["mode"])?;
        let node = fields.required(&mut self.reader, "mode", "suggest")?;
        self.reader.word("mode", node, DETECTION_MODES)
    }
}

/// Reads `api.example.com` or `*.example.com`; an IPv6 address stands in brackets.
fn parse_host(text: &str) -> Result<HostPattern, String> {
    let lower = text.to_ascii_lowercase();
    let wrong = || {
        format!(
            "`{text}` is not a host; write it without port, like `api.example.com` or `*.example.com`"
        )
    };
    if let Some(suffix) = lower.strip_prefix('*') {
        let is_fine = suffix.strip_prefix('.').is_some_and(is_host);
        return if is_fine {
            Ok(HostPattern::Below(Arc::from(suffix)))
        } else {
            Err(wrong())
        };
    }
    let address = lower
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'));
    let is_address = address.is_some_and(|text| text.parse::<std::net::Ipv6Addr>().is_ok());
    if is_address || is_host(&lower) {
        Ok(HostPattern::Exact(Arc::from(lower)))
    } else {
        Err(wrong())
    }
}

/// Returns whether a text is a host name or an IPv4 address.
pub(super) fn is_host(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    text.len() <= 253 && text.split('.').all(label)
}
