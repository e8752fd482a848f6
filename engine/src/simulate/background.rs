//! The background: who sends what normally. Knows nothing of events.
//!
//! A population is never held in memory. A request's sender is drawn by its rank in a log-normal
//! population ([`Ranks`]); everything about a client follows from its place by hashing, so that the
//! same place is always the same client. Clients live for an hour each, so instances come and go
//! slowly: 1 % of them in 36 s.

use std::net::{IpAddr, Ipv4Addr};

use super::course::{Shape, Tape};
use super::draw::{Alias, Ranks, below, mix, unit};
use super::recorded::{Between, Recorded};
use super::scenario::{Background, Drawn, Draws, RATE_MAX, Scenario};
use super::table::Table;
use super::values::{Mask, ValueId, Values};
use crate::attribute::{AttributeId, Schema, Side};
use crate::request::RequestFacts;
use crate::rules::When;
use crate::traffic::Random;

/// How long a client lives before another takes its place, in seconds.
const LIFE_S: f64 = 3600.0;

/// A client sends one request in so many seconds, in the mean: always of a table, of a described
/// background where it does not say how many `clients` there are.
pub(super) const INTERVAL_S: f64 = 20.0;

/// One client of a population.
#[derive(Clone, Copy, Debug)]
pub(super) struct Client {
    /// Everything about it follows from this.
    pub(super) seed: u64,
    /// Its place in the population; `None` for a stranger.
    pub(super) slot: Option<u32>,
    /// For a table, its combination of values.
    leaf: u32,
}

/// Where a tick stands in the background.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    /// Requests per second.
    pub(super) rate: f64,
    /// Where it stands in the table.
    between: Between,
    /// How many times the table's clients there are: a shape says when there are more of them, each as
    /// usual.
    crowd: f64,
}

/// One attribute that is drawn.
#[derive(Debug)]
struct Attribute {
    id: AttributeId,
    /// Whether a client keeps its value.
    is_kept: bool,
    choices: Vec<(ValueId, f64)>,
    alias: Alias,
}

/// The background.
#[derive(Debug)]
pub(super) struct Mix {
    seed: u64,
    ranks: Ranks,
    clients: u32,
    rate: f64,
    tape: Tape,
    shape: Option<Shape>,
    drawn: Vec<Attribute>,
    recorded: Option<Recorded>,
    /// The events that a request without any of the above fits.
    base: Mask,
}

impl Mix {
    pub(super) fn new(
        scenario: &Scenario,
        schema: &Schema,
        values: &mut Values,
        table: Option<&Table>,
        shape: Option<Shape>,
    ) -> Self {
        let seed = mix(scenario.seed ^ 0xBAC6);
        let mut drawn = Vec::new();
        let mut add = |name: &str, choices: Vec<(String, f64)>, values: &mut Values| {
            let Some(id) = schema.id(name) else { return };
            let weights: Vec<f64> = choices.iter().map(|(_, weight)| *weight).collect();
            let total: f64 = weights.iter().sum();
            drawn.push(Attribute {
                id,
                is_kept: schema.spec(id).is_some_and(|spec| spec.side == Side::Who),
                choices: choices
                    .iter()
                    .map(|(text, weight)| (values.add(id, text), weight / total))
                    .collect(),
                alias: Alias::new(&weights),
            });
        };
        let mut recorded = None;
        let (rate, tape, clients);
        let mut named: Vec<&str> = Vec::new();
        match &scenario.background {
            Background::Drawn(Drawn {
                rate: requests,
                clients: number,
                attributes,
                speed,
                begin,
                ..
            }) => {
                for (name, draws) in attributes {
                    named.push(name);
                    add(name, choices_of(draws), values);
                }
                (rate, clients) = (*requests, *number);
                tape = Tape::new(*speed, *begin);
            }
            Background::Table(spec) => {
                let nothing = Table::default();
                let of = Recorded::new(spec, table.unwrap_or(&nothing), schema, values);
                rate = spec.rate.unwrap_or_else(|| of.mean());
                clients = of.slots();
                tape = Tape::new(spec.speed, spec.begin);
                recorded = Some(of);
            }
        }
        let is_recorded = |id| recorded.as_ref().is_some_and(|of: &Recorded| of.has(id));
        if !named.contains(&"service") && !is_recorded(AttributeId::SERVICE) {
            let services = scenario.services.iter();
            let choices = services.map(|(name, weight)| (name.to_string(), *weight));
            add("service", choices.collect(), values);
        }
        let present =
            |id| is_recorded(id) || drawn.iter().any(|attribute: &Attribute| attribute.id == id);
        let base = values.fits_without(present, schema);
        Self {
            seed,
            ranks: Ranks::new(),
            clients: clients.max(1),
            rate,
            tape,
            shape,
            drawn,
            recorded,
            base,
        }
    }

