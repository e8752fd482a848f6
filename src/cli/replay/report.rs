//! What is said of a replay, for programs as it is and for people through [`super::show`]. Counts
//! nothing itself; what the reader must know to believe the figures is in its notes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use tidegate_engine::attribute::AttributeId;
use tidegate_engine::rules::{Action, Mode};

use super::Played;
use super::course::Rows;
use super::tally::{Cause, REFUSED, SENT, Tally, is_refusal};
use crate::metrics::OUTCOMES;

/// Lines that are out of order by less are the rule: they are written when the request has ended, by
/// several workers.
const OUT_OF_ORDER_USUAL: Duration = Duration::from_mins(1);
/// The most names that one note lists.
const NAMES_MAX: usize = 20;

/// What was asked for.
pub(super) struct Asked<'a> {
    pub(super) logs: &'a [PathBuf],
    pub(super) top: usize,
    pub(super) elapsed: Duration,
}

/// Everything that is said.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) logs: Vec<String>,
    pub(super) lines: LinesRead,
    /// The times of the earliest and the latest request.
    pub(super) from: String,
    pub(super) to: String,
    pub(super) requests: u64,
    pub(super) forwarded: u64,
    /// By rules and limits.
    pub(super) refused: u64,
    /// What became of the requests; what did not happen is left out.
    pub(super) verdicts: BTreeMap<&'static str, u64>,
    pub(super) in_log: Compared,
    pub(super) rules: Vec<Acted>,
    pub(super) over_time: OverTime,
    pub(super) notes: Vec<String>,
    pub(super) elapsed_ms: f64,
}

#[derive(Debug, Serialize)]
pub(super) struct LinesRead {
    pub(super) own: u64,
    pub(super) combined: u64,
    pub(super) common: u64,
    pub(super) unreadable: u64,
    pub(super) first_unreadable: Vec<String>,
}

/// How it differs from what our own log says had happened.
#[derive(Debug, Serialize)]
pub(super) struct Compared {
    /// How many verdicts the log has.
    pub(super) verdicts: u64,
    pub(super) same: u64,
    /// Was forwarded, would now be refused; and the reverse.
    pub(super) now_refused: u64,
    pub(super) now_forwarded: u64,
    /// Most frequent first.
    pub(super) changes: Vec<Change>,
}

#[derive(Debug, Serialize)]
pub(super) struct Change {
    pub(super) from: &'static str,
    pub(super) to: &'static str,
    pub(super) requests: u64,
}

/// What a rule or limit did.
#[derive(Debug, Serialize)]
pub(super) struct Acted {
    pub(super) name: String,
    pub(super) kind: &'static str,
    pub(super) action: &'static str,
    pub(super) mode: Mode,
    pub(super) percent: u8,
    pub(super) matched: u64,
    pub(super) refused: u64,
    /// Of all requests.
    pub(super) refused_share: f64,
    pub(super) refused_in_shadow: u64,
    pub(super) refused_in_shadow_share: f64,
    /// Of those refused, in shadow or not; of those matched where nothing is ever refused.
    pub(super) sources: Vec<SourceHit>,
    pub(super) other_sources: u64,
    /// By how much a source's count may be too low.
    pub(super) sources_short_by: u64,
    /// In the rows of the whole.
    pub(super) over_time: Vec<u64>,
}

