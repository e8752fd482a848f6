//! Reads a rules file: turns what was written into rules and limits that make sense, or says
//! everything that is wrong. Leaves conditions to `when`, tests to `tests`, and what rules do
//! to the policy.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

mod tests;
mod vocabulary;
mod when;

use crate::attribute::AttributeId;
use crate::problem::{Place, Problem, Problems};
use crate::reader::{Fields, Reader};
use crate::rules::{Action, DETECTED_PREFIX, LimitRule, Mode, Origin, Rule, Rules, When};
use crate::source::Source;
use crate::units::{Rate, parse_duration};
use crate::verdict::Name;
use crate::yaml::{self, Mark, Node, Value};

pub use vocabulary::Vocabulary;
pub use when::{PATTERN_BYTES_MAX, parse_pattern};

/// The most distinct values that a limit remembers, where it does not say.
pub const KEYS_DEFAULT: u32 = 500_000;
/// The most that a limit may say: 10 M × 96 B = 960 MB.
pub const KEYS_MAX: u32 = 10_000_000;
/// The most requests at once.
pub const BURST_MAX: u32 = 10_000_000;
/// What a blocked client is answered, where a rule does not say.
const STATUS_DEFAULT: u16 = 403;

const FILE_KEYS: &[&str] = &["limits", "rules", "tests"];
const LIMIT_KEYS: &[&str] = &[
    "name", "key", "rate", "burst", "keys_max", "services", "when", "mode",
];
const RULE_KEYS: &[&str] = &[
    "name", "when", "action", "status", "rate", "burst", "per", "mode", "percent", "until", "ttl",
    "reason",
];
const MODES: &[(&str, Mode)] = &[("enforce", Mode::Enforce), ("shadow", Mode::Shadow)];
const ACTIONS: &[(&str, &str)] = &[
    ("allow", "allow"),
    ("block", "block"),
    ("throttle", "throttle"),
    ("tarpit", "tarpit"),
    ("drop", "drop"),
    ("log", "log"),
];
const NAME_LIKE: &str = "login-attempts";
const RATE_LIKE: &str = "20/s";

/// One rules file that was read: its valid rules, and where each name stands.
#[derive(Clone, Debug, Default)]
pub struct RulesFile {
    rules: Rules,
    /// Names of rules and limits, in order.
    names: Vec<(Name, Place)>,
    /// Names that tests expect.
    expected: Vec<(Name, Place)>,
}

impl RulesFile {
    /// Reads one file. A `ttl` counts from `now`, the moment when the file is loaded.
    ///
    /// Names that tests expect may stand in other files; [`RulesFile::join`] looks.
    pub fn parse(
        path: &str,
        text: &str,
        vocabulary: &mut Vocabulary,
        now: SystemTime,
    ) -> Result<Self, Problems> {
        let tree = yaml::parse(path, text)?;
        let mut reading = Reading {
            reader: Reader::new(path),
            vocabulary,
            now,
            file: Self::default(),
        };
        reading.file(&tree);
        let Reading { reader, file, .. } = reading;
        reader.finish().or(file)
    }

    /// Puts the files of a folder together. A name given twice, or a test that expects a rule that
    /// is in none of them, is a problem.
    pub fn join(files: Vec<Self>) -> Result<Rules, Problems> {
        let mut joined = Rules::default();
        let mut problems = Vec::new();
        let mut first: HashMap<&Name, &Place> = HashMap::new();
        for (name, place) in files.iter().flat_map(|file| &file.names) {
            if let Some(first) = first.get(name) {
                let text = format!(
                    "the name `{name}` is given twice, first at {first}; rules and limits share \
                     their names, choose another"
                );
                problems.push(Problem::new(place.clone(), &text));
            } else {
                first.insert(name, place);
            }
        }
        for (name, place) in files.iter().flat_map(|file| &file.expected) {
            if !first.contains_key(name) {
                let text = format!("there is no rule or limit `{name}`; write one that exists");
                problems.push(Problem::new(place.clone(), &text));
            }
        }
        drop(first);
        for file in files {
            joined.rules.extend(file.rules.rules);
            joined.limits.extend(file.rules.limits);
            joined.tests.extend(file.rules.tests);
        }
        Problems::new(problems).or(joined)
    }
}