    /// Returns where `t` seconds of the scenario stand.
    pub(super) fn moment(&self, t: f64) -> Moment {
        let position = self.tape.position(t);
        let mut moment = Moment {
            rate: self.rate,
            between: Between::default(),
            crowd: 1.0,
        };
        if let Some(recorded) = &self.recorded {
            moment.between = recorded.between(position);
            moment.rate = recorded.rate(&moment.between) / recorded.mean() * self.rate;
        }
        if let Some(shape) = &self.shape {
            let recorded = moment.rate;
            moment.rate = self.rate * shape.factor(position);
            moment.crowd = moment.rate / recorded.max(f64::MIN_POSITIVE);
        }
        moment.rate = moment.rate.min(RATE_MAX);
        moment
    }

    /// Draws who sends the next request.
    pub(super) fn client(&self, moment: &Moment, random: &mut Random) -> Client {
        if let Some(recorded) = &self.recorded {
            let (leaf, clients) = recorded.leaf(&moment.between, random.bits(), random.unit());
            let clients = (f64::from(clients) * moment.crowd).max(1.0);
            let rank = self.ranks.sender(clients, random.bits());
            let who = recorded.who(leaf);
            let Some(slot) = recorded.slot(who, rank) else {
                let number = u64::from(who) << 32 | u64::from(rank);
                return Client {
                    seed: mix(self.seed ^ mix(number ^ 0xC03D)),
                    slot: None,
                    leaf,
                };
            };
            return self.at(slot, leaf);
        }
        let slot = self.ranks.sender(f64::from(self.clients), random.bits());
        self.at(slot, 0)
    }

    /// Returns the client at a place.
    pub(super) fn member(&self, slot: u32) -> Client {
        let leaf = self.recorded.as_ref().map_or(0, |of| of.leaf_of_slot(slot));
        self.at(slot, leaf)
    }

    fn at(&self, slot: u32, leaf: u32) -> Client {
        Client {
            seed: mix(self.seed ^ u64::from(slot)),
            slot: Some(slot),
            leaf,
        }
    }

    /// Makes a client of the same kind that is not in the population.
    pub(super) fn stranger(&self, moment: &Moment, seed: u64) -> Client {
        let leaf = self.recorded.as_ref().map_or(0, |recorded| {
            recorded.leaf(&moment.between, mix(seed ^ 0x1EAF), 1.0).0
        });
        Client {
            seed,
            slot: None,
            leaf,
        }
    }

    /// Returns how many places there are.
    pub(super) fn clients(&self) -> u32 {
        self.clients
    }

    /// Returns requests per second of everybody, in the mean, and of one client.
    pub(super) fn usual(&self) -> f64 {
        match &self.recorded {
            Some(_) => 1.0 / INTERVAL_S,
            None => self.rate / f64::from(self.clients),
        }
    }

