//! The endpoints of one upstream, shared by all workers and the control side: who there is, who is to
//! be asked, and whether it makes sense to ask at all. Knows nothing of connections.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tidegate_engine::time::Instant;
use tokio::sync::Notify;

use super::breaker::{Breaker, Permit};
use super::endpoint::{Endpoint, Generation};
use super::health::{Health, Standing};
use super::retry_budget::RetryBudget;
use super::series::{EjectionReason, Series};
use super::tls::{TlsClient, TlsError};
use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::settings::{Ejection, Upstream as UpstreamSpec};

/// The most addresses of one name that are used. An endpoint is about 300 B here and as much in each
/// worker.
const ADDRESSES_MAX: usize = 64;
/// So many connections in a row must fail at each endpoint before nobody connects any more.
const CONNECT_FAILURES_MIN: u32 = 3;
/// While answers come, connections that take too long do not mean that nobody is there.
const ANSWERED_LATELY: Duration = Duration::from_secs(1);

/// The endpoints of one upstream.
#[derive(Debug)]
pub struct Endpoints {
    /// What the operator wants.
    pub(crate) spec: UpstreamSpec,
    pub(crate) clock: Clock,
    /// How TLS is spoken to them, if it is.
    pub(crate) tls: Option<TlsClient>,
    /// All series that tell of them.
    pub(crate) series: Series,
    list: ArcSwap<Vec<Arc<Endpoint>>>,
    /// Rises with each new list, and when an endpoint's standing changes; also with those of settings
    /// before, whose endpoints these may be.
    generation: Generation,
    /// The addresses of each name, as they were found last.
    names: Mutex<HashMap<Arc<str>, Vec<SocketAddr>>>,
    found: Notify,
    breaker: Breaker,
    retries: Mutex<RetryBudget>,
    /// Held while it is decided whether one more may be out.
    ejecting: Mutex<()>,
    /// When a worker last told of an answer, in nanoseconds.
    answered: AtomicU64,
    /// Whether any endpoint ever passed a check: one that nobody passes is itself wrong.
    is_check_believed: AtomicBool,
}

impl Endpoints {
    /// Reads what is needed to speak TLS, where TLS is to be spoken.
    ///
    /// # Errors
    ///
    /// What [`Self::open`] would say.
    pub fn try_tls(spec: &UpstreamSpec) -> Result<(), TlsError> {
        spec.tls.as_ref().map(TlsClient::new).transpose().map(drop)
    }

    /// Begins with the endpoints whose address is known. What `before` knows of an endpoint that is
    /// still the same stays known.
    ///
    /// # Errors
    ///
    /// The authorities that are to be believed cannot be read.
    pub fn open(
        spec: UpstreamSpec,
        before: Option<&Self>,
        metrics: &Metrics,
        clock: Clock,
    ) -> Result<Arc<Self>, TlsError> {
        let tls = spec.tls.as_ref().map(TlsClient::new).transpose()?;
        let series = Series::new(metrics, &spec.name);
        series.breaker_open.set(0);
        let mut known = before.map_or_else(HashMap::new, |before| before.names.lock().clone());
        known.retain(|name, _| spec.endpoints.iter().any(|place| place.address == *name));
        let is_check_believed = before.is_some_and(|before| {
            before.spec.health == spec.health && before.is_check_believed.load(Ordering::Relaxed)
        });
        let generation = before.map(|before| before.generation.clone());
        let generation = generation.unwrap_or_default();
        let endpoints = Self {
            spec,
            clock,
            tls,
            series,
            list: ArcSwap::default(),
            generation,
            names: Mutex::new(known),
            found: Notify::new(),
            breaker: Breaker::default(),
            retries: Mutex::default(),
            ejecting: Mutex::default(),
            answered: AtomicU64::new(0),
            is_check_believed: AtomicBool::new(is_check_believed),
        };
        let known = before.map(Self::list).unwrap_or_default();
        endpoints.renew(&known, Instant::ZERO);
        Ok(Arc::new(endpoints))
    }

    /// Returns the endpoints.
    pub(crate) fn list(&self) -> Arc<Vec<Arc<Endpoint>>> {
        self.list.load_full()
    }

