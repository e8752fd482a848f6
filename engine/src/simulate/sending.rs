//! The requests of one tick: whose turn it is, and what the request looks like. Knows nothing of what
//! becomes of it.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr};

use super::background::{Client, Mix, Moment, address_of, born, instance_of};
use super::draw::{below, poisson};
use super::load::{Stream, holds};
use super::scenario::{Instances, Kind};
use super::score::Whose;
use super::values::{Mask, Values};
use crate::attribute::AttributeId;
use crate::request::RequestFacts;
use crate::traffic::Random;

/// What the requests of one tick are made from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sending<'a> {
    pub(super) values: &'a Values,
    pub(super) mix: &'a Mix,
    pub(super) streams: &'a [Stream],
    /// Per stream, the places of the background's clients that loop.
    pub(super) members: &'a [HashSet<u32>],
    pub(super) moment: &'a Moment,
    /// The middle of the tick, in seconds of the scenario.
    pub(super) middle: f64,
    /// The surges whose sources' honest users are counted apart.
    pub(super) affected: Mask,
    /// Seconds after which an instance counts as known.
    pub(super) known_after: f64,
}

/// The facts of the requests, used again for each: the background's first, then one per stream, so
/// that attributes which only some of them have need not be taken away again.
pub(super) type Facts<'a> = Vec<RequestFacts<'a>>;

/// How many requests are left to send: the background's first, then each stream's.
#[derive(Debug)]
pub(super) struct Lots {
    left: Vec<usize>,
    all: usize,
}

impl Lots {
    pub(super) fn left(&self) -> usize {
        self.all
    }

    /// Draws whose request is next, each of those left being as likely as another.
    pub(super) fn draw(&mut self, random: &mut Random) -> usize {
        let mut drawn = below(random.bits(), self.all);
        self.all = self.all.saturating_sub(1);
        for (place, left) in self.left.iter_mut().enumerate() {
            if drawn < *left {
                *left -= 1;
                return place;
            }
            drawn -= *left;
        }
        0
    }
}

impl<'a> Sending<'a> {
    /// Makes empty facts.
    pub(super) fn facts(&self) -> Facts<'a> {
        let nowhere = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        (0..=self.streams.len())
            .map(|_| RequestFacts::new(self.values.key(), nowhere))
            .collect()
    }

    /// Draws how many requests come in a tick of so many seconds.
    pub(super) fn lots(&self, seconds: f64, random: &mut Random) -> Lots {
        let rates = self.streams.iter().map(|stream| match stream.event.kind {
            Kind::Rollout => 0.0,
            Kind::Surge | Kind::Crowd => stream.event.rate_at(self.middle),
        });
        let left: Vec<usize> = std::iter::once(self.moment.rate)
            .chain(rates)
            .map(|rate| poisson(rate * seconds, random) as usize)
            .collect();
        Lots {
            all: left.iter().sum(),
            left,
        }
    }

    /// Makes a request of the background, of which a rollout may have moved the client.
    pub(super) fn of_background<'f>(
        &self,
        facts: &'f mut Facts<'a>,
        first_seen: &mut [f32],
        random: &mut Random,
    ) -> (Option<&'f RequestFacts<'a>>, Whose) {
        let client = self.mix.client(self.moment, random);
        let mut mask = 0;
        let mut place = 0;
        if let Some(normal) = facts.first_mut() {
            mask = self.mix.dress(self.values, &client, random, normal);
            let moved = self.streams.iter().position(|stream| {
                stream.event.kind == Kind::Rollout
                    && stream.takes_part(normal)
                    && stream.has_moved(&client, self.middle)
            });
            place = moved.map_or(0, |at| at + 1);
        }
        let Some(facts) = facts.get_mut(place) else {
            return (None, Whose::Normal { mask, known: 0 });
        };
        if let Some(moved) = place.checked_sub(1).and_then(|at| self.streams.get(at)) {
            self.mix.dress(self.values, &client, random, facts);
            moved.convert(self.values, facts);
            mask = self.fitting(facts);
        }
        facts.come_from(address_of(&client));
        facts.set_secret(AttributeId::INSTANCE, &instance_of(&client, self.middle));
        let whose = self.whose(&client, mask, first_seen);
        (Some(facts), whose)
    }

    /// Finds out whom a client of the background counts for.
    fn whose(&self, client: &Client, mask: Mask, first_seen: &mut [f32]) -> Whose {
        let normal = Whose::Normal { mask, known: 0 };
        let Some(slot) = client.slot.filter(|_| mask != 0) else {
            return normal;
        };
        let Some(first) = first_seen.get_mut(slot as usize) else {
            return normal;
        };
        if !first.is_finite() || f64::from(*first) < born(client, self.middle) {
            *first = self.middle as f32;
        }
        if mask & self.affected == 0 {
            return normal;
        }
        let loops = |(stream, members): (&Stream, &HashSet<u32>)| {
            stream.event.instances == Instances::Known
                && stream.event.kind == Kind::Surge
                && members.contains(&slot)
                && stream.event.rate_at(self.middle) > 0.0
        };
        if let Some(at) = self.streams.iter().zip(self.members).position(loops) {
            return Whose::Surge(at);
        }
        let since = f64::from(*first) + self.known_after;
        let mut known = 0;
        for (at, stream) in self.streams.iter().enumerate() {
            if since <= stream.event.from.as_secs_f64() {
                known |= 1 << at;
            }
        }
        Whose::Normal { mask, known }
    }

    /// Makes a request of an event.
    pub(super) fn of_event<'f>(
        &self,
        at: usize,
        facts: &'f mut Facts<'a>,
        random: &mut Random,
    ) -> (Option<&'f RequestFacts<'a>>, Whose) {
        let whose = Whose::Surge(at);
        let (Some(stream), Some(facts)) = (self.streams.get(at), facts.get_mut(at + 1)) else {
            return (None, whose);
        };
        stream.request(
            self.mix,
            self.values,
            self.moment,
            self.middle,
            random,
            facts,
        );
        if stream.event.kind == Kind::Surge {
            return (Some(facts), whose);
        }
        let mask = self.fitting(facts);
        (Some(facts), Whose::Crowd { at, mask })
    }

    /// Returns the surges now affected whose source fits a request.
    fn fitting(&self, facts: &RequestFacts<'_>) -> Mask {
        let mut mask = 0;
        for (at, stream) in self.streams.iter().enumerate() {
            if self.affected & (1 << at) != 0 && holds(&stream.when, facts) {
                mask |= 1 << at;
            }
        }
        mask
    }
}
