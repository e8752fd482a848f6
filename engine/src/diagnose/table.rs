//! Leaves of a table in columns: a code per attribute and leaf, observed and expected counts.
//!
//! Bounded: at most [`ATTRIBUTES_MAX`] attributes, [`ROWS_MAX`] rows and [`VALUES_MAX`] named values an
//! attribute. Knows nothing of files.

use std::sync::Arc;

use ahash::AHashMap;

/// The most attributes: conjunctions of up to four out of twelve come to 793 cuboids.
pub const ATTRIBUTES_MAX: usize = 12;

/// The most rows: 16 Mi × (16 B counts + at most 12 × 4 B codes) = 1 GiB.
pub const ROWS_MAX: usize = 1 << 24;

/// The most values of an attribute that have a name; what comes after them is one value without a
/// name, which no source can have. 1 Mi × (16 B place + 32 B entry + text) = about 64 MiB.
pub const VALUES_MAX: usize = 1 << 20;

/// The largest count: sums of [`ROWS_MAX`] of them stay exact to a millionth.
pub const COUNT_MAX: f64 = 1e15;

/// Why a row, or a table, cannot be taken.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum TableError {
    /// A table without attributes has no sources.
    #[error("there is no attribute; a table needs one column or more besides `real` and `predict`")]
    NoAttributes,
    /// Too many attributes.
    #[error(
        "there are {0} attributes, more than {ATTRIBUTES_MAX}; leave out those that cannot be a cause"
    )]
    TooManyAttributes(usize),
    /// Too many rows.
    #[error("there are more than {ROWS_MAX} rows; leave out an attribute and add up what is alike")]
    TooManyRows,
    /// Too few or too many values.
    #[error("the row has {found} values for {wanted} attributes")]
    Ragged {
        /// How many the row has.
        found: usize,
        /// How many attributes there are.
        wanted: usize,
    },
    /// Not a count.
    #[error("`{0}` is not a count; a count is a number from 0 to {COUNT_MAX:e}")]
    NotACount(f64),
}

/// One attribute: its name, its values, and the code of each row.
#[derive(Debug)]
struct Attribute {
    name: Arc<str>,
    values: Vec<Arc<str>>,
    codes_of: AHashMap<Arc<str>, u32>,
    codes: Vec<u32>,
    last: u32,
}

impl Attribute {
    fn code(&mut self, value: &str) -> u32 {
        // Tables are mostly sorted: the value above is worth a look.
        let above = self.values.get(self.last as usize);
        if above.is_some_and(|above| **above == *value) {
            return self.last;
        }
        if let Some(code) = self.codes_of.get(value) {
            self.last = *code;
            return *code;
        }
        let code = self.values.len() as u32;
        if self.values.len() < VALUES_MAX {
            let value: Arc<str> = Arc::from(value);
            self.values.push(Arc::clone(&value));
            self.codes_of.insert(value, code);
            self.last = code;
        }
        code
    }
}

/// A table that is being read, row by row.
#[derive(Debug)]
pub struct TableBuilder {
    attributes: Vec<Attribute>,
    observed: Vec<f64>,
    expected: Vec<f64>,
}

impl TableBuilder {
    /// Begins a table of these attributes.
    ///
    /// # Errors
    ///
    /// There is none, or there are more than [`ATTRIBUTES_MAX`].
    pub fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self, TableError> {
        let attributes: Vec<Attribute> = names
            .into_iter()
            .map(|name| Attribute {
                name: Arc::from(name),
                values: Vec::new(),
                codes_of: AHashMap::new(),
                codes: Vec::new(),
                last: 0,
            })
            .collect();
        match attributes.len() {
            0 => Err(TableError::NoAttributes),
            1..=ATTRIBUTES_MAX => Ok(Self {
                attributes,
                observed: Vec::new(),
                expected: Vec::new(),
            }),
            many => Err(TableError::TooManyAttributes(many)),
        }
    }

