//! Which attributes there are. Knows nothing of how a request is read; see [`crate::request`].

use std::fmt;
use std::sync::Arc;

/// The most attributes that there can be, built-in ones included.
///
/// A request carries one slot for each: 24 × (24 B text + 8 B hash) = 768 B on the stack.
pub const ATTRIBUTES_MAX: usize = 24;

/// An attribute's place in the [`Schema`]; below [`ATTRIBUTES_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttributeId(u8);

impl AttributeId {
    /// The client's address.
    pub const IP: Self = Self(0);
    /// The client's /24 (IPv4) or /48 (IPv6).
    pub const NETWORK: Self = Self(1);
    /// What tells one device from another; the address stands in where there is none.
    pub const INSTANCE: Self = Self(2);
    /// The `user-agent` header.
    pub const USER_AGENT: Self = Self(3);
    /// The TLS client fingerprint.
    pub const JA4: Self = Self(4);
    /// The service whose match applied.
    pub const SERVICE: Self = Self(5);
    /// The host asked for, in lower case, without port.
    pub const HOST: Self = Self(6);
    /// The request method.
    pub const METHOD: Self = Self(7);
    /// The `path` of the service's match that applied.
    pub const ROUTE: Self = Self(8);

    /// Returns the attribute at a place below [`ATTRIBUTES_MAX`]; of a larger one, the last.
    pub(crate) const fn at(index: usize) -> Self {
        if index < ATTRIBUTES_MAX {
            Self(index as u8)
        } else {
            Self(ATTRIBUTES_MAX as u8 - 1)
        }
    }

    /// Returns the place, for arrays of [`ATTRIBUTES_MAX`].
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// Returns whether this is the address or derived from it.
    pub const fn is_address(self) -> bool {
        self.0 <= 1
    }
}

/// What an attribute's values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttributeKind {
    /// Any text, compared byte by byte.
    Text,
    /// A version: conditions may be semver ranges.
    Version,
    /// An address: conditions may be networks.
    Address,
}

/// Whom or what an attribute describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The client.
    Who,
    /// The request.
    What,
}

/// One attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttributeSpec {
    /// The name, as in YAML, metrics and logs.
    pub name: Arc<str>,
    /// What its values are.
    pub kind: AttributeKind,
    /// Whom or what it describes.
    pub side: Side,
    /// Whether values must never be shown (they are hashed at identification).
    pub secret: bool,
}

/// All attributes: the built-in ones, then the operator's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schema {
    specs: Vec<AttributeSpec>,
}

/// Why an attribute cannot be added.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    /// The name belongs to a built-in attribute.
    #[error("`{0}` is built in; choose another name")]
    BuiltIn(Arc<str>),
    /// Two attributes of one name.
    #[error("the attribute `{0}` is defined twice")]
    Duplicate(Arc<str>),
    /// Too many attributes.
    #[error(
        "there are more than {} attributes of your own; each costs time on every request",
        ATTRIBUTES_MAX - BUILT_IN.len()
    )]
    TooMany,
}

/// Name, kind and side of the built-in attributes, in the order of the `AttributeId` constants.
const BUILT_IN: [(&str, AttributeKind, Side); 9] = [
    ("ip", AttributeKind::Address, Side::Who),
    ("network", AttributeKind::Address, Side::Who),
    ("instance", AttributeKind::Text, Side::Who),
    ("user_agent", AttributeKind::Text, Side::Who),
    ("ja4", AttributeKind::Text, Side::Who),
    ("service", AttributeKind::Text, Side::What),
    ("host", AttributeKind::Text, Side::What),
    ("method", AttributeKind::Text, Side::What),
    ("route", AttributeKind::Text, Side::What),
];

impl Default for Schema {
    fn default() -> Self {
        Self::built_in()
    }
}

impl Schema {
    /// The built-in attributes alone.
    pub fn built_in() -> Self {
        let spec = |(name, kind, side): (&str, AttributeKind, Side)| AttributeSpec {
            name: Arc::from(name),
            kind,
            side,
            secret: false,
        };
        Self {
            specs: BUILT_IN.into_iter().map(spec).collect(),
        }
    }

    /// Adds an attribute of the operator's. `instance` is the one built-in name that may be given:
    /// it then takes the place of the client address as what tells devices apart.
    pub fn add(&mut self, spec: AttributeSpec) -> Result<AttributeId, SchemaError> {
        if *spec.name == *"instance" {
            let id = AttributeId::INSTANCE;
            if let Some(slot) = self.specs.get_mut(id.index()) {
                *slot = spec;
            }
            return Ok(id);
        }
        if let Some(existing) = self.id(&spec.name) {
            return Err(if existing.index() < BUILT_IN.len() {
                SchemaError::BuiltIn(spec.name)
            } else {
                SchemaError::Duplicate(spec.name)
            });
        }
        if self.specs.len() >= ATTRIBUTES_MAX {
            return Err(SchemaError::TooMany);
        }
        let id = AttributeId(self.specs.len() as u8);
        self.specs.push(spec);
        Ok(id)
    }

    /// Finds an attribute by name.
    pub fn id(&self, name: &str) -> Option<AttributeId> {
        self.specs
            .iter()
            .position(|spec| &*spec.name == name)
            .map(|at| AttributeId(at as u8))
    }

    /// Returns the attribute at `id`, or `None` for one of another schema.
    pub fn spec(&self, id: AttributeId) -> Option<&AttributeSpec> {
        self.specs.get(id.index())
    }

    /// Returns the name at `id`.
    pub fn name(&self, id: AttributeId) -> &str {
        self.spec(id).map_or("?", |spec| &spec.name)
    }

    /// Walks the operator's attributes of clients that may be shown, in order.
    pub fn own_who(&self) -> impl Iterator<Item = AttributeId> {
        let own = self.iter().skip(BUILT_IN.len());
        own.filter(|(_, spec)| spec.side == Side::Who && !spec.secret)
            .map(|(id, _)| id)
    }

    /// Walks all attributes in order.
    pub fn iter(&self) -> impl Iterator<Item = (AttributeId, &AttributeSpec)> {
        self.specs
            .iter()
            .enumerate()
            .map(|(at, spec)| (AttributeId(at as u8), spec))
    }
}

impl fmt::Display for AttributeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Version => "version",
            Self::Address => "address",
        })
    }
}
