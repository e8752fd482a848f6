//! Texts for hashes, so that what was counted can be shown and made a rule.

use std::collections::HashMap;
use std::sync::Arc;

/// The most texts that a worker hands over in one tick: 256 × 256 B = 64 KiB.
pub(super) const NEW_NAMES_MAX: usize = 256;

/// How many values a worker remembers to have handed over: 4,096 × 8 B = 32 KiB.
const SEEN: usize = 1 << 12;

/// The most texts of one generation: two generations of 8,192 × up to 350 B = 5.5 MiB at worst, 1 MiB
/// with texts of 20 B. More than 16 workers hand over in one tick.
const GENERATION_MAX: usize = 1 << 13;

/// A text on its way from a worker to the control side.
#[derive(Debug)]
pub(super) struct NewName {
    column: usize,
    hash: u32,
    text: Box<str>,
}

/// What a worker handed over already: direct-mapped, so that a newcomer pushes out one other, which
/// is then handed over again when it comes back.
#[derive(Debug)]
pub(super) struct Seen {
    epoch: u32,
    places: Vec<u64>,
}

impl Default for Seen {
    fn default() -> Self {
        Self {
            epoch: 0,
            places: vec![0; SEEN],
        }
    }
}

impl Seen {
    pub(super) fn note(&mut self, column: usize, hash: u32, text: &str, names: &mut Vec<NewName>) {
        let value = (column as u64 + 1) << 32 | u64::from(hash);
        let at = (hash as usize ^ column.wrapping_mul(0x9E5)) % SEEN;
        if let Some(place) = self.places.get_mut(at)
            && *place != value
            && names.len() < NEW_NAMES_MAX
        {
            *place = value;
            names.push(NewName {
                column,
                hash,
                text: text.into(),
            });
        }
    }

    /// Hands everything over anew when the control side forgot its old texts.
    pub(super) fn follow(&mut self, epoch: u32) {
        if self.epoch != epoch {
            self.epoch = epoch;
            self.places.fill(0);
        }
    }
}

/// The texts of the values seen lately: two generations, the older forgotten when the younger is
/// full or [`Names::turn`] is called.
#[derive(Debug, Default)]
pub struct Names {
    epoch: u32,
    young: HashMap<(usize, u32), Arc<str>>,
    old: HashMap<(usize, u32), Arc<str>>,
}

impl Names {
    /// Returns the text of a value's hash in a column.
    pub fn text(&self, column: usize, hash: u32) -> Option<&Arc<str>> {
        self.young
            .get(&(column, hash))
            .or_else(|| self.old.get(&(column, hash)))
    }

    /// Begins a new generation; workers hand over anew what they still see.
    pub fn turn(&mut self) {
        self.old = std::mem::take(&mut self.young);
        self.epoch = self.epoch.wrapping_add(1);
    }

    pub(super) fn epoch(&self) -> u32 {
        self.epoch
    }

    pub(super) fn learn(&mut self, names: impl Iterator<Item = NewName>) {
        for name in names {
            if self.young.len() >= GENERATION_MAX {
                self.turn();
            }
            self.young
                .entry((name.column, name.hash))
                .or_insert_with(|| Arc::from(name.text));
        }
    }
}
