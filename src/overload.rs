//! The process as a whole: requests in flight in all services together, memory, client connections.
//!
//! What is scarce goes to whom it is worth most: services of low priority are shed first, critical ones
//! last, and one address does not take all connections.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tidegate_engine::capacity::{PriorityPlaces, Share};
use tidegate_engine::service::Priority;

use crate::service::Lane;
use crate::settings;

/// All priorities, in the order of their numbers.
const PRIORITIES: [Priority; 4] = [
    Priority::Low,
    Priority::Normal,
    Priority::High,
    Priority::Critical,
];
/// Descriptors that neither clients nor upstreams get: files, operators' connections, checks; and those
/// of each worker, for its listeners and its runtime.
const DESCRIPTORS_RESERVED: usize = 96;
const DESCRIPTORS_OF_WORKER: usize = 16;
/// So many requests are served, and so many connections accepted, however short memory is. An allocator
/// may keep what was freed: where little is in flight, refusing gives nothing back.
const SERVED_ALWAYS: usize = 64;
const CONNECTED_ALWAYS: usize = 256;
/// By how much memory must fall below a step before it counts as left, in percent of the ceiling.
const STEP_DOWN_PERCENT: u64 = 5;

/// How short memory is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Pressure {
    /// It is not.
    #[default]
    None,
    /// From 80 % of the ceiling on: low priority and large bodies are shed.
    Some,
    /// From 90 % on: normal priority, too, and no connection is accepted.
    High,
    /// From 95 % on: only critical services are served.
    Severe,
}

const STEPS: [(Pressure, u64); 3] = [
    (Pressure::Severe, 95),
    (Pressure::High, 90),
    (Pressure::Some, 80),
];

impl Pressure {
    /// Judges resident memory against the ceiling, both in bytes. `before` is what was judged last: a
    /// step is left only somewhat below where it was entered.
    pub fn of(resident: u64, ceiling: u64, before: Self) -> Self {
        let percent = resident.saturating_mul(100) / ceiling.max(1);
        let is_on = |(step, from): &&(Self, u64)| {
            let slack = if before >= *step {
                STEP_DOWN_PERCENT
            } else {
                0
            };
            percent >= from - slack
        };
        STEPS
            .iter()
            .find(is_on)
            .map_or(Self::None, |(step, _)| *step)
    }

    fn from_number(number: u8) -> Self {
        match number {
            0 => Self::None,
            1 => Self::Some,
            2 => Self::High,
            _ => Self::Severe,
        }
    }

    /// Returns whether requests of this priority and lane are shed.
    fn sheds(self, priority: Priority, lane: Lane) -> bool {
        match self {
            Self::None => false,
            _ if lane == Lane::Large => true,
            Self::Some => priority <= Priority::Low,
            Self::High => priority <= Priority::Normal,
            Self::Severe => priority <= Priority::High,
        }
    }
}

/// Why a request is not served though its service may have a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scarce {
    /// So many are in flight that requests of its priority have to wait for better times.
    Inflight,
    /// Memory is short.
    Memory,
}

/// Why a connection is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Crowded {
    /// There are as many as there may be.
    Total,
    /// Its address has as many as it may have.
    Address,
    /// Memory is short.
    Memory,
}

impl Crowded {
    /// Returns the word for it in metrics.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Total => "total",
            Self::Address => "address",
            Self::Memory => "memory",
        }
    }
}

/// What all workers share of the process as a whole.
#[derive(Debug)]
pub struct Overload {
    inflight: AtomicUsize,
    inflight_max: AtomicUsize,
    /// What each priority may fill of the places of the process, from low to critical.
    places: [SharedShare; PRIORITIES.len()],
    pressure: AtomicU8,
    connections: AtomicUsize,
    connections_max: AtomicUsize,
    connections_per_address: AtomicUsize,
    /// As many entries as there are connections, at most. Locked when one begins or ends.
    addresses: Mutex<HashMap<IpAddr, usize>>,
    /// Connections to upstreams, those that are being made included, and what there may be.
    upstreams: AtomicUsize,
    upstream_share: SharedShare,
    descriptors: Descriptors,
}

/// A [`Share`] that is changed while it is read; for a moment a part of it may be of before.
#[derive(Debug, Default)]
struct SharedShare {
    whole: AtomicUsize,
    open: AtomicUsize,
    equal: AtomicUsize,
}

