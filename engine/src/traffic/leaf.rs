//! A request's attribute values as one fixed-size key. Knows nothing of counting.

use crate::attribute::{AttributeId, AttributeKind, AttributeSpec, Schema, Side};
use crate::request::RequestFacts;

/// The most attributes that take part in a key; the 16th place says whether it was refused.
///
/// The six built-in ones that are no address, and the first nine of the operator's.
pub const COLUMNS_MAX: usize = 15;

const SLOTS: usize = COLUMNS_MAX + 1;

/// The attribute values that a request had in common with others of the same key: 32 bits of each
/// value's keyed hash, 0 where it was absent.
///
/// # Accuracy
///
/// Two values of one attribute share 32 bits with probability 2⁻³²; of 65,536 live values, about one
/// in two processes has one such pair. The hash is keyed at random, so nobody can aim for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeafKey {
    values: [u32; SLOTS],
}

impl LeafKey {
    /// Returns the value's hash in a column; 0 when absent.
    pub fn value(&self, column: usize) -> u32 {
        self.values.get(column).copied().unwrap_or(0)
    }

    /// Makes the key of requests that were let through from the values' hashes, column by column.
    pub(crate) fn of_values(hashes: impl Iterator<Item = u32>) -> Self {
        let mut key = Self::default();
        for (slot, hash) in key.values.iter_mut().take(COLUMNS_MAX).zip(hashes) {
            *slot = hash;
        }
        key
    }

    /// Returns whether the requests of this key were refused.
    pub fn refused(&self) -> bool {
        self.values[COLUMNS_MAX] != 0
    }

    /// Returns 64 bits that stand for the whole key.
    pub fn tag(&self) -> u64 {
        let (pairs, _) = self.values.as_chunks::<2>();
        let folded = pairs
            .iter()
            .fold(0x243F_6A88_85A3_08D3_u64, |hash, [low, high]| {
                let word = u64::from(*low) | (u64::from(*high) << 32);
                (hash ^ word)
                    .wrapping_mul(0x9E37_79B9_7F4A_7C15)
                    .rotate_left(31)
            });
        let folded = (folded ^ (folded >> 33)).wrapping_mul(0xFF51_AFD7_ED55_8CCD);
        folded ^ (folded >> 33)
    }
}

/// Picks keys by some of their values: those of one source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeafMask {
    mask: [u32; SLOTS],
    values: [u32; SLOTS],
    /// One of them with its column, by which most keys are told at once; `None`: it picks everybody.
    first: Option<(usize, u32)>,
}

impl LeafMask {
    /// Makes the mask of keys that have these values, hashed, in these columns.
    pub fn of(values: impl Iterator<Item = (usize, u32)>) -> Self {
        let mut of = Self::default();
        for (column, value) in values {
            if let (Some(mask), Some(place)) = (of.mask.get_mut(column), of.values.get_mut(column))
            {
                *mask = u32::MAX;
                *place = value;
                of.first = Some((column, value));
            }
        }
        of
    }

    /// Returns whether a key is one of them.
    pub(super) fn picks(&self, key: &LeafKey) -> bool {
        let mut slots = key.values.iter().zip(&self.mask).zip(&self.values);
        self.first
            .is_none_or(|(column, value)| key.value(column) == value)
            && slots.all(|((value, mask), wanted)| value & mask == *wanted)
    }
}

/// One attribute that takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// Which attribute.
    pub attribute: AttributeId,
    /// Whom or what it describes.
    pub side: Side,
    /// Whether the operator defined it: then it names the client, as opposed to a fingerprint.
    pub own: bool,
    /// Whether its values are versions.
    pub version: bool,
    /// Whether another attribute says its version: `sdk`, where there is a `sdk_version`.
    pub versioned: bool,
}

/// Which attributes take part in keys: neither addresses nor the instance (each client has its own),
/// nor secret ones (they must never be shown).
#[derive(Clone, Debug)]
pub struct Columns {
    columns: Vec<Column>,
    who: [u32; SLOTS],
}

impl Columns {
    /// Picks the attributes of a schema that take part.
    pub fn of(schema: &Schema) -> Self {
        let columns: Vec<Column> = may_take_part(schema)
            .map(|(id, spec)| Column {
                attribute: id,
                side: spec.side,
                own: id.index() > AttributeId::ROUTE.index(),
                version: spec.kind == AttributeKind::Version,
                versioned: schema.id(&format!("{}_version", spec.name)).is_some(),
            })
            .take(COLUMNS_MAX)
            .collect();
        let mut who = [0; SLOTS];
        for (mask, column) in who.iter_mut().zip(&columns) {
            *mask = if column.side == Side::Who {
                u32::MAX
            } else {
                0
            };
        }
        who[COLUMNS_MAX] = u32::MAX;
        Self { columns, who }
    }

