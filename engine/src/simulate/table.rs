//! Recorded counts: a CSV table of events per bin and combination of attribute values.

use std::collections::{BTreeMap, HashMap};

use crate::attribute::Schema;
use crate::problem::{Problem, Problems};
use crate::reader::shortened;
use crate::yaml::Mark;

use super::course::seconds;
use super::scenario::add_attribute;

/// The most rows: 20 million × 8 B = 160 MB.
const ROWS_MAX: usize = 20_000_000;
/// The most combinations of values: 1 million × about 300 B.
const LEAVES_MAX: usize = 1_000_000;
/// The most bins: a year of minutes.
const BINS_MAX: usize = 600_000;
/// The longest line of a table, in bytes.
pub const LINE_BYTES_MAX: usize = 64 << 10;
/// The largest count of one row.
const COUNT_MAX: f64 = 1e12;

/// What is wrong stops the reading after so many problems.
const PROBLEMS_MAX: usize = 20;

/// A table that was read: per bin, the counts of each leaf.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// The attributes, in the order of the columns.
    pub(super) attributes: Vec<String>,
    /// The texts of all values, by attribute.
    pub(super) texts: Vec<Vec<String>>,
    /// Per leaf, its values by attribute.
    pub(super) leaves: Vec<Vec<u32>>,
    /// Per bin, its beginning in seconds and the events of each leaf.
    pub(super) bins: Vec<(f64, Vec<(u32, f32)>)>,
    /// The length of a bin in seconds.
    pub(super) width: f64,
}

/// Reads a table line by line: its file may be larger than what should be held at once.
#[derive(Debug)]
pub struct TableReader {
    path: String,
    line: u32,
    ts: usize,
    count: usize,
    width: usize,
    table: Table,
    places: Vec<HashMap<String, u32>>,
    leaves: HashMap<Vec<u32>, u32>,
    bins: BTreeMap<i64, HashMap<u32, f64>>,
    rows: usize,
    problems: Vec<Problem>,
    is_over: bool,
}

impl TableReader {
    /// Begins a table.
    pub fn new(path: &str) -> Self {
        Self {
            path: path.to_owned(),
            line: 0,
            ts: 0,
            count: 0,
            width: 0,
            table: Table::default(),
            places: Vec::new(),
            leaves: HashMap::new(),
            bins: BTreeMap::new(),
            rows: 0,
            problems: Vec::new(),
            is_over: false,
        }
    }

    /// Reads the next line. Returns whether it makes sense to read on.
    pub fn line(&mut self, line: &str) -> bool {
        self.line += 1;
        let line = line.trim_end_matches(['\r', '\n']);
        if line.len() > LINE_BYTES_MAX {
            self.problem(1, "the line is longer than 64 KiB; is this a table?");
            return false;
        }
        if self.line == 1 {
            self.header(line.trim_start_matches('\u{feff}'));
            return self.problems.is_empty();
        }
        if !line.is_empty() {
            self.row(line);
        }
        !self.is_over && self.problems.len() < PROBLEMS_MAX
    }

    fn problem(&mut self, column: u32, text: &str) {
        let mark = Mark {
            line: self.line.max(1),
            column,
        };
        self.problems
            .push(Problem::new(mark.in_file(&self.path), text));
    }

    /// Adds a problem after which nothing more is read.
    fn give_up(&mut self, text: &str) {
        self.problem(1, text);
        self.is_over = true;
    }

    fn header(&mut self, line: &str) {
        let names: Vec<&str> = line.split(',').map(str::trim).collect();
        self.width = names.len();
        let mut schema = Schema::built_in();
        for wanted in ["ts", "count"] {
            match names.iter().filter(|name| **name == wanted).count() {
                1 => {}
                0 => self.problem(
                    1,
                    &format!("the column `{wanted}` is missing; write a first line like `ts,app,sdk,count`"),
                ),
                _ => self.problem(1, &format!("the column `{wanted}` is there twice; keep one")),
            }
        }
        for (at, name) in names.iter().enumerate() {
            match *name {
                "ts" => self.ts = at,
                "count" => self.count = at,
                name => {
                    if name.is_empty() || name.contains('"') {
                        let shown = shortened(name);
                        self.problem(
                            1,
                            &format!(
                                "`{shown}` is not an attribute; write its name without quotes"
                            ),
                        );
                    } else if self.table.attributes.iter().any(|known| known == name) {
                        self.problem(1, &format!("the column `{name}` is there twice; keep one"));
                    } else if ["ip", "network", "instance"].contains(&name) {
                        self.problem(1, &format!("the column `{name}` cannot be played, clients are made up; remove it"));
                    } else if let Err(error) = add_attribute(&mut schema, name) {
                        self.problem(1, &error);
                    }
                    self.table.attributes.push(name.to_owned());
                }
            }
        }
        if self.table.attributes.is_empty() {
            self.problem(
                1,
                "there is no attribute column; write a first line like `ts,app,sdk,count`",
            );
        }
        self.places = vec![HashMap::new(); self.table.attributes.len()];
        self.table.texts = vec![Vec::new(); self.table.attributes.len()];
    }

