//! What events send: surges and crowds as streams of their own, rollouts as a change of clients.

use std::borrow::Cow;
use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::background::{Client, Mix, Moment, address, address_of, instance_of};
use super::draw::{Ranks, below, mix, unit};
use super::scenario::{Event, Instances, Kind};
use super::values::{ValueId, Values};
use crate::attribute::{AttributeId, AttributeKind, Schema};
use crate::request::RequestFacts;
use crate::rules::{Condition, VersionCondition, When};
use crate::source::Source;
use crate::traffic::Random;

/// The traffic of one event.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) event: Event,
    /// What belongs to it.
    pub(super) when: When,
    seed: u64,
    overrides: Vec<(AttributeId, ValueId)>,
    cycle: Vec<(AttributeId, AttributeKind)>,
    clients: u32,
    network: Option<IpNet>,
    /// The clients of the background that send, where those do.
    members: Vec<Client>,
    ranks: Ranks,
    /// For a rollout, the part of its source that occurs normally: whose clients it moves.
    moves: When,
}

impl Stream {
    /// `at` is the event's place, by which everything of it is seeded.
    pub(super) fn new(
        event: &Event,
        at: usize,
        seed: u64,
        schema: &Schema,
        values: &mut Values,
    ) -> Self {
        let mut overrides = Vec::new();
        for (name, text) in event.source.iter() {
            if let Some(id) = schema.id(name)
                && !id.is_address()
            {
                overrides.push((id, values.add(id, text)));
            }
        }
        let of_address = |name| {
            let text = event.source.get(name)?;
            parse_network(text)
        };
        let cycle = event.cycle.iter().filter_map(|name| {
            let id = schema.id(name)?;
            Some((id, schema.spec(id)?.kind))
        });
        Self {
            when: when_of(&event.source, schema),
            seed: mix(seed ^ mix(at as u64 + 1)),
            overrides,
            cycle: cycle.collect(),
            clients: 1,
            network: of_address("ip").or_else(|| of_address("network")),
            members: Vec::new(),
            ranks: Ranks::new(),
            moves: When::default(),
            event: event.clone(),
        }
    }

