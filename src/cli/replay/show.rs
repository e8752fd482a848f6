//! A report as people read it.

use std::fmt;

use tidegate_engine::rules::Mode;

use super::report::{Acted, Report, listed};
use crate::cli::plain::Plain;

/// How long the bar of the busiest row is.
const BAR_LETTERS: u64 = 40;
/// How high a letter of a rule's course can be.
const HEIGHTS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fmt_lines(f)?;
        self.fmt_verdicts(f)?;
        self.fmt_rules(f)?;
        self.fmt_course(f)?;
        for note in &self.notes {
            write!(f, "\nnote: {}", Plain(note))?;
        }
        Ok(())
    }
}

impl Report {
    fn fmt_lines(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = &self.lines;
        let kinds = [
            ("our own", lines.own),
            ("combined", lines.combined),
            ("common", lines.common),
        ];
        let kinds: Vec<String> = kinds
            .iter()
            .filter(|(_, count)| *count > 0)
            .map(|(kind, count)| format!("{count} {kind}"))
            .collect();
        write!(
            f,
            "{}: lines read: {}",
            self.logs.join(", "),
            kinds.join(", ")
        )?;
        write!(f, "; could not be read: {}", lines.unreadable)?;
        for problem in &lines.first_unreadable {
            write!(f, "\n  {}", Plain(problem))?;
        }
        if lines.unreadable > lines.first_unreadable.len() as u64 {
            write!(f, "\n  ...")?;
        }
        let seconds = self.elapsed_ms / 1e3;
        write!(
            f,
            "\n{} to {}, replayed in {seconds:.1} s",
            self.from, self.to
        )
    }

    fn fmt_verdicts(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |part: u64| 100.0 * part as f64 / self.requests.max(1) as f64;
        write!(f, "\n\nwould be")?;
        for (word, count) in &self.verdicts {
            write!(f, "\n  {word:<12}{count:>12}{:>9.2} %", percent(*count))?;
        }
        let log = &self.in_log;
        if log.verdicts == 0 {
            return Ok(());
        }
        write!(
            f,
            "\nof {} whose verdict is in the log {} are as they were; {} were forwarded and would now be \
             refused, {} were refused and would now be forwarded",
            log.verdicts, log.same, log.now_refused, log.now_forwarded
        )?;
        for change in &log.changes {
            write!(
                f,
                "\n  {:<12}-> {:<12}{:>9}",
                change.from, change.to, change.requests
            )?;
        }
        Ok(())
    }

    fn fmt_rules(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.rules.is_empty() {
            return write!(f, "\n\nthere is no rule and no limit");
        }
        let (acted, idle): (Vec<&Acted>, Vec<&Acted>) =
            self.rules.iter().partition(|rule| rule.matched > 0);
        let width = acted.iter().map(|rule| rule.name.chars().count()).max();
        let width = width.unwrap_or(0).max("rule or limit".len());
        if !acted.is_empty() {
            write!(
                f,
                "\n\n{:<width$}  {:<9}{:<8}{:>12}{:>12}{:>9}",
                "rule or limit", "action", "mode", "matched", "refused", "share"
            )?;
        }
        for rule in acted {
            rule.fmt(f, width)?;
        }
        if !idle.is_empty() {
            let names: Vec<String> = idle.iter().map(|rule| rule.name.clone()).collect();
            write!(f, "\nmatched nothing: {}", listed(&names))?;
        }
        Ok(())
    }

    fn fmt_course(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = &self.over_time.rows;
        let most = rows
            .iter()
            .map(|row| row.requests)
            .max()
            .unwrap_or(0)
            .max(1);
        write!(
            f,
            "\n\n{:<20}{:>12}{:>12}  # refused, . others",
            "from", "requests", "refused"
        )?;
        for row in rows {
            let letters = |part: u64| (part * BAR_LETTERS).div_ceil(most) as usize;
            let refused = letters(row.refused);
            let others = letters(row.requests).saturating_sub(refused);
            let bar = "#".repeat(refused) + &".".repeat(others);
            write!(
                f,
                "\n{}{:>12}{:>12}  {bar}",
                row.time, row.requests, row.refused
            )?;
        }
        Ok(())
    }
}

impl Acted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>, width: usize) -> fmt::Result {
        let in_shadow = self.mode == Mode::Shadow;
        let mode = match self.mode {
            Mode::Shadow => "shadow".to_owned(),
            Mode::Enforce if self.percent < 100 => format!("{} %", self.percent),
            Mode::Enforce => "enforce".to_owned(),
        };
        let (refused, share) = if in_shadow {
            (self.refused_in_shadow, self.refused_in_shadow_share)
        } else {
            (self.refused, self.refused_share)
        };
        write!(
            f,
            "\n{:<width$}  {:<9}{mode:<8}{:>12}{refused:>12}{:>7.2} %",
            self.name,
            self.action,
            self.matched,
            100.0 * share
        )?;
        if in_shadow && refused > 0 {
            write!(f, "  (would; refuses nothing)")?;
        } else if self.refused_in_shadow > 0 {
            write!(f, "  (and {} if for all)", self.refused_in_shadow)?;
        }
        let most = self.over_time.iter().max().copied().unwrap_or(0);
        if most == 0 {
            return Ok(());
        }
        write!(f, "\n    ")?;
        for count in &self.over_time {
            let height = (count * HEIGHTS.len() as u64).div_ceil(most);
            let letter = (height as usize)
                .checked_sub(1)
                .and_then(|at| HEIGHTS.get(at));
            write!(f, "{}", letter.unwrap_or(&' '))?;
        }
        for hit in &self.sources {
            write!(f, "\n    {:>10}  {}", hit.requests, hit.source)?;
        }
        if self.other_sources > 0 {
            write!(f, "\n    {:>10}  other", self.other_sources)?;
        }
        if self.sources_short_by > 0 {
            let short_by = self.sources_short_by;
            write!(
                f,
                "\n    (each may be up to {short_by} more, taken from other)"
            )?;
        }
        Ok(())
    }
}
