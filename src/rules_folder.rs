//! Finds and reads files of settings and rules. Leaves their meaning to those who parse them.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use tidegate_engine::problem::{Place, Problem, Problems};
use tidegate_engine::rules::Rules;
use tidegate_engine::rules_file::{RulesFile, Vocabulary};
use tidegate_engine::yaml::{FILE_BYTES_MAX, Mark, decode, too_large};

use crate::bounded_file;
use crate::settings::{RulesFolder, Settings};

/// The deepest folder in a folder that is looked into.
const DEPTH_MAX: usize = 8;
/// The most files of one folder: 10,000 rules, one in each.
const FILES_MAX: usize = 10_000;
/// The most folders of one folder.
const FOLDERS_MAX: usize = 1_000;
/// The most bytes of all files of one folder: 10,000 rules take about 2 MiB.
const FOLDER_BYTES_MAX: usize = 64 << 20;

/// What is in a folder and those below.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    /// The `*.yaml` and `*.yml` files, in order of their paths.
    pub files: Vec<PathBuf>,
    /// The folders, itself first.
    pub folders: Vec<PathBuf>,
}

/// Returns the `*.yaml` and `*.yml` files of a folder and those below, in order of their paths.
/// What begins with a point is left out: editors and configuration mounts keep copies there.
pub fn files(folder: &Path) -> Result<Vec<PathBuf>, Problem> {
    survey(folder).map(|survey| survey.files)
}

/// Looks through a folder and those below, as [`files`] does.
pub fn survey(folder: &Path) -> Result<Survey, Problem> {
    let mut found = Survey::default();
    walk(folder, &mut Vec::new(), &mut found)?;
    found.files.sort();
    Ok(found)
}

/// Returns whether a path is that of a YAML file.
pub fn is_yaml(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| extension == "yaml" || extension == "yml")
}

/// Walks a folder; `above` are device and inode of the folders on the way to it.
fn walk(folder: &Path, above: &mut Vec<(u64, u64)>, found: &mut Survey) -> Result<(), Problem> {
    let refused = |error: io::Error| unreadable(folder, &error);
    let metadata = fs::metadata(folder).map_err(refused)?;
    let itself = (metadata.dev(), metadata.ino());
    if above.contains(&itself) {
        let text = "leads back to a folder above it; remove this link";
        return Err(Problem::new(place(folder), text));
    }
    if found.folders.len() >= FOLDERS_MAX {
        let text = format!("there are more than {FOLDERS_MAX} folders; make fewer");
        return Err(Problem::new(place(folder), &text));
    }
    found.folders.push(folder.to_owned());
    above.push(itself);
    for entry in fs::read_dir(folder).map_err(refused)? {
        let path = entry.map_err(refused)?.path();
        let is_hidden = path
            .file_name()
            .is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        if is_hidden {
            continue;
        }
        if path.is_dir() {
            if above.len() <= DEPTH_MAX {
                walk(&path, above, found)?;
            }
        } else if is_yaml(&path) {
            if found.files.len() >= FILES_MAX {
                let text = format!("there are more than {FILES_MAX} files; write fewer");
                return Err(Problem::new(place(folder), &text));
            }
            found.files.push(path);
        }
    }
    above.pop();
    Ok(())
}

/// Reads a text file: UTF-8, of bounded size. What is no file (a pipe, a device) is not waited for.
pub fn read(path: &Path) -> Result<String, Problem> {
    match bounded_file::read(path, FILE_BYTES_MAX as u64) {
        Ok(bytes) => decode(&path.to_string_lossy(), &bytes),
        Err(error) => Err(match error.kind() {
            io::ErrorKind::FileTooLarge => too_large(&path.to_string_lossy()),
            io::ErrorKind::InvalidInput => {
                let text = "is neither a file nor a folder; put the text itself here";
                Problem::new(place(path), text)
            }
            _ => unreadable(path, &error),
        }),
    }
}

/// A file that was read.
#[derive(Clone, Debug)]
pub struct FileText {
    /// Where it is.
    pub path: PathBuf,
    /// What it says.
    pub text: String,
    /// When it was first read so; a `ttl` in it counts from then.
    pub since: SystemTime,
}

/// Reads rule files, and says which cannot be read. `since` is when.
pub fn read_all(paths: &[PathBuf], since: SystemTime) -> (Vec<FileText>, Problems) {
    let mut problems = Problems::default();
    let mut texts = Vec::with_capacity(paths.len());
    let mut bytes = 0;
    for path in paths {
        match read(path) {
            Ok(text) => {
                bytes += text.len();
                texts.push(FileText {
                    path: path.clone(),
                    text,
                    since,
                });
            }
            Err(problem) => problems.extend(problem.into()),
        }
        if bytes > FOLDER_BYTES_MAX {
            let text = "this file and those before it hold more than 64 MiB; write fewer rules";
            problems.extend(Problem::new(place(path), text).into());
            break;
        }
    }
    (texts, problems)
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
    survey_of(folder).map(|survey| survey.files)
}

/// Looks through the settings' rules folder, as [`files_of`] does.
pub fn survey_of(folder: &RulesFolder) -> Result<Survey, Problem> {
    if folder.named_at.is_none() && !folder.path.exists() {
        return Ok(Survey::default());
    }
    let survey = survey(&folder.path)?;
    if survey.files.is_empty() {
        let text = "holds no `*.yaml` file, so nothing would be limited or blocked; is it mounted? \
                    write a file with `rules: []` if no rules are meant";
        return Err(Problem::new(place(&folder.path), text));
    }
    Ok(survey)
}

/// Reads rule files that belong together.
pub fn parse_rules(
    paths: &[PathBuf],
    vocabulary: &mut Vocabulary,
    now: SystemTime,
) -> Result<Rules, Problems> {
    let (texts, mut problems) = read_all(paths, now);
    match parse_texts(&texts, vocabulary) {
        Ok(rules) => problems.or(rules),
        Err(more) => {
            problems.extend(more);
            Err(problems)
        }
    }
}

/// Understands rule files that belong together.
pub fn parse_texts(texts: &[FileText], vocabulary: &mut Vocabulary) -> Result<Rules, Problems> {
    let mut problems = Problems::default();
    let mut parsed = Vec::with_capacity(texts.len());
    for FileText { path, text, since } in texts {
        match RulesFile::parse(&path.to_string_lossy(), text, vocabulary, *since) {
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
