//! The settings file and its rules folder: what of them is in force, whether they say something else by
//! now, and what. Reads and understands; puts nothing in force.

use std::collections::HashMap;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use tidegate_engine::problem::{Place, Problem, Problems};
use tidegate_engine::rules::Rules;

use super::Loaded;
use super::watch::Places;
use crate::faults::{self, Point};
use crate::rules_folder::{FileText, parse_texts, read, read_all, survey_of};
use crate::settings::{AccessLog, RulesFolder, Settings};
use crate::upstream::{Endpoints, read_authorities};

/// How often files are read again because they changed while they were read.
const READS_MAX: usize = 3;

/// The settings file and its rules folder.
#[derive(Debug)]
pub struct ConfigFiles {
    /// Where the settings are.
    path: PathBuf,
    /// What they said when they were last read and right. They name the rules folder.
    settings: Arc<Settings>,
    settings_said: Digest,
    /// The settings in force, without and with the authorities that they name.
    settings_text_in_force: Digest,
    settings_in_force: Digest,
    /// The rules in force.
    rules_in_force: Digest,
    /// What is in force; `None`: not all of what was read last.
    in_force: Option<Digest>,
    /// What was read last, right or wrong.
    newest: Digest,
    /// When each rule file was first read as it is.
    since: HashMap<PathBuf, (Digest, SystemTime)>,
}

/// A hash of all that was read. Two contents have the same by chance once in 2^64.
type Digest = u64;

/// How files look from outside: what changes when they do. Costs a `stat` for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Look(u64);

/// What was read.
struct Text {
    settings: String,
    /// What the files of authorities hold, in the order of [`authority_files`].
    authorities: Vec<Digest>,
    rules: Vec<FileText>,
}

impl ConfigFiles {
    /// Reads settings and the rules that they name, for a start.
    pub fn open(path: &Path, now: SystemTime) -> Result<(Settings, Rules, Self), Problems> {
        let text = read(path)?;
        let settings = Settings::parse(&path.to_string_lossy(), &text)?;
        let mut files = Self {
            path: path.to_owned(),
            settings: Arc::new(settings),
            settings_said: digest(&text),
            settings_text_in_force: digest(&text),
            settings_in_force: 0,
            rules_in_force: 0,
            in_force: None,
            newest: 0,
            since: HashMap::new(),
        };
        let (digest, read) = files.read(now);
        let text = read?;
        let rules = parse_texts(&text.rules, &mut files.settings.vocabulary())?;
        (files.in_force, files.newest) = (Some(digest), digest);
        files.settings_in_force = text.settings();
        files.rules_in_force = text.rules();
        Ok((files.settings_of(&text), rules, files))
    }

    /// Reads again, and notes how the files looked just before. `None`: they say what they said the
    /// last time, and nobody asked.
    pub(super) fn load(
        &mut self,
        is_asked: bool,
        now: SystemTime,
        seen: &mut Option<Look>,
    ) -> Option<Loaded> {
        faults::point(Point::Reload);
        let mut reads = 0;
        let (digest, text) = loop {
            let before = seen.insert(self.look().0).clone();
            let read = self.read(now);
            reads += 1;
            // Half of the old and half of the new is nobody's intention.
            if reads == READS_MAX || self.look().0 == before {
                break read;
            }
        };
        if digest == self.newest && !is_asked {
            return None;
        }
        self.newest = digest;
        if Some(digest) == self.in_force {
            return Some(Loaded::Again);
        }
        Some(
            match text.and_then(|text| self.understand(&text, is_asked)) {
                Ok(loaded) => {
                    let is_whole = !matches!(loaded, Loaded::RulesOnly { .. });
                    self.in_force = is_whole.then_some(digest);
                    loaded
                }
                Err(problems) => Loaded::Refused { problems, is_asked },
            },
        )
    }

