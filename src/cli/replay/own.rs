//! Reads a line of our own access log, as [`crate::request::observe`] writes it. Knows which keys are
//! attributes, and not what becomes of them.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::net::IpAddr;

use ahash::RandomState;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use tidegate_engine::attribute::{AttributeId, Schema};
use tidegate_engine::reader::shortened;

use super::entry::{Moment, Unreadable};
use crate::metrics::OUTCOMES;

/// The most attributes of the log that the settings do not know and that are named.
const UNKNOWN_MAX: usize = 24;

/// What a line says. Texts are borrowed from it where nothing in them is escaped.
#[derive(Debug)]
pub(super) struct OwnLine<'a> {
    pub(super) at: Moment,
    /// `None`: the request was refused before anybody looked at who sent it.
    pub(super) address: Option<IpAddr>,
    pub(super) method: Cow<'a, str>,
    pub(super) host: Cow<'a, str>,
    pub(super) path: Cow<'a, str>,
    /// The attributes that the settings know, service and route among them.
    pub(super) values: Vec<(AttributeId, Cow<'a, str>)>,
    /// One of [`OUTCOMES`].
    pub(super) verdict: Option<&'static str>,
    /// The rule or limit that decided.
    pub(super) rule: Option<Cow<'a, str>>,
}

/// What a key stands for.
#[derive(Clone, Copy, Debug)]
enum Key {
    Time,
    Method,
    Host,
    Path,
    Ip,
    Verdict,
    Rule,
    Attribute(AttributeId),
    /// Of no use here.
    Other,
}

/// Reads lines under one schema.
#[derive(Debug)]
pub(super) struct OwnLines {
    keys: HashMap<Box<str>, Key, RandomState>,
    unknown: BTreeSet<Box<str>>,
}

impl OwnLines {
    pub(super) fn new(schema: &Schema) -> Self {
        let mut keys: HashMap<Box<str>, Key, RandomState> = HashMap::default();
        for (id, spec) in schema.iter() {
            // The log has no secrets, and address and network follow from `ip`.
            if !spec.secret && !id.is_address() {
                keys.insert((&*spec.name).into(), Key::Attribute(id));
            }
        }
        for (name, key) in [
            ("time", Key::Time),
            ("method", Key::Method),
            ("host", Key::Host),
            ("path", Key::Path),
            ("ip", Key::Ip),
            ("verdict", Key::Verdict),
            ("rule", Key::Rule),
            ("request_id", Key::Other),
            ("status", Key::Other),
            ("bytes", Key::Other),
            ("duration_us", Key::Other),
            ("error", Key::Other),
        ] {
            keys.insert(name.into(), key);
        }
        Self {
            keys,
            unknown: BTreeSet::new(),
        }
    }

    /// Returns the keys that were in the log and that the settings do not know.
    pub(super) fn unknown(&self) -> impl Iterator<Item = &str> {
        self.unknown.iter().map(|name| &**name)
    }

    pub(super) fn read<'a>(&mut self, line: &'a [u8]) -> Result<OwnLine<'a>, Unreadable> {
        let mut json = serde_json::Deserializer::from_slice(line);
        let parts = json
            .deserialize_map(Reading(self))
            .and_then(|parts| json.end().map(|()| parts))
            .map_err(Unreadable::NoJson)?;
        let time = parts.time.ok_or(Unreadable::NotOurs("time"))?;
        let at = humantime::parse_rfc3339(&time)
            .ok()
            .and_then(Moment::of)
            .ok_or_else(|| Unreadable::Time(shortened(&time), "2026-11-23T05:16:21.567Z"))?;
        let address = match &parts.ip {
            Some(text) => {
                let address = text.parse();
                Some(address.map_err(|_no_address| Unreadable::Address(shortened(text)))?)
            }
            None => None,
        };
        let method = parts.method.ok_or(Unreadable::NotOurs("method"))?;
        let path = parts.path.ok_or(Unreadable::NotOurs("path"))?;
        let word = parts.verdict.ok_or(Unreadable::NotOurs("verdict"))?;
        Ok(OwnLine {
            at,
            address,
            method,
            host: parts.host.unwrap_or_default(),
            path,
            values: parts.values,
            verdict: OUTCOMES.into_iter().find(|outcome| *outcome == word),
            rule: parts.rule,
        })
    }
}

/// The parts of a line, as far as they were read.
#[derive(Default)]
struct Parts<'a> {
    time: Option<Cow<'a, str>>,
    method: Option<Cow<'a, str>>,
    host: Option<Cow<'a, str>>,
    path: Option<Cow<'a, str>>,
    ip: Option<Cow<'a, str>>,
    verdict: Option<Cow<'a, str>>,
    rule: Option<Cow<'a, str>>,
    values: Vec<(AttributeId, Cow<'a, str>)>,
}

