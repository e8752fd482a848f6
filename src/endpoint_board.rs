//! How the endpoints of all upstreams stand, for operators: written once a second by who looks after
//! them, read by the admin API.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;

/// How all endpoints stand.
#[derive(Debug, Default)]
pub struct EndpointBoard {
    upstreams: Mutex<HashMap<Arc<str>, Vec<EndpointReport>>>,
}

/// How one endpoint stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EndpointReport {
    /// Host and port as they stand in the settings.
    pub name: Arc<str>,
    /// Where it is.
    pub address: SocketAddr,
    /// How much it gets compared with the others.
    pub weight: u32,
    /// `in`, `slow_start`, `ejected`, `probing` or `failing_checks`.
    pub state: &'static str,
    /// Requests under way.
    pub inflight: u64,
    /// Requests in a row that got no answer.
    pub failures_in_a_row: u32,
}

impl EndpointBoard {
    /// Writes how the endpoints of an upstream stand.
    pub(crate) fn write(&self, upstream: &Arc<str>, endpoints: Vec<EndpointReport>) {
        self.upstreams
            .lock()
            .insert(Arc::clone(upstream), endpoints);
    }

    /// Forgets an upstream.
    pub(crate) fn forget(&self, upstream: &str) {
        self.upstreams.lock().remove(upstream);
    }

    /// Returns how the endpoints of an upstream stand.
    pub fn read(&self, upstream: &str) -> Vec<EndpointReport> {
        let upstreams = self.upstreams.lock();
        upstreams.get(upstream).cloned().unwrap_or_default()
    }
}
