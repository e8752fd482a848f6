//! Conditions: `when`, attribute by attribute.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use regex::Regex;

use super::Reading;
use crate::attribute::{AttributeId, AttributeKind};
use crate::request::VALUE_BYTES_MAX;
use crate::rules::{Condition, When};
use crate::source::Source;
use crate::version;
use crate::yaml::{Node, Value};

/// The longest regex, as written.
pub const PATTERN_BYTES_MAX: usize = 1024;
/// The most memory that one compiled regex takes.
const PATTERN_COMPILED_BYTES_MAX: usize = 256 << 10;

const CONDITION_KEYS: &[&str] = &["prefix", "regex", "present", "not"];
const CONDITION_LIKE: &str = "`acme`, `[acme, zeta]` or `{ present: false }`";

/// One attribute that a condition is about.
#[derive(Clone, Copy)]
struct Subject<'n> {
    name: &'n str,
    id: AttributeId,
    kind: AttributeKind,
    is_secret: bool,
}

/// What is said of a condition on the text of a secret attribute.
const SECRET: &str =
    "is secret and kept as a hash only; nothing but `{ present: true }` can be asked of it";

impl Reading<'_, '_> {
    /// Reads `when`: the conditions, and their text for people.
    pub(super) fn when(&mut self, node: &Node) -> Option<(When, Source)> {
        let entries = self.reader.entries("when", node)?;
        if entries.is_empty() {
            self.reader.problem(
                node.mark,
                "`when` is empty and would match everybody; write a condition, like `{ app: acme }`",
            );
            return None;
        }
        let mut conditions = Vec::with_capacity(entries.len());
        let mut text = Source::everybody();
        for entry in entries {
            let Some(id) = self.attribute(entry.mark, &entry.key) else {
                continue;
            };
            let spec = self.vocabulary.schema().spec(id);
            let kind = spec.map_or(AttributeKind::Text, |spec| spec.kind);
            let is_secret = spec.is_some_and(|spec| spec.secret);
            let subject = Subject {
                name: &entry.key,
                id,
                kind,
                is_secret,
            };
            if let Some(condition) = self.condition(subject, &entry.value, true) {
                conditions.push((id, condition));
                text = text.with(&entry.key, &entry.value.value.to_string());
            }
        }
        (conditions.len() == entries.len()).then_some((When { conditions }, text))
    }

    /// Reads one condition; a list only where it `may_list`, for a list in a list says nothing more.
    fn condition(
        &mut self,
        subject: Subject<'_>,
        node: &Node,
        may_list: bool,
    ) -> Option<Condition> {
        match &node.value {
            Value::Map(_) => self.operator(subject, node),
            Value::List(_) if may_list => {
                let items = self.reader.items(subject.name, node, CONDITION_LIKE)?;
                let conditions: Vec<_> = items
                    .iter()
                    .filter_map(|item| self.condition(subject, item, false))
                    .collect();
                (conditions.len() == items.len()).then_some(Condition::AnyOf(conditions))
            }
            _ => {
                let text = self.reader.text(subject.name, node, CONDITION_LIKE)?;
                self.value(subject, node, text)
            }
        }
    }

    /// Reads `{ prefix: }`, `{ regex: }`, `{ present: }` or `{ not: }`.
    fn operator(&mut self, subject: Subject<'_>, node: &Node) -> Option<Condition> {
        let fields = self.reader.fields(subject.name, node, CONDITION_KEYS)?;
        let mut entries = fields.iter();
        let (Some(entry), None) = (entries.next(), entries.next()) else {
            self.reader.problem(
                node.mark,
                format!(
                    "`{}`: a condition has exactly one of `prefix`, `regex`, `present` or `not`; \
                     write it like `{{ prefix: chat- }}`",
                    subject.name
                ),
            );
            return None;
        };
        let is_address = subject.kind == AttributeKind::Address;
        match entry.key.as_str() {
            "prefix" | "regex" if subject.is_secret => {
                self.reader
                    .problem(entry.mark, format!("`{}` {SECRET}", subject.name));
                None
            }
            "prefix" | "regex" if is_address => {
                self.reader.problem(
                    entry.mark,
                    format!(
                        "`{}` is an address and has no `{}`; write networks, like `198.51.100.0/24`",
                        subject.name, entry.key
                    ),
                );
                None
            }
            "prefix" => {
                let text = self.reader.text("prefix", &entry.value, "`chat-`")?;
                Some(Condition::Prefix(as_compared(subject.id, text)))
            }
            "regex" => self
                .reader
                .parsed("regex", &entry.value, "`\"^chat-\"`", parse_pattern)
                .map(Condition::Regex),
            "present" => self
                .reader
                .flag("present", &entry.value)
                .map(Condition::Present),
            "not" => self
                .condition(subject, &entry.value, true)
                .map(|condition| Condition::Not(Box::new(condition))),
            // An unknown key was said above.
            _ => None,
        }
    }