#[derive(Debug, Serialize)]
pub(super) struct SourceHit {
    pub(super) source: String,
    pub(super) requests: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct OverTime {
    pub(super) width_s: f64,
    pub(super) rows: Vec<Row>,
}

#[derive(Debug, Serialize)]
pub(super) struct Row {
    pub(super) time: String,
    pub(super) requests: u64,
    pub(super) refused: u64,
}

impl Report {
    pub(super) fn new(asked: &Asked<'_>, played: &Played) -> Self {
        let tally = &played.tally;
        let verdicts: BTreeMap<&str, u64> = OUTCOMES
            .into_iter()
            .zip(tally.outcomes)
            .filter(|(_, count)| *count > 0)
            .collect();
        let requests = tally.outcomes.iter().sum();
        let of = |wanted: fn(&str) -> bool| {
            let some = verdicts.iter().filter(|(word, _)| wanted(word));
            some.map(|(_, count)| count).sum()
        };
        let (from, to) = tally.span.unzip();
        let time =
            |moment: Option<super::Moment>| moment.map_or(String::new(), |at| at.to_string());
        let rows = tally.course.rows(SENT);
        let causes = tally.causes.iter().enumerate();
        Self {
            logs: asked
                .logs
                .iter()
                .map(|log| log.display().to_string())
                .collect(),
            lines: LinesRead {
                own: tally.lines.own,
                combined: tally.lines.combined,
                common: tally.lines.common,
                unreadable: tally.lines.unreadable,
                first_unreadable: tally.lines.shown.iter().map(ToString::to_string).collect(),
            },
            from: time(from),
            to: time(to),
            requests,
            forwarded: of(|word| word == "forward"),
            refused: of(is_refusal),
            verdicts,
            in_log: Compared::new(tally),
            rules: causes
                .map(|(at, cause)| Acted::new(asked, tally, (at, cause), requests, &rows))
                .collect(),
            over_time: OverTime::new(tally, &rows),
            notes: notes(played),
            elapsed_ms: asked.elapsed.as_secs_f64() * 1e3,
        }
    }