    /// Finds out who sends, once the background is known.
    pub(super) fn recruit(&mut self, bit: usize, mix: &Mix, values: &Values) {
        let usual = mix.usual();
        let times = if self.event.kind == Kind::Surge {
            10.0
        } else {
            1.0
        };
        let clients = self.event.rate / (times * usual).max(f64::MIN_POSITIVE);
        let clients = clients.ceil().clamp(1.0, 1e9) as u32;
        self.clients = self.event.clients.unwrap_or(clients);
        if self.event.instances == Instances::Known {
            let mut random = Random::from_seed(self.seed);
            let nowhere = IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);
            let mut facts = RequestFacts::new(values.key(), nowhere);
            for slot in 0..mix.clients() {
                let client = mix.member(slot);
                if mix.dress(values, &client, &mut random, &mut facts) & (1 << bit) != 0 {
                    self.members.push(client);
                }
            }
            // Any of them, not only the busiest.
            let seed = self.seed;
            self.members
                .sort_unstable_by_key(|client| super::draw::mix(client.seed ^ seed));
            self.members.truncate(self.clients as usize);
        }
    }

    /// Returns whether a rollout has reached a client of the background, which fits these events.
    pub(super) fn has_moved(&self, client: &Client, t: f64) -> bool {
        let age = t - self.event.from.as_secs_f64();
        if age < 0.0 || t >= self.event.until.as_secs_f64() {
            return false;
        }
        let share = self.event.share * self.event.progress(age);
        unit(mix(client.seed ^ self.seed)) < share
    }

    /// Says which values of the source occur normally. Clients that have all of them take part in a
    /// rollout, which gives them the others; everybody does where all values occur.
    pub(super) fn set_normal(&mut self, normal: &[(AttributeId, String)], schema: &Schema) {
        if normal.len() == self.event.source.iter().count() {
            return;
        }
        let source = normal
            .iter()
            .fold(Source::everybody(), |source, (id, text)| {
                source.with(schema.name(*id), text)
            });
        self.moves = when_of(&source, schema);
    }

    /// Returns whether a client of the background takes part in a rollout.
    pub(super) fn takes_part(&self, facts: &RequestFacts<'_>) -> bool {
        holds(&self.moves, facts)
    }

    /// Returns the places of the background's clients that send.
    pub(super) fn member_slots(&self) -> HashSet<u32> {
        self.members
            .iter()
            .filter_map(|client| client.slot)
            .collect()
    }

    /// Makes a rollout's client send as of its source.
    pub(super) fn convert<'a>(&self, values: &'a Values, facts: &mut RequestFacts<'a>) {
        for (id, value) in &self.overrides {
            if let Some((value, _)) = values.get(*value) {
                facts.set_prehashed(*id, value);
            }
        }
    }

    /// Makes the next request.
    pub(super) fn request<'a>(
        &'a self,
        mix_of: &'a Mix,
        values: &'a Values,
        moment: &Moment,
        t: f64,
        random: &mut Random,
        facts: &mut RequestFacts<'a>,
    ) {
        // Clients join one after the other while it ramps up; each sends as it will to the end.
        let age = t - self.event.from.as_secs_f64();
        let joined = (f64::from(self.clients) * self.event.progress(age)).max(1.0);
        let rank = match self.event.kind {
            Kind::Crowd => self.ranks.sender(joined, random.bits()),
            _ => below(random.bits(), joined as usize) as u32,
        };
        let seed = mix(self.seed ^ u64::from(rank) << 1);
        let member = self
            .members
            .get(rank as usize % self.members.len().max(1))
            .copied();
        let client = member.unwrap_or_else(|| mix_of.stranger(moment, seed));
        mix_of.dress(values, &client, random, facts);
        self.convert(values, facts);
        for (id, kind) in &self.cycle {
            let bits = random.bits();
            let fresh = match kind {
                AttributeKind::Version => format!(
                    "{}.{}.{}",
                    bits & 0xFF,
                    (bits >> 8) & 0xFFFF,
                    (bits >> 24) & 0xFFFF
                ),
                _ => format!("fresh-{bits:016x}"),
            };
            facts.set(*id, Cow::Owned(fresh));
        }
        facts.come_from(self.address(rank, &client));
        let instance = match self.event.instances {
            Instances::Forged => random.bits().to_le_bytes(),
            _ => instance_of(&client, t),
        };
        facts.set_secret(AttributeId::INSTANCE, &instance);
    }

    fn address(&self, rank: u32, client: &Client) -> IpAddr {
        let group = match self.event.addresses {
            Some(addresses) => u64::from(rank % addresses.max(1)),
            None => u64::from(rank),
        };
        match self.network {
            Some(network) => host_of(network, group),
            None if self.event.addresses.is_none() => address_of(client),
            None => address(mix(self.seed ^ mix(group ^ 0xADD8))),
        }
    }
}

/// Returns the `n`-th host of a network, beginning anew after the last.
fn host_of(network: IpNet, n: u64) -> IpAddr {
    match network {
        IpNet::V4(network) => {
            let mask = network.hostmask().to_bits();
            let host = network.network().to_bits() | (n as u32 & mask);
            IpAddr::V4(host.into())
        }
        IpNet::V6(network) => {
            let mask = network.hostmask().to_bits();
            let host = network.network().to_bits() | (u128::from(n) << 64 & mask);
            IpAddr::V6(host.into())
        }
    }
}

pub(super) fn parse_network(text: &str) -> Option<IpNet> {
    text.parse()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .ok()
}

/// Returns the condition that holds for a source's requests.
pub(super) fn when_of(source: &Source, schema: &Schema) -> When {
    let conditions = source.iter().filter_map(|(name, text)| {
        let id = schema.id(name)?;
        let value: Arc<str> = Arc::from(text);
        let condition = match schema.spec(id)?.kind {
            AttributeKind::Address => Condition::Network(parse_network(text)?),
            AttributeKind::Version => Condition::Version(VersionCondition::Exactly(value, None)),
            AttributeKind::Text => Condition::Is(value),
        };
        Some((id, condition))
    });
    When {
        conditions: conditions.collect(),
    }
}

/// Returns whether all conditions hold.
pub(super) fn holds(when: &When, facts: &RequestFacts<'_>) -> bool {
    when.conditions
        .iter()
        .all(|(id, condition)| condition.holds(*id, facts))
}
