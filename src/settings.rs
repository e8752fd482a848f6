//! The settings file: turns what was written into settings that make sense, or says everything that
//! is wrong. Leaves rule files to the engine and acting on settings to the proxy.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tidegate_engine::attribute::Schema;
use tidegate_engine::detect::{DetectionMode, DetectionSpec};
use tidegate_engine::problem::Problems;
use tidegate_engine::reader::Reader;
use tidegate_engine::rules_file::Vocabulary;
use tidegate_engine::units::{parse_duration_or_zero, parse_percent};
use tidegate_engine::yaml::{self, Mark, Node, Value};

mod capacity;
mod endpoints;
mod identity;
mod listeners;
mod services;
mod upstreams;

pub use capacity::{Bodies, Concurrency, Overload};
pub use endpoints::Endpoint;
pub use identity::{AttributeSource, ValueFrom};
pub use listeners::{Admin, Listener};
pub use services::Service;
pub use upstreams::{Ejection, Health, Tls, Upstream};

/// The most worker threads.
pub const WORKERS_MAX: u32 = 1024;

/// How far the detector may go, in words.
const DETECTION_MODES: &[(&str, DetectionMode)] = &[
    ("off", DetectionMode::Off),
    ("suggest", DetectionMode::Suggest),
    ("throttle", DetectionMode::Throttle),
    ("auto", DetectionMode::Auto),
];

const KEYS: &[&str] = &[
    "listeners",
    "admin",
    "workers",
    "identity",
    "services",
    "upstreams",
    "overload",
    "detection",
    "rules",
    "state",
    "access_log",
];
/// Keys that only a settings file has: `rules` is in rule files too.
const TELLING_KEYS: &[&str] = &[
    "listeners",
    "admin",
    "workers",
    "identity",
    "services",
    "upstreams",
    "overload",
    "detection",
    "state",
    "access_log",
];

/// Everything that the settings file says. Paths are relative to where the process runs: those that
/// were written relative to the file are joined with its folder.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where clients connect; at least one.
    pub listeners: Vec<Listener>,
    /// Where operators connect.
    pub admin: Admin,
    /// How many worker threads.
    pub workers: Workers,
    /// How the operator's attributes are read from a request, in order.
    pub identity: Vec<AttributeSource>,
    /// All attributes, built-in ones included.
    pub schema: Schema,
    /// Services in order: the first match wins.
    pub services: Vec<Service>,
    /// Upstreams in order.
    pub upstreams: Vec<Upstream>,
    /// When the process as a whole is full.
    pub overload: Overload,
    /// How far the detector may go.
    pub detection: DetectionSettings,
    /// The folder of rule files.
    pub rules: RulesFolder,
    /// The folder of what is remembered across restarts.
    pub state: PathBuf,
    /// Where finished requests are written.
    pub access_log: AccessLog,
    /// Keys that were given but whose capability is not built yet.
    pub not_in_force: Vec<String>,
}

/// How many worker threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Workers {
    /// One per core.
    #[default]
    Auto,
    /// This many, at least 1.
    Exactly(usize),
}

/// The folder of rule files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RulesFolder {
    /// Where it is.
    pub path: PathBuf,
    /// Where the settings name it; `None`: by default, and it need not exist.
    pub named_at: Option<Mark>,
}

/// Where finished requests are written, as JSON lines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AccessLog {
    /// Standard output.
    #[default]
    Stdout,
    /// A file, appended to.
    File(PathBuf),
    /// Nowhere.
    Off,
}

/// How far the detector may go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DetectionSettings {
    /// What it may do.
    pub mode: DetectionMode,
    /// The share of normal traffic that one detected rule may hit, 0 to 1.
    pub collateral_max: f64,
    /// The share of normal traffic that all detected rules together may hit, 0 to 1.
    pub budget: f64,
    /// How long normal traffic must have been seen before a detected rule may block.
    pub warmup: Duration,
}

impl Default for DetectionSettings {
    fn default() -> Self {
        Self {
            mode: DetectionMode::default(),
            collateral_max: 0.01,
            budget: 0.10,
            warmup: Duration::from_mins(10),
        }
    }
}

impl Settings {
    /// Returns what the detector is set to; what no key says is as it is by default.
    pub fn detection_spec(&self) -> DetectionSpec {
        let own = |service: &Service| Some((Arc::clone(&service.spec.name), service.detection?));
        DetectionSpec {
            mode: self.detection.mode,
            services: self.services.iter().filter_map(own).collect(),
            collateral_max: self.detection.collateral_max,
            budget: self.detection.budget,
            warmup: self.detection.warmup,
            ..DetectionSpec::default()
        }
    }

