//! Which names a rules file may use.

use std::sync::Arc;

use crate::attribute::{AttributeId, AttributeKind, AttributeSpec, Schema, Side};
use crate::reader::{Listed, nearest};

/// The attributes and services that rules may speak of.
///
/// Without the settings file nobody knows them: a lenient vocabulary then takes every attribute
/// name as text, and every service.
#[derive(Clone, Debug)]
pub struct Vocabulary {
    schema: Schema,
    /// Names of services; `None`: not known.
    services: Option<Vec<Arc<str>>>,
    is_lenient: bool,
}

impl Vocabulary {
    /// The names of a settings file: an unknown attribute or service is a problem.
    pub fn new(schema: Schema, services: Vec<Arc<str>>) -> Self {
        Self {
            schema,
            services: Some(services),
            is_lenient: false,
        }
    }

    /// The attributes alone: every service is fine.
    pub fn of_schema(schema: Schema) -> Self {
        Self {
            schema,
            services: None,
            is_lenient: false,
        }
    }

    /// Takes every name, and learns the attributes.
    pub fn lenient() -> Self {
        Self {
            schema: Schema::built_in(),
            services: None,
            is_lenient: true,
        }
    }

    /// Takes every name, and learns the attributes that `schema` does not have.
    pub fn lenient_beyond(schema: Schema) -> Self {
        Self {
            schema,
            ..Self::lenient()
        }
    }

    /// Returns the attributes, learnt ones included.
    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    /// Returns whether unknown names are taken.
    pub fn is_lenient(&self) -> bool {
        self.is_lenient
    }

    /// Finds an attribute, or says what there is.
    pub(super) fn attribute(&mut self, name: &str) -> Result<AttributeId, String> {
        if let Some(id) = self.schema.id(name) {
            return Ok(id);
        }
        if self.is_lenient {
            let spec = AttributeSpec {
                name: Arc::from(name),
                kind: AttributeKind::Text,
                side: Side::Who,
                secret: false,
            };
            return self.schema.add(spec).map_err(|error| error.to_string());
        }
        let known: Vec<&str> = self.schema.iter().map(|(_, spec)| &*spec.name).collect();
        Err(unknown("attribute", name, &known))
    }

    /// Looks whether there is a service, or says which there are.
    pub(super) fn service(&self, name: &str) -> Result<(), String> {
        match &self.services {
            Some(services) if !services.iter().any(|service| **service == *name) => {
                Err(unknown("service", name, services))
            }
            _ => Ok(()),
        }
    }
}

fn unknown<W: AsRef<str>>(what: &str, name: &str, known: &[W]) -> String {
    match nearest(name, known) {
        Some(near) => format!("unknown {what} `{name}`; did you mean `{near}`?"),
        None => format!(
            "unknown {what} `{name}`; the settings have {}",
            Listed(known)
        ),
    }
}
