//! All values that requests of a scenario can have, hashed once.

use std::collections::HashMap;

use crate::attribute::{AttributeId, Schema};
use crate::request::{HashKey, Prehashed};
use crate::source::Source;

/// A value's place.
pub(super) type ValueId = u32;

/// Which of the scenario's sources a request belongs to: one bit for each event.
pub(super) type Mask = u64;

/// The most events: one bit each.
pub(super) const EVENTS_MAX: usize = 64;

#[derive(Debug)]
struct Entry {
    value: Prehashed,
    /// The events whose source does not rule this value out.
    fits: Mask,
}

/// The values of all attributes.
#[derive(Debug)]
pub(super) struct Values {
    key: HashKey,
    entries: Vec<Entry>,
    places: HashMap<(AttributeId, String), ValueId>,
    /// Per attribute, the events whose source does not name it.
    absent: Vec<Mask>,
    sources: Vec<Source>,
    names: Vec<String>,
}

impl Values {
    pub(super) fn new(schema: &Schema, key: HashKey, sources: Vec<Source>) -> Self {
        let names: Vec<String> = schema
            .iter()
            .map(|(_, spec)| spec.name.to_string())
            .collect();
        let absent = names
            .iter()
            .map(|name| fitting(&sources, |source| source.get(name).is_none()))
            .collect();
        Self {
            key,
            entries: Vec::new(),
            places: HashMap::new(),
            absent,
            sources,
            names,
        }
    }

    /// Takes in a value of an attribute.
    pub(super) fn add(&mut self, id: AttributeId, text: &str) -> ValueId {
        if let Some(at) = self.places.get(&(id, text.to_owned())) {
            return *at;
        }
        let at = self.entries.len() as ValueId;
        let name = self.names.get(id.index()).map_or("", String::as_str);
        let fits = fitting(&self.sources, |source| {
            source.get(name).is_none_or(|wanted| wanted == text)
        });
        self.entries.push(Entry {
            value: self.key.prehash(text),
            fits,
        });
        self.places.insert((id, text.to_owned()), at);
        at
    }

    /// Returns whether a value of an attribute was taken in.
    pub(super) fn contains(&self, id: AttributeId, text: &str) -> bool {
        self.places.contains_key(&(id, text.to_owned()))
    }

    /// Returns a value to set, with the events whose source it fits.
    pub(super) fn get(&self, at: ValueId) -> Option<(&Prehashed, Mask)> {
        let entry = self.entries.get(at as usize)?;
        Some((&entry.value, entry.fits))
    }

    /// Returns the events whose source fits a request that has these attributes at most.
    pub(super) fn fits_without(
        &self,
        present: impl Fn(AttributeId) -> bool,
        schema: &Schema,
    ) -> Mask {
        schema
            .iter()
            .filter(|(id, _)| !present(*id))
            .filter_map(|(id, _)| self.absent.get(id.index()))
            .fold(Mask::MAX, |mask, absent| mask & absent)
    }

    /// Returns the key that everything is hashed with.
    pub(super) fn key(&self) -> &HashKey {
        &self.key
    }
}

fn fitting(sources: &[Source], fits: impl Fn(&Source) -> bool) -> Mask {
    sources
        .iter()
        .enumerate()
        .filter(|(_, source)| fits(source))
        .fold(0, |mask, (at, _)| mask | (1 << at))
}