    /// Reads a settings file.
    pub fn parse(path: &str, text: &str) -> Result<Self, Problems> {
        let tree = yaml::parse(path, text)?;
        let mut reading = Reading {
            reader: Reader::new(path),
            folder: Path::new(path).parent().unwrap_or_else(|| Path::new("")),
            not_in_force: Vec::new(),
        };
        let settings = reading.settings(&tree);
        let problems = reading.reader.finish();
        match settings {
            Some(settings) => problems.or(settings),
            // What could not be read has left a problem.
            None => Err(problems),
        }
    }

    /// Returns the keys of which the other settings say something else.
    pub fn differs_in(&self, other: &Self) -> Vec<&'static str> {
        // What is told apart here is told apart by what it says of itself: everything there is.
        let said = |settings: &Self| {
            [
                ("listeners", format!("{:?}", settings.listeners)),
                ("admin", format!("{:?}", settings.admin)),
                ("workers", format!("{:?}", settings.workers)),
                ("identity", format!("{:?}", settings.identity)),
                ("services", format!("{:?}", settings.services)),
                ("upstreams", format!("{:?}", settings.upstreams)),
                ("overload", format!("{:?}", settings.overload)),
                ("detection", format!("{:?}", settings.detection)),
                ("rules", settings.rules.path.display().to_string()),
                ("state", settings.state.display().to_string()),
                ("access_log", format!("{:?}", settings.access_log)),
            ]
        };
        let both = said(self).into_iter().zip(said(other));
        both.filter(|(own, other)| own.1 != other.1)
            .map(|(own, _)| own.0)
            .collect()
    }

    /// Returns the names that rule files may use under these settings.
    pub fn vocabulary(&self) -> Vocabulary {
        let services = self.services.iter();
        Vocabulary::new(
            self.schema.clone(),
            services.map(|service| service.spec.name.clone()).collect(),
        )
    }
}

/// Returns whether a tree is settings rather than rules: it has a key that only settings have, or
/// `rules` names a folder.
pub fn is_settings(tree: &Node) -> bool {
    let Value::Map(entries) = &tree.value else {
        return false;
    };
    entries.iter().any(|entry| {
        TELLING_KEYS.contains(&entry.key.as_str())
            || (entry.key == "rules" && matches!(entry.value.value, Value::Text(_)))
    })
}

/// The reading of one settings file.
struct Reading<'p> {
    reader: Reader<'p>,
    folder: &'p Path,
    not_in_force: Vec<String>,
}