    fn understand(&mut self, text: &Text, is_asked: bool) -> Result<Loaded, Problems> {
        let said = text.settings();
        let rules = parse_texts(&text.rules, &mut self.settings.vocabulary())?;
        let settings = (said != self.settings_in_force).then(|| self.settings_of(text));
        if let Some(settings) = &settings {
            self.try_access_log(settings)?;
            if let Err(problems) = self.try_tls(settings) {
                let is_same_text = digest(&text.settings) == self.settings_text_in_force;
                if !is_same_text || text.rules() == self.rules_in_force {
                    return Err(problems);
                }
                // Rules do not wait for authorities, which stay those of before.
                self.rules_in_force = text.rules();
                return Ok(Loaded::RulesOnly {
                    rules,
                    problems,
                    is_asked,
                });
            }
        }
        self.settings_text_in_force = digest(&text.settings);
        self.settings_in_force = said;
        self.rules_in_force = text.rules();
        let settings = settings.map(Box::new);
        Ok(Loaded::Changed { rules, settings })
    }

    /// Returns the settings that were read, with what the files that they name hold.
    fn settings_of(&self, text: &Text) -> Settings {
        let mut settings = Settings::clone(&self.settings);
        let upstreams = settings.upstreams.iter_mut();
        let believing = upstreams.filter_map(|upstream| upstream.tls.as_mut());
        let believing = believing.filter(|tls| tls.ca.is_some());
        for (tls, digest) in believing.zip(&text.authorities) {
            tls.ca_digest = *digest;
        }
        settings
    }

    /// Opens the access log as it will be, for a mistake in it is one in the settings.
    fn try_access_log(&self, settings: &Settings) -> Result<(), Problem> {
        let AccessLog::File(path) = &settings.access_log else {
            return Ok(());
        };
        let opened = File::options().create(true).append(true).open(path);
        opened.map(drop).map_err(|error| {
            let place = Place::new(&self.path.to_string_lossy(), 1, 1);
            let path = path.display();
            let text = format!(
                "access_log: `{path}` cannot be opened: {error}; name a file in a folder that can be written"
            );
            Problem::new(place, &text)
        })
    }

    /// Reads what is needed to speak TLS to upstreams.
    fn try_tls(&self, settings: &Settings) -> Result<(), Problems> {
        let upstreams = settings.upstreams.iter();
        let wrong = upstreams.filter_map(|upstream| {
            let error = Endpoints::try_tls(upstream).err()?;
            let place = Place::new(&self.path.to_string_lossy(), 1, 1);
            let name = &upstream.name;
            let text = format!("upstream `{name}`: `tls` cannot be used: {error}");
            Some(Problem::new(place, &text))
        });
        Problems::new(wrong.collect()).or(())
    }

    /// Understands the settings, where they say something else than before: they name the rules folder.
    fn understand_settings(&mut self, text: &str) -> Result<(), Problems> {
        let said = digest(text);
        if said != self.settings_said {
            let settings = Settings::parse(&self.path.to_string_lossy(), text)?;
            self.settings = Arc::new(settings);
            self.settings_said = said;
        }
        Ok(())
    }

    /// Reads all, and what of it cannot be read is part of what is hashed.
    fn read(&mut self, now: SystemTime) -> (Digest, Result<Text, Problems>) {
        let mut hasher = DefaultHasher::new();
        let mut problems = Problems::default();
        let settings = read(&self.path).unwrap_or_else(|problem| {
            problems.extend(problem.into());
            String::new()
        });
        settings.hash(&mut hasher);
        if problems.is_empty()
            && let Err(more) = self.understand_settings(&settings)
        {
            problems.extend(more);
        }
        let authorities = authority_files(&self.settings);
        let authorities: Vec<Digest> = authorities.map(digest_of_authorities).collect();
        authorities.hash(&mut hasher);
        let rules = match survey_of(&self.settings.rules) {
            Ok(survey) => {
                let (rules, more) = read_all(&survey.files, now);
                problems.extend(more);
                self.remember(rules)
            }
            Err(problem) => {
                problems.extend(problem.into());
                Vec::new()
            }
        };
        for file in &rules {
            (&file.path, &file.text).hash(&mut hasher);
        }
        for problem in problems.iter() {
            problem.to_string().hash(&mut hasher);
        }
        let text = Text {
            settings,
            authorities,
            rules,
        };
        (hasher.finish(), problems.or(text))
    }

