//! Finds and reads files of settings and rules. Leaves their meaning to those who parse them.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use tidegate_engine::problem::{Place, Problem, Problems};
use tidegate_engine::rules::Rules;
use tidegate_engine::rules_file::{RulesFile, Vocabulary};
use tidegate_engine::yaml::{FILE_BYTES_MAX, Mark, decode};

use crate::settings::{RulesFolder, Settings};

/// The deepest folder in a folder that is looked into; a link that leads back up ends here.
const DEPTH_MAX: usize = 8;
/// The most files of one folder: 10,000 rules, one in each.
const FILES_MAX: usize = 10_000;

/// Returns the `*.yaml` and `*.yml` files of a folder and those below, in order of their paths.
/// What begins with a point is left out: editors and configuration mounts keep copies there.
pub fn files(folder: &Path) -> Result<Vec<PathBuf>, Problem> {
    let mut found = Vec::new();
    walk(folder, 0, &mut found)?;
    found.sort();
    Ok(found)
}

fn walk(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Result<(), Problem> {
    let refused = |error: io::Error| unreadable(folder, &error);
    for entry in fs::read_dir(folder).map_err(refused)? {
        let path = entry.map_err(refused)?.path();
        let is_hidden = path
            .file_name()
            .is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        if is_hidden {
            continue;
        }
        let is_yaml = path
            .extension()
            .is_some_and(|extension| extension == "yaml" || extension == "yml");
        if path.is_dir() {
            if depth < DEPTH_MAX {
                walk(&path, depth + 1, found)?;
            }
        } else if is_yaml {
            if found.len() >= FILES_MAX {
                let text = format!("there are more than {FILES_MAX} files; write fewer");
                return Err(Problem::new(place(folder), &text));
            }
            found.push(path);
        }
    }
    Ok(())
}

/// Reads a text file: UTF-8, of bounded size.
pub fn read(path: &Path) -> Result<String, Problem> {
    let refused = |error: io::Error| unreadable(path, &error);
    let file = fs::File::open(path).map_err(refused)?;
    let mut bytes = Vec::new();
    // One byte more than allowed, so that decoding sees that it is too large.
    file.take(FILE_BYTES_MAX as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(refused)?;
    decode(&path.to_string_lossy(), &bytes)
}

/// Reads the settings at `path`.
pub fn load_settings(path: &Path) -> Result<Settings, Problems> {
    Settings::parse(&path.to_string_lossy(), &read(path)?)
}

/// Reads the rules folder of the settings. A `ttl` counts from `now`.
///
/// A folder that the settings do not name need not exist. All problems of all files are reported.
pub fn load_rules(settings: &Settings, now: SystemTime) -> Result<Rules, Problems> {
    parse_rules(&files_of(&settings.rules)?, &mut settings.vocabulary(), now)
}

/// Returns the files of the settings' rules folder; none where it need not exist and does not.
pub fn files_of(folder: &RulesFolder) -> Result<Vec<PathBuf>, Problem> {
    if folder.named_at.is_none() && !folder.path.exists() {
        return Ok(Vec::new());
    }
    let files = files(&folder.path)?;
    if files.is_empty() {
        let text = "holds no `*.yaml` file, so nothing would be limited or blocked; is it mounted? \
                    write a file with `rules: []` if no rules are meant";
        return Err(Problem::new(place(&folder.path), text));
    }
    Ok(files)
}

/// Reads rule files that belong together.
pub fn parse_rules(
    paths: &[PathBuf],
    vocabulary: &mut Vocabulary,
    now: SystemTime,
) -> Result<Rules, Problems> {
    let mut problems = Problems::default();
    let mut parsed = Vec::with_capacity(paths.len());
    for path in paths {
        let file = read(path)
            .map_err(Problems::from)
            .and_then(|text| RulesFile::parse(&path.to_string_lossy(), &text, vocabulary, now));
        match file {
            Ok(file) => parsed.push(file),
            Err(more) => problems.extend(more),
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    RulesFile::join(parsed)
}

/// The beginning of a file.
fn place(path: &Path) -> Place {
    Mark::START.in_file(&path.to_string_lossy())
}

fn unreadable(path: &Path, error: &io::Error) -> Problem {
    let text = format!("cannot be read ({error}); check the path and who may read it");
    Problem::new(place(path), &text)
}
