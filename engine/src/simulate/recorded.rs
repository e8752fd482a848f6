//! A recorded background: which combination of values comes how often, bin by bin, and how many
//! clients are behind it.

use std::collections::HashMap;

use super::background::INTERVAL_S;
use super::draw::Alias;
use super::scenario::TableSpec;
use super::table::Table;
use super::values::{Mask, ValueId, Values};
use crate::attribute::{AttributeId, Schema, Side};
use crate::request::RequestFacts;

/// The place of a value that is absent.
const ABSENT: ValueId = ValueId::MAX;

/// A place between the middles of two bins.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Between {
    earlier: usize,
    later: usize,
    /// How far it is from the earlier to the later, 0 to 1.
    way: f64,
}

/// One bin.
#[derive(Debug)]
struct Bin {
    begins: f64,
    /// Events per second.
    rate: f64,
    alias: Alias,
    /// Leaves, and how many clients its who has in this bin.
    rows: Vec<(u32, f32)>,
}

/// A table ready to be drawn from.
#[derive(Debug)]
pub(super) struct Recorded {
    ids: Vec<AttributeId>,
    leaves: Leaves,
    bins: Vec<Bin>,
    /// Per leaf, its share of all events.
    shares: Vec<f64>,
    /// Per who, its first place in the population; then the end.
    first_slots: Vec<u32>,
    length: f64,
    width: f64,
    /// Events per second of the whole table.
    mean: f64,
}

/// The combinations of values, and who is behind each: clients keep their who attributes.
#[derive(Debug, Default)]
struct Leaves {
    /// As many values a leaf as there are attributes.
    values: Vec<ValueId>,
    masks: Vec<Mask>,
    whos: Vec<u32>,
    /// Per who, one of its leaves.
    samples: Vec<u32>,
}

impl Leaves {
    fn new(table: &Table, ids: &[AttributeId], schema: &Schema, values: &mut Values) -> Self {
        let of_texts: Vec<Vec<ValueId>> = ids
            .iter()
            .zip(&table.texts)
            .map(|(id, texts)| {
                let add = |text: &String| match text.as_str() {
                    "" => ABSENT,
                    text => values.add(*id, text),
                };
                texts.iter().map(add).collect()
            })
            .collect();
        let is_who = |id: &AttributeId| schema.spec(*id).is_some_and(|it| it.side == Side::Who);
        let without: Vec<Mask> = ids
            .iter()
            .map(|id| values.fits_without(|other| other != *id, schema))
            .collect();
        let mut leaves = Self::default();
        let mut places: HashMap<Vec<ValueId>, u32> = HashMap::new();
        for (at, leaf) in table.leaves.iter().enumerate() {
            let mut who = Vec::with_capacity(ids.len());
            let mut mask = Mask::MAX;
            for (((text, texts), id), without) in leaf.iter().zip(&of_texts).zip(ids).zip(&without)
            {
                let value = texts.get(*text as usize).copied().unwrap_or(ABSENT);
                leaves.values.push(value);
                mask &= values.get(value).map_or(*without, |(_, fits)| fits);
                if is_who(id) {
                    who.push(value);
                }
            }
            let next = leaves.samples.len() as u32;
            let who = *places.entry(who).or_insert(next);
            if who == next {
                leaves.samples.push(at as u32);
            }
            leaves.masks.push(mask);
            leaves.whos.push(who);
        }
        leaves
    }

    fn who(&self, leaf: u32) -> u32 {
        self.whos.get(leaf as usize).copied().unwrap_or(0)
    }

    /// Makes a bin of a table; `scale` is how many times its counts come. Raises `most` to the number
    /// of clients of each who.
    fn bin(
        &self,
        begins: f64,
        width: f64,
        rows: &[(u32, f32)],
        scale: f64,
        most: &mut [f64],
    ) -> Bin {
        let mut rates: HashMap<u32, f64> = HashMap::new();
        for (leaf, events) in rows {
            *rates.entry(self.who(*leaf)).or_default() += f64::from(*events) / width * scale;
        }
        let weights: Vec<f64> = rows.iter().map(|(_, events)| f64::from(*events)).collect();
        let with_clients = rows.iter().map(|(leaf, _)| {
            let who = self.who(*leaf);
            let rate = rates.get(&who).copied().unwrap_or(0.0);
            let clients = (rate * INTERVAL_S).ceil().max(1.0);
            if let Some(most) = most.get_mut(who as usize) {
                *most = most.max(clients);
            }
            (*leaf, clients as f32)
        });
        Bin {
            begins,
            rate: weights.iter().sum::<f64>() / width,
            rows: with_clients.collect(),
            alias: Alias::new(&weights),
        }
    }
}

