//! How much one client usually sends: requests per instance and per address, by who they are.

use std::time::Duration;

use ahash::AHashMap;

use super::pattern::Pattern;
use super::window::{CLIENTS_KEPT, Clients, SECOND, SHORT};
use crate::traffic::LeafKey;

/// The most combinations of who attributes that are kept apart: 8,192 × (216 B + 34 B of index) =
/// 2.0 MiB, once for instances and once for addresses. Who comes later is part of everybody only.
const ROWS_MAX: usize = 1 << 13;

/// The most new rows that get their anchor in one second: each costs a walk over all for each of its
/// values.
const ANCHORED_MAX: usize = 8;

/// For how many times the warm-up who is new is not asked for himself: an hour, by default.
const YOUNG_WARMUPS: f64 = 6.0;

/// When a row was first seen that was there in the warm-up, or before the start.
const OLD: f64 = -1.0;

/// Clients that must have been counted before a mean is used.
const CLIENTS_MIN: f64 = 30.0;

/// How much above its anchor a mean is used at most, and how fast the anchor follows: a mean that keeps
/// far above raises it by a tenth in an hour. So what is usual is raised at most 1.1 × 1.1 = 1.2 times in
/// an hour, by whoever.
const ABOVE_ANCHOR_MAX: f64 = 1.1;
const ANCHOR_TIME_S: f64 = 3600.0;

/// A decayed count of clients in windows of one length.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    /// Clients that sent anything in a window.
    pub(super) clients: f64,
    requests: f64,
    squares: f64,
    singles: f64,
    /// Clients times the mean that counts as usual, which follows the mean slowly; 0 before the
    /// warm-up is over.
    anchored: f64,
    /// The anchor itself, of a single row.
    anchor: f64,
}

impl Tally {
    /// Returns requests per client that sent anything; at least 1.
    pub(super) fn mean(&self) -> f64 {
        let mean = self.requests / self.clients;
        let anchored = self.anchored / self.clients;
        let usual = if anchored > 0.0 {
            mean.min(ABOVE_ANCHOR_MAX * anchored)
        } else {
            mean
        };
        usual.max(1.0)
    }

    /// Returns an upper bound of it for one client: 3 standard deviations above the mean.
    pub(super) fn upper_bound(&self) -> f64 {
        let variance = (self.squares / self.clients - self.mean().powi(2)).max(0.0);
        self.mean() + 3.0 * variance.sqrt()
    }

    /// Returns the share of clients that sent exactly one request.
    pub(super) fn single_share(&self) -> f64 {
        self.singles / self.clients
    }

    /// Numbers of a tally that are kept across a restart.
    pub(super) const NUMBERS: usize = 5;

    pub(super) fn numbers(&self) -> [f64; Self::NUMBERS] {
        [
            self.clients,
            self.requests,
            self.squares,
            self.singles,
            self.anchor,
        ]
    }

    pub(super) fn of_numbers(
        [clients, requests, squares, singles, anchor]: [f64; Self::NUMBERS],
    ) -> Self {
        Self {
            clients,
            requests,
            squares,
            singles,
            anchor,
            anchored: 0.0,
        }
    }

    fn add(&mut self, requests: u32, weight: f64) {
        let requests = f64::from(requests);
        self.clients += weight;
        self.requests += weight * requests;
        self.squares += weight * requests * requests;
        if requests < 1.5 {
            self.singles += weight;
        }
    }

    fn merge(&mut self, other: &Self) {
        self.clients += other.clients;
        self.requests += other.requests;
        self.squares += other.squares;
        self.singles += other.singles;
        // A part without an anchor of its own counts with its mean.
        self.anchored += if other.anchor > 0.0 {
            other.anchor * other.clients
        } else {
            other.requests
        };
    }

    /// Lets the anchor follow the mean, so slowly that nobody can drive it.
    fn hold_growth(&mut self, seconds: f64, anchored: bool) {
        if !anchored {
            self.anchor = 0.0;
        } else if self.anchor > 0.0 && self.clients >= CLIENTS_MIN {
            let towards = self.own_mean().min(ABOVE_ANCHOR_MAX * self.anchor);
            self.anchor += (towards - self.anchor) * (seconds / ANCHOR_TIME_S).min(1.0);
        }
    }

    fn lacks_anchor(&self) -> bool {
        self.anchor <= 0.0 && self.clients >= CLIENTS_MIN
    }