    /// Adds a row. Rows of the same values are one leaf: their counts are added up.
    ///
    /// # Errors
    ///
    /// A count that is none, a value too few or too many, a row too many. The table is then as before.
    pub fn add<'a>(
        &mut self,
        values: impl IntoIterator<Item = &'a str>,
        observed: f64,
        expected: f64,
    ) -> Result<(), TableError> {
        for count in [observed, expected] {
            if !(0.0..=COUNT_MAX).contains(&count) {
                return Err(TableError::NotACount(count));
            }
        }
        if self.observed.len() >= ROWS_MAX {
            return Err(TableError::TooManyRows);
        }
        let wanted = self.attributes.len();
        let mut found = 0;
        for value in values {
            if let Some(attribute) = self.attributes.get_mut(found) {
                let code = attribute.code(value);
                attribute.codes.push(code);
            }
            found += 1;
        }
        if found != wanted {
            for attribute in &mut self.attributes {
                attribute.codes.truncate(self.observed.len());
            }
            return Err(TableError::Ragged { found, wanted });
        }
        self.observed.push(observed);
        self.expected.push(expected);
        Ok(())
    }

    /// Ends the table: rows of the same values become one leaf, and leaves with nothing observed and
    /// nothing expected go, for they say nothing.
    pub fn finish(self) -> Table {
        let rows = self.observed.len();
        let mut groups = Groups::one(rows);
        for attribute in &self.attributes {
            groups = groups.split(&attribute.codes, attribute.values.len() + 1);
        }
        let mut observed = vec![0.0; groups.count];
        let mut expected = vec![0.0; groups.count];
        let mut firsts = vec![u32::MAX; groups.count];
        let counts = self.observed.iter().zip(&self.expected);
        for ((group, (o, e)), row) in groups.of.iter().zip(counts).zip(0_u32..) {
            let at = *group as usize;
            if let (Some(observed), Some(expected), Some(first)) = (
                observed.get_mut(at),
                expected.get_mut(at),
                firsts.get_mut(at),
            ) {
                *observed += o;
                *expected += e;
                *first = (*first).min(row);
            }
        }
        let mut kept = Vec::with_capacity(groups.count);
        let mut leaves = Leaves::default();
        for ((o, e), first) in observed.into_iter().zip(expected).zip(firsts) {
            if o > 0.0 || e > 0.0 {
                leaves.observed.push(o);
                leaves.expected.push(e);
                kept.push(first);
            }
        }
        let mut names = Vec::with_capacity(self.attributes.len());
        for attribute in self.attributes {
            let codes = attribute.codes;
            leaves.codes.push(
                kept.iter()
                    .filter_map(|row| codes.get(*row as usize).copied())
                    .collect(),
            );
            leaves.cardinality.push(attribute.values.len() + 1);
            names.push(AttributeNames {
                name: attribute.name,
                values: attribute.values,
            });
        }
        Table {
            names,
            leaves,
            rows,
        }
    }
}

/// Which rows are alike.
struct Groups {
    of: Vec<u32>,
    count: usize,
}

impl Groups {
    fn one(rows: usize) -> Self {
        Self {
            of: vec![0; rows],
            count: 1,
        }
    }

    fn split(self, codes: &[u32], cardinality: usize) -> Self {
        let mut numbering = Numbering::new(self.count, cardinality, self.of.len());
        let of = self
            .of
            .iter()
            .zip(codes)
            .map(|(group, code)| numbering.number(*group, *code))
            .collect();
        Self {
            of,
            count: numbering.count(),
        }
    }
}

/// Numbers pairs of a group and a code in the order in which they are met.
#[derive(Debug)]
pub(super) enum Numbering {
    /// A slot for each possible pair.
    Dense {
        slots: Vec<u32>,
        cardinality: usize,
        count: u32,
    },
    /// A slot for each pair that there is.
    Sparse { slots: AHashMap<u64, u32> },
}