    /// Gives a request the attributes of its client, and draws those of the request itself. Returns
    /// the events whose source it fits.
    pub(super) fn dress<'a>(
        &'a self,
        values: &'a Values,
        client: &Client,
        random: &mut Random,
        facts: &mut RequestFacts<'a>,
    ) -> Mask {
        let mut mask = self.base;
        for attribute in &self.drawn {
            let bits = if attribute.is_kept {
                mix(client.seed ^ (attribute.id.index() as u64 + 1) << 48)
            } else {
                random.bits()
            };
            let choice = attribute.choices.get(attribute.alias.choose(bits));
            if let Some((value, fits)) = choice.and_then(|(value, _)| values.get(*value)) {
                facts.set_prehashed(attribute.id, value);
                mask &= fits;
            }
        }
        if let Some(recorded) = &self.recorded {
            mask &= recorded.dress(values, client.leaf, facts);
        }
        mask
    }

    /// Returns the share of all normal requests that a condition holds for, judged value by value.
    pub(super) fn share(&self, values: &Values, when: &When) -> f64 {
        let mut facts = RequestFacts::new(values.key(), IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let mut share = 1.0;
        let is_recorded = |id| self.recorded.as_ref().is_some_and(|of| of.has(id));
        for (id, condition) in &when.conditions {
            if id.is_address() {
                const SAMPLED: u32 = 4096;
                let hit = (0..SAMPLED).filter(|at| {
                    let slot = below(mix(u64::from(*at)), self.clients as usize);
                    facts.come_from(address_of(&self.member(slot as u32)));
                    condition.holds(*id, &facts)
                });
                share *= hit.count() as f64 / f64::from(SAMPLED);
            } else if let Some(attribute) = self.drawn.iter().find(|drawn| drawn.id == *id) {
                let mut held = 0.0;
                for (value, weight) in &attribute.choices {
                    if let Some((value, _)) = values.get(*value) {
                        facts.set_prehashed(*id, value);
                        held += weight * f64::from(u8::from(condition.holds(*id, &facts)));
                    }
                }
                facts.unset(*id);
                share *= held;
            } else if !is_recorded(*id) && !condition.holds(*id, &facts) {
                return 0.0;
            }
        }
        let Some(recorded) = &self.recorded else {
            return share;
        };
        let mut held = 0.0;
        for (leaf, weight) in recorded.shares() {
            recorded.dress(values, leaf, &mut facts);
            let of_leaf = when.conditions.iter().filter(|(id, _)| is_recorded(*id));
            let mut of_leaf = of_leaf.map(|(id, condition)| condition.holds(*id, &facts));
            if of_leaf.all(|holds| holds) {
                held += weight;
            }
        }
        share * held
    }
}

fn choices_of(draws: &Draws) -> Vec<(String, f64)> {
    match draws {
        Draws::Weights(weights) => weights
            .iter()
            .map(|(text, weight)| (text.to_string(), *weight))
            .collect(),
        Draws::Zipf {
            values,
            exponent,
            prefix,
        } => (1..=*values)
            .map(|at| (format!("{prefix}{at}"), f64::from(at).powf(-exponent)))
            .collect(),
    }
}

/// Returns the text that stands for a client's device at `t` seconds.
pub(super) fn instance_of(client: &Client, t: f64) -> [u8; 8] {
    if client.slot.is_none() {
        return mix(client.seed ^ 0x1D).to_le_bytes();
    }
    let phase = unit(mix(client.seed ^ 0xA6E));
    let generation = ((t / LIFE_S + phase).floor() as i64) as u64;
    mix(client.seed ^ mix(generation)).to_le_bytes()
}

/// Returns when the device at a client's place began to live, in seconds of the scenario.
pub(super) fn born(client: &Client, t: f64) -> f64 {
    let phase = unit(mix(client.seed ^ 0xA6E));
    ((t / LIFE_S + phase).floor() - phase) * LIFE_S
}

/// Returns a client's address: seven in ten have their own, a quarter share one with three others (a
/// household, an office), and the rest are behind a gateway with some hundred.
pub(super) fn address_of(client: &Client) -> IpAddr {
    let group = match (client.slot, unit(mix(client.seed ^ 0x9A7))) {
        (Some(slot), drawn) if drawn > 0.95 => mix(u64::from(slot % 997) ^ 0x6A7E),
        (Some(slot), drawn) if drawn > 0.7 => mix(u64::from(slot / 13) ^ 0x40_5E),
        _ => mix(client.seed ^ 0xADD8),
    };
    address(group)
}

/// Returns an address for 64 random bits: one of 11.0.0.0 to 186.255.255.255.
pub(super) fn address(bits: u64) -> IpAddr {
    let host = below(bits, 0xB000_0000) as u32;
    IpAddr::V4(Ipv4Addr::from_bits(0x0B00_0000 + host))
}