    fn own_mean(&self) -> f64 {
        (self.requests / self.clients).max(1.0)
    }

    fn fade(&mut self, factor: f64) {
        self.clients *= factor;
        self.requests *= factor;
        self.squares *= factor;
        self.singles *= factor;
    }
}

/// All window lengths.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tallies {
    short: Tally,
    second: Tally,
    long: Tally,
}

/// Which of the window lengths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Length {
    /// [`super::window::SHORT`].
    Short,
    /// One second.
    Second,
    /// [`super::window::CLIENTS_KEPT`].
    Long,
}

/// All of them.
const LENGTHS: [Length; 3] = [Length::Short, Length::Second, Length::Long];

impl Length {
    /// Returns how long it is.
    pub(super) fn duration(self) -> Duration {
        match self {
            Self::Short => SHORT,
            Self::Second => SECOND,
            Self::Long => CLIENTS_KEPT,
        }
    }
}

impl Tallies {
    pub(super) fn of(&self, length: Length) -> &Tally {
        match length {
            Length::Short => &self.short,
            Length::Second => &self.second,
            Length::Long => &self.long,
        }
    }

    fn of_mut(&mut self, length: Length) -> &mut Tally {
        match length {
            Length::Short => &mut self.short,
            Length::Second => &mut self.second,
            Length::Long => &mut self.long,
        }
    }
}

/// The clients of one combination of who attributes.
#[derive(Clone, Copy, Debug)]
struct Row {
    who: LeafKey,
    tallies: Tallies,
    /// When it was first seen, in seconds learnt; below zero in the warm-up.
    since: f64,
}

/// What clients usually send.
#[derive(Debug)]
pub(super) struct Usual {
    everybody: Tallies,
    places: AHashMap<u64, usize>,
    rows: Vec<Row>,
    /// Seconds after which who is new is asked for himself.
    young_for: f64,
    /// Seconds learnt since the warm-up.
    learnt: f64,
    anchored: bool,
}

impl Usual {
    /// Begins with nothing.
    pub(super) fn new(warmup: Duration) -> Self {
        Self {
            everybody: Tallies::default(),
            places: AHashMap::new(),
            rows: Vec::new(),
            young_for: YOUNG_WARMUPS * warmup.as_secs_f64(),
            learnt: 0.0,
            anchored: false,
        }
    }

    /// Learns one window's clients.
    pub(super) fn learn(&mut self, clients: &Clients, length: Length) {
        let weight = f64::from(clients.shift).exp2();
        for row in &clients.rows {
            self.everybody.of_mut(length).add(row.requests, weight);
            let next = self.rows.len();
            let tag = row.who.tag();
            let at = match self.places.get(&tag) {
                Some(at) => *at,
                None if next < ROWS_MAX => {
                    self.places.insert(tag, next);
                    self.rows.push(Row {
                        who: row.who,
                        tallies: Tallies::default(),
                        since: if self.anchored { self.learnt } else { OLD },
                    });
                    next
                }
                None => continue,
            };
            if let Some(row_of) = self.rows.get_mut(at) {
                row_of.tallies.of_mut(length).add(row.requests, weight);
            }
        }
    }

    /// Lets time pass; who has not been seen for long makes room.
    pub(super) fn fade(&mut self, factor: f64) {
        let fade = |tallies: &mut Tallies| {
            tallies.short.fade(factor);
            tallies.second.fade(factor);
            tallies.long.fade(factor);
        };
        fade(&mut self.everybody);
        for row in &mut self.rows {
            fade(&mut row.tallies);
        }
        if self.rows.len() >= ROWS_MAX {
            self.rows.retain(|row| row.tallies.second.clients > 0.1);
            self.places = self
                .rows
                .iter()
                .enumerate()
                .map(|(at, row)| (row.who.tag(), at))
                .collect();
        }
    }

    /// Walks everybody, then all rows.
    pub(super) fn rows(&self) -> impl Iterator<Item = (LeafKey, [&Tally; 3])> {
        let everybody = (LeafKey::default(), &self.everybody);
        let rows = self.rows.iter().map(|row| (row.who, &row.tallies));
        std::iter::once(everybody)
            .chain(rows)
            .map(|(who, tallies)| (who, [&tallies.short, &tallies.second, &tallies.long]))
    }