impl Numbering {
    /// Makes a numbering for `rows` pairs out of `groups` × `cardinality`.
    pub(super) fn new(groups: usize, cardinality: usize, rows: usize) -> Self {
        // A slot costs 4 B where an entry of a map costs 32 B and a hash.
        let dense_max = 4 * rows + 4096;
        match groups.checked_mul(cardinality) {
            Some(product) if product <= dense_max => Self::Dense {
                slots: vec![u32::MAX; product],
                cardinality,
                count: 0,
            },
            _ => Self::Sparse {
                slots: AHashMap::new(),
            },
        }
    }

    pub(super) fn number(&mut self, group: u32, code: u32) -> u32 {
        match self {
            Self::Dense {
                slots,
                cardinality,
                count,
            } => {
                let at = group as usize * *cardinality + code as usize;
                let Some(slot) = slots.get_mut(at) else {
                    return *count;
                };
                if *slot == u32::MAX {
                    *slot = *count;
                    *count += 1;
                }
                *slot
            }
            Self::Sparse { slots } => {
                let next = slots.len() as u32;
                let key = (u64::from(group) << 32) | u64::from(code);
                *slots.entry(key).or_insert(next)
            }
        }
    }

    /// Returns how many different pairs were met.
    pub(super) fn count(&self) -> usize {
        match self {
            Self::Dense { count, .. } => *count as usize,
            Self::Sparse { slots } => slots.len(),
        }
    }
}

#[derive(Debug)]
struct AttributeNames {
    name: Arc<str>,
    values: Vec<Arc<str>>,
}

/// The leaves of a table without their names: what the search works on.
#[derive(Debug, Default)]
pub struct Leaves {
    /// Per attribute, the code of each leaf.
    pub(super) codes: Vec<Vec<u32>>,
    /// Per attribute, one more than its largest code.
    pub(super) cardinality: Vec<usize>,
    pub(super) observed: Vec<f64>,
    pub(super) expected: Vec<f64>,
}

impl Leaves {
    /// Returns how many there are.
    pub fn len(&self) -> usize {
        self.observed.len()
    }

    /// Returns whether there is none.
    pub fn is_empty(&self) -> bool {
        self.observed.is_empty()
    }

    /// Walks observed and expected counts.
    pub fn counts(&self) -> impl Iterator<Item = (f64, f64)> + '_ {
        let expected = self.expected.iter().copied();
        self.observed.iter().copied().zip(expected)
    }

    pub(super) fn count(&self, leaf: u32) -> (f64, f64) {
        let at = leaf as usize;
        let of = |counts: &[f64]| counts.get(at).copied().unwrap_or_default();
        (of(&self.observed), of(&self.expected))
    }

    pub(super) fn code(&self, attribute: usize, leaf: u32) -> u32 {
        let codes = self.codes.get(attribute);
        let code = codes.and_then(|codes| codes.get(leaf as usize));
        code.copied().unwrap_or_default()
    }
}

/// A table that was read.
#[derive(Debug)]
pub struct Table {
    names: Vec<AttributeNames>,
    leaves: Leaves,
    rows: usize,
}

impl Table {
    /// Returns the leaves.
    pub fn leaves(&self) -> &Leaves {
        &self.leaves
    }

    /// Returns how many rows were added.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Returns the names of the attributes that had more than [`VALUES_MAX`] values.
    pub fn overflowing(&self) -> impl Iterator<Item = &Arc<str>> {
        let full = |names: &&AttributeNames| names.values.len() >= VALUES_MAX;
        self.names.iter().filter(full).map(|names| &names.name)
    }

    /// Returns the name of an attribute.
    pub(super) fn name(&self, attribute: usize) -> Arc<str> {
        let names = self.names.get(attribute);
        names.map_or_else(|| Arc::from(""), |names| Arc::clone(&names.name))
    }

    /// Returns the value behind a code; none for those that came after [`VALUES_MAX`] others.
    pub(super) fn value(&self, attribute: usize, code: u32) -> Option<Arc<str>> {
        let values = &self.names.get(attribute)?.values;
        values.get(code as usize).map(Arc::clone)
    }
}
