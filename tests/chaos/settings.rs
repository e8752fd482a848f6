//! The settings that a proxy is started with.

use std::fmt::Write as _;
use std::net::SocketAddr;

/// One service, with an upstream of its own.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    /// Its name, and its upstream's.
    pub(crate) name: &'static str,
    /// The beginning of the path.
    pub(crate) path: &'static str,
    /// Where it is served.
    pub(crate) endpoint: SocketAddr,
    /// Requests in flight at once.
    pub(crate) max: usize,
    /// Requests that may wait, and for how long; 0: none.
    pub(crate) queue: usize,
    pub(crate) queue_timeout: &'static str,
    /// What all that wait may hold.
    pub(crate) queue_bytes: &'static str,
    /// Whether the limit follows the upstream's latency: `on` or `off`.
    pub(crate) adaptive: &'static str,
    /// Longer bodies have a lane of their own.
    pub(crate) large_body: &'static str,
    /// Who is shed last.
    pub(crate) priority: &'static str,
    /// The upstream's timeouts.
    pub(crate) response_timeout: &'static str,
    pub(crate) idle_timeout: &'static str,
}

impl Service {
    /// A service with room for everything.
    pub(crate) fn new(name: &'static str, path: &'static str, endpoint: SocketAddr) -> Self {
        Self {
            name,
            path,
            endpoint,
            max: 1024,
            queue: 0,
            queue_timeout: "500ms",
            queue_bytes: "16MiB",
            adaptive: "on",
            large_body: "256KiB",
            priority: "normal",
            response_timeout: "15s",
            idle_timeout: "30s",
        }
    }

    /// Gives it so many places, and none to wait.
    pub(crate) fn with_places(mut self, max: usize) -> Self {
        self.max = max;
        self
    }

    /// Gives it a queue for those that find no place.
    pub(crate) fn with_queue(mut self, queue: usize, timeout: &'static str) -> Self {
        self.queue = queue;
        self.queue_timeout = timeout;
        self
    }

    /// Makes it the last to be shed.
    pub(crate) fn first(mut self) -> Self {
        self.priority = "critical";
        self
    }

    /// Bounds what all that wait may hold.
    pub(crate) fn holding(mut self, queue_bytes: &'static str) -> Self {
        self.queue_bytes = queue_bytes;
        self
    }

    /// Takes all limits away: no defence.
    pub(crate) fn without_limits(mut self) -> Self {
        self.max = 1_000_000;
        self.adaptive = "off";
        self.large_body = "1GiB";
        self
    }

    /// Gives large bodies no lane of their own.
    pub(crate) fn without_lane(mut self) -> Self {
        self.large_body = "1GiB";
        self
    }

    /// Gives it another time to the response head.
    pub(crate) fn answering_within(mut self, response_timeout: &'static str) -> Self {
        self.response_timeout = response_timeout;
        self
    }

    /// Gives it another time between two bytes of a body.
    pub(crate) fn idle_for(mut self, idle_timeout: &'static str) -> Self {
        self.idle_timeout = idle_timeout;
        self
    }
}

/// Everything that differs from one experiment to the other.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) services: Vec<Service>,
    /// `detection:`, in braces.
    pub(crate) detection: &'static str,
    /// Whose `X-Forwarded-For` is believed.
    pub(crate) trusted_proxies: &'static str,
    /// A file of rules.
    pub(crate) rules: &'static str,
    /// `memory_max` and `connections_max` of `overload:`.
    pub(crate) memory_max: String,
    pub(crate) connections_max: usize,
    /// What a shell does before it becomes the proxy.
    pub(crate) before: &'static str,
}

impl Setup {
    /// These services; no detection, no rules.
    pub(crate) fn of(services: Vec<Service>) -> Self {
        Self {
            services,
            detection: "{ mode: off }",
            trusted_proxies: "[]",
            rules: "rules: []\n",
            memory_max: "1GiB".to_owned(),
            connections_max: 50_000,
            before: "",
        }
    }

    /// Writes the settings. Addresses are chosen by the kernel, or those of a process before.
    pub(crate) fn text(&self, address: &str, admin: &str) -> String {
        let mut text = format!(
            "listeners: [{{ address: \"{address}\", trusted_proxies: {} }}]
admin: {{ address: \"{admin}\" }}
workers: 2
identity:
  attributes:
    sdk: {{ header: x-sdk }}
    sdk_version: {{ header: x-sdk-version, type: version }}
    app: {{ header: x-app }}
    instance: {{ header: x-device, secret: true }}
detection: {}
rules: rules/
state: state/
access_log: off
services:
",
            self.trusted_proxies, self.detection
        );
        for service in &self.services {
            service.write(&mut text);
        }
        text.push_str("upstreams:\n");
        for service in &self.services {
            service.write_upstream(&mut text);
        }
        let (memory_max, connections_max) = (&self.memory_max, self.connections_max);
        // All clients here may come from one address.
        line(
            &mut text,
            format_args!(
                "overload: {{ connections_max: {connections_max}, connections_per_address: 20000, \
                 memory_max: {memory_max} }}"
            ),
        );
        text
    }
}

impl Service {
    fn write(&self, text: &mut String) {
        let Self {
            name,
            path,
            max,
            queue,
            queue_timeout,
            queue_bytes,
            adaptive,
            large_body,
            priority,
            ..
        } = self;
        line(text, format_args!("  - name: {name}"));
        line(text, format_args!("    match: [{{ path: {path} }}]"));
        line(text, format_args!("    upstream: {name}"));
        let waiting = match queue {
            0 => "queue: 0".to_owned(),
            _ => format!(
                "queue: {queue}, queue_timeout: {queue_timeout}, queue_bytes: {queue_bytes}"
            ),
        };
        line(
            text,
            format_args!("    concurrency: {{ max: {max}, adaptive: {adaptive}, {waiting} }}"),
        );
        line(text, format_args!("    priority: {priority}"));
        line(text, format_args!("    large_body: {large_body}"));
        line(text, format_args!("    large_bodies_max: 8"));
        line(text, format_args!("    body_max: 2GiB"));
    }

    fn write_upstream(&self, text: &mut String) {
        let Self {
            name,
            endpoint,
            response_timeout,
            idle_timeout,
            ..
        } = self;
        line(text, format_args!("  - name: {name}"));
        line(text, format_args!("    endpoints: [\"{endpoint}\"]"));
        line(
            text,
            format_args!("    response_timeout: {response_timeout}"),
        );
        line(text, format_args!("    idle_timeout: {idle_timeout}"));
    }
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "{line}").expect("a string takes everything");
}