    /// Returns one line of JSON.
    pub(super) fn json(&self) -> String {
        // Text and finite numbers: there is nothing that cannot be written.
        serde_json::to_string(self).unwrap_or_default()
    }
}

impl Compared {
    fn new(tally: &Tally) -> Self {
        let mut compared = Self {
            verdicts: 0,
            same: 0,
            now_refused: 0,
            now_forwarded: 0,
            changes: Vec::new(),
        };
        for (from, row) in OUTCOMES.into_iter().zip(&tally.changes) {
            for (to, requests) in OUTCOMES.into_iter().zip(*row) {
                compared.verdicts += requests;
                // A service that was full comes after rules and limits, and is not replayed.
                let was_let_through = matches!(from, "forward" | "shed");
                if from == to || (was_let_through && to == "forward") {
                    compared.same += requests;
                } else if requests > 0 {
                    compared.changes.push(Change { from, to, requests });
                }
                if was_let_through && is_refusal(to) {
                    compared.now_refused += requests;
                }
                if is_refusal(from) && to == "forward" {
                    compared.now_forwarded += requests;
                }
            }
        }
        compared
            .changes
            .sort_by_key(|change| std::cmp::Reverse(change.requests));
        compared
    }
}

impl Acted {
    fn new(
        asked: &Asked<'_>,
        tally: &Tally,
        (at, cause): (usize, &Cause),
        requests: u64,
        rows: &Rows,
    ) -> Self {
        let (top, other_sources) = cause.sources.top(asked.top);
        let share = |part: u64| part as f64 / requests.max(1) as f64;
        let hit = |(source, requests): (&str, u64)| SourceHit {
            source: source.to_owned(),
            requests,
        };
        Self {
            name: cause.name.to_string(),
            kind: cause.kind,
            action: cause.action,
            mode: cause.mode,
            percent: cause.percent,
            matched: cause.matched,
            refused: cause.refused,
            refused_share: share(cause.refused),
            refused_in_shadow: cause.refused_in_shadow,
            refused_in_shadow_share: share(cause.refused_in_shadow),
            sources: top.into_iter().map(hit).collect(),
            other_sources,
            sources_short_by: cause.sources.short_by(),
            over_time: tally.course.counts(Tally::series_of(at), rows),
        }
    }
}

impl OverTime {
    fn new(tally: &Tally, rows: &Rows) -> Self {
        let sent = tally.course.counts(SENT, rows);
        let refused = tally.course.counts(REFUSED, rows);
        let row = |(at, (requests, refused))| Row {
            time: rows.moment(at).to_string(),
            requests,
            refused,
        };
        Self {
            width_s: rows.width as f64 / 1e9,
            rows: sent.into_iter().zip(refused).enumerate().map(row).collect(),
        }
    }
}

/// Says what the figures rest on.
fn notes(played: &Played) -> Vec<String> {
    let tally = &played.tally;
    let policy = played.asking.policy();
    let schema = policy.schema();
    let mut notes = Vec::new();
    let secret = |id: AttributeId| schema.spec(id).is_some_and(|spec| spec.secret);
    if tally.stood_in > 0 {
        notes.push(format!(
            "secret attributes are in no log: for {} requests the address stood in for them in {}",
            tally.stood_in,
            listed(&counting_by(played, secret)),
        ));
    }
    for id in &tally.unseen {
        let name = schema.name(*id);
        let asking = asking_for(played, *id);
        if !asking.is_empty() {
            notes.push(format!(
                "no request has `{name}`: what {} did with them says nothing",
                listed(&asking)
            ));
        }
        let counting = counting_by(played, |other| other == *id && !secret(other));
        if !counting.is_empty() {
            notes.push(format!(
                "no request has `{name}`, so all are one to {}, whose figures say nothing",
                listed(&counting)
            ));
        }
    }
    if !played.ended.is_empty() {
        notes.push(format!(
            "over before the log begins (`until`): {}",
            listed(&played.ended)
        ));
    }
    if !played.unknown.is_empty() {
        notes.push(format!(
            "in the log and not in the settings: {}",
            listed(&played.unknown)
        ));
    }
    let (late, most) = tally.out_of_order;
    let most = Duration::from_nanos(most);
    if most >= OUT_OF_ORDER_USUAL {
        let most = humantime::format_duration(Duration::from_secs(most.as_secs()));
        notes.push(format!(
            "{late} lines are older than one before them, by up to {most}, and were decided as if they \
             came after it; name the logs oldest first"
        ));
    }
    if tally.freed_of_detected > 0 {
        notes.push(format!(
            "{} requests that are forwarded now were refused by detected rules; the detector is not \
             replayed",
            tally.freed_of_detected
        ));
    }
    let unmatched = OUTCOMES.iter().position(|word| *word == "unmatched");
    let unmatched = unmatched.and_then(|at| tally.outcomes.get(at)).copied();
    let foreign = tally.lines.combined + tally.lines.common;
    if foreign > 0 && unmatched.unwrap_or(0) > 0 {
        notes.push(
            "requests for which there is no service were asked of no rule; if services or tenants are \
             told by host, name it with `--host`"
                .to_owned(),
        );
    }
    notes
}

/// Returns the rules and limits that ask for an attribute's value.
fn asking_for(played: &Played, id: AttributeId) -> Vec<String> {
    let policy = played.asking.policy();
    let rules = policy
        .rules()
        .map(|rule| (&rule.rule().name, &rule.rule().when));
    let limits = policy
        .limits()
        .map(|limit| (&limit.limit().name, &limit.limit().when));
    rules
        .chain(limits)
        .filter(|(_, when)| when.conditions.iter().any(|(asked, _)| *asked == id))
        .map(|(name, _)| name.to_string())
        .collect()
}

/// Returns the limits and throttles that count by such an attribute.
fn counting_by(played: &Played, wanted: impl Fn(AttributeId) -> bool) -> Vec<String> {
    let policy = played.asking.policy();
    let throttles = policy.rules().filter_map(|rule| match &rule.rule().action {
        Action::Throttle { per, .. } => Some((&rule.rule().name, per)),
        _ => None,
    });
    let limits = policy
        .limits()
        .map(|limit| (&limit.limit().name, &limit.limit().key));
    throttles
        .chain(limits)
        .filter(|(_, by)| by.iter().any(|id| wanted(*id)))
        .map(|(name, _)| name.to_string())
        .collect()
}

/// Writes names in a row.
pub(super) fn listed(names: &[String]) -> String {
    let quoted: Vec<String> = names
        .iter()
        .take(NAMES_MAX)
        .map(|name| format!("`{name}`"))
        .collect();
    let text = quoted.join(", ");
    match names.len().saturating_sub(NAMES_MAX) {
        0 => text,
        more => format!("{text} and {more} more"),
    }
}
