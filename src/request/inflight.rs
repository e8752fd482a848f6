//! The requests that a worker is serving, oldest first, per service.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tidegate_engine::time::Instant;

/// What workers publish about requests in flight, for the metrics. One row per worker.
#[derive(Debug)]
pub struct InflightBoard {
    /// By worker and service: requests in flight, and when the oldest began (nanoseconds; 0: none).
    cells: Vec<Vec<(AtomicU64, AtomicU64)>>,
}

impl InflightBoard {
    /// Makes an empty board. The last column is for requests of no service.
    pub fn new(workers: usize, services: usize) -> Arc<Self> {
        let row = || {
            (0..=services)
                .map(|_| (AtomicU64::new(0), AtomicU64::new(0)))
                .collect()
        };
        Arc::new(Self {
            cells: (0..workers).map(|_| row()).collect(),
        })
    }

    /// Returns how many requests of a service are in flight, and when the oldest began.
    pub fn read(&self, service: usize) -> (u64, Option<Instant>) {
        let cells = || self.cells.iter().filter_map(|row| row.get(service));
        let count = cells()
            .map(|(count, _)| count.load(Ordering::Relaxed))
            .sum();
        let oldest = cells().map(|(_, oldest)| oldest.load(Ordering::Relaxed));
        (
            count,
            oldest
                .filter(|nanos| *nanos > 0)
                .min()
                .map(Instant::from_nanos),
        )
    }
}

/// A worker's requests in flight: a list per service, kept in order of arrival, in one slab.
///
/// Memory is that of the most requests ever in flight at once (32 B each).
#[derive(Debug)]
pub(crate) struct Inflight {
    board: Arc<InflightBoard>,
    worker: usize,
    nodes: Vec<Node>,
    free: Option<u32>,
    lists: Vec<List>,
}

/// A request's place, to be given back once.
#[derive(Debug)]
pub(crate) struct Ticket {
    node: u32,
}

#[derive(Debug)]
struct Node {
    began: Instant,
    list: u32,
    before: Option<u32>,
    after: Option<u32>,
}

#[derive(Clone, Debug, Default)]
struct List {
    oldest: Option<u32>,
    newest: Option<u32>,
    count: u64,
}

impl Inflight {
    /// Begins empty.
    pub(crate) fn new(board: Arc<InflightBoard>, worker: usize) -> Self {
        let services = board.cells.get(worker).map_or(1, Vec::len);
        Self {
            board,
            worker,
            nodes: Vec::new(),
            free: None,
            lists: vec![List::default(); services],
        }
    }

    /// Notes a request that begins. A service beyond the last counts as none.
    pub(crate) fn begin(&mut self, service: usize, now: Instant) -> Ticket {
        let at = service.min(self.lists.len() - 1);
        let Some(list) = self.lists.get_mut(at) else {
            return Ticket { node: u32::MAX };
        };
        let node = Node {
            began: now,
            list: at as u32,
            before: list.newest,
            after: None,
        };
        let place = match self.free {
            Some(free) => free,
            None => self.nodes.len() as u32,
        };
        if let Some(slot) = self.nodes.get_mut(place as usize) {
            self.free = slot.after;
            *slot = node;
        } else {
            self.nodes.push(node);
        }
        match list.newest {
            Some(newest) => {
                if let Some(newest) = self.nodes.get_mut(newest as usize) {
                    newest.after = Some(place);
                }
            }
            None => list.oldest = Some(place),
        }
        list.newest = Some(place);
        list.count += 1;
        Ticket { node: place }
    }

    /// Notes that a request ended.
    #[expect(clippy::needless_pass_by_value, reason = "a ticket is given back once")]
    pub(crate) fn end(&mut self, ticket: Ticket) {
        let Some(node) = self.nodes.get_mut(ticket.node as usize) else {
            return;
        };
        let (before, after) = (node.before, node.after);
        node.after = self.free;
        let at = node.list as usize;
        self.free = Some(ticket.node);
        let Some(list) = self.lists.get_mut(at) else {
            return;
        };
        list.count = list.count.saturating_sub(1);
        if list.oldest == Some(ticket.node) {
            list.oldest = after;
        }
        if list.newest == Some(ticket.node) {
            list.newest = before;
        }
        if let Some(before) = before.and_then(|before| self.nodes.get_mut(before as usize)) {
            before.after = after;
        }
        if let Some(after) = after.and_then(|after| self.nodes.get_mut(after as usize)) {
            after.before = before;
        }
    }

    /// Returns how many requests are in flight in all services.
    pub(crate) fn count(&self) -> u64 {
        self.lists.iter().map(|list| list.count).sum()
    }

    /// Publishes the state of all services.
    pub(crate) fn publish(&self) {
        let Some(row) = self.board.cells.get(self.worker) else {
            return;
        };
        for (list, (count, oldest)) in self.lists.iter().zip(row) {
            let node = list
                .oldest
                .and_then(|oldest| self.nodes.get(oldest as usize));
            count.store(list.count, Ordering::Relaxed);
            oldest.store(
                node.map_or(0, |node| node.began.as_nanos()),
                Ordering::Relaxed,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::time::Duration;

    proptest! {
        /// The slow, obvious version: a map by number of arrival.
        #[test]
        fn the_oldest_is_the_oldest(steps in proptest::collection::vec((any::<bool>(), 0_usize..3, any::<usize>()), 0..200)) {
            let board = InflightBoard::new(1, 2);
            let mut inflight = Inflight::new(Arc::clone(&board), 0);
            let mut oracle: BTreeMap<u64, (usize, Ticket)> = BTreeMap::new();
            for (number, (begins, service, pick)) in steps.into_iter().enumerate() {
                let now = Instant::ZERO + Duration::from_nanos(number as u64 + 1);
                if begins || oracle.is_empty() {
                    oracle.insert(number as u64 + 1, (service, inflight.begin(service, now)));
                } else {
                    let key = *oracle.keys().nth(pick % oracle.len()).unwrap();
                    inflight.end(oracle.remove(&key).unwrap().1);
                }
                inflight.publish();
                for service in 0..3 {
                    let mine = || oracle.iter().filter(|(_, (of, _))| *of == service).map(|(at, _)| *at);
                    let (count, oldest) = board.read(service);
                    prop_assert_eq!(count, mine().count() as u64);
                    prop_assert_eq!(oldest.map(Instant::as_nanos), mine().min());
                }
            }
        }
    }
}
