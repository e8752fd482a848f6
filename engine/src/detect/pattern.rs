//! A source as the sketches see it: hashes in columns. [`Source`] is the same for people.

use crate::attribute::{Schema, Side};
use crate::source::Source;
use crate::traffic::{COLUMNS_MAX, Columns, LeafKey, LeafMask, Names};

/// What stands for an attribute that a request does not have.
pub(super) const ABSENT: u32 = 0;

/// What stands for all values that cannot be part of a cause. One value in 2³² has it as its hash, and
/// cannot be named.
pub(super) const OTHER: u32 = u32::MAX;

/// One attribute value, or its absence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Literal {
    pub(super) column: usize,
    pub(super) value: u32,
}

impl Literal {
    pub(super) fn matches(self, key: &LeafKey) -> bool {
        key.value(self.column) == self.value
    }
}

/// A conjunction of attribute values, in order of column; none: everybody.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Pattern {
    literals: Vec<Literal>,
}

impl Pattern {
    pub(super) fn literals(&self) -> &[Literal] {
        &self.literals
    }

    pub(super) fn is_everybody(&self) -> bool {
        self.literals.is_empty()
    }

    /// Returns the values that a key has, none of what is absent.
    pub(super) fn of(key: &LeafKey) -> Self {
        let literals = (0..COLUMNS_MAX).map(|column| Literal {
            column,
            value: key.value(column),
        });
        Self {
            literals: literals.filter(|literal| literal.value != ABSENT).collect(),
        }
    }

    pub(super) fn with(&self, literal: Literal) -> Self {
        let mut literals = self.literals.clone();
        if !literals.contains(&literal) {
            literals.push(literal);
            literals.sort_unstable();
        }
        Self { literals }
    }

    pub(super) fn without(&self, literal: Literal) -> Self {
        let kept = |other: &Literal| *other != literal;
        Self {
            literals: self.literals.iter().copied().filter(kept).collect(),
        }
    }

    /// Returns whether the literal is one of this pattern's.
    pub(super) fn names(&self, literal: Literal) -> bool {
        self.literals.contains(&literal)
    }

    pub(super) fn names_column(&self, column: usize) -> bool {
        self.literals.iter().any(|literal| literal.column == column)
    }

    pub(super) fn matches(&self, key: &LeafKey) -> bool {
        self.literals.iter().all(|literal| literal.matches(key))
    }

    /// Returns whether this is a part of the other: what it matches, the other does, and not the other way
    /// round.
    pub(super) fn is_part_of(&self, other: &Self) -> bool {
        self.literals.len() > other.literals.len()
            && other.literals.iter().all(|literal| self.names(*literal))
    }

    /// Returns the same for the request path.
    pub(super) fn mask(&self) -> LeafMask {
        let literals = self.literals.iter();
        LeafMask::of(literals.map(|literal| (literal.column, literal.value)))
    }

    /// Returns the part that describes the client.
    pub(super) fn who(&self, columns: &Columns) -> Self {
        let is_who = |literal: &&Literal| {
            columns
                .get(literal.column)
                .is_some_and(|column| column.side == Side::Who)
        };
        Self {
            literals: self.literals.iter().filter(is_who).copied().collect(),
        }
    }

    /// Returns the source in words, or `None` while a text is not known.
    pub(super) fn source(
        &self,
        schema: &Schema,
        columns: &Columns,
        names: &Names,
    ) -> Option<Source> {
        let mut source = Source::everybody();
        for literal in &self.literals {
            let column = columns.get(literal.column)?;
            let name = schema.name(column.attribute);
            source = if literal.value == ABSENT {
                source.lacking(name)
            } else {
                source.with(name, names.text(literal.column, literal.value)?)
            };
        }
        Some(source)
    }
}
