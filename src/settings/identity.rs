//! How the operator's attributes are read from a request.

use std::sync::Arc;

use http::HeaderName;
use regex::Regex;
use tidegate_engine::attribute::{AttributeKind, AttributeSpec, Schema, Side};
use tidegate_engine::reader::Fields;
use tidegate_engine::rules_file::parse_pattern;
use tidegate_engine::yaml::{Entry, Node};

use super::Reading;

/// The longest name of an attribute.
const NAME_BYTES_MAX: usize = 32;
/// The last host label or path segment that can be asked for.
const PLACE_MAX: u32 = 32;
/// The most places that `first_of` looks at.
const FIRST_OF_MAX: usize = 8;

const FROM_KEYS: &[&str] = &[
    "header",
    "query",
    "cookie",
    "host_label",
    "path_segment",
    "jwt_claim",
    "first_of",
];
const SOURCE_KEYS: &[&str] = &[
    "header",
    "query",
    "cookie",
    "host_label",
    "path_segment",
    "jwt_claim",
    "first_of",
    "pattern",
    "type",
    "secret",
];
const PLAIN_KEYS: &[&str] = &[
    "header",
    "query",
    "cookie",
    "host_label",
    "path_segment",
    "jwt_claim",
];
const KINDS: &[(&str, AttributeKind)] = &[
    ("text", AttributeKind::Text),
    ("version", AttributeKind::Version),
];
const FROM_LIKE: &str = "`{ header: x-app-id }`";

/// One attribute of the operator's, and where it is read.
#[derive(Clone, Debug)]
pub struct AttributeSource {
    /// The attribute, as it is in the schema.
    pub spec: AttributeSpec,
    /// Where its value stands.
    pub from: ValueFrom,
    /// What of the value counts: the first group, or all that matches where there is none. A value
    /// that does not match leaves the attribute absent.
    pub pattern: Option<Regex>,
}

/// Where a value stands in a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueFrom {
    /// A header.
    Header(HeaderName),
    /// A query parameter.
    Query(Arc<str>),
    /// A cookie.
    Cookie(Arc<str>),
    /// A label of the host, counted from 1, from the left. An address has none.
    HostLabel(usize),
    /// A segment of the path, counted from 1.
    PathSegment(usize),
    /// A claim of the bearer token, which is read and not verified.
    JwtClaim(Arc<str>),
    /// The first of these that has a value; at least one, none of them `FirstOf`.
    FirstOf(Vec<Self>),
}