    /// Returns a number that rises when the endpoints change, or whether requests go there.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.get()
    }

    /// Returns the endpoints that are names, not addresses.
    pub(crate) fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        let all = self.spec.endpoints.iter().map(|place| &place.address);
        all.filter(|address| address.parse::<SocketAddr>().is_err())
    }

    /// Takes the addresses that a name has now. None keeps those it had: a name server that knows
    /// nothing for a moment must not take everything away.
    pub(crate) fn resolved(&self, name: &Arc<str>, mut addresses: Vec<SocketAddr>, now: Instant) {
        addresses.sort_unstable();
        addresses.dedup();
        if addresses.len() > ADDRESSES_MAX {
            tracing::warn!(
                upstream = %self.spec.name, %name, found = addresses.len(),
                "the name has more than {ADDRESSES_MAX} addresses; the others are not used"
            );
            addresses.truncate(ADDRESSES_MAX);
        }
        let before = {
            let mut names = self.names.lock();
            if addresses.is_empty() || names.get(name) == Some(&addresses) {
                return;
            }
            tracing::info!(upstream = %self.spec.name, %name, ?addresses, "the name was resolved");
            names.insert(Arc::clone(name), addresses)
        };
        // Those that were found first are not new: there was nobody else before.
        let since = if before.is_some() { now } else { Instant::ZERO };
        self.renew(&self.list(), since);
        self.found.notify_waiters();
    }

    /// Makes the list anew; who was there stays the same, who is new came at `since`.
    fn renew(&self, known: &[Arc<Endpoint>], since: Instant) {
        let names = self.names.lock();
        let mut list = Vec::new();
        for place in &self.spec.endpoints {
            let own = place.address.parse().ok().map(|address| vec![address]);
            let addresses = own.as_ref().or_else(|| names.get(&place.address));
            for address in addresses.into_iter().flatten() {
                let same = known
                    .iter()
                    .find(|one| one.address == *address && one.name == place.address);
                list.push(match same {
                    Some(same) if same.weight == place.weight => Arc::clone(same),
                    Some(same) => Arc::new(same.weighing(place.weight)),
                    None => {
                        let name = Arc::clone(&place.address);
                        let generation = self.generation.clone();
                        let endpoint =
                            Endpoint::new(name, *address, place.weight, since, generation);
                        Arc::new(endpoint)
                    }
                });
            }
        }
        self.list.store(Arc::new(list));
        self.generation.rise();
        drop(names);
        self.measure(self.clock.now());
    }

    /// Waits until there is an endpoint, as it is at the start when all are names.
    pub(crate) async fn wait_for_any(&self) {
        loop {
            let mut found = std::pin::pin!(self.found.notified());
            found.as_mut().enable();
            if !self.list.load().is_empty() {
                return;
            }
            found.await;
        }
    }

    /// Asks whether a connection may be made.
    pub(crate) fn permit(&self) -> Permit {
        self.breaker.permit(|| self.clock.now())
    }

    /// Notes that an attempt ended without telling anything.
    pub(crate) fn give_permit_back(&self) {
        self.breaker.give_back(self.clock.now());
    }

    /// Notes that an attempt to find out failed at every endpoint it tried.
    pub(crate) fn still_unreachable(&self, jitter: f64) {
        self.breaker.open(jitter, self.clock.now());
    }

    /// Notes that a connection was made.
    pub(crate) fn connected(&self, endpoint: &Endpoint) {
        if endpoint.view().is_troubled {
            endpoint.change(self.clock.now(), Health::connected);
        }
        if self.breaker.close() {
            tracing::info!(upstream = %self.spec.name, "the upstream can be reached again");
            self.series.breaker_open.set(0);
        }
    }

    /// Notes that a connection could not be made. `is_certain`: nobody is there, or not the right
    /// one; otherwise it may be that the network or the endpoint was busy.
    pub(crate) fn connect_failed(&self, endpoint: &Endpoint, is_certain: bool, jitter: f64) {
        let now = self.clock.now();
        endpoint.change(now, |health| health.connect_failed(now));
        self.consider(endpoint, now);
        let failures = |one: &Endpoint| one.look(Health::connect_failures_in_a_row);
        if failures(endpoint) < CONNECT_FAILURES_MIN || self.breaker.is_open() {
            return;
        }
        let list = self.list.load();
        let mut asked = list.iter().filter(|one| !one.view().fails_checks);
        let all_fail = asked.all(|one| failures(one) >= CONNECT_FAILURES_MIN);
        let answered = Instant::from_nanos(self.answered.load(Ordering::Relaxed));
        if all_fail
            && (is_certain || now.since(answered) > ANSWERED_LATELY)
            && self.breaker.open(jitter, now)
        {
            self.series.breaker_open.set(1);
            tracing::error!(
                upstream = %self.spec.name,
                "no endpoint can be reached; requests are answered 503 until one can, which is tried once a second"
            );
        }
    }

    /// Notes that an endpoint gave no answer to a request.
    pub(crate) fn failed(&self, endpoint: &Endpoint) {
        let now = self.clock.now();
        endpoint.change(now, |health| health.failed(now));
        self.consider(endpoint, now);
    }

    /// Notes an answer from an endpoint that is troubled. For a probe it must be a good one.
    pub(crate) fn answered(&self, endpoint: &Endpoint, is_good: bool) {
        let now = self.clock.now();
        let is_back = endpoint.change(now, |health| {
            if health.standing() == Standing::Probing && !is_good {
                health.failed(now);
                return false;
            }
            health.answered(now)
        });
        if is_back {
            self.tell(
                endpoint,
                "an endpoint answers again; its share grows slowly",
            );
            self.measure(now);
        }
    }

    /// Takes an endpoint out that failed too often in a row.
    fn consider(&self, endpoint: &Endpoint, now: Instant) {
        let failures = endpoint.look(Health::failures_in_a_row);
        let Some(rules) = self.spec.ejection else {
            return;
        };
        if failures >= rules.consecutive_failures {
            self.eject(endpoint, EjectionReason::ConsecutiveFailures, now);
        }
    }

    /// Takes an endpoint out unless it is out or too many are. Returns whether it did.
    pub(crate) fn eject(&self, endpoint: &Endpoint, reason: EjectionReason, now: Instant) -> bool {
        let Some(rules) = self.spec.ejection else {
            return false;
        };
        let _one_at_a_time = self.ejecting.lock();
        let list = self.list.load();
        let out = list
            .iter()
            .filter(|one| one.view().standing.is_out())
            .count();
        if endpoint.view().standing.is_out() || out >= most_out(rules, list.len()) {
            return false;
        }
        endpoint.change(now, |health| health.eject(now));
        self.series.ejected(reason);
        self.tell(endpoint, "an endpoint is left out, for it fails requests");
        self.measure(now);
        true
    }

    /// Notes a health check.
    pub(crate) fn checked(&self, endpoint: &Endpoint, fault: Option<&str>, now: Instant) {
        let passed = fault.is_none();
        if passed {
            self.is_check_believed.store(true, Ordering::Relaxed);
        }
        let believed = self.is_check_believed.load(Ordering::Relaxed);
        let changed = endpoint.change(now, |health| health.checked(passed, believed, now));
        if !changed {
            return;
        }
        match fault {
            None => self.tell(endpoint, "an endpoint passes its health check again"),
            Some(fault) => {
                self.series.ejected(EjectionReason::HealthCheck);
                tracing::warn!(
                    upstream = %self.spec.name, endpoint = %endpoint.address, fault,
                    "an endpoint fails its health check and is left out"
                );
            }
        }
        self.measure(now);
    }

    /// Takes what a worker has counted: requests that were sent, and whether answers came.
    pub(crate) fn count(&self, sent: u64, answers: bool) {
        let now = self.clock.now();
        if sent > 0 {
            self.retries.lock().sent(sent, now);
        }
        if answers {
            self.answered.store(now.as_nanos(), Ordering::Relaxed);
        }
    }

    /// Spends one retry of a request that may have been worked on. False: there is none left.
    pub(crate) fn spend_retry(&self) -> bool {
        let may = self.retries.lock().spend(self.clock.now());
        if !may {
            self.series.retries_denied.inc();
        }
        may
    }

    /// Brings the series up to date.
    pub(crate) fn measure(&self, now: Instant) {
        self.series.endpoints(&self.list.load(), now);
    }

    fn tell(&self, endpoint: &Endpoint, what: &str) {
        tracing::info!(
            upstream = %self.spec.name, endpoint = %endpoint.address, name = %endpoint.name, "{what}"
        );
    }
}

/// Returns how many of so many may be out: the share that the settings allow, at least one where
/// there are several, and never all.
fn most_out(rules: Ejection, endpoints: usize) -> usize {
    let share = (endpoints as f64 * rules.max_ejected) as usize;
    share.max(1).min(endpoints.saturating_sub(1))
}

#[cfg(test)]
mod tests;
