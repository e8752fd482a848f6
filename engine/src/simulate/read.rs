//! Reads a scenario from YAML; everything that is wrong is said at once, with its place.

mod events;

use std::sync::Arc;
use std::time::Duration;

use super::expect;
use super::scenario::{
    Background, Drawn, Draws, RATE_MAX, Scenario, TableSpec, Written, add_attribute,
};
use crate::attribute::Schema;
use crate::detect::{DetectionMode, DetectionSpec};
use crate::problem::Problems;
use crate::reader::Reader;
use crate::units::{DURATION_MAX, Rate, parse_duration, parse_duration_or_zero, parse_percent};
use crate::yaml::{self, Node, Value};

/// The longest that a scenario plays: four weeks.
const PLAYED_MAX: Duration = Duration::from_hours(28 * 24);
/// The most clients of one population.
const CLIENTS_MAX: u32 = 100_000_000;
/// The most values of one attribute that are drawn.
const VALUES_MAX: u32 = 1_000_000;

const KEYS: &[&str] = &[
    "name",
    "seed",
    "duration",
    "rules",
    "services",
    "background",
    "events",
    "detection",
    "cold",
    "upstream",
    "expect",
];
const BACKGROUND_KEYS: &[&str] = &[
    "rate",
    "clients",
    "attributes",
    "table",
    "shape",
    "speed",
    "begin",
];
const DETECTION_KEYS: &[&str] = &["mode", "collateral_max", "budget", "warmup"];

impl Scenario {
    /// Reads a scenario.
    pub fn parse(path: &str, text: &str) -> Result<Self, Problems> {
        let tree = yaml::parse(path, text)?;
        let mut reading = Reading {
            reader: Reader::new(path),
            schema: Schema::built_in(),
        };
        let scenario = reading.scenario(&tree);
        let problems = reading.reader.finish();
        match scenario {
            Some(scenario) => problems.or(scenario),
            None => Err(problems),
        }
    }

    /// Returns the attributes that the scenario speaks of, besides those of its table.
    pub fn schema(&self) -> Schema {
        let mut schema = Schema::built_in();
        let of_background = match &self.background {
            Background::Drawn(drawn) => drawn.attributes.iter().map(|(name, _)| &**name).collect(),
            Background::Table(_) => Vec::new(),
        };
        let of_events = self.events.iter().flat_map(|event| {
            let cycled = event.cycle.iter().map(|name| &**name);
            event.source.iter().map(|(name, _)| name).chain(cycled)
        });
        for name in of_background.into_iter().chain(of_events) {
            // That it fits was checked when the scenario was read.
            drop(add_attribute(&mut schema, name));
        }
        schema
    }
}

struct Reading<'p> {
    reader: Reader<'p>,
    schema: Schema,
}