/// Reads one rule that is not in a rules file: a mapping with a rule's keys, as YAML or JSON.
pub fn parse_rule(
    path: &str,
    text: &str,
    vocabulary: &mut Vocabulary,
    now: SystemTime,
    origin: Origin,
) -> Result<Rule, Problems> {
    let tree = yaml::parse(path, text)?;
    let mut reading = Reading {
        reader: Reader::new(path),
        vocabulary,
        now,
        file: RulesFile::default(),
    };
    let rule = reading.rule(&tree);
    let problems = reading.reader.finish();
    match rule {
        Some(rule) => problems.or(Rule { origin, ..rule }),
        // A rule that could not be read has left a problem.
        None => Err(problems),
    }
}

/// The reading of one file.
struct Reading<'p, 'v> {
    reader: Reader<'p>,
    vocabulary: &'v mut Vocabulary,
    now: SystemTime,
    file: RulesFile,
}

impl Reading<'_, '_> {
    fn file(&mut self, tree: &Node) {
        if tree.value == Value::Blank {
            self.reader.problem(
                Mark::START,
                "the file is empty; write `limits:`, `rules:` or `tests:`, or delete the file",
            );
            return;
        }
        let Some(fields) = self.reader.fields("a rules file", tree, FILE_KEYS) else {
            return;
        };
        for limit in self.list(fields, "limits") {
            if let Some(limit) = self.limit(limit) {
                self.file.rules.limits.push(limit);
            }
        }
        for rule in self.list(fields, "rules") {
            if let Some(rule) = self.rule(rule) {
                self.file.rules.rules.push(rule);
            }
        }
        for (at, test) in self.list(fields, "tests").iter().enumerate() {
            self.reader.about(format_args!("test {}", at + 1));
            if let Some(test) = self.test(test) {
                self.file.rules.tests.push(test);
            }
        }
        self.reader.about("");
    }