impl SharedShare {
    fn store(&self, share: Share) {
        self.whole.store(share.whole, Ordering::Relaxed);
        self.open.store(share.open, Ordering::Relaxed);
        self.equal.store(share.equal, Ordering::Relaxed);
    }

    fn load(&self) -> Share {
        Share {
            whole: self.whole.load(Ordering::Relaxed),
            open: self.open.load(Ordering::Relaxed),
            equal: self.equal.load(Ordering::Relaxed),
        }
    }
}

/// Who may have how many of the descriptors of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Descriptors {
    clients: usize,
    upstreams: usize,
}

impl Descriptors {
    /// Divides so many. A third of what is not reserved is for upstreams: most client connections are
    /// idle at any time.
    fn divide(all: usize, workers: usize) -> Self {
        let reserved = DESCRIPTORS_RESERVED + workers * DESCRIPTORS_OF_WORKER;
        let rest = all - reserved.min(all / 2);
        let clients = (rest * 2 / 3).max(1);
        Self {
            clients,
            upstreams: rest.saturating_sub(clients).max(1),
        }
    }
}

impl Overload {
    /// Begins with nothing in flight and room for nothing, until settings say more. `descriptors` are
    /// those that the process may open, with so many workers.
    pub fn new(descriptors: usize, workers: usize) -> Arc<Self> {
        Arc::new(Self {
            inflight: AtomicUsize::new(0),
            inflight_max: AtomicUsize::new(0),
            places: std::array::from_fn(|_| SharedShare::default()),
            pressure: AtomicU8::new(0),
            connections: AtomicUsize::new(0),
            connections_max: AtomicUsize::new(0),
            connections_per_address: AtomicUsize::new(0),
            addresses: Mutex::default(),
            upstreams: AtomicUsize::new(0),
            upstream_share: SharedShare::default(),
            descriptors: Descriptors::divide(descriptors, workers),
        })
    }

    /// Takes settings over, with the priorities of all services and how many upstreams there are. What is
    /// in flight stays.
    pub fn change_to(
        &self,
        settings: &settings::Overload,
        priorities: &[Priority],
        upstreams: usize,
    ) {
        let store = |to: &AtomicUsize, value| to.store(value, Ordering::Relaxed);
        let places = PriorityPlaces::of(settings.inflight_max, priorities);
        for (priority, of_it) in PRIORITIES.into_iter().zip(&self.places) {
            of_it.store(places.of_priority(priority));
        }
        let share = Share::of(self.descriptors.upstreams, upstreams);
        self.upstream_share.store(share);
        store(&self.inflight_max, settings.inflight_max);
        store(
            &self.connections_max,
            settings.connections_max.min(self.descriptors.clients),
        );
        store(
            &self.connections_per_address,
            settings.connections_per_address,
        );
    }

    /// Says how short memory is.
    pub fn set_pressure(&self, pressure: Pressure) {
        self.pressure.store(pressure as u8, Ordering::Relaxed);
    }

    /// Returns how short memory is.
    pub fn pressure(&self) -> Pressure {
        Pressure::from_number(self.pressure.load(Ordering::Relaxed))
    }

    /// Returns how many requests are in flight, those that wait for a place included, and how many may
    /// be.
    pub fn inflight(&self) -> (usize, usize) {
        let load = |from: &AtomicUsize| from.load(Ordering::Relaxed);
        (load(&self.inflight), load(&self.inflight_max))
    }

    /// Returns how many client connections there may be.
    pub fn connections_max(&self) -> usize {
        self.connections_max.load(Ordering::Relaxed)
    }

    /// Takes a request in, to be ended with [`Self::leave`]. Where few places are left it is asked how
    /// many its service has already.
    pub(crate) fn enter(
        &self,
        priority: Priority,
        lane: Lane,
        own: impl FnOnce() -> usize,
    ) -> Result<(), Scarce> {
        let before = self.inflight.fetch_add(1, Ordering::Relaxed);
        if before >= SERVED_ALWAYS && self.pressure().sheds(priority, lane) {
            self.leave();
            return Err(Scarce::Memory);
        }
        let places = self.places.get(priority as usize);
        if places.is_some_and(|places| places.load().admits(before, own)) {
            return Ok(());
        }
        self.leave();
        Err(Scarce::Inflight)
    }