    /// Notes since when each file is as it is: a change of one does not renew the `ttl`s of the others.
    fn remember(&mut self, mut rules: Vec<FileText>) -> Vec<FileText> {
        let mut since = HashMap::with_capacity(rules.len());
        for file in &mut rules {
            let digest = digest(&file.text);
            if let Some((before, at)) = self.since.get(&file.path)
                && *before == digest
            {
                file.since = *at;
            }
            since.insert(file.path.clone(), (digest, file.since));
        }
        self.since = since;
        rules
    }

    /// Looks at the files from outside, and names what is worth being watched.
    pub(super) fn look(&self) -> (Look, Places) {
        let mut hasher = DefaultHasher::new();
        let mut places = Places::default();
        stamp(&self.path, &mut hasher);
        note_way_to(&self.path, &mut places);
        for file in authority_files(&self.settings) {
            stamp(file, &mut hasher);
            note_way_to(file, &mut places);
        }
        let RulesFolder { path, .. } = &self.settings.rules;
        note_way_to(path, &mut places);
        stamp(path, &mut hasher);
        match survey_of(&self.settings.rules) {
            Ok(survey) => {
                for file in &survey.files {
                    stamp(file, &mut hasher);
                    // A link may lead to a folder where nobody would look.
                    if file.is_symlink() {
                        note_way_to(file, &mut places);
                    }
                }
                let folders = survey.folders.into_iter();
                places
                    .folders
                    .extend(folders.map(|folder| absolute(&folder)));
            }
            Err(problem) => {
                problem.to_string().hash(&mut hasher);
                places.folders.insert(absolute(path));
            }
        }
        (Look(hasher.finish()), places)
    }
}

impl Text {
    /// Returns another number for other settings, or other content of the files that they name.
    fn settings(&self) -> Digest {
        digest((digest(&self.settings), &self.authorities))
    }

    /// Returns another number for other rule files.
    fn rules(&self) -> Digest {
        let files = self.rules.iter();
        digest(
            files
                .map(|file| (&file.path, &file.text))
                .collect::<Vec<_>>(),
        )
    }
}

/// Names the files of the authorities that upstreams are believed by.
fn authority_files(settings: &Settings) -> impl Iterator<Item = &Path> {
    let upstreams = settings.upstreams.iter();
    upstreams.filter_map(|upstream| upstream.tls.as_ref()?.ca.as_deref())
}

fn digest(said: impl Hash) -> Digest {
    let mut hasher = DefaultHasher::new();
    said.hash(&mut hasher);
    hasher.finish()
}

/// Hashes what a file of authorities holds, or why it cannot be read.
fn digest_of_authorities(path: &Path) -> Digest {
    digest(read_authorities(path).map_err(|error| error.to_string()))
}

/// Hashes what changes with a file, and follows links.
fn stamp(path: &Path, hasher: &mut DefaultHasher) {
    path.hash(hasher);
    match fs::metadata(path) {
        Ok(file) if file.is_dir() => (file.dev(), file.ino()).hash(hasher),
        Ok(file) => {
            (file.dev(), file.ino(), file.size()).hash(hasher);
            (file.mtime(), file.mtime_nsec()).hash(hasher);
            (file.ctime(), file.ctime_nsec()).hash(hasher);
        }
        Err(error) => error.to_string().hash(hasher),
    }
}

/// Notes the folder in which a path stands, and those in which a link on the way to it stands: each of
/// them may come to lead elsewhere.
fn note_way_to(path: &Path, places: &mut Places) {
    let path = absolute(path);
    let mut note = |path: &Path| {
        if let (Some(folder), Some(name)) = (path.parent(), path.file_name()) {
            places.folders.insert(folder.to_owned());
            places.names.insert(name.to_owned());
        }
    };
    note(&path);
    for above in path.ancestors() {
        if above.is_symlink() {
            note(above);
        }
    }
    // Where the links end.
    if let Ok(real) = fs::canonicalize(&path) {
        note(&real);
    }
}

/// Returns the path from the root on, where it can be told.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_unknown| path.to_owned())
}
