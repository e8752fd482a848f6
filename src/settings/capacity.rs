//! How much may be in flight: in a service, of large bodies, in the whole process.

use std::time::Duration;

use tidegate_engine::reader::Fields;
use tidegate_engine::units::{parse_duration_or_zero, parse_size};
use tidegate_engine::yaml::Node;

use super::Reading;

/// The most requests, in a service or in all, that settings may say.
const REQUESTS_MAX: u32 = 1_000_000;
/// The most client connections that settings may say.
const CONNECTIONS_MAX: u32 = 10_000_000;

/// How much may be in flight to a service at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Concurrency {
    /// Requests in flight; at least 1.
    pub max: usize,
    /// How far the limit may fall while the upstream is slow; from 1 to `max`.
    pub min: usize,
    /// Whether it follows the upstream's latency.
    pub adaptive: bool,
    /// Requests that may wait for a place.
    pub queue: usize,
    /// Bytes that these may hold in memory.
    pub queue_bytes: u64,
    /// How long a request may wait.
    pub queue_timeout: Duration,
}

impl Default for Concurrency {
    fn default() -> Self {
        Self {
            max: 1024,
            min: 256,
            adaptive: true,
            queue: 1024,
            queue_bytes: 16 << 20,
            queue_timeout: Duration::from_millis(500),
        }
    }
}

/// How large the bodies of a service's requests may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bodies {
    /// Longer ones are answered 413; in bytes.
    pub max: u64,
    /// Longer ones travel in a lane of their own; in bytes.
    pub large: u64,
    /// Requests in that lane at once.
    pub large_max: usize,
}

impl Default for Bodies {
    fn default() -> Self {
        Self {
            max: 64 << 20,
            large: 256 << 10,
            large_max: 16,
        }
    }
}

/// When the process as a whole is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overload {
    /// Requests in flight in all services together; at least 1.
    pub inflight_max: usize,
    /// Client connections. The descriptors that the system gives are a bound besides.
    pub connections_max: usize,
    /// Client connections of one address (IPv6: of one /64).
    pub connections_per_address: usize,
    /// Resident memory in bytes, above which nothing but what is critical is served; `None`: what the
    /// control group allows, if it says something.
    pub memory_max: Option<u64>,
}

impl Default for Overload {
    fn default() -> Self {
        Self {
            inflight_max: 8192,
            connections_max: 50_000,
            connections_per_address: 1000,
            memory_max: None,
        }
    }
}

impl Reading<'_> {
    /// Reads `concurrency` of a service.
    pub(super) fn concurrency(&mut self, node: &Node) -> Option<Concurrency> {
        const KEYS: &[&str] = &[
            "max",
            "min",
            "adaptive",
            "queue",
            "queue_bytes",
            "queue_timeout",
        ];
        const SWITCH: &[(&str, bool)] = &[("on", true), ("off", false)];
        let fields = self.reader.fields("concurrency", node, KEYS)?;
        let default = Concurrency::default();
        let max = self.count(fields, "max", 1..=REQUESTS_MAX, default.max);
        // As many may wait as are served, unless something else is said.
        let as_many = max.unwrap_or(default.max);
        let min = self.count(fields, "min", 1..=REQUESTS_MAX, as_many.div_ceil(4));
        if let (Some(min), Some(max), Some(node)) = (min, max, fields.get("min"))
            && min > max
        {
            let text = "`min` is above `max`; lower it";
            self.reader.problem(node.mark, text);
        }
        let adaptive = match fields.get("adaptive") {
            Some(node) => self.reader.word("adaptive", node, SWITCH),
            None => Some(default.adaptive),
        };
        let queue = self.count(fields, "queue", 0..=REQUESTS_MAX, as_many);
        let queue_bytes = self.size(fields, "queue_bytes", default.queue_bytes);
        let queue_timeout = match fields.get("queue_timeout") {
            Some(node) => {
                let read = parse_duration_or_zero;
                self.reader.parsed("queue_timeout", node, "`500ms`", read)
            }
            None => Some(default.queue_timeout),
        };
        Some(Concurrency {
            max: max?,
            min: min?,
            adaptive: adaptive?,
            queue: queue?,
            queue_bytes: queue_bytes?,
            queue_timeout: queue_timeout?,
        })
    }

    /// Reads what a service says of bodies.
    pub(super) fn bodies(&mut self, fields: Fields<'_>) -> Option<Bodies> {
        let default = Bodies::default();
        let max = self.size(fields, "body_max", default.max);
        let large = self.size(fields, "large_body", default.large);
        let places = 1..=REQUESTS_MAX;
        let large_max = self.count(fields, "large_bodies_max", places, default.large_max);
        Some(Bodies {
            max: max?,
            large: large?,
            large_max: large_max?,
        })
    }

    /// Reads `overload`.
    pub(super) fn overload(&mut self, node: &Node) -> Option<Overload> {
        const KEYS: &[&str] = &[
            "inflight_max",
            "connections_max",
            "connections_per_address",
            "memory_max",
        ];
        self.reader.about("overload");
        let fields = self.reader.fields("overload", node, KEYS)?;
        let default = Overload::default();
        let (requests, connections) = (1..=REQUESTS_MAX, 1..=CONNECTIONS_MAX);
        let inflight_max = self.count(fields, "inflight_max", requests, default.inflight_max);
        let connections_max = {
            let (range, default) = (connections.clone(), default.connections_max);
            self.count(fields, "connections_max", range, default)
        };
        let connections_per_address = {
            let default = default.connections_per_address;
            self.count(fields, "connections_per_address", connections, default)
        };
        let memory_max = match fields.get("memory_max") {
            Some(_) => self.size(fields, "memory_max", 0).map(Some),
            None => Some(default.memory_max),
        };
        Some(Overload {
            inflight_max: inflight_max?,
            connections_max: connections_max?,
            connections_per_address: connections_per_address?,
            memory_max: memory_max?,
        })
    }

    /// Reads a whole number, or gives the default; a bad one has left a problem.
    fn count(
        &mut self,
        fields: Fields<'_>,
        key: &str,
        range: std::ops::RangeInclusive<u32>,
        default: usize,
    ) -> Option<usize> {
        match fields.get(key) {
            Some(node) => Some(self.reader.whole(key, node, range)? as usize),
            None => Some(default),
        }
    }

    /// Reads a size in bytes, or gives the default; a bad one has left a problem.
    fn size(&mut self, fields: Fields<'_>, key: &str, default: u64) -> Option<u64> {
        match fields.get(key) {
            Some(node) => self.reader.parsed(key, node, "`256KiB`", parse_size),
            None => Some(default),
        }
    }
}
