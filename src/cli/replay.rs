//! `tidegate replay`: what a policy would have done to a recorded access log.
//!
//! Reads lines ([`lines`]) of our own log ([`own`]) or another server's ([`combined`]), asks the policy
//! about each ([`ask`]) at the log's own time, counts ([`tally`], [`frequent`], [`course`]), and shows
//! ([`report`], [`show`]). Forwards nothing, writes nothing, and knows nothing of the detector: rules and
//! limits of the files alone decide.

mod ask;
mod combined;
mod course;
mod entry;
mod frequent;
mod lines;
mod own;
mod report;
mod show;
mod tally;

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use clap::Args;
use http::HeaderValue;
use tidegate_engine::attribute::{AttributeId, Side};
use tidegate_engine::policy::{Policy, PolicyParts};
use tidegate_engine::problem::{Place, Problem, Problems};
use tidegate_engine::rules::Rules;
use tidegate_engine::verdict::Name;

use self::ask::{Asking, BEGIN};
use self::combined::CombinedLine;
use self::entry::{Format, Moment, Unreadable};
use self::lines::{Line, Lines};
use self::own::OwnLines;
use self::report::{Asked, Report};
use self::tally::{LineCounts, Tally};
use super::progress::Progress;
use super::{complain, say};
use crate::check::EXIT_CONFIG;
use crate::rules_folder::{load_rules, load_settings};
use crate::settings::Settings;

/// Lines between two looks at the clock.
const LINES_BETWEEN: u64 = 1 << 12;

/// A file that begins with so many lines of which none can be read is no log; the rest is not read.
const HOPELESS_LINES: u64 = 1000;

#[derive(Debug, Args)]
pub(super) struct Replay {
    /// The settings file; the rules folder is the one that it names.
    #[arg(long, value_name = "FILE", default_value = "config/tidegate.yaml")]
    config: PathBuf,
    /// The host that requests asked for, where a log does not say it.
    #[arg(long, value_name = "NAME")]
    host: Option<HeaderValue>,
    /// The attributes that tell sources apart; by default those of the settings that are no secrets.
    #[arg(long, value_name = "ATTRIBUTE,...", value_delimiter = ',')]
    by: Vec<String>,
    /// How many sources of each rule and limit are shown.
    #[arg(long, value_name = "N", default_value_t = 10)]
    top: u16,
    /// Prints one JSON object.
    #[arg(long)]
    json: bool,
    /// Access logs, oldest first: our JSON lines, `combined` or `common`; plain or gzip. `-` is
    /// standard input.
    #[arg(required = true, value_name = "LOG")]
    logs: Vec<PathBuf>,
}