/// The reading of one line.
struct Reading<'k>(&'k mut OwnLines);

impl<'a> Visitor<'a> for Reading<'_> {
    type Value = Parts<'a>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a line of the access log")
    }

    fn visit_map<M: MapAccess<'a>>(self, mut map: M) -> Result<Parts<'a>, M::Error> {
        let mut parts = Parts::default();
        while let Some(name) = map.next_key_seed(Text)? {
            let name = name.unwrap_or_default();
            let key = self.0.keys.get(&*name).copied();
            let place = match key {
                Some(Key::Time) => &mut parts.time,
                Some(Key::Method) => &mut parts.method,
                Some(Key::Host) => &mut parts.host,
                Some(Key::Path) => &mut parts.path,
                Some(Key::Ip) => &mut parts.ip,
                Some(Key::Verdict) => &mut parts.verdict,
                Some(Key::Rule) => &mut parts.rule,
                Some(Key::Attribute(id)) => {
                    if let Some(value) = map.next_value_seed(Text)? {
                        parts.values.push((id, value));
                    }
                    continue;
                }
                Some(Key::Other) => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
                None => {
                    let unknown = &mut self.0.unknown;
                    if unknown.len() < UNKNOWN_MAX && !unknown.contains(&*name) {
                        unknown.insert(shortened(&name).into());
                    }
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            *place = map.next_value_seed(Text)?;
        }
        Ok(parts)
    }
}

/// A text, borrowed where possible; `None` for any other value.
struct Text;

impl<'a> DeserializeSeed<'a> for Text {
    type Value = Option<Cow<'a, str>>;

    fn deserialize<D: Deserializer<'a>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'a> Visitor<'a> for Text {
    type Value = Option<Cow<'a, str>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_borrowed_str<E>(self, text: &'a str) -> Result<Self::Value, E> {
        Ok(Some(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Some(Cow::Owned(text.to_owned())))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_map<M: MapAccess<'a>>(self, mut map: M) -> Result<Self::Value, M::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(None)
    }

    fn visit_seq<S: serde::de::SeqAccess<'a>>(self, mut seq: S) -> Result<Self::Value, S::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = r#"{"time":"2026-11-23T05:16:21.567Z","request_id":"8b89","method":"GET","host":"a.example.com","path":"/c/v1/\"x","ip":"192.0.2.7","user_agent":"curl","service":"chat","route":"/c/v1/","colour":"red","rule":"few","verdict":"limit","status":429,"bytes":284,"duration_us":92}"#;

    fn read(line: &str) -> Result<String, String> {
        let mut lines = OwnLines::new(&Schema::built_in());
        lines
            .read(line.as_bytes())
            .map(|line| format!("{line:?}"))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_line_is_read_as_it_was_written() {
        let mut lines = OwnLines::new(&Schema::built_in());
        let line = lines.read(LINE.as_bytes()).unwrap();
        assert_eq!(line.at.to_string(), "2026-11-23T05:16:21Z");
        assert_eq!(line.at.0 % 1_000_000_000, 567_000_000);
        assert_eq!(line.address, Some("192.0.2.7".parse().unwrap()));
        assert_eq!((&*line.method, &*line.host), ("GET", "a.example.com"));
        assert_eq!(line.path, "/c/v1/\"x");
        let values: Vec<_> = line.values.iter().map(|(id, v)| (*id, &**v)).collect();
        let expected = [
            (AttributeId::USER_AGENT, "curl"),
            (AttributeId::SERVICE, "chat"),
            (AttributeId::ROUTE, "/c/v1/"),
        ];
        assert_eq!(values, expected);
        assert_eq!(
            (line.verdict, line.rule.as_deref()),
            (Some("limit"), Some("few"))
        );
        assert_eq!(lines.unknown().collect::<Vec<_>>(), ["colour"]);
    }

    #[test]
    fn what_is_not_ours_is_said() {
        for (line, expected) in [
            (r#"{"time":"2026"#, "not JSON"),
            (r#"{"a":1}"#, "has no `time`"),
            (
                &LINE.replace("GET\"", "GET\",\"method\":7,\"x\":{\"y\":[1,{}]}"),
                "has no `method`",
            ),
            (
                &LINE.replace("05:16", "25:16"),
                "`2026-11-23T25:16:21.567Z` is not a time",
            ),
            (&LINE.replace("2026-", "9999-"), "is not a time"),
            (
                &LINE.replace("192.0.2.7", "localhost"),
                "`localhost` is not an address",
            ),
            (&format!("{LINE}{LINE}"), "not JSON"),
            (&format!("{{\"time\":{}", "[".repeat(60_000)), "not JSON"),
        ] {
            let said = read(line).unwrap_err();
            assert!(said.contains(expected), "{line}: {said}");
        }
    }
}
