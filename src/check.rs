//! `tidegate check`: validates settings and rule files and runs the tests in them.
//!
//! Changes nothing and listens nowhere. How a test is run is the caller's: it needs the policy.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use tidegate_engine::attribute::Schema;
use tidegate_engine::problem::{Place, Problem, Problems};
use tidegate_engine::rules::{RuleTest, Rules};
use tidegate_engine::rules_file::Vocabulary;
use tidegate_engine::yaml;

use crate::rules_folder::{files, files_of, parse_rules, read};
use crate::settings::{Settings, is_settings};

/// The exit code of a configuration that is wrong (`EX_CONFIG` of sysexits.h).
pub const EXIT_CONFIG: u8 = 78;

/// What a check found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Everything that is wrong, failed tests included.
    pub problems: Problems,
    /// What is not wrong, but should be known; one line each.
    pub warnings: Vec<String>,
    /// How many files were looked at.
    pub files: usize,
    /// How many tests were run.
    pub tests: usize,
}

impl Report {
    /// Returns what the process ends with: 0 where nothing is wrong.
    pub fn exit_code(&self) -> u8 {
        if self.problems.is_empty() {
            0
        } else {
            EXIT_CONFIG
        }
    }
}

impl fmt::Display for Report {
    /// Warnings, then problems, then one line that sums up.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for warning in &self.warnings {
            writeln!(f, "{warning}")?;
        }
        for problem in self.problems.iter() {
            writeln!(f, "{problem}")?;
        }
        let (files, tests) = (self.files, self.tests);
        match self.problems.len() {
            0 => write!(f, "ok: {files} files, {tests} tests passed"),
            1 => write!(f, "1 problem in {files} files"),
            many => write!(f, "{many} problems in {files} files"),
        }
    }
}

/// Returns the one line that names what the settings ask for and is not built yet.
pub fn not_in_force(path: &Path, settings: &Settings) -> Option<String> {
    if settings.not_in_force.is_empty() {
        return None;
    }
    let keys = settings.not_in_force.join(", ");
    Some(format!("{}: not in force yet: {keys}", path.display()))
}

/// Checks files and folders. A `ttl` counts from `now`; `run_test` says why a test failed.
///
/// Where settings are among the paths, rule files are held against their attributes and services,
/// and the rules folder that they name is checked too. Without settings any attribute is taken.
pub fn check(
    paths: &[PathBuf],
    now: SystemTime,
    run_test: impl Fn(&Rules, &Schema, &RuleTest) -> Result<(), String>,
) -> Report {
    let mut found = Found::default();
    for path in paths {
        found.add(path);
    }
    let mut report = Report {
        warnings: found.warnings,
        files: found.seen.len(),
        ..Report::default()
    };
    let mut problems = Problems::new(found.problems);
    // Settings that cannot be read say nothing about attributes: better lenient than wrong.
    let mut groups: Vec<(Vocabulary, Vec<PathBuf>)> = found
        .settings
        .iter()
        .map(|(settings, rule_files)| (settings.vocabulary(), rule_files.clone()))
        .collect();
    match groups.first_mut() {
        Some((_, rule_files)) => rule_files.extend(found.loose),
        None => groups.push((Vocabulary::lenient(), found.loose)),
    }
    for (mut vocabulary, mut rule_files) in groups {
        rule_files.sort();
        let rules = match parse_rules(&rule_files, &mut vocabulary, now) {
            Ok(rules) => rules,
            Err(more) => {
                problems.extend(more);
                continue;
            }
        };
        for test in &rules.tests {
            report.tests += 1;
            if let Err(why) = run_test(&rules, vocabulary.schema(), test) {
                problems.extend(Problem::new(test.place.clone(), &why).into());
            }
        }
    }
    report.problems = problems;
    report
}

/// The files that are to be checked, each once however often it is named.
#[derive(Default)]
struct Found {
    /// Settings, with the files of their rules folders.
    settings: Vec<(Settings, Vec<PathBuf>)>,
    /// Rule files that no settings name.
    loose: Vec<PathBuf>,
    seen: BTreeSet<PathBuf>,
    warnings: Vec<String>,
    problems: Vec<Problem>,
}

impl Found {
    fn add(&mut self, path: &Path) {
        if !path.is_dir() {
            self.add_file(path);
            return;
        }
        match files(path) {
            Ok(files) if files.is_empty() => {
                let place = Place::new(&path.to_string_lossy(), 1, 1);
                let text = "there is no `*.yaml` file in this folder; name another";
                self.problems.push(Problem::new(place, text));
            }
            Ok(files) => files.iter().for_each(|file| self.add_file(file)),
            Err(problem) => self.problems.push(problem),
        }
    }

    /// Returns whether the file was not seen before.
    fn is_new(&mut self, path: &Path) -> bool {
        let whole = fs::canonicalize(path).unwrap_or_else(|_missing| path.to_owned());
        self.seen.insert(whole)
    }

    fn add_file(&mut self, path: &Path) {
        if !self.is_new(path) {
            return;
        }
        let name = path.to_string_lossy();
        let tree = read(path).and_then(|text| Ok((yaml::parse(&name, &text)?, text)));
        match tree {
            Ok((tree, text)) if is_settings(&tree) => match Settings::parse(&name, &text) {
                Ok(settings) => self.add_settings(path, settings),
                Err(problems) => self.problems.extend(problems.iter().cloned()),
            },
            Ok(_) => self.loose.push(path.to_owned()),
            Err(problem) => self.problems.push(problem),
        }
    }

    fn add_settings(&mut self, path: &Path, settings: Settings) {
        self.warnings.extend(not_in_force(path, &settings));
        let rule_files = match files_of(&settings.rules) {
            Ok(files) => files,
            Err(problem) => {
                let mark = settings.rules.named_at.unwrap_or(yaml::Mark::START);
                let place = mark.in_file(&path.to_string_lossy());
                let folder = settings.rules.path.display();
                let text = format!("`rules`: the folder `{folder}` {}", problem.text);
                self.problems.push(Problem::new(place, &text));
                Vec::new()
            }
        };
        let mut own = Vec::with_capacity(rule_files.len());
        for file in rule_files {
            // A file that was named before its settings moves to them.
            if let Some(at) = self.loose.iter().position(|loose| is_same(loose, &file)) {
                own.push(self.loose.swap_remove(at));
            } else if self.is_new(&file) {
                own.push(file);
            }
        }
        self.settings.push((settings, own));
    }
}

fn is_same(one: &Path, other: &Path) -> bool {
    match (fs::canonicalize(one), fs::canonicalize(other)) {
        (Ok(one), Ok(other)) => one == other,
        _ => false,
    }
}