impl Replay {
    /// Replays all logs as one. 78 where settings, rules or a log are wrong; what could be read is
    /// shown all the same.
    pub(super) fn run(&self) -> ExitCode {
        let begun = Instant::now();
        let (played, problems) = match self.play() {
            Ok(played) => played,
            Err(problems) => (None, problems),
        };
        for problem in problems.iter() {
            complain(&problem.to_string());
        }
        if let Some(played) = &played {
            let asked = Asked {
                logs: &self.logs,
                top: usize::from(self.top),
                elapsed: begun.elapsed(),
            };
            let report = Report::new(&asked, played);
            say(&if self.json {
                report.json()
            } else {
                report.to_string()
            });
        }
        if problems.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::from(EXIT_CONFIG)
        }
    }

    /// Returns what came of it, if a line could be read, and which logs are wrong.
    fn play(&self) -> Result<(Option<Played>, Problems), Problems> {
        let settings = load_settings(&self.config)?;
        // What is wrong with the rules is said before hours of a log are read. They are read again
        // when its time is known.
        load_rules(&settings, SystemTime::now())?;
        let who = self.who(&settings)?;
        let mut playing = Playing {
            own: OwnLines::new(&settings.schema),
            settings,
            host: self.host.clone(),
            who,
            lines: LineCounts::default(),
            at_work: None,
        };
        let mut problems = Problems::default();
        let mut progress = Progress::new("log", self.logs.len());
        for (at, path) in self.logs.iter().enumerate() {
            progress.begin(at, path);
            let read = playing.log(path, &mut progress)?;
            if let Err(problem) = read {
                problems.extend(problem.into());
            }
        }
        progress.clear();
        let unknown = playing.own.unknown().map(str::to_owned).collect();
        let Some(at_work) = playing.at_work else {
            if problems.is_empty() {
                let text = "there is no line to replay; is the log empty, or was it rotated away?";
                let path = self
                    .logs
                    .first()
                    .map_or_else(|| Path::new("-"), PathBuf::as_path);
                let first = playing.lines.shown.into_iter().next();
                problems.extend(first.unwrap_or_else(|| problem(path, 1, 1, text)).into());
            }
            return Ok((None, problems));
        };
        let AtWork {
            asking,
            tally,
            ended,
        } = at_work;
        let played = Played {
            asking,
            tally,
            ended,
            unknown,
        };
        Ok((Some(played), problems))
    }

    /// Returns the attributes that tell sources apart.
    fn who(&self, settings: &Settings) -> Result<Vec<AttributeId>, Problems> {
        let mut who = Vec::new();
        for name in &self.by {
            let id = settings.schema.id(name);
            let spec = id.and_then(|id| settings.schema.spec(id));
            match (id, spec) {
                (Some(id), Some(spec)) if !spec.secret => who.push(id),
                (_, spec) => {
                    let what = match spec {
                        Some(_) => "is secret, and in no log",
                        None => "is no attribute of the settings",
                    };
                    let text = format!(
                        "`--by {name}`: `{name}` {what}; name others, for example `--by ip`"
                    );
                    return Err(problem(&self.config, 1, 1, &text).into());
                }
            }
        }
        if who.is_empty() {
            let own = settings.identity.iter().map(|source| &source.spec);
            let telling = own.filter(|spec| spec.side == Side::Who && !spec.secret);
            who.extend(telling.filter_map(|spec| settings.schema.id(&spec.name)));
        }
        Ok(who)
    }
}

/// What came of a replay.
struct Played {
    asking: Asking,
    tally: Tally,
    /// The rules whose time was over when the log began.
    ended: Vec<String>,
    /// Attributes of the log that the settings do not know.
    unknown: Vec<String>,
}

/// What is there before the first line, and what the first line brings.
struct Playing {
    settings: Settings,
    host: Option<HeaderValue>,
    who: Vec<AttributeId>,
    own: OwnLines,
    /// Until there is a tally.
    lines: LineCounts,
    at_work: Option<AtWork>,
}

/// A policy that is asked, from the first line on.
struct AtWork {
    asking: Asking,
    tally: Tally,
    ended: Vec<String>,
}

