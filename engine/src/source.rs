//! A source: what requests have in common.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use serde::de::{Deserialize, Deserializer};
use serde::ser::{Serialize, SerializeMap as _, Serializer};

/// A set of attribute values, one per attribute, by attribute name; also attributes that are absent.
///
/// Fewer values are more general; the empty source is everybody. Attribute `a` is before attribute
/// `b` in every text: the order is the name's, so equal sources print alike.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Source {
    values: BTreeMap<Arc<str>, Arc<str>>,
    absent: BTreeSet<Arc<str>>,
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

    /// Returns this source narrowed to those without `attribute`.
    #[must_use]
    pub fn lacking(mut self, attribute: &str) -> Self {
        self.absent.insert(Arc::from(attribute));
        self
    }

    /// Walks the attributes that its requests lack, in order of name.
    pub fn absent(&self) -> impl Iterator<Item = &str> {
        self.absent.iter().map(|attribute| &**attribute)
    }

    /// Returns the value of an attribute, if the source names it.
    pub fn get(&self, attribute: &str) -> Option<&str> {
        self.values.get(attribute).map(|value| &**value)
    }

    /// Returns whether this is everybody.
    pub fn is_everybody(&self) -> bool {
        self.values.is_empty() && self.absent.is_empty()
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
        if self.is_everybody() {
            return f.write_str("everybody");
        }
        for (at, (attribute, value)) in self.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            write!(f, "{comma}{attribute}={value}")?;
        }
        for (at, attribute) in self.absent().enumerate() {
            let comma = if at == 0 && self.values.is_empty() {
                ""
            } else {
                ", "
            };
            write!(f, "{comma}no {attribute}")?;
        }
        Ok(())
    }
}

/// One value as it is written.
#[derive(serde::Deserialize)]
#[serde(untagged)]
enum Written {
    Value(Arc<str>),
    Presence { present: bool },
}

impl<'de> Deserialize<'de> for Source {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let written: BTreeMap<Arc<str>, Written> = BTreeMap::deserialize(deserializer)?;
        let mut source = Self::default();
        for (attribute, value) in written {
            match value {
                Written::Value(value) => {
                    source.values.insert(attribute, value);
                }
                Written::Presence { present: false } => {
                    source.absent.insert(attribute);
                }
                Written::Presence { present: true } => {
                    let text = "a source names a value, or that there is none";
                    return Err(serde::de::Error::custom(text));
                }
            }
        }
        Ok(source)
    }
}

/// As a condition is written: `{"app": "acme", "sdk": {"present": false}}`.
impl Serialize for Source {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.values.len() + self.absent.len()))?;
        for (attribute, value) in &self.values {
            map.serialize_entry(attribute, value)?;
        }
        for attribute in &self.absent {
            map.serialize_entry(attribute, &BTreeMap::from([("present", false)]))?;
        }
        map.end()
    }
}