    /// Takes back what was kept of everybody, or of one row.
    pub(super) fn remember(&mut self, who: Option<LeafKey>, [short, second, long]: [Tally; 3]) {
        let tallies = Tallies {
            short,
            second,
            long,
        };
        match who {
            None => self.everybody = tallies,
            Some(who) if self.rows.len() < ROWS_MAX => {
                self.places.insert(who.tag(), self.rows.len());
                self.rows.push(Row {
                    who,
                    tallies,
                    since: OLD,
                });
            }
            Some(_) => {}
        }
    }

    /// Lets what is usual follow what was learnt, slowly once `anchored`.
    ///
    /// Who is new begins where those begin who have one value less, or lower: a flood under a new name
    /// would otherwise say of itself what is usual.
    pub(super) fn hold_growth(&mut self, passed: Duration, anchored: bool) {
        let seconds = passed.as_secs_f64();
        let begins = anchored && !self.anchored;
        self.anchored = anchored;
        if anchored {
            self.learnt += seconds;
        }
        for length in LENGTHS {
            let lack = |row: &Row| row.tallies.of(length).lacks_anchor();
            let new: Vec<usize> = if anchored {
                let places = self.rows.iter().enumerate();
                let lacking = places.filter(|(_, row)| lack(row)).map(|(at, _)| at);
                lacking
                    .take(if begins { ROWS_MAX } else { ANCHORED_MAX })
                    .collect()
            } else {
                Vec::new()
            };
            let firsts: Vec<Option<f64>> = new
                .iter()
                .map(|at| {
                    let row = self.rows.get(*at)?;
                    let mean = row.tallies.of(length).own_mean();
                    if row.since < 0.0 {
                        return Some(mean);
                    }
                    let wider = self.of_wider(&Pattern::of(&row.who), length)?;
                    Some(mean.min(wider.mean()))
                })
                .collect();
            for (at, first) in new.into_iter().zip(firsts) {
                if let (Some(row), Some(first)) = (self.rows.get_mut(at), first) {
                    row.tallies.of_mut(length).anchor = first;
                }
            }
            let everybody = self.everybody.of_mut(length);
            if anchored && everybody.lacks_anchor() {
                everybody.anchor = everybody.own_mean();
            }
            let rows = self.rows.iter_mut().map(|row| &mut row.tallies);
            for tallies in rows.chain([&mut self.everybody]) {
                tallies.of_mut(length).hold_growth(seconds, anchored);
            }
        }
    }

    /// Returns what clients of a source usually send; of a source hardly seen before, what the most
    /// talkative of the sources send that have one of its values less, then only one of its values;
    /// then everybody.
    pub(super) fn of(&self, who: &Pattern, length: Length) -> Option<Tally> {
        let enough = |tally: &Tally| tally.clients >= CLIENTS_MIN;
        let own = self.tally(who, length);
        if enough(&own) {
            return Some(own);
        }
        self.of_wider(who, length)
    }

    fn of_wider(&self, who: &Pattern, length: Length) -> Option<Tally> {
        let enough = |tally: &Tally| tally.clients >= CLIENTS_MIN;
        let literals = who.literals().iter();
        let shorter: Vec<Pattern> = literals
            .clone()
            .map(|literal| who.without(*literal))
            .collect();
        let single: Vec<Pattern> = literals
            .map(|literal| Pattern::default().with(*literal))
            .collect();
        for layer in [shorter, single] {
            let talkative = layer
                .iter()
                .map(|pattern| self.tally(pattern, length))
                .filter(enough)
                .max_by(|a, b| a.mean().total_cmp(&b.mean()));
            if talkative.is_some() {
                return talkative;
            }
        }
        let everybody = self.tally(&Pattern::default(), length);
        enough(&everybody).then_some(everybody)
    }

    fn tally(&self, pattern: &Pattern, length: Length) -> Tally {
        let mut sum = Tally::default();
        if pattern.is_everybody() {
            sum.merge(self.everybody.of(length));
            return sum;
        }
        // In the first rows of a new name may be who is about to flood under it.
        let is_old = |row: &&Row| row.since < 0.0 || self.learnt - row.since >= self.young_for;
        for row in self.rows.iter().filter(is_old) {
            if pattern.matches(&row.who) {
                sum.merge(row.tallies.of(length));
            }
        }
        sum
    }
}