    /// Returns whether memory is too short for a request that is in already and turns out to be of this
    /// lane.
    pub(crate) fn sheds(&self, priority: Priority, lane: Lane) -> bool {
        self.inflight.load(Ordering::Relaxed) > SERVED_ALWAYS
            && self.pressure().sheds(priority, lane)
    }

    /// Ends a request that was taken in.
    pub(crate) fn leave(&self) {
        self.inflight.fetch_sub(1, Ordering::Relaxed);
    }

    /// Takes one of the descriptors that are for upstreams, for one that has `own` already. `None`: all
    /// are taken, as far as they are not kept for others; what is reserved is for listeners, files and
    /// operators.
    pub(crate) fn open_upstream(
        self: &Arc<Self>,
        own: impl FnOnce() -> usize,
    ) -> Option<UpstreamPlace> {
        let place = UpstreamPlace(Arc::clone(self));
        let before = self.upstreams.fetch_add(1, Ordering::Relaxed);
        let share = self.upstream_share.load();
        share.admits(before, own).then_some(place)
    }

    /// Takes a client's connection in. One of the operator's own proxies, which many clients share, is
    /// bound by the total alone.
    pub(crate) fn connect(
        self: &Arc<Self>,
        address: IpAddr,
        is_trusted: bool,
    ) -> Result<ConnectionPlace, Crowded> {
        let before = self.connections.fetch_add(1, Ordering::Relaxed);
        let why = match () {
            () if before >= self.connections_max() => Some(Crowded::Total),
            () if before < CONNECTED_ALWAYS => None,
            () => (self.pressure() >= Pressure::High).then_some(Crowded::Memory),
        };
        if let Some(why) = why {
            self.connections.fetch_sub(1, Ordering::Relaxed);
            return Err(why);
        }
        let mut place = ConnectionPlace {
            overload: Arc::clone(self),
            address: None,
        };
        if !is_trusted {
            let address = who_counts(address);
            let max = self.connections_per_address.load(Ordering::Relaxed);
            let mut addresses = self.addresses.lock();
            let count = addresses.entry(address).or_default();
            if *count >= max {
                return Err(Crowded::Address);
            }
            *count += 1;
            drop(addresses);
            place.address = Some(address);
        }
        Ok(place)
    }
}

/// A connection to an upstream, as long as it lives.
#[derive(Debug)]
pub(crate) struct UpstreamPlace(Arc<Overload>);