impl Reading<'_> {
    fn scenario(&mut self, tree: &Node) -> Option<Scenario> {
        let fields = self.reader.fields("a scenario", tree, KEYS)?;
        let name = fields
            .required(&mut self.reader, "name", "april-2020")
            .and_then(|node| self.reader.name("name", node))
            .map(str::to_owned);
        let seed = match fields.get("seed") {
            Some(node) => self.reader.whole("seed", node, 0..=u32::MAX).map(u64::from),
            None => Some(0),
        };
        let duration = fields
            .required(&mut self.reader, "duration", "300s")
            .and_then(|node| self.duration("duration", node, PLAYED_MAX));
        let rules = match fields.get("rules") {
            Some(node) => self.written("rules", node, "`../rules`").map(Some),
            None => Some(None),
        };
        let services = match fields.get("services") {
            Some(node) => self.services(node),
            None => Some(vec![(Arc::from("api"), 1.0)]),
        };
        let background = fields
            .required(
                &mut self.reader,
                "background",
                "{ rate: 2000/s, clients: 50000 }",
            )
            .and_then(|node| self.background(node));
        let events = match fields.get("events") {
            Some(node) => self.events(node, duration),
            None => Some(Vec::new()),
        };
        self.reader.about("");
        let cold = match fields.get("cold") {
            Some(node) => self.reader.flag("cold", node),
            None => Some(false),
        };
        let detection = match fields.get("detection") {
            Some(node) => self.detection(node),
            None => Some(DetectionSpec::default()),
        };
        let capacity = match fields.get("upstream") {
            Some(node) => self.capacity(node).map(Some),
            None => Some(None),
        };
        let expect = match fields.get("expect") {
            Some(node) => expect::read(&mut self.reader, node),
            None => Some(Vec::new()),
        };
        Some(Scenario {
            name: name?,
            seed: seed?,
            duration: duration?,
            rules: rules?,
            services: services?,
            background: background?,
            events: events?,
            detection: detection?,
            cold: cold?,
            capacity: capacity?,
            expect: expect?,
        })
    }

    fn written(&mut self, key: &str, node: &Node, like: &str) -> Option<Written> {
        let text = self.reader.text(key, node, like)?.to_owned();
        let place = node.mark.in_file(self.reader.path());
        Some(Written { text, place })
    }

    fn duration(&mut self, key: &str, node: &Node, most: Duration) -> Option<Duration> {
        let read = self.reader.parsed(key, node, "`300s`", parse_duration)?;
        self.bounded(key, node, read, most)
    }

    fn duration_or_zero(&mut self, key: &str, node: &Node) -> Option<Duration> {
        let read = self
            .reader
            .parsed(key, node, "`60s`", parse_duration_or_zero)?;
        self.bounded(key, node, read, DURATION_MAX)
    }

    fn bounded(
        &mut self,
        key: &str,
        node: &Node,
        read: Duration,
        most: Duration,
    ) -> Option<Duration> {
        if read > most {
            let days = most.as_secs() / 86_400;
            self.reader.problem(
                node.mark,
                format!("`{key}` is too long; write at most `{days}d`"),
            );
            return None;
        }
        Some(read)
    }

    fn rate(&mut self, key: &str, node: &Node) -> Option<f64> {
        let rate = self.reader.parsed(key, node, "`2000/s`", Rate::parse)?;
        if rate.per_second() > RATE_MAX {
            self.reader.problem(
                node.mark,
                format!("`{key}` is too large to be played; write at most `10000000/s`"),
            );
            return None;
        }
        Some(rate.per_second())
    }

    /// A number without unit: a weight, an exponent, a factor.
    fn number(&mut self, key: &str, node: &Node, least: f64, most: f64) -> Option<f64> {
        self.reader.parsed(key, node, "`1.5`", |text| {
            let number = text.parse::<f64>().ok();
            number
                .filter(|number| number.is_finite() && (least..=most).contains(number))
                .ok_or_else(|| {
                    format!("`{text}` is not a number from {least} to {most}; write it like `1.5`")
                })
        })
    }

    fn services(&mut self, node: &Node) -> Option<Vec<(Arc<str>, f64)>> {
        if let Value::Map(_) = node.value {
            return self.weights("services", node);
        }
        let items = self.reader.items(
            "services",
            node,
            "`[chat, kb, login]`, or `{ chat: 6, kb: 3 }`",
        )?;
        let mut services = Vec::with_capacity(items.len());
        for item in items {
            let name = self.reader.name("services", item)?;
            if services
                .iter()
                .any(|(known, _): &(Arc<str>, f64)| **known == *name)
            {
                self.reader.problem(
                    item.mark,
                    format!("the service `{name}` is there twice; keep one"),
                );
                return None;
            }
            services.push((Arc::from(name), 1.0));
        }
        Some(services)
    }

    fn weights(&mut self, key: &str, node: &Node) -> Option<Vec<(Arc<str>, f64)>> {
        let entries = self.reader.entries(key, node)?;
        let mut weights = Vec::with_capacity(entries.len());
        let mut fine = true;
        for entry in entries {
            match self.number(&entry.key, &entry.value, 0.0, 1e9) {
                Some(weight) => weights.push((Arc::from(entry.key.as_str()), weight)),
                None => fine = false,
            }
        }
        let total: f64 = weights.iter().map(|(_, weight)| weight).sum();
        if fine && total <= 0.0 {
            self.reader.problem(
                node.mark,
                format!("`{key}`: the weights sum up to nothing; write it like `{{ a: 5, b: 1 }}`"),
            );
            return None;
        }
        fine.then_some(weights)
    }

    fn background(&mut self, node: &Node) -> Option<Background> {
        self.reader.about("the background");
        let fields = self.reader.fields("background", node, BACKGROUND_KEYS)?;
        let rate = match fields.get("rate") {
            Some(node) => self.rate("rate", node).map(Some),
            None => Some(None),
        };
        let shape = match fields.get("shape") {
            Some(node) => self.written("shape", node, "`shape.csv`").map(Some),
            None => Some(None),
        };
        let speed = match fields.get("speed") {
            Some(node) => self.number("speed", node, 0.001, 1e6),
            None => Some(1.0),
        };
        let begin = match fields.get("begin") {
            Some(node) => self.duration_or_zero("begin", node),
            None => Some(Duration::ZERO),
        };
        if let Some(table) = fields.get("table") {
            for key in ["clients", "attributes"] {
                if let Some(entry) = fields.entry(key) {
                    self.reader.problem(
                        entry.mark,
                        format!("`{key}` is the table's to say; remove it, or remove `table`"),
                    );
                }
            }
            let path = self.written("table", table, "`counts.csv`");
            return Some(Background::Table(TableSpec {
                path: path?,
                speed: speed?,
                begin: begin?,
                rate: rate?,
                shape: shape?,
            }));
        }
        if fields.get("rate").is_none() {
            fields.required(&mut self.reader, "rate", "2000/s");
        }
        let clients = match fields.get("clients") {
            Some(node) => self.reader.whole("clients", node, 1..=CLIENTS_MAX),
            None => rate.flatten().map(|rate| {
                (rate * super::background::INTERVAL_S).clamp(1.0, f64::from(CLIENTS_MAX)) as u32
            }),
        };
        let attributes = match fields.get("attributes") {
            Some(node) => self.attributes(node),
            None => Some(Vec::new()),
        };
        let shape = shape?;
        if shape.is_none() {
            for key in ["speed", "begin"] {
                if let Some(entry) = fields.entry(key) {
                    self.reader.problem(
                        entry.mark,
                        format!("`{key}` belongs to a `table` or a `shape`; remove it"),
                    );
                }
            }
        }
        Some(Background::Drawn(Drawn {
            rate: rate??,
            clients: clients?,
            attributes: attributes?,
            shape,
            speed: speed?,
            begin: begin?,
        }))
    }

    fn attributes(&mut self, node: &Node) -> Option<Vec<(Arc<str>, Draws)>> {
        let entries = self.reader.entries("attributes", node)?;
        let mut attributes = Vec::with_capacity(entries.len());
        let mut fine = true;
        for entry in entries {
            fine &= self.attribute_name(&entry.key, &entry.value, false);
            match self.draws(&entry.key, &entry.value) {
                Some(draws) => attributes.push((Arc::from(entry.key.as_str()), draws)),
                None => fine = false,
            }
        }
        fine.then_some(attributes)
    }

    /// Looks whether an attribute can be played, and adds it to the schema.
    fn attribute_name(&mut self, name: &str, at: &Node, addresses: bool) -> bool {
        let is_address = ["ip", "network"].contains(&name);
        if name == "instance" || is_address && !addresses {
            self.reader.problem(
                at.mark,
                format!("`{name}` cannot be given here: clients are made up; use `clients` and `addresses`"),
            );
            return false;
        }
        let fine = !name.is_empty()
            && name.len() <= 64
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !fine {
            self.reader.problem(
                at.mark,
                format!(
                    "`{}` is not an attribute's name; write letters, digits or `_`",
                    crate::reader::shortened(name)
                ),
            );
            return false;
        }
        match add_attribute(&mut self.schema, name) {
            Ok(()) => true,
            Err(error) => {
                self.reader.problem(at.mark, error);
                false
            }
        }
    }

    fn draws(&mut self, key: &str, node: &Node) -> Option<Draws> {
        let zipf = match &node.value {
            Value::Map(entries) => entries
                .iter()
                .find(|entry| entry.key == "zipf" && matches!(entry.value.value, Value::Map(_))),
            _ => None,
        };
        let Some(zipf) = zipf else {
            return self.weights(key, node).map(Draws::Weights);
        };
        let fields = self
            .reader
            .fields("zipf", &zipf.value, &["values", "exponent", "prefix"])?;
        let values = fields
            .required(&mut self.reader, "values", "2000")
            .and_then(|node| self.reader.whole("values", node, 1..=VALUES_MAX));
        let exponent = match fields.get("exponent") {
            Some(node) => self.number("exponent", node, 0.0, 10.0),
            None => Some(1.0),
        };
        let prefix = match fields.get("prefix") {
            Some(node) => self.reader.text("prefix", node, "`app-`").map(Arc::from),
            None => Some(Arc::from(format!("{key}-").as_str())),
        };
        Some(Draws::Zipf {
            values: values?,
            exponent: exponent?,
            prefix: prefix?,
        })
    }

    fn detection(&mut self, node: &Node) -> Option<DetectionSpec> {
        self.reader.about("detection");
        let fields = self.reader.fields("detection", node, DETECTION_KEYS)?;
        let mut spec = DetectionSpec::default();
        if let Some(node) = fields.get("mode") {
            let modes = [
                DetectionMode::Off,
                DetectionMode::Suggest,
                DetectionMode::Throttle,
                DetectionMode::Auto,
            ];
            spec.mode = self
                .reader
                .word("mode", node, &modes.map(|mode| (mode.word(), mode)))?;
        }
        if let Some(node) = fields.get("collateral_max") {
            spec.collateral_max =
                self.reader
                    .parsed("collateral_max", node, "`1%`", parse_percent)?;
        }
        if let Some(node) = fields.get("budget") {
            spec.budget = self.reader.parsed("budget", node, "`10%`", parse_percent)?;
        }
        if let Some(node) = fields.get("warmup") {
            spec.warmup = self.duration("warmup", node, PLAYED_MAX)?;
        }
        self.reader.about("");
        Some(spec)
    }

    fn capacity(&mut self, node: &Node) -> Option<f64> {
        self.reader.about("upstream");
        let fields = self.reader.fields("upstream", node, &["capacity"])?;
        let node = fields.required(&mut self.reader, "capacity", "2000/s")?;
        let capacity = self.rate("capacity", node);
        self.reader.about("");
        capacity
    }
}