impl Reading<'_> {
    fn settings(&mut self, tree: &Node) -> Option<Settings> {
        if tree.value == Value::Blank {
            self.reader.problem(
                Mark::START,
                "the file is empty; write at least `services:` and `upstreams:`",
            );
            return None;
        }
        let fields = self.reader.fields("a settings file", tree, KEYS)?;
        let listeners = self.listeners(fields.get("listeners"));
        let admin = self.admin(fields.get("admin"));
        self.reader.about("");
        let workers = fields.get("workers").and_then(|node| self.workers(node));
        let identity = fields.get("identity").and_then(|node| self.identity(node));
        self.reader.about("");
        let upstreams = fields
            .required(&mut self.reader, "upstreams", "[...]")
            .and_then(|node| self.upstreams(node));
        self.reader.about("");
        let services = fields
            .required(&mut self.reader, "services", "[...]")
            .and_then(|node| self.services(node, upstreams.as_deref()));
        self.reader.about("");
        let overload = match fields.get("overload") {
            Some(node) => self.overload(node),
            None => Some(Overload::default()),
        };
        self.reader.about("");
        let detection = fields.get("detection").map(|node| self.detection(node));
        self.reader.about("");
        let rules = fields.get("rules").and_then(|node| self.rules_folder(node));
        let state = self.path_or(fields.get("state"), "state", "state");
        let access_log = fields
            .get("access_log")
            .and_then(|node| self.access_log(node));
        if let (Some(listeners), Some(admin)) = (&listeners, &admin) {
            let at = fields.get("admin").or_else(|| fields.get("listeners"));
            self.addresses_differ(listeners, admin, at.map_or(tree.mark, |node| node.mark));
        }
        let (identity, schema) = identity.unwrap_or_else(|| (Vec::new(), Schema::built_in()));
        Some(Settings {
            listeners: listeners?,
            admin: admin?,
            workers: workers.unwrap_or_default(),
            identity,
            schema,
            services: services?,
            upstreams: upstreams?,
            overload: overload?,
            detection: detection.unwrap_or_default(),
            rules: rules.unwrap_or_else(|| RulesFolder {
                path: self.folder.join("rules"),
                named_at: None,
            }),
            state,
            access_log: access_log.unwrap_or_default(),
            not_in_force: std::mem::take(&mut self.not_in_force),
        })
    }

    /// Notes a key that was given but whose capability is not built yet; each once.
    fn not_in_force(&mut self, key: &str) {
        if !self.not_in_force.iter().any(|noted| noted == key) {
            self.not_in_force.push(key.to_owned());
        }
    }

    /// Reads a path, relative to the settings file.
    fn path(&mut self, key: &str, node: &Node, like: &str) -> Option<PathBuf> {
        let text = self.reader.text(key, node, like)?;
        Some(self.folder.join(text))
    }

    fn path_or(&mut self, node: Option<&Node>, key: &str, default: &str) -> PathBuf {
        node.and_then(|node| self.path(key, node, &format!("`{default}`")))
            .unwrap_or_else(|| self.folder.join(default))
    }

    fn workers(&mut self, node: &Node) -> Option<Workers> {
        self.reader.parsed("workers", node, "`auto`", |text| {
            if text == "auto" {
                return Ok(Workers::Auto);
            }
            text.parse::<u32>()
                .ok()
                .filter(|workers| (1..=WORKERS_MAX).contains(workers))
                .map(|workers| Workers::Exactly(workers as usize))
                .ok_or_else(|| {
                    format!("`{text}` is neither `auto` nor a whole number from 1 to {WORKERS_MAX}; write `auto` for one per core")
                })
        })
    }

    fn rules_folder(&mut self, node: &Node) -> Option<RulesFolder> {
        if matches!(node.value, Value::List(_)) {
            self.reader.problem(
                node.mark,
                "`rules` names the folder of rule files here, like `rules/`; write rules in a file of their own there",
            );
            return None;
        }
        Some(RulesFolder {
            path: self.path("rules", node, "`rules/`")?,
            named_at: Some(node.mark),
        })
    }

    fn access_log(&mut self, node: &Node) -> Option<AccessLog> {
        let like = "`stdout`, `off` or a path";
        match self.reader.text("access_log", node, like)? {
            "stdout" => Some(AccessLog::Stdout),
            "off" => Some(AccessLog::Off),
            path => Some(AccessLog::File(self.folder.join(path))),
        }
    }

    fn detection(&mut self, node: &Node) -> DetectionSettings {
        const KEYS: &[&str] = &["mode", "collateral_max", "budget", "warmup"];
        let mut detection = DetectionSettings::default();
        self.reader.about("detection");
        let Some(fields) = self.reader.fields("detection", node, KEYS) else {
            return detection;
        };
        let mode = fields
            .get("mode")
            .and_then(|node| self.reader.word("mode", node, DETECTION_MODES));
        detection.mode = mode.unwrap_or(detection.mode);
        for (key, like, share) in [
            ("collateral_max", "`1%`", &mut detection.collateral_max),
            ("budget", "`10%`", &mut detection.budget),
        ] {
            let read = fields
                .get(key)
                .and_then(|node| self.reader.parsed(key, node, like, parse_percent));
            *share = read.unwrap_or(*share);
        }
        let warmup = fields.get("warmup").and_then(|node| {
            self.reader
                .parsed("warmup", node, "`10m`", parse_duration_or_zero)
        });
        detection.warmup = warmup.unwrap_or(detection.warmup);
        if detection.collateral_max > detection.budget {
            self.reader.problem(
                fields.entry("collateral_max").map_or(node.mark, |e| e.value.mark),
                "`collateral_max` of one rule is above the `budget` of all rules together; lower it or raise `budget`",
            );
        }
        detection
    }
}

/// Reads a name that no other of its kind has.
fn unique<'n, T>(
    reader: &mut Reader<'_>,
    node: &'n Node,
    before: &[T],
    name_of: impl Fn(&T) -> &Arc<str>,
) -> Option<&'n str> {
    let name = reader.name("name", node)?;
    if before.iter().any(|other| **name_of(other) == *name) {
        reader.problem(
            node.mark,
            format!("the name `{name}` is given twice; choose another"),
        );
        return None;
    }
    Some(name)
}
