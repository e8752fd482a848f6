//! One worker's seats at all endpoints of an upstream: which of them the next request takes.

use std::rc::Rc;
use std::sync::Arc;

use tidegate_engine::time::Instant;

use super::Endpoints;
use super::balance::Lots;
use super::endpoint::Endpoint;
use super::seat::{Seat, Stay};

/// One worker's seats at all endpoints of an upstream.
#[derive(Debug, Default)]
pub(super) struct Seats {
    list: Vec<Rc<Seat>>,
    /// Of which state of the endpoints they are.
    generation: Option<u64>,
    lots: Lots,
    /// Whether the lots are right until the next generation: none changes with the time alone, and nobody
    /// is left out because he was tried.
    has_lasting_lots: bool,
}

impl Seats {
    /// Returns how many there are.
    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    /// Chooses an endpoint that was not tried; those that are out only where nobody else is left, or
    /// where more are out than in.
    pub(super) fn choose(
        &mut self,
        endpoints: &Endpoints,
        tried: &[Arc<Endpoint>],
        random: impl FnOnce() -> u64,
    ) -> Option<Stay> {
        self.renew(endpoints);
        if !self.has_lasting_lots || !tried.is_empty() {
            let now = endpoints.clock.now();
            let probe = self.list.iter().find(|seat| {
                may_be_asked(seat, tried)
                    && seat.endpoint.view().standing.is_due(now)
                    && seat.endpoint.change(now, |health| health.claim_probe(now))
            });
            if let Some(seat) = probe {
                return Some(Stay::begin(seat, true));
            }
            self.make_lots(tried, now);
        }
        let seat = |place: usize| self.list.get(place);
        let load = |place| seat(place).map_or(0, |seat| seat.in_flight());
        let picked = self.lots.pick(random, load)?;
        seat(picked).map(|seat| Stay::begin(seat, false))
    }

    fn make_lots(&mut self, tried: &[Arc<Endpoint>], now: Instant) {
        let list = &self.list;
        let is_out = |seat: &Seat| seat.endpoint.view().standing.is_out();
        let checked = || {
            let seats = list.iter();
            seats.filter(|seat| !seat.endpoint.view().fails_checks)
        };
        let most_are_out = checked().filter(|seat| is_out(seat)).count() * 2 > checked().count();
        let mut weigh = |is_anybody_welcome: bool| {
            self.lots.renew(list.iter().map(|seat| {
                let standing = seat.endpoint.view().standing;
                let share = match () {
                    () if !may_be_asked(seat, tried) => 0.0,
                    () if is_anybody_welcome && standing.is_out() => 1.0,
                    () => standing.share(now),
                };
                share * f64::from(seat.endpoint.weight)
            }));
            !self.lots.is_blank()
        };
        if !weigh(most_are_out) {
            weigh(true);
        }
        self.has_lasting_lots =
            tried.is_empty() && list.iter().all(|seat| seat.endpoint.view().is_lasting());
    }

    /// Brings the seats up to date with the endpoints. Connections to endpoints that are no more end
    /// with what is under way on them.
    fn renew(&mut self, endpoints: &Endpoints) {
        let generation = Some(endpoints.generation());
        if self.generation == generation {
            return;
        }
        let list = endpoints.list();
        let renewed = list.iter().map(|endpoint| {
            let mut seats = self.list.iter();
            let same = seats.find(|seat| Arc::ptr_eq(&seat.endpoint, endpoint));
            match same {
                Some(seat) => Rc::clone(seat),
                None => Seat::new(Arc::clone(endpoint), endpoints.clock),
            }
        });
        self.list = renewed.collect();
        self.generation = generation;
        self.has_lasting_lots = false;
    }

    /// Closes connections that were not used for a while, and tells everybody what was counted. Returns
    /// whether answers came.
    pub(super) fn sweep(&mut self, endpoints: &Endpoints, now: tokio::time::Instant) -> bool {
        self.renew(endpoints);
        let mut answers = false;
        for seat in &self.list {
            answers |= seat.sweep(now);
        }
        answers
    }
}

fn may_be_asked(seat: &Seat, tried: &[Arc<Endpoint>]) -> bool {
    let is_tried = tried.iter().any(|one| Arc::ptr_eq(one, &seat.endpoint));
    !is_tried && !seat.endpoint.view().fails_checks
}