impl Recorded {
    pub(super) fn new(
        spec: &TableSpec,
        table: &Table,
        schema: &Schema,
        values: &mut Values,
    ) -> Self {
        let names = table.attributes.iter();
        let ids: Vec<AttributeId> = names.filter_map(|name| schema.id(name)).collect();
        let leaves = Leaves::new(table, &ids, schema, values);
        let rows = || table.bins.iter().flat_map(|(_, rows)| rows);
        let total: f64 = rows().map(|(_, events)| f64::from(*events)).sum();
        let start = table.bins.first().map_or(0.0, |(begins, _)| *begins);
        let end = table.bins.last().map_or(0.0, |(begins, _)| *begins);
        let width = table.width.max(1.0);
        let length = end - start + width;
        let mean = (total / length).max(f64::MIN_POSITIVE);
        let scale = spec.rate.map_or(1.0, |rate| rate / mean);
        let mut shares = vec![0.0; leaves.masks.len()];
        for (leaf, events) in rows() {
            if let Some(share) = shares.get_mut(*leaf as usize) {
                *share += f64::from(*events) / total;
            }
        }
        let mut most = vec![1.0; leaves.samples.len()];
        let bins = table
            .bins
            .iter()
            .map(|(begins, rows)| leaves.bin(begins - start, width, rows, scale, &mut most))
            .collect();
        let mut slots = 0;
        let mut first_slots = vec![0];
        for most in most {
            slots += most as u32;
            first_slots.push(slots);
        }
        Self {
            ids,
            leaves,
            bins,
            shares,
            first_slots,
            length,
            width,
            mean,
        }
    }

    /// Returns events per second of the whole table, as it was recorded.
    pub(super) fn mean(&self) -> f64 {
        self.mean
    }

    /// Returns whether an attribute is in the table.
    pub(super) fn has(&self, id: AttributeId) -> bool {
        self.ids.contains(&id)
    }

    /// Walks the leaves with the share of all events that each has.
    pub(super) fn shares(&self) -> impl Iterator<Item = (u32, f64)> {
        (0..).zip(self.shares.iter().copied())
    }

    /// Returns how many places the population has.
    pub(super) fn slots(&self) -> u32 {
        self.first_slots.last().copied().unwrap_or(1)
    }

    /// Returns the place of the `rank`-th client of a who; `None` where the table never has so many.
    pub(super) fn slot(&self, who: u32, rank: u32) -> Option<u32> {
        let who = who as usize;
        let slot = self.first_slots.get(who)?.checked_add(rank)?;
        (slot < *self.first_slots.get(who + 1)?).then_some(slot)
    }

    /// Returns whose leaf it is.
    pub(super) fn who(&self, leaf: u32) -> u32 {
        self.leaves.who(leaf)
    }

    /// Returns a leaf of the client at a place.
    pub(super) fn leaf_of_slot(&self, slot: u32) -> u32 {
        let after = self.first_slots.partition_point(|first| *first <= slot);
        let samples = &self.leaves.samples;
        samples
            .get(after.saturating_sub(1))
            .copied()
            .unwrap_or_default()
    }

    /// Returns where a position stands, in seconds from the table's beginning; it goes round.
    pub(super) fn between(&self, position: f64) -> Between {
        let position = (position - self.width / 2.0).rem_euclid(self.length);
        let after = self.bins.partition_point(|bin| bin.begins <= position);
        let earlier = after.saturating_sub(1);
        let later = if after < self.bins.len() { after } else { 0 };
        let begins = self.bins.get(earlier).map_or(0.0, |bin| bin.begins);
        let ends = match self.bins.get(later) {
            Some(bin) if later > earlier => bin.begins,
            _ => self.length,
        };
        let way = (position - begins) / (ends - begins).max(f64::MIN_POSITIVE);
        Between {
            earlier,
            later,
            way: way.clamp(0.0, 1.0),
        }
    }

    fn rate_of(&self, bin: usize) -> f64 {
        self.bins.get(bin).map_or(0.0, |bin| bin.rate)
    }

    /// Returns the events per second at a place, as they were recorded.
    pub(super) fn rate(&self, at: &Between) -> f64 {
        let (earlier, later) = (self.rate_of(at.earlier), self.rate_of(at.later));
        earlier + (later - earlier) * at.way
    }

    /// Draws a leaf by 64 random bits and a number from 0 to below 1; returns it with the clients of
    /// its who.
    pub(super) fn leaf(&self, at: &Between, bits: u64, which: f64) -> (u32, f32) {
        let later = self.rate_of(at.later) * at.way;
        let both = self.rate_of(at.earlier) * (1.0 - at.way) + later;
        let bin = if which * both < later {
            at.later
        } else {
            at.earlier
        };
        let row = self
            .bins
            .get(bin)
            .and_then(|bin| bin.rows.get(bin.alias.choose(bits)));
        row.copied().unwrap_or((0, 1.0))
    }

    /// Gives a request the values of a leaf. Returns the events whose source these do not rule out.
    pub(super) fn dress<'a>(
        &self,
        values: &'a Values,
        leaf: u32,
        facts: &mut RequestFacts<'a>,
    ) -> Mask {
        let from = leaf as usize * self.ids.len();
        let of_leaf = self.leaves.values.get(from..from + self.ids.len());
        for (id, value) in self.ids.iter().zip(of_leaf.unwrap_or_default()) {
            match values.get(*value) {
                Some((value, _)) => facts.set_prehashed(*id, value),
                None => facts.unset(*id),
            }
        }
        self.leaves.masks.get(leaf as usize).copied().unwrap_or(0)
    }
}
