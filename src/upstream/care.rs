//! Looks after the endpoints of an upstream, on the control side: names, health checks, and who does
//! so much worse than the others that it should be out.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use super::endpoint::Endpoint;
use super::health::Health;
use super::series::{EjectionReason, state_of};
use super::window::{Tally, Window, misfits};
use super::{Endpoints, check, resolve};
use crate::endpoint_board::{EndpointBoard, EndpointReport};

/// How often endpoints are compared.
const TICK: Duration = Duration::from_secs(1);

/// Looks after the endpoints for ever; when the future is dropped, everything that it began ends. To
/// be run in a [`tokio::task::LocalSet`].
pub async fn run(endpoints: Arc<Endpoints>, board: Arc<EndpointBoard>) {
    let shown = Shown {
        endpoints: &endpoints,
        board: &board,
    };
    let mut tasks = JoinSet::new();
    for name in endpoints.names() {
        tasks.spawn_local(resolve::keep(Arc::clone(&endpoints), Arc::clone(name)));
    }
    if let Some(health) = endpoints.spec.health.clone() {
        tasks.spawn_local(check::keep(Arc::clone(&endpoints), health));
    }
    let mut comparison = Comparison::default();
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        comparison.tick(&endpoints);
        shown.renew();
    }
}

/// Shows operators how the endpoints stand, as long as somebody looks after them.
struct Shown<'a> {
    endpoints: &'a Endpoints,
    board: &'a EndpointBoard,
}

impl Shown<'_> {
    fn renew(&self) {
        let now = self.endpoints.clock.now();
        let report = |endpoint: &Arc<Endpoint>| EndpointReport {
            name: Arc::clone(&endpoint.name),
            address: endpoint.address,
            weight: endpoint.weight,
            state: state_of(endpoint, now),
            inflight: endpoint.in_flight(),
            failures_in_a_row: endpoint.look(Health::failures_in_a_row),
        };
        let reports = self.endpoints.list().iter().map(report).collect();
        self.board.write(&self.endpoints.spec.name, reports);
    }
}

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        self.board.forget(&self.endpoints.spec.name);
        self.endpoints.series.clear();
    }
}

/// Compares the endpoints of one upstream.
#[derive(Debug, Default)]
struct Comparison {
    windows: HashMap<(Arc<str>, SocketAddr), Window>,
}

impl Comparison {
    /// Takes out whoever does badly while the others do well. Once a second.
    fn tick(&mut self, endpoints: &Endpoints) {
        let now = endpoints.clock.now();
        let list = endpoints.list();
        let key = |one: &Endpoint| (Arc::clone(&one.name), one.address);
        self.windows
            .retain(|known, _| list.iter().any(|one| key(one) == *known));
        // Those that are out have no say: what they answered was before.
        let mut compared: Vec<(&Arc<Endpoint>, Tally)> = Vec::new();
        for endpoint in list.iter() {
            // Nothing changes but what the time changes: a slow start may be over.
            endpoint.change(now, |_health| ());
            let window = self.windows.entry(key(endpoint)).or_default();
            if endpoint.view().standing.is_out() {
                window.forget();
            } else {
                compared.push((endpoint, window.tick(endpoint.tally())));
            }
        }
        let tallies: Vec<Tally> = compared.iter().map(|(_, tally)| *tally).collect();
        for place in misfits(&tallies) {
            if let Some((endpoint, _)) = compared.get(place) {
                endpoints.eject(endpoint, EjectionReason::SuccessRate, now);
            }
        }
        endpoints.measure(now);
    }
}