    /// Returns the names of the attributes that could take part and for which there is no column: what
    /// only they tell apart cannot be found.
    pub fn left_out<'s>(&self, schema: &'s Schema) -> Vec<&'s str> {
        may_take_part(schema)
            .skip(self.columns.len())
            .map(|(_, spec)| &*spec.name)
            .collect()
    }

    /// Walks the columns in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Column> {
        self.columns.iter()
    }

    /// Returns how many columns there are.
    pub fn len(&self) -> usize {
        self.columns.len()
    }

    /// Returns whether there is no column. There always is one: `user_agent`.
    pub fn is_empty(&self) -> bool {
        self.columns.is_empty()
    }

    /// Returns a column.
    pub fn get(&self, at: usize) -> Option<&Column> {
        self.columns.get(at)
    }

    /// Returns the column of an attribute, if it takes part.
    pub fn of_attribute(&self, id: AttributeId) -> Option<usize> {
        self.columns
            .iter()
            .position(|column| column.attribute == id)
    }

    /// Makes the key of a request.
    pub fn key(&self, facts: &RequestFacts<'_>, refused: bool) -> LeafKey {
        let mut key = LeafKey::default();
        for (slot, column) in key.values.iter_mut().zip(&self.columns) {
            *slot = short(facts.hash(column.attribute));
        }
        key.values[COLUMNS_MAX] = u32::from(refused);
        key
    }

    /// Returns the key with only what describes the client.
    pub fn who(&self, key: &LeafKey) -> LeafKey {
        let mut who = *key;
        for (slot, mask) in who.values.iter_mut().zip(&self.who) {
            *slot &= mask;
        }
        who
    }

    /// Calls `each` with column, hash and text of each value that is present.
    pub(super) fn each_value(
        &self,
        facts: &RequestFacts<'_>,
        key: &LeafKey,
        mut each: impl FnMut(usize, u32, &str),
    ) {
        for (at, (column, hash)) in self.columns.iter().zip(key.values).enumerate() {
            if let Some(text) = facts.value(column.attribute)
                && hash != 0
            {
                each(at, hash, text);
            }
        }
    }
}

fn may_take_part(schema: &Schema) -> impl Iterator<Item = (AttributeId, &AttributeSpec)> {
    schema
        .iter()
        .filter(|(id, spec)| !id.is_address() && *id != AttributeId::INSTANCE && !spec.secret)
}

/// Cuts a hash to 32 bits; stays apart from 0, which stands for an absent value.
fn short(hash: u64) -> u32 {
    if hash == 0 {
        0
    } else {
        ((hash >> 32) as u32).max(1)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::traffic::Random;

    /// The slow, obvious version: column by column.
    #[test]
    fn a_mask_picks_the_keys_that_have_its_values() {
        let mut random = Random::from_seed(3);
        let mut picked = 0;
        for _ in 0..20_000 {
            let mut few = || (random.bits() % 3) as u32;
            let key = LeafKey::of_values(
                (0..COLUMNS_MAX)
                    .map(|_| few())
                    .collect::<Vec<_>>()
                    .into_iter(),
            );
            let wanted: Vec<(usize, u32)> =
                (0..3).map(|at| (at * 5 + few() as usize, few())).collect();
            let slow = wanted
                .iter()
                .all(|(column, value)| key.value(*column) == *value);
            let mask = LeafMask::of(wanted.into_iter());
            assert_eq!(mask.picks(&key), slow);
            picked += u32::from(slow);
        }
        assert!(picked > 100, "{picked}");
        let mut refused = LeafKey::default();
        refused.values[COLUMNS_MAX] = 1;
        assert!(LeafMask::default().picks(&refused));
    }

    #[test]
    fn the_tenth_attribute_of_the_operators_is_left_out_and_named() {
        let mut schema = Schema::built_in();
        for at in 1..=10 {
            let spec = AttributeSpec {
                name: Arc::from(format!("own_{at}")),
                kind: AttributeKind::Text,
                side: Side::Who,
                secret: false,
            };
            schema.add(spec).unwrap();
        }
        let columns = Columns::of(&schema);
        assert_eq!(columns.len(), COLUMNS_MAX);
        assert_eq!(columns.left_out(&schema), ["own_10"]);
    }
}
