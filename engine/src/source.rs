//! A source: what requests have in common.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// A set of attribute values, one per attribute, by attribute name.
///
/// Fewer values are more general; the empty source is everybody. Attribute `a` is before attribute
/// `b` in every text: the order is the name's, so equal sources print alike.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(transparent)]
pub struct Source {
    values: BTreeMap<Arc<str>, Arc<str>>,
}

impl Source {
    /// Everybody.
    pub fn everybody() -> Self {
        Self::default()
    }

    /// Returns this source narrowed to those whose `attribute` is `value`.
    #[must_use]
    pub fn with(mut self, attribute: &str, value: &str) -> Self {
        self.values.insert(Arc::from(attribute), Arc::from(value));
        self
    }

    /// Returns the value of an attribute, if the source names it.
    pub fn get(&self, attribute: &str) -> Option<&str> {
        self.values.get(attribute).map(|value| &**value)
    }

    /// Returns whether this is everybody.
    pub fn is_everybody(&self) -> bool {
        self.values.is_empty()
    }

    /// Walks the values in order of attribute name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.values
            .iter()
            .map(|(attribute, value)| (&**attribute, &**value))
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.values.is_empty() {
            return f.write_str("everybody");
        }
        for (at, (attribute, value)) in self.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            write!(f, "{comma}{attribute}={value}")?;
        }
        Ok(())
    }
}