    fn list<'n>(&mut self, fields: Fields<'n>, key: &str) -> &'n [Node] {
        self.reader.about("");
        let like = format!("`{key}: [...]`, or leave it out");
        fields
            .get(key)
            .and_then(|node| self.reader.items_or_none(key, node, &like))
            .unwrap_or_default()
    }

    /// Names the rule or limit that the next problems are about, as well as it can be named.
    fn about(&mut self, what: &str, node: &Node) {
        let name = match &node.value {
            Value::Map(entries) => entries.iter().find(|entry| entry.key == "name"),
            _ => None,
        };
        match name.map(|entry| &entry.value.value) {
            Some(Value::Text(name)) => self.reader.about(format_args!("{what} `{name}`")),
            _ => self.reader.about(format_args!("a {what}")),
        }
    }

    fn name(&mut self, fields: Fields<'_>) -> Option<Name> {
        let node = fields.required(&mut self.reader, "name", NAME_LIKE)?;
        let name = Name::new(self.reader.name("name", node)?);
        if name.as_str().starts_with(DETECTED_PREFIX) {
            self.reader.problem(
                node.mark,
                format!(
                    "names that begin with `{DETECTED_PREFIX}` are the detector's; choose another"
                ),
            );
        }
        self.file
            .names
            .push((name.clone(), node.mark.in_file(self.reader.path())));
        Some(name)
    }

    fn limit(&mut self, node: &Node) -> Option<LimitRule> {
        self.about("limit", node);
        let fields = self.reader.fields("a limit", node, LIMIT_KEYS)?;
        let name = self.name(fields);
        let key = fields
            .required(&mut self.reader, "key", "[ip]")
            .and_then(|node| self.attributes("key", node));
        let rate = fields.required(&mut self.reader, "rate", RATE_LIKE);
        let rate = rate.and_then(|node| self.rate(node));
        let burst = self.burst(fields);
        let keys_max = fields.get("keys_max").map_or(Some(KEYS_DEFAULT), |node| {
            self.reader.whole("keys_max", node, 1..=KEYS_MAX)
        });
        let services = fields
            .get("services")
            .map_or(Some(Vec::new()), |node| self.services(node));
        let when = match fields.get("when") {
            Some(node) => self.when(node).map(|(when, _)| when),
            None => Some(When::default()),
        };
        let mode = self.mode(fields);
        let rate = rate?;
        Some(LimitRule {
            name: name?,
            key: key?,
            rate,
            burst: burst.unwrap_or_else(|| rate.requests()),
            keys_max: keys_max? as usize,
            services: services?,
            when: when?,
            mode: mode?,
        })
    }

    fn rule(&mut self, node: &Node) -> Option<Rule> {
        self.about("rule", node);
        let fields = self.reader.fields("a rule", node, RULE_KEYS)?;
        let name = self.name(fields);
        let when = fields
            .required(&mut self.reader, "when", "{ app: acme }")
            .and_then(|node| self.when(node));
        let action = self.action(fields);
        let mode = self.mode(fields);
        let percent = fields
            .get("percent")
            .map_or(Some(100), |node| self.percent(node));
        let until = self.until(fields);
        let reason = fields.get("reason").and_then(|node| {
            self.reader
                .text("reason", node, "`\"loop, ticket 4711\"`")
                .map(Arc::from)
        });
        let (when, when_text): (When, Source) = when?;
        Some(Rule {
            name: name?,
            when,
            when_text,
            action: action?,
            mode: mode?,
            percent: percent?,
            until,
            reason,
            origin: Origin::File,
            sparing: None,
        })
    }

    fn action(&mut self, fields: Fields<'_>) -> Option<Action> {
        let node = fields.required(&mut self.reader, "action", "block")?;
        let word = self.reader.word("action", node, ACTIONS)?;
        let mut fine = true;
        for entry in fields.iter() {
            let belongs_to = match entry.key.as_str() {
                "status" => "block",
                "rate" | "burst" | "per" => "throttle",
                _ => continue,
            };
            if belongs_to != word {
                self.reader.problem(
                    entry.mark,
                    format!(
                        "`{}` belongs to `action: {belongs_to}`; remove it or change the action",
                        entry.key
                    ),
                );
                fine = false;
            }
        }
        let action = match word {
            "allow" => Action::Allow,
            "drop" => Action::Drop,
            "block" => Action::Block {
                status: self.status(fields)?,
            },
            "tarpit" => Action::Tarpit,
            "throttle" => self.throttle(fields)?,
            _ => Action::Log,
        };
        fine.then_some(action)
    }

    fn status(&mut self, fields: Fields<'_>) -> Option<u16> {
        let Some(node) = fields.get("status") else {
            return Some(STATUS_DEFAULT);
        };
        let status = self.reader.whole("status", node, 400..=599)?;
        u16::try_from(status).ok()
    }

    fn throttle(&mut self, fields: Fields<'_>) -> Option<Action> {
        let rate = fields.required(&mut self.reader, "rate", "5/s");
        let rate = rate.and_then(|node| self.rate(node));
        let burst = self.burst(fields);
        let per = fields
            .get("per")
            .map_or(Some(Vec::new()), |node| self.attributes("per", node));
        let rate = rate?;
        // What comes in one second at that rate.
        let second = rate.per_second().ceil().clamp(1.0, f64::from(BURST_MAX)) as u32;
        Some(Action::Throttle {
            rate,
            burst: burst.unwrap_or(second),
            per: per?,
        })
    }

    fn rate(&mut self, node: &Node) -> Option<Rate> {
        self.reader
            .parsed("rate", node, &format!("`{RATE_LIKE}`"), Rate::parse)
    }

    /// `None`: not given, or a problem was said and the file is refused anyway.
    fn burst(&mut self, fields: Fields<'_>) -> Option<u32> {
        let node = fields.get("burst")?;
        self.reader.whole("burst", node, 1..=BURST_MAX)
    }

    fn mode(&mut self, fields: Fields<'_>) -> Option<Mode> {
        match fields.get("mode") {
            Some(node) => self.reader.word("mode", node, MODES),
            None => Some(Mode::Enforce),
        }
    }

    /// A whole percentage; a ramp has no use for fractions, and `100` is as clear as `100%`.
    fn percent(&mut self, node: &Node) -> Option<u8> {
        self.reader.parsed("percent", node, "`100`", |text| {
            let number = text.strip_suffix('%').unwrap_or(text);
            let digits = number.bytes().all(|byte| byte.is_ascii_digit());
            let percent = number.parse::<u8>().ok();
            percent
                .filter(|percent| digits && *percent <= 100)
                .ok_or_else(|| {
                    format!("`{text}` is not a whole number from 0 to 100; write it like `25`")
                })
        })
    }

    /// When the rule ends: at a moment, or some time from now. `None`: never, or a problem was said
    /// and the file is refused anyway.
    fn until(&mut self, fields: Fields<'_>) -> Option<SystemTime> {
        let until = fields.get("until").and_then(|node| {
            self.reader
                .parsed("until", node, "`2026-12-01T00:00:00Z`", |text| {
                    humantime::parse_rfc3339(text).map_err(|_reason| {
                        format!(
                            "`{text}` is not a time in UTC; write it like `2026-12-01T00:00:00Z`"
                        )
                    })
                })
        });
        let Some(entry) = fields.entry("ttl") else {
            return until;
        };
        if fields.get("until").is_some() {
            self.reader.problem(
                entry.mark,
                "`ttl` and `until` are both given; keep one of them",
            );
        }
        let ttl = self
            .reader
            .parsed("ttl", &entry.value, "`2h`", parse_duration)?;
        Some(self.now + ttl)
    }

    /// Attributes by name; each once, at least one.
    fn attributes(&mut self, key: &str, node: &Node) -> Option<Vec<AttributeId>> {
        let items = self.reader.items(key, node, "`[ip]`")?;
        let mut ids = Vec::with_capacity(items.len());
        for item in items {
            let name = self.reader.text(key, item, "`[ip]`");
            let Some(id) = name.and_then(|name| self.attribute(item.mark, name)) else {
                continue;
            };
            if ids.contains(&id) {
                let name = self.vocabulary.schema().name(id).to_owned();
                self.reader
                    .problem(item.mark, format!("`{name}` is in `{key}` twice; keep one"));
            }
            ids.push(id);
        }
        (ids.len() == items.len()).then_some(ids)
    }

    fn attribute(&mut self, at: Mark, name: &str) -> Option<AttributeId> {
        self.vocabulary
            .attribute(name)
            .map_err(|error| self.reader.problem(at, error))
            .ok()
    }

    fn services(&mut self, node: &Node) -> Option<Vec<Arc<str>>> {
        let like = "`[chat, kb]`, or leave it out for all";
        let items = self.reader.items("services", node, like)?;
        let mut services = Vec::with_capacity(items.len());
        for item in items {
            let name = self.reader.text("services", item, "`chat`");
            let Some(name) = name.filter(|name| self.service(item.mark, name)) else {
                continue;
            };
            services.push(Arc::from(name));
        }
        (services.len() == items.len()).then_some(services)
    }

    /// Returns whether there is a service of this name, as far as is known, and says so if not.
    fn service(&mut self, at: Mark, name: &str) -> bool {
        match self.vocabulary.service(name) {
            Ok(()) => true,
            Err(error) => {
                self.reader.problem(at, error);
                false
            }
        }
    }
}