impl Reading<'_> {
    pub(super) fn identity(&mut self, node: &Node) -> Option<(Vec<AttributeSource>, Schema)> {
        self.reader.about("identity");
        let fields = self.reader.fields("identity", node, &["attributes"])?;
        let like = "{ app: { header: x-app-id } }";
        let attributes = fields.required(&mut self.reader, "attributes", like)?;
        let entries = self.reader.entries("attributes", attributes)?;
        let mut schema = Schema::built_in();
        let mut sources: Vec<AttributeSource> = Vec::with_capacity(entries.len());
        for entry in entries {
            // A key given twice was said when the mapping was opened.
            if sources.iter().any(|source| *source.spec.name == *entry.key) {
                continue;
            }
            let name = format!("attribute `{}`", entry.key);
            self.reader.about(&name);
            let source = self.attribute(entry);
            if let Some(source) = source {
                match schema.add(source.spec.clone()) {
                    Ok(_) => sources.push(source),
                    Err(error) => self.reader.problem(entry.mark, error),
                }
            }
        }
        Some((sources, schema))
    }

    fn attribute(&mut self, entry: &Entry) -> Option<AttributeSource> {
        if !is_attribute_name(&entry.key) {
            self.reader.problem(
                entry.mark,
                format!(
                    "this is not a name; write at most {NAME_BYTES_MAX} of a-z, 0-9 and `_`, a \
                     letter first, like `sdk_version`"
                ),
            );
        }
        let fields = self.reader.fields(&entry.key, &entry.value, SOURCE_KEYS)?;
        let from = self.from(fields, FROM_KEYS);
        let pattern = match fields.get("pattern") {
            Some(node) => Some(self.pattern(node)?),
            None => None,
        };
        let kind = match fields.get("type") {
            Some(node) => self.reader.word("type", node, KINDS)?,
            None => AttributeKind::Text,
        };
        let secret = match fields.get("secret") {
            Some(node) => self.reader.flag("secret", node)?,
            None => false,
        };
        if secret && from.as_ref().is_some_and(stands_in_the_log) {
            self.reader.problem(
                entry.mark,
                "a secret cannot be read from `host_label` or `path_segment`: host and path stand in \
                 the access log; read it from a header, a cookie or the query",
            );
        }
        Some(AttributeSource {
            spec: AttributeSpec {
                name: Arc::from(entry.key.as_str()),
                kind,
                side: Side::Who,
                secret,
            },
            from: from?,
            pattern,
        })
    }

    fn pattern(&mut self, node: &Node) -> Option<Regex> {
        let like = "`\"release-v(.+)\"`";
        let pattern = self.reader.parsed("pattern", node, like, parse_pattern)?;
        // The whole match is a group too.
        if pattern.captures_len() > 2 {
            self.reader.problem(
                node.mark,
                "`pattern` has more than one group; write `(?:...)` for those that are not the value",
            );
            return None;
        }
        Some(pattern)
    }

    /// Reads the one key that says where the value stands.
    fn from(&mut self, fields: Fields<'_>, keys: &[&str]) -> Option<ValueFrom> {
        let mut given = fields
            .iter()
            .filter(|entry| keys.contains(&entry.key.as_str()));
        let Some(entry) = given.next() else {
            self.reader.problem(
                fields.mark(),
                format!("nothing says where the value stands; write it like {FROM_LIKE}"),
            );
            return None;
        };
        if let Some(second) = given.find(|second| second.key != entry.key) {
            self.reader.problem(
                second.mark,
                format!(
                    "`{}` and `{}` are both given; keep one, or write `first_of: [{{ ... }}, {{ ... }}]`",
                    entry.key, second.key
                ),
            );
            return None;
        }
        let node = &entry.value;
        match entry.key.as_str() {
            "header" => self.header(node).map(ValueFrom::Header),
            "query" => self.plain("query", node).map(ValueFrom::Query),
            "cookie" => self.plain("cookie", node).map(ValueFrom::Cookie),
            "jwt_claim" => self.plain("jwt_claim", node).map(ValueFrom::JwtClaim),
            "host_label" => self.place("host_label", node).map(ValueFrom::HostLabel),
            "path_segment" => self.place("path_segment", node).map(ValueFrom::PathSegment),
            _ => self.first_of(node),
        }
    }

    fn first_of(&mut self, node: &Node) -> Option<ValueFrom> {
        let like = "`[{ header: x-app-id }, { query: app }]`";
        let items = self.reader.items("first_of", node, like)?;
        if items.len() > FIRST_OF_MAX {
            self.reader.problem(
                node.mark,
                format!("`first_of` has more than {FIRST_OF_MAX} places; each costs time on every request, write fewer"),
            );
        }
        let mut places = Vec::with_capacity(items.len());
        for item in items {
            let from = self
                .reader
                .fields("first_of", item, PLAIN_KEYS)
                .and_then(|fields| self.from(fields, PLAIN_KEYS));
            places.extend(from);
        }
        (places.len() == items.len()).then_some(ValueFrom::FirstOf(places))
    }

    fn header(&mut self, node: &Node) -> Option<HeaderName> {
        self.reader.parsed("header", node, "`x-app-id`", |text| {
            if text.contains('_') {
                return Err(format!(
                    "headers with an underscore, like `{text}`, are dropped and never read: many \
                     servers take `_` and `-` for the same; write the name with `-`"
                ));
            }
            HeaderName::try_from(text).map_err(|_reason| {
                format!("`{text}` is not the name of a header; write it like `x-app-id`")
            })
        })
    }

    fn plain(&mut self, key: &str, node: &Node) -> Option<Arc<str>> {
        self.reader.text(key, node, "`app`").map(Arc::from)
    }

    fn place(&mut self, key: &str, node: &Node) -> Option<usize> {
        let place = self.reader.whole(key, node, 1..=PLACE_MAX)?;
        Some(place as usize)
    }
}

/// Returns whether a value is part of what the access log shows of every request.
fn stands_in_the_log(from: &ValueFrom) -> bool {
    match from {
        ValueFrom::HostLabel(_) | ValueFrom::PathSegment(_) => true,
        ValueFrom::FirstOf(places) => places.iter().any(stands_in_the_log),
        _ => false,
    }
}

fn is_attribute_name(text: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}
