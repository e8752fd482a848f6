//! Reads the events of a scenario.

use std::sync::Arc;
use std::time::Duration;

use super::{CLIENTS_MAX, PLAYED_MAX, Reading};
use crate::reader::Fields;
use crate::simulate::load::parse_network;
use crate::simulate::scenario::{Event, Instances, Kind};
use crate::simulate::values::EVENTS_MAX;
use crate::source::Source;
use crate::units::{DURATION_MAX, parse_percent};
use crate::yaml::Node;

const EVENT_KEYS: &[&str] = &[
    "surge",
    "crowd",
    "rollout",
    "from",
    "until",
    "rate",
    "ramp",
    "growth",
    "source",
    "clients",
    "addresses",
    "instances",
    "pulse",
    "cycle",
    "share",
];

impl Reading<'_> {
    pub(super) fn events(&mut self, node: &Node, duration: Option<Duration>) -> Option<Vec<Event>> {
        let items = self
            .reader
            .items_or_none("events", node, "`- surge: loop`")?;
        if items.len() > EVENTS_MAX {
            self.reader.problem(
                node.mark,
                format!("there are more than {EVENTS_MAX} events; write several scenarios"),
            );
            return None;
        }
        let mut events: Vec<Event> = Vec::with_capacity(items.len());
        let mut fine = true;
        for (at, item) in items.iter().enumerate() {
            self.reader.about(format_args!("event {}", at + 1));
            match self.event(item, duration) {
                Some(event) if events.iter().any(|known| known.name == event.name) => {
                    self.reader.problem(
                        item.mark,
                        format!("the name `{}` is given twice; choose another", event.name),
                    );
                    fine = false;
                }
                Some(event) => events.push(event),
                None => fine = false,
            }
        }
        fine.then_some(events)
    }

    fn event(&mut self, node: &Node, duration: Option<Duration>) -> Option<Event> {
        let fields = self.reader.fields("an event", node, EVENT_KEYS)?;
        let kinds = [
            ("surge", Kind::Surge),
            ("crowd", Kind::Crowd),
            ("rollout", Kind::Rollout),
        ];
        let mut named = kinds
            .iter()
            .filter_map(|(key, kind)| Some((*kind, fields.entry(key)?)));
        let (kind, entry) = match (named.next(), named.next()) {
            (Some(one), None) => one,
            (Some(_), Some((_, other))) => {
                self.reader.problem(
                    other.mark,
                    "an event is one of `surge`, `crowd` and `rollout`; keep one",
                );
                return None;
            }
            (None, _) => {
                self.reader.problem(
                    node.mark,
                    "the event's kind is missing; write it like `surge: loop`, `crowd: sale` or `rollout: v4`",
                );
                return None;
            }
        };
        let name = self
            .reader
            .name(&entry.key, &entry.value)
            .map(str::to_owned);
        if let Some(name) = &name {
            self.reader.about(format_args!("{} `{name}`", entry.key));
        }
        let end = duration.unwrap_or(PLAYED_MAX);
        let from = match fields.get("from") {
            Some(node) => self.duration_or_zero("from", node),
            None => Some(Duration::ZERO),
        };
        let until = match fields.get("until") {
            Some(node) => self.duration("until", node, DURATION_MAX),
            None => Some(end),
        };
        if let (Some(from), Some(until)) = (from, until)
            && from >= until
        {
            self.reader.problem(
                fields.get("until").unwrap_or(node).mark,
                "`until` is not after `from`; write a later one",
            );
        }
        let rate = if kind == Kind::Rollout {
            Some(0.0)
        } else {
            fields
                .required(&mut self.reader, "rate", "20000/s")
                .and_then(|node| self.rate("rate", node))
        };
        let ramp = match fields.get("ramp") {
            Some(node) => self.duration_or_zero("ramp", node),
            None => Some(Duration::ZERO),
        };
        let growth = self.percent(fields, "growth", 0.0);
        let share = self.percent(fields, "share", 1.0);
        let source = self.source(fields, kind);
        let clients = self.whole(fields, "clients");
        let addresses = self.whole(fields, "addresses");
        let instances = match fields.get("instances") {
            Some(node) => self.reader.word(
                "instances",
                node,
                &[
                    ("new", Instances::New),
                    ("known", Instances::Known),
                    ("forged", Instances::Forged),
                ],
            ),
            None => Some(Instances::New),
        };
        let pulse = match fields.get("pulse") {
            Some(node) => self.pulse(node).map(Some),
            None => Some(None),
        };
        let cycle = self.cycle(fields);
        self.belongs(fields, kind);
        Some(Event {
            kind,
            name: name?,
            from: from?,
            until: until?,
            rate: rate?,
            ramp: ramp?,
            growth: growth?,
            source: source?,
            clients,
            addresses,
            instances: instances?,
            pulse: pulse?,
            cycle: cycle?,
            share: share?,
        })
    }

    /// Says which keys another kind of event has.
    fn belongs(&mut self, fields: Fields<'_>, kind: Kind) {
        let foreign: &[&str] = match kind {
            Kind::Surge => &["share"],
            Kind::Crowd => &["share", "instances", "cycle"],
            Kind::Rollout => &[
                "rate",
                "growth",
                "clients",
                "addresses",
                "instances",
                "pulse",
                "cycle",
            ],
        };
        for key in foreign {
            if let Some(entry) = fields.entry(key) {
                self.reader.problem(
                    entry.mark,
                    format!("`{key}` has no meaning for this kind of event; remove it"),
                );
            }
        }
    }

    fn percent(&mut self, fields: Fields<'_>, key: &str, default: f64) -> Option<f64> {
        match fields.get(key) {
            Some(node) => self.reader.parsed(key, node, "`60%`", parse_percent),
            None => Some(default),
        }
    }

    /// `None`: not given, or a problem was said and the file is refused anyway.
    fn whole(&mut self, fields: Fields<'_>, key: &str) -> Option<u32> {
        let node = fields.get(key)?;
        self.reader.whole(key, node, 1..=CLIENTS_MAX)
    }

    fn source(&mut self, fields: Fields<'_>, kind: Kind) -> Option<Source> {
        let Some(node) = fields.get("source") else {
            if kind != Kind::Crowd {
                fields.required(
                    &mut self.reader,
                    "source",
                    "{ sdk: chat-android, app: acme }",
                );
                return None;
            }
            return Some(Source::everybody());
        };
        let entries = self.reader.entries("source", node)?;
        let mut source = Source::everybody();
        let mut fine = true;
        for entry in entries {
            fine &= self.attribute_name(&entry.key, &entry.value, kind == Kind::Surge);
            let text = self.reader.text(&entry.key, &entry.value, "`acme`");
            let Some(text) = text else {
                fine = false;
                continue;
            };
            if ["ip", "network"].contains(&entry.key.as_str()) && parse_network(text).is_none() {
                self.reader.problem(
                    entry.value.mark,
                    format!(
                        "`{}`: `{text}` is not an address; write it like `192.0.2.7`",
                        entry.key
                    ),
                );
                fine = false;
            }
            source = source.with(&entry.key, text);
        }
        if fine && source.is_everybody() && kind != Kind::Crowd {
            self.reader.problem(
                node.mark,
                "`source` is empty; write it like `{ app: acme }`",
            );
            return None;
        }
        fine.then_some(source)
    }

    fn pulse(&mut self, node: &Node) -> Option<(Duration, Duration)> {
        let fields = self.reader.fields("pulse", node, &["on", "off"])?;
        let on = fields
            .required(&mut self.reader, "on", "5s")
            .and_then(|node| self.duration("on", node, DURATION_MAX));
        let off = fields
            .required(&mut self.reader, "off", "25s")
            .and_then(|node| self.duration("off", node, DURATION_MAX));
        Some((on?, off?))
    }

    fn cycle(&mut self, fields: Fields<'_>) -> Option<Vec<Arc<str>>> {
        let Some(node) = fields.get("cycle") else {
            return Some(Vec::new());
        };
        let items = self.reader.items("cycle", node, "`[user_agent]`")?;
        let mut names = Vec::with_capacity(items.len());
        for item in items {
            let name = self.reader.text("cycle", item, "`user_agent`")?;
            if !self.attribute_name(name, item, false) {
                return None;
            }
            names.push(Arc::from(name));
        }
        Some(names)
    }
}