impl Drop for UpstreamPlace {
    fn drop(&mut self) {
        self.0.upstreams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A client's connection, as long as it lives.
#[derive(Debug)]
pub(crate) struct ConnectionPlace {
    overload: Arc<Overload>,
    /// The address against which it counts.
    address: Option<IpAddr>,
}

impl Drop for ConnectionPlace {
    fn drop(&mut self) {
        self.overload.connections.fetch_sub(1, Ordering::Relaxed);
        let Some(address) = self.address else { return };
        let mut addresses = self.overload.addresses.lock();
        if let Entry::Occupied(mut count) = addresses.entry(address) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

/// Returns whose connections count together: an IPv6 client has its /64.
fn who_counts(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => {
            let network = u128::from(address) & (u128::MAX << 64);
            IpAddr::V6(Ipv6Addr::from(network))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overload(settings: settings::Overload) -> Arc<Overload> {
        let overload = Overload::new(100_000, 2);
        overload.change_to(&settings, &PRIORITIES, 3);
        overload
    }

    fn enter(overload: &Overload, priority: Priority, lane: Lane) -> Result<(), Scarce> {
        overload.enter(priority, lane, || 0)
    }

    #[test]
    fn low_priority_is_shed_first_and_critical_last() {
        let overload = overload(settings::Overload {
            inflight_max: 10,
            ..settings::Overload::default()
        });
        let mut in_flight = 0;
        for (priority, most) in PRIORITIES.into_iter().zip([7, 8, 9, 10]) {
            while enter(&overload, priority, Lane::Normal).is_ok() {
                in_flight += 1;
            }
            assert_eq!(in_flight, most, "{priority:?}");
        }
        assert_eq!(
            enter(&overload, Priority::Critical, Lane::Normal),
            Err(Scarce::Inflight)
        );
        assert_eq!(overload.inflight(), (10, 10), "refusals leave no trace");
        for _ in 0..3 {
            overload.leave();
        }
        assert_eq!(
            enter(&overload, Priority::Low, Lane::Normal),
            Err(Scarce::Inflight)
        );
        assert_eq!(enter(&overload, Priority::Normal, Lane::Normal), Ok(()));
    }

    #[test]
    fn memory_steps_are_entered_at_once_and_left_with_slack() {
        let of = |percent, before| Pressure::of(percent, 100, before);
        assert_eq!(of(79, Pressure::None), Pressure::None);
        assert_eq!(of(80, Pressure::None), Pressure::Some);
        assert_eq!(of(96, Pressure::None), Pressure::Severe);
        assert_eq!(of(91, Pressure::Severe), Pressure::Severe);
        assert_eq!(of(89, Pressure::Severe), Pressure::High);
        assert_eq!(of(76, Pressure::Some), Pressure::Some);
        assert_eq!(of(74, Pressure::Some), Pressure::None);
        let overload = overload(settings::Overload::default());
        overload.set_pressure(Pressure::High);
        let connect = || overload.connect(IpAddr::from([192, 0, 2, 1]), true);
        let held: Vec<_> = (0..CONNECTED_ALWAYS).map(|_| connect().unwrap()).collect();
        assert_eq!(connect().unwrap_err(), Crowded::Memory);
        drop(held);
        for _ in 0..SERVED_ALWAYS {
            assert_eq!(enter(&overload, Priority::Low, Lane::Large), Ok(()));
        }
        assert_eq!(
            enter(&overload, Priority::High, Lane::Large),
            Err(Scarce::Memory)
        );
        assert_eq!(
            enter(&overload, Priority::Normal, Lane::Normal),
            Err(Scarce::Memory)
        );
        assert_eq!(enter(&overload, Priority::High, Lane::Normal), Ok(()));
    }

    #[test]
    fn one_address_does_not_take_all_connections() {
        let overload = overload(settings::Overload {
            connections_max: 3,
            connections_per_address: 2,
            ..settings::Overload::default()
        });
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let first = overload.connect(ip("2001:db8::1"), false).unwrap();
        let _second = overload.connect(ip("2001:db8::2"), false).unwrap();
        let same = overload.connect(ip("2001:db8::3"), false);
        assert_eq!(same.unwrap_err(), Crowded::Address);
        let _other = overload.connect(ip("192.0.2.1"), false).unwrap();
        let one_more = overload.connect(ip("192.0.2.2"), true);
        assert_eq!(one_more.unwrap_err(), Crowded::Total);
        drop(first);
        let _proxy = overload.connect(ip("2001:db8::4"), true).unwrap();
        assert_eq!(overload.addresses.lock().len(), 2);
    }

    #[test]
    fn few_descriptors_mean_few_clients() {
        let of = |all, workers| {
            let Descriptors { clients, upstreams } = Descriptors::divide(all, workers);
            (clients, upstreams)
        };
        assert_eq!(of(64, 2), (21, 11));
        assert_eq!(of(256, 2), (85, 43));
        assert_eq!(of(1024, 2), (597, 299));
        assert_eq!(
            of(1024, 64),
            (341, 171),
            "more workers need more themselves"
        );
        assert_eq!(of(0, 1), (1, 1));
    }

    #[test]
    fn one_service_leaves_places_and_descriptors_to_the_others() {
        let overload = overload(settings::Overload {
            inflight_max: 100,
            ..settings::Overload::default()
        });
        let stalled = (0..200).take_while(|have| {
            let entered = overload.enter(Priority::Low, Lane::Normal, || *have);
            entered.is_ok()
        });
        assert_eq!(stalled.count(), 53, "of 70");
        for _ in 53..70 {
            assert_eq!(enter(&overload, Priority::Low, Lane::Normal), Ok(()));
        }
        let few = Overload::new(1024, 2);
        few.change_to(&settings::Overload::default(), &PRIORITIES, 3);
        let connections = (0..400).map_while(|have| few.open_upstream(|| have));
        let held: Vec<UpstreamPlace> = connections.collect();
        assert_eq!(held.len(), 225, "of 299");
        assert!(few.open_upstream(|| 0).is_some());
    }
}