    /// Reads one value by the kind of its attribute.
    fn value(&mut self, subject: Subject<'_>, node: &Node, text: &str) -> Option<Condition> {
        if subject.is_secret {
            self.reader
                .problem(node.mark, format!("`{}` {SECRET}", subject.name));
            return None;
        }
        let said = match subject.kind {
            AttributeKind::Address => parse_network(text).map(Condition::Network),
            AttributeKind::Version => version::parse_condition(text)
                .map(Condition::Version)
                .map_err(|error| error.to_string()),
            AttributeKind::Text
                if self.vocabulary.is_lenient() && text.starts_with(['<', '>', '=', '^', '~']) =>
            {
                version::parse_condition(text)
                    .map(Condition::Version)
                    .map_err(|error| error.to_string())
            }
            AttributeKind::Text => self.plain(subject.id, text),
        };
        match said {
            Ok(condition) => Some(condition),
            Err(error) => {
                self.reader
                    .problem(node.mark, format!("`{}`: {error}", subject.name));
                None
            }
        }
    }

    fn plain(&self, id: AttributeId, text: &str) -> Result<Condition, String> {
        if text.len() > VALUE_BYTES_MAX {
            return Err(format!(
                "the value is longer than {VALUE_BYTES_MAX} bytes and matches nothing; write the \
                 `hash:...` that the log shows for it, or a `{{ prefix: }}`"
            ));
        }
        if id == AttributeId::METHOD && text.bytes().any(|byte| byte.is_ascii_lowercase()) {
            return Err(format!(
                "methods are written in capitals; write `{}`",
                text.to_ascii_uppercase()
            ));
        }
        if id == AttributeId::SERVICE {
            self.vocabulary.service(text)?;
        }
        Ok(Condition::Is(as_compared(id, text)))
    }
}

/// Returns the text as it will be compared: hosts are compared in lower case.
pub(super) fn as_compared(id: AttributeId, text: &str) -> Arc<str> {
    if id == AttributeId::HOST {
        Arc::from(text.to_ascii_lowercase())
    } else {
        Arc::from(text)
    }
}

/// Reads a network or a single address, which is a network of one.
fn parse_network(text: &str) -> Result<IpNet, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(IpNet::from(address.to_canonical()));
    }
    let Ok(network) = text.parse::<IpNet>() else {
        return Err(format!(
            "`{text}` is not a network; write it like `198.51.100.0/24` or `2001:db8::/32`"
        ));
    };
    if network != network.trunc() {
        return Err(format!(
            "`{text}` has bits beyond its length; write `{}` or `{}`",
            network.trunc(),
            network.addr()
        ));
    }
    Ok(network)
}

/// Compiles a regex in bounded memory.
pub fn parse_pattern(text: &str) -> Result<Regex, String> {
    if text.len() > PATTERN_BYTES_MAX {
        return Err(format!(
            "the pattern is longer than {PATTERN_BYTES_MAX} bytes; write a shorter one, or several rules"
        ));
    }
    regex::RegexBuilder::new(text)
        .size_limit(PATTERN_COMPILED_BYTES_MAX)
        .dfa_size_limit(PATTERN_COMPILED_BYTES_MAX)
        .build()
        .map_err(|error| match error {
            regex::Error::CompiledTooBig(_) => format!(
                "`{text}` needs more than {} KiB; write smaller repetitions, or `(?-u)` for ASCII",
                PATTERN_COMPILED_BYTES_MAX >> 10
            ),
            // The library draws the pattern over several lines; the last one says what is wrong.
            error => {
                let drawn = error.to_string();
                let why = drawn.lines().last().unwrap_or_default();
                let why = why.trim().trim_start_matches("error: ");
                format!("`{text}` is not a regex ({why}); put it in quotes, like `\"^chat-\"`")
            }
        })
}
