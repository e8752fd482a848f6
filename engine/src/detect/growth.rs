//! Holds back who grows: what is learnt of a source rises by a fifth in an hour at most, so that an
//! attack that creeps does not become what is normal. Levels are another's business: here only shares
//! are compared, so a busy day, on which all rise alike, is learnt as it comes.
//!
//! Watched are the single values of the operator's own attributes of clients, but no versions: a
//! version takes over from another (a rollout) within minutes, an app or a platform does not.

use std::collections::BTreeMap;

use ahash::AHashMap;

use super::pattern::Literal;
use super::window::Leaf;
use crate::attribute::{AttributeId, Side};
use crate::traffic::{Columns, LeafKey};

/// How much above its anchor a share is learnt at most, and the time in which an anchor follows. What
/// keeps far above raises its anchor by a twentieth in an hour, and what is expected of it by 1.05 × 1.05,
/// and what comes in the minute before it is noticed: less than 1.2 times in the first hour.
const ABOVE_ANCHOR_MAX: f64 = 1.05;
const ANCHOR_TIME_S: f64 = 3600.0;

/// The share that a newcomer has at once.
const NEW_SHARE: f64 = 0.000_5;

/// From which share on a value is nearly everybody, and its growth the level's.
const EVERYBODY_MIN: f64 = 0.9;

/// The most values of one period, and the most that are remembered: 16,384 × 24 B + 8,192 × 56 B =
/// 0.9 MiB.
const COUNTED_MAX: usize = 1 << 14;
const HELD_MAX: usize = 1 << 13;

/// What is remembered of one value.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Held {
    /// The share that counts as its own, which follows slowly.
    anchor: f64,
    /// By which its requests are multiplied before they are learnt.
    weight: f64,
}

/// Watches the shares of single values.
#[derive(Debug)]
pub(super) struct Growth {
    columns: Vec<usize>,
    counted: AHashMap<Literal, f64>,
    total: f64,
    seconds: f64,
    held: BTreeMap<Literal, Held>,
}

impl Growth {
    pub(super) fn new(columns: &Columns) -> Self {
        let own = |(_, column): &(usize, &crate::traffic::Column)| {
            column.own && column.side == Side::Who && !column.version
        };
        let mut watched: Vec<usize> = columns
            .iter()
            .enumerate()
            .filter(own)
            .map(|(at, _)| at)
            .collect();
        if watched.is_empty() {
            watched.extend(columns.of_attribute(AttributeId::USER_AGENT));
        }
        Self {
            columns: watched,
            counted: AHashMap::new(),
            total: 0.0,
            seconds: 0.0,
            held: BTreeMap::new(),
        }
    }

    /// Counts what came in `seconds`, before anything is held back.
    pub(super) fn count<'a>(&mut self, leaves: impl Iterator<Item = &'a Leaf>, seconds: f64) {
        self.seconds += seconds;
        for leaf in leaves {
            self.total += leaf.requests;
            for column in &self.columns {
                let literal = Literal {
                    column: *column,
                    value: leaf.key.value(*column),
                };
                if let Some(sum) = self.counted.get_mut(&literal) {
                    *sum += leaf.requests;
                } else if self.counted.len() < COUNTED_MAX {
                    self.counted.insert(literal, leaf.requests);
                }
            }
        }
    }

    /// Returns the seconds counted since the last [`Growth::settle`].
    pub(super) fn seconds(&self) -> f64 {
        self.seconds
    }

    /// Draws the conclusions from what was counted; `free` before anything is held back at all.
    pub(super) fn settle(&mut self, free: bool) {
        // The first time everybody is new.
        let free = free || self.held.is_empty();
        let (total, seconds) = (self.total, self.seconds);
        self.total = 0.0;
        self.seconds = 0.0;
        let mut counted = std::mem::take(&mut self.counted);
        if total <= 0.0 {
            return;
        }
        let follow = (seconds / ANCHOR_TIME_S).min(1.0);
        for (literal, held) in &mut self.held {
            let came = counted.remove(literal).unwrap_or(0.0);
            *held = held.after(came, total, follow, free);
        }
        let mut new: Vec<(Literal, f64)> = counted.into_iter().collect();
        new.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        self.held
            .retain(|_, held| held.anchor > NEW_SHARE / 100.0 || held.weight < 1.0);
        for (literal, came) in new
            .into_iter()
            .take(HELD_MAX.saturating_sub(self.held.len()))
        {
            let stranger = Held {
                anchor: 0.0,
                weight: 1.0,
            };
            self.held
                .insert(literal, stranger.after(came, total, follow, free));
        }
    }

    /// Returns by what the requests of a combination are multiplied before they are learnt.
    pub(super) fn weight(&self, key: &LeafKey) -> f64 {
        let weights = self.columns.iter().filter_map(|column| {
            let value = key.value(*column);
            let literal = Literal {
                column: *column,
                value,
            };
            self.held.get(&literal).map(|held| held.weight)
        });
        weights.fold(1.0, f64::min)
    }

    /// Walks values with their anchors, and takes them back.
    pub(super) fn anchors(&self) -> impl Iterator<Item = (Literal, f64)> {
        self.held
            .iter()
            .map(|(literal, held)| (*literal, held.anchor))
    }

    pub(super) fn restore(&mut self, anchors: impl Iterator<Item = (Literal, f64)>) {
        let held = |anchor| Held {
            anchor,
            weight: 1.0,
        };
        self.held = anchors
            .take(HELD_MAX)
            .map(|(literal, anchor)| (literal, held(anchor)))
            .collect();
    }
}

impl Held {
    fn after(self, came: f64, total: f64, follow: f64, free: bool) -> Self {
        let share = came / total;
        if free {
            return Self {
                anchor: share,
                weight: 1.0,
            };
        }
        let most = (ABOVE_ANCHOR_MAX * self.anchor).max(NEW_SHARE);
        let anchor = self.anchor + (share.min(most) - self.anchor) * follow;
        // Of everybody else, not of everybody: or whoever is large would make his own room.
        let others = total - came;
        let room = most / (1.0 - most.min(EVERYBODY_MIN)) * others;
        let noise = 2.0 * room.sqrt();
        let weight = if most >= EVERYBODY_MIN || came <= 0.0 {
            1.0
        } else {
            ((room + noise) / came).min(1.0)
        };
        Self { anchor, weight }
    }
}
