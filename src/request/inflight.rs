//! The requests that a worker is serving in one service, oldest first.

use tidegate_engine::time::Instant;

/// A worker's requests in flight, a list in order of arrival, in a slab.
///
/// Memory is that of the most requests ever in flight at once (32 B each).
#[derive(Debug, Default)]
pub(crate) struct Inflight {
    nodes: Vec<Node>,
    free: Option<u32>,
    oldest: Option<u32>,
    newest: Option<u32>,
    count: u64,
}

/// A request's place, to be given back once.
#[derive(Debug)]
pub(crate) struct Ticket {
    node: u32,
}

#[derive(Debug)]
struct Node {
    began: Instant,
    before: Option<u32>,
    after: Option<u32>,
}

impl Inflight {
    /// Notes a request that begins.
    pub(crate) fn begin(&mut self, now: Instant) -> Ticket {
        let node = Node {
            began: now,
            before: self.newest,
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
        match self.newest {
            Some(newest) => {
                if let Some(newest) = self.nodes.get_mut(newest as usize) {
                    newest.after = Some(place);
                }
            }
            None => self.oldest = Some(place),
        }
        self.newest = Some(place);
        self.count += 1;
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
        self.free = Some(ticket.node);
        self.count = self.count.saturating_sub(1);
        if self.oldest == Some(ticket.node) {
            self.oldest = after;
        }
        if self.newest == Some(ticket.node) {
            self.newest = before;
        }
        if let Some(before) = before.and_then(|before| self.nodes.get_mut(before as usize)) {
            before.after = after;
        }
        if let Some(after) = after.and_then(|after| self.nodes.get_mut(after as usize)) {
            after.before = before;
        }
    }

    /// Returns how many requests are in flight.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Returns when the oldest of them began.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        let oldest = self.nodes.get(self.oldest? as usize)?;
        Some(oldest.began)
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
        fn the_oldest_is_the_oldest(steps in proptest::collection::vec((any::<bool>(), any::<usize>()), 0..200)) {
            let mut inflight = Inflight::default();
            let mut oracle: BTreeMap<u64, Ticket> = BTreeMap::new();
            for (number, (begins, pick)) in steps.into_iter().enumerate() {
                let now = Instant::ZERO + Duration::from_nanos(number as u64 + 1);
                if begins || oracle.is_empty() {
                    oracle.insert(number as u64 + 1, inflight.begin(now));
                } else {
                    let key = *oracle.keys().nth(pick % oracle.len()).unwrap();
                    inflight.end(oracle.remove(&key).unwrap());
                }
                prop_assert_eq!(inflight.count(), oracle.len() as u64);
                prop_assert_eq!(inflight.oldest().map(Instant::as_nanos), oracle.keys().next().copied());
            }
        }
    }
}