/// A line of any format.
enum AnyLine<'a> {
    Own(own::OwnLine<'a>),
    Combined(CombinedLine<'a>),
}

impl Playing {
    /// Replays one log. The inner error: the log is wrong, the others may be right.
    fn log(
        &mut self,
        path: &Path,
        progress: &mut Progress,
    ) -> Result<Result<(), Problem>, Problems> {
        let mut lines = match Lines::open(path) {
            Ok(lines) => lines,
            Err(error) => return Ok(Err(unreadable_log(path, 0, &error))),
        };
        if let Some(size) = lines.size() {
            progress.reading(size);
        }
        let mut is_readable = false;
        let mut tried: u64 = 0;
        loop {
            let line = match lines.next() {
                Ok(Some(line)) => line,
                Ok(None) => return Ok(Ok(())),
                Err(error) => return Ok(Err(unreadable_log(path, lines.number(), &error))),
            };
            tried += 1;
            let read = match line {
                Line::Text(text) => self.line(text)?,
                Line::TooLong => Err(Unreadable::TooLong),
            };
            if let Err(why) = read {
                let number = lines.number();
                let why = || problem(path, number, why.column(), &why.to_string());
                if !is_readable && tried >= HOPELESS_LINES {
                    let text = format!("not one of the first {tried} lines can be read: ");
                    let why = why();
                    return Ok(Err(Problem::new(why.place, &(text + &why.text))));
                }
                self.counts().could_not_read(why);
            } else {
                is_readable = true;
            }
            if tried.is_multiple_of(LINES_BETWEEN) {
                progress.read(lines.bytes_read());
            }
        }
    }

    /// Replays one line, whose first byte tells its format.
    fn line(&mut self, text: &[u8]) -> Result<Result<(), Unreadable>, Problems> {
        let read = if text.first() == Some(&b'{') {
            self.own.read(text).map(AnyLine::Own)
        } else {
            CombinedLine::read(text).map(AnyLine::Combined)
        };
        let line = match read {
            Ok(line) => line,
            Err(why) => return Ok(Err(why)),
        };
        let at_work = match &mut self.at_work {
            Some(at_work) => at_work,
            none => {
                let at = match &line {
                    AnyLine::Own(line) => line.at,
                    AnyLine::Combined(line) => line.at,
                };
                let lines = std::mem::take(&mut self.lines);
                let host = self.host.clone();
                none.insert(AtWork::begin(&self.settings, host, &self.who, lines, at)?)
            }
        };
        let AtWork { asking, tally, .. } = at_work;
        match line {
            AnyLine::Own(line) => {
                tally.lines.read(Format::Own);
                asking.own(&line, tally);
            }
            AnyLine::Combined(line) => {
                tally.lines.read(line.format);
                asking.combined(&line, tally);
            }
        }
        Ok(Ok(()))
    }

    fn counts(&mut self) -> &mut LineCounts {
        match &mut self.at_work {
            Some(at_work) => &mut at_work.tally.lines,
            None => &mut self.lines,
        }
    }
}

impl AtWork {
    /// Puts the rules in force as of the log's first line: a `ttl` counts from then, and a rule whose
    /// `until` has passed since applies to the log as long as it would have.
    fn begin(
        settings: &Settings,
        host: Option<HeaderValue>,
        who: &[AttributeId],
        lines: LineCounts,
        at: Moment,
    ) -> Result<Self, Problems> {
        let rules = load_rules(settings, at.wall())?;
        let names: Vec<_> = rules.rules.iter().map(|rule| rule.name.clone()).collect();
        let policy = compile(settings, rules, at);
        let in_force = |name: &Name| policy.rules().any(|rule| rule.rule().name == *name);
        let ended = names.iter().filter(|name| !in_force(name));
        let ended = ended.map(ToString::to_string).collect();
        let tally = Tally::new(&policy, who.to_vec(), lines);
        let asking = Asking::new(policy, &settings.identity, host, at);
        Ok(Self {
            asking,
            tally,
            ended,
        })
    }
}

fn compile(settings: &Settings, rules: Rules, at: Moment) -> Policy {
    let services = settings.services.iter();
    let parts = PolicyParts {
        schema: Arc::new(settings.schema.clone()),
        services: services.map(|service| service.spec.clone()).collect(),
        rules: rules.rules,
        limits: rules.limits,
        generation: 0,
    };
    Policy::compile(parts, None, BEGIN, at.wall())
}

fn problem(path: &Path, line: u64, column: u32, text: &str) -> Problem {
    let line = u32::try_from(line).unwrap_or(u32::MAX);
    Problem::new(Place::new(&path.to_string_lossy(), line, column), text)
}

/// Says why a log ends before its end, after so many lines.
fn unreadable_log(path: &Path, lines: u64, error: &io::Error) -> Problem {
    let text = match (error.kind(), lines) {
        (io::ErrorKind::UnexpectedEof, _) => {
            "the compressed file ends too early; copy it again (what stands before is replayed)"
                .to_owned()
        }
        (_, 0) => format!("cannot be read: {error}"),
        _ => format!("cannot be read on from here: {error} (what stands before is replayed)"),
    };
    problem(path, lines + 1, 1, &text)
}
