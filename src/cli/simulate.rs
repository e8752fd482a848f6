//! `tidegate simulate`: reads scenarios and what they name, plays them in virtual time, and says what
//! came of them. Files and clocks are here; what is played is the engine's.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, IsTerminal as _, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use clap::Args;
use tidegate_engine::problem::{Problem, Problems};
use tidegate_engine::rules::Rules;
use tidegate_engine::rules_file::Vocabulary;
use tidegate_engine::simulate::{
    Background, Inputs, LINE_BYTES_MAX, Outcome, Scenario, Shape, Simulation, Table, TableReader,
    Written,
};

use super::{complain, say};
use crate::check::EXIT_CONFIG;
use crate::rules_folder::{files, parse_rules, read};

/// What `tidegate simulate` is asked for.
#[derive(Debug, Args)]
pub(super) struct Simulate {
    /// Scenario files.
    #[arg(required = true, value_name = "SCENARIO.yaml")]
    scenarios: Vec<PathBuf>,
    /// Write what came of it to this file, as JSON: of several scenarios an array.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl Simulate {
    /// Plays all scenarios. Exit 0 if all expectations are met, 1 if not, 78 where a file is wrong.
    pub(super) fn run(self) -> ExitCode {
        let mut problems = Problems::default();
        let mut loaded = Vec::with_capacity(self.scenarios.len());
        for path in &self.scenarios {
            match load(path) {
                Ok(scenario) => loaded.push(scenario),
                Err(more) => problems.extend(more),
            }
        }
        if !problems.is_empty() {
            for problem in problems.iter() {
                complain(&problem.to_string());
            }
            return ExitCode::from(EXIT_CONFIG);
        }
        let mut outcomes = Vec::with_capacity(loaded.len());
        for (scenario, inputs) in loaded {
            let outcome = play(scenario, inputs);
            say(&summary(&outcome));
            outcomes.push(outcome);
        }
        if let Some(path) = &self.json
            && let Err(error) = write_json(path, &outcomes)
        {
            complain(&format!("{error:#}"));
            return ExitCode::FAILURE;
        }
        if outcomes.iter().all(|outcome| outcome.met) {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

/// Reads a scenario and the files that it names, relative to its own.
fn load(path: &Path) -> Result<(Scenario, Inputs), Problems> {
    let scenario = Scenario::parse(&path.to_string_lossy(), &read(path)?)?;
    let beside = |written: &Written| {
        let folder = path.parent().unwrap_or_else(|| Path::new(""));
        folder.join(&written.text)
    };
    let mut schema = scenario.schema();
    let mut table = None;
    let shape = match &scenario.background {
        Background::Table(spec) => {
            let read = read_table(&beside(&spec.path), &spec.path)?;
            read.add_attributes(&mut schema)
                .map_err(|why| Problem::new(spec.path.place.clone(), &why))?;
            table = Some(read);
            spec.shape.as_ref()
        }
        Background::Drawn(drawn) => drawn.shape.as_ref(),
    };
    let shape = match shape {
        Some(written) => {
            let path = beside(written);
            let text = read(&path).map_err(|problem| named(written, "shape", &problem))?;
            Some(Shape::parse(&path.to_string_lossy(), &text)?)
        }
        None => None,
    };
    let mut rules = Rules::default();
    if let Some(written) = &scenario.rules {
        let found = files(&beside(written)).map_err(|problem| named(written, "rules", &problem))?;
        let mut vocabulary = Vocabulary::lenient_beyond(schema);
        // No calendar in virtual time: rules with an `until` are in force to the end.
        rules = parse_rules(&found, &mut vocabulary, SystemTime::UNIX_EPOCH)?;
        schema = vocabulary.schema().clone();
    }
    let inputs = Inputs {
        table,
        shape,
        rules,
        schema,
    };
    Ok((scenario, inputs))
}

/// Says at its place in the scenario that a file cannot be read.
fn named(written: &Written, key: &str, problem: &Problem) -> Problem {
    let text = format!("`{key}`: `{}` {}", written.text, problem.text);
    Problem::new(written.place.clone(), &text)
}

fn read_table(path: &Path, written: &Written) -> Result<Table, Problems> {
    let unreadable = |error: io::Error| {
        let text = format!(
            "`table`: `{}` cannot be read ({error}); check the path and who may read it",
            written.text
        );
        Problem::new(written.place.clone(), &text)
    };
    let file = File::open(path).map_err(unreadable)?;
    let mut lines = BufReader::with_capacity(1 << 20, file);
    let mut reader = TableReader::new(&path.to_string_lossy());
    let mut line = String::new();
    while (&mut lines)
        .take(LINE_BYTES_MAX as u64 + 1)
        .read_line(&mut line)
        .map_err(unreadable)?
        > 0
    {
        if !reader.line(&line) {
            break;
        }
        line.clear();
    }
    reader.finish()
}

/// Plays one scenario, with a progress bar where somebody watches.
fn play(scenario: Scenario, inputs: Inputs) -> Outcome {
    let began = Instant::now();
    let mut bar = Bar::new(&scenario.name);
    let mut outcome = Simulation::new(scenario, inputs).play(|done| bar.show(done));
    bar.clear();
    outcome.wall_s = began.elapsed().as_secs_f64();
    outcome.peak_memory_bytes = peak_memory_bytes().unwrap_or(0);
    outcome
}

/// Returns the most memory that this process ever held.
fn peak_memory_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

fn write_json(path: &Path, outcomes: &[Outcome]) -> anyhow::Result<()> {
    let json = match outcomes {
        [one] => serde_json::to_string_pretty(one)?,
        several => serde_json::to_string_pretty(several)?,
    };
    std::fs::write(path, json + "\n").with_context(|| format!("write {}", path.display()))
}

/// A run shorter than this shows no bar.
const BAR_AFTER: Duration = Duration::from_secs(1);
/// How long the bar is.
const BAR_LETTERS: usize = 30;
/// How often the bar moves.
const BAR_EVERY: Duration = Duration::from_millis(200);

/// A progress bar on standard error.
struct Bar {
    name: String,
    is_watched: bool,
    began: Instant,
    shown: Option<Instant>,
}

impl Bar {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            is_watched: io::stderr().is_terminal(),
            began: Instant::now(),
            shown: None,
        }
    }

    fn show(&mut self, done: f64) {
        let is_due = self.shown.map_or_else(
            || self.began.elapsed() >= BAR_AFTER,
            |shown| shown.elapsed() >= BAR_EVERY,
        );
        if !self.is_watched || !is_due {
            return;
        }
        let full = (done * BAR_LETTERS as f64) as usize;
        let left = self.began.elapsed().as_secs_f64() * (1.0 - done) / done.max(1e-3);
        let bar = "#".repeat(full) + &".".repeat(BAR_LETTERS.saturating_sub(full));
        let percent = done * 100.0;
        drop(write!(
            io::stderr(),
            "\r{} [{bar}] {percent:3.0} %, {left:.0} s left \x1b[K",
            self.name
        ));
        self.shown = Some(Instant::now());
    }

    fn clear(&self) {
        if self.shown.is_some() {
            drop(write!(io::stderr(), "\r\x1b[K"));
        }
    }
}

/// Says what came of a scenario, for people.
fn summary(outcome: &Outcome) -> String {
    let mut text = String::new();
    let mut line = |said: std::fmt::Arguments<'_>| {
        text.write_fmt(said).unwrap_or_default();
        text.push('\n');
    };
    let verdict = match (outcome.met, outcome.expectations.is_empty()) {
        (true, true) => "played",
        (true, false) => "all met",
        (false, _) => "NOT MET",
    };
    line(format_args!(
        "{}: {verdict} ({:.0} s, {} requests, {:.1} s of wall time)",
        outcome.name, outcome.duration_s, outcome.requests, outcome.wall_s
    ));
    for surge in &outcome.surges {
        let after = |seconds: Option<f64>| {
            seconds.map_or_else(|| "never".to_owned(), |seconds| format!("{seconds:.1} s"))
        };
        line(format_args!("  {} ({})", surge.name, surge.source));
        line(format_args!(
            "    detected {}, throttled {}, blocked {}, released {}",
            after(surge.detected_after_s),
            after(surge.throttled_after_s),
            after(surge.blocked_after_s),
            after(surge.released_after_s)
        ));
        if let Some(found) = &surge.source_found {
            let exact = if surge.exact { "exact" } else { "NOT EXACT" };
            line(format_args!("    found {found} ({exact})"));
        }
        let refused = surge.bad_refused_ratio * 100.0;
        line(format_args!(
            "    {} requests, {refused:.2} % refused",
            surge.requests
        ));
        if let Some(served) = surge.known_source_legitimate_served_ratio {
            line(format_args!(
                "    honest users of the source known before: {:.2} % served",
                served * 100.0
            ));
        }
    }
    line(format_args!(
        "  rules {} ({} false); legitimate requests: {:.4} % refused, {:.4} % failed",
        outcome.rules_installed,
        outcome.false_rules,
        outcome.legitimate_refused_ratio * 100.0,
        outcome.legitimate_failed_ratio * 100.0
    ));
    for checked in &outcome.expectations {
        let mark = if checked.met { "met    " } else { "NOT MET" };
        let event = checked
            .event
            .as_deref()
            .map_or(String::new(), |event| format!(" ({event})"));
        line(format_args!(
            "  {mark} {}{event}: wanted {}, came {}",
            checked.key, checked.wanted, checked.came
        ));
    }
    text.truncate(text.trim_end().len());
    text
}