    fn row(&mut self, line: &str) {
        let cells = line.split(',').count();
        if cells != self.width {
            let width = self.width;
            self.problem(1, &format!("there are {cells} cells where the first line has {width}; write one per column, without quotes"));
            return;
        }
        if self.rows >= ROWS_MAX {
            self.give_up(&format!(
                "there are more than {ROWS_MAX} rows; write longer bins"
            ));
            return;
        }
        let (mut moment, mut events) = (None, None);
        let mut leaf = Vec::with_capacity(self.width);
        let mut column = 1;
        let mut wrong: Vec<(u32, String)> = Vec::new();
        for (at, cell) in line.split(',').enumerate() {
            if at == self.ts {
                match seconds(cell) {
                    Some(at) => moment = Some(at),
                    None => wrong.push((column, format!("`ts`: `{}` is not a time; write seconds since 1970, or `2026-01-31 12:00:00`", shortened(cell)))),
                }
            } else if at == self.count {
                match count(cell) {
                    Ok(count) => events = Some(count),
                    Err(why) => wrong.push((column, why)),
                }
            } else {
                let attribute = leaf.len();
                let (Some(places), Some(texts)) = (
                    self.places.get_mut(attribute),
                    self.table.texts.get_mut(attribute),
                ) else {
                    continue;
                };
                let cell = cell.trim();
                let next = texts.len() as u32;
                let place = places.get(cell).copied().unwrap_or(next);
                if place == next {
                    places.insert(cell.to_owned(), place);
                    texts.push(cell.to_owned());
                }
                leaf.push(place);
            }
            column += cell.chars().count() as u32 + 1;
        }
        for (column, text) in wrong {
            self.problem(column, &text);
        }
        let (Some(moment), Some(events)) = (moment, events) else {
            return;
        };
        let next = self.leaves.len();
        let leaf = match self.leaves.get(&leaf) {
            Some(at) => *at,
            None if next >= LEAVES_MAX => {
                self.give_up(&format!(
                    "there are more than {LEAVES_MAX} combinations of values; leave out a column"
                ));
                return;
            }
            None => {
                self.table.leaves.push(leaf.clone());
                self.leaves.insert(leaf, next as u32);
                next as u32
            }
        };
        if self.bins.len() >= BINS_MAX && !self.bins.contains_key(&(moment as i64)) {
            self.give_up(&format!(
                "there are more than {BINS_MAX} bins; write longer ones"
            ));
            return;
        }
        self.rows += 1;
        let bin = self.bins.entry(moment as i64).or_default();
        *bin.entry(leaf).or_default() += events;
    }

    /// Ends the table.
    pub fn finish(mut self) -> Result<Table, Problems> {
        if self.line == 0 {
            self.problem(
                1,
                "the table is empty; write a first line like `ts,app,sdk,count`",
            );
        } else if self.problems.is_empty() {
            let total: f64 = self.bins.values().flat_map(HashMap::values).sum();
            if total <= 0.0 {
                self.line = 2;
                self.problem(
                    1,
                    "there is no event in the table; write at least one row with a count",
                );
            }
        }
        if !self.problems.is_empty() {
            return Err(Problems::new(self.problems));
        }
        let moments: Vec<i64> = self.bins.keys().copied().collect();
        let width = moments
            .windows(2)
            .filter_map(|pair| match pair {
                [a, b] => Some(b - a),
                _ => None,
            })
            .min()
            .unwrap_or(60);
        let bins = self.bins.into_iter().map(|(at, counts)| {
            let mut rows: Vec<(u32, f32)> = counts
                .into_iter()
                .map(|(leaf, events)| (leaf, events as f32))
                .collect();
            rows.sort_unstable_by_key(|(leaf, _)| *leaf);
            (at as f64, rows)
        });
        Ok(Table {
            bins: bins.collect(),
            width: width as f64,
            ..self.table
        })
    }
}

impl Table {
    /// Returns the attributes, in the order of the columns.
    pub fn attributes(&self) -> &[String] {
        &self.attributes
    }

    /// Adds the table's attributes to a schema.
    pub fn add_attributes(&self, schema: &mut Schema) -> Result<(), String> {
        self.attributes
            .iter()
            .try_for_each(|name| add_attribute(schema, name))
    }
}

/// Reads a count of events.
pub(super) fn count(text: &str) -> Result<f64, String> {
    let text = text.trim();
    match text.parse::<f64>() {
        Ok(count) if count.is_finite() && (0.0..=COUNT_MAX).contains(&count) => Ok(count),
        _ => Err(format!(
            "`count`: `{}` is not a number from 0 to {COUNT_MAX}; write how many events came",
            shortened(text)
        )),
    }
}
