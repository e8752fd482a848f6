//! What was promised, beside what came of it.

use std::fmt::Display;
use std::io::Write as _;

/// How much time an experiment may take, and what it may claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scale {
    /// Seconds, on a machine that does other things: only facts are claimed.
    Short,
    /// As long as the figures need, times included.
    Full,
}

impl Scale {
    /// Returns what belongs to this scale.
    pub(crate) fn pick<T>(self, short: T, full: T) -> T {
        match self {
            Self::Short => short,
            Self::Full => full,
        }
    }
}

/// What came of a promise.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    Held,
    Missed,
    /// It was held, and would have been without the defence: this shows nothing.
    NotShown,
    Skipped(String),
}

/// One line of the table.
#[derive(Clone, Debug)]
pub(crate) struct Figure {
    what: String,
    promised: String,
    before: String,
    during: String,
    after: String,
    control: String,
    control_misses: Option<bool>,
    /// Whether it may be claimed on a busy machine.
    is_fact: bool,
    verdict: Verdict,
}

impl Figure {
    fn new(what: &str, promised: impl Display, is_fact: bool) -> Self {
        Self {
            what: what.to_owned(),
            promised: promised.to_string(),
            before: String::new(),
            during: String::new(),
            after: String::new(),
            control: String::new(),
            control_misses: None,
            is_fact,
            verdict: Verdict::Missed,
        }
    }

    /// A figure that does not depend on how busy the machine is.
    pub(crate) fn fact(what: &str, promised: impl Display) -> Self {
        Self::new(what, promised, true)
    }

    /// A figure that does, and is claimed in the full form only.
    pub(crate) fn time(what: &str, promised: impl Display) -> Self {
        Self::new(what, promised, false)
    }

    /// Says what was measured in each phase.
    pub(crate) fn phases(
        mut self,
        before: impl Display,
        during: impl Display,
        after: impl Display,
    ) -> Self {
        self.before = before.to_string();
        self.during = during.to_string();
        self.after = after.to_string();
        self
    }

    /// Says what was measured while there was something wrong, where the other phases have no such
    /// figure.
    pub(crate) fn during(self, during: impl Display) -> Self {
        self.phases("", during, "")
    }

    /// Says what was measured when it was over, where the other phases have no such figure.
    pub(crate) fn after(self, after: impl Display) -> Self {
        self.phases("", "", after)
    }

    /// Says what was measured without the defence (or, where it cannot be taken away, without what
    /// it defends against), and whether that misses the promise, as it should.
    pub(crate) fn control(mut self, control: impl Display, misses: bool) -> Self {
        self.control = control.to_string();
        self.control_misses = Some(misses);
        self
    }

    /// Says what is measured where the proxy has no part in it: what the machine does by itself.
    pub(crate) fn beside(mut self, machine: impl Display) -> Self {
        self.control = machine.to_string();
        self
    }

    /// Says whether the promise was held.
    pub(crate) fn held(mut self, held: bool) -> Self {
        self.verdict = match (held, self.control_misses) {
            (false, _) => Verdict::Missed,
            (true, Some(false)) => Verdict::NotShown,
            (true, _) => Verdict::Held,
        };
        self
    }

    /// Says why this was not measured.
    pub(crate) fn skipped(mut self, why: impl Display) -> Self {
        self.verdict = Verdict::Skipped(why.to_string());
        self
    }

    fn is_well(&self) -> bool {
        matches!(self.verdict, Verdict::Held | Verdict::Skipped(_))
    }

    fn verdict(&self) -> String {
        match &self.verdict {
            Verdict::Held => "held".to_owned(),
            Verdict::Missed => "MISSED".to_owned(),
            Verdict::NotShown => "NOT SHOWN".to_owned(),
            Verdict::Skipped(why) => format!("skipped: {why}"),
        }
    }
}

/// The table, as it grows.
#[derive(Debug, Default)]
pub(crate) struct Table {
    lines: Vec<(&'static str, Figure)>,
    experiment: &'static str,
}

impl Table {
    /// Begins an experiment and says so.
    pub(crate) fn begin(&mut self, id: &'static str, what: &str) {
        self.experiment = id;
        say(&format!("{id}: {what}"));
    }

    /// Adds a figure and says it.
    pub(crate) fn add(&mut self, figure: Figure) {
        let Figure {
            what,
            promised,
            before,
            during,
            after,
            control,
            ..
        } = &figure;
        say(&format!(
            "    {}: {what}: promised {promised}; before {before}; during {during}; \
             after {after}; control {control}",
            figure.verdict()
        ));
        self.lines.push((self.experiment, figure));
    }

    /// Fails the test where a fact is not as promised.
    #[track_caller]
    pub(crate) fn expect_facts(&self) {
        let facts = self.lines.iter().filter(|(_, figure)| figure.is_fact);
        let wrong: Vec<_> = facts.filter(|(_, figure)| !figure.is_well()).collect();
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    /// Returns how many promises were missed, or not shown to be ours.
    pub(crate) fn missed(&self) -> usize {
        self.count(|figure| !figure.is_well())
    }

    fn count(&self, is: impl Fn(&Figure) -> bool) -> usize {
        self.lines.iter().filter(|(_, figure)| is(figure)).count()
    }

    /// Writes all of it.
    pub(crate) fn print(&self) {
        let head = [
            "", "figure", "promised", "before", "during", "after", "control", "verdict",
        ];
        let mut rows = vec![head.map(str::to_owned)];
        for (id, figure) in &self.lines {
            rows.push([
                (*id).to_owned(),
                figure.what.clone(),
                figure.promised.clone(),
                figure.before.clone(),
                figure.during.clone(),
                figure.after.clone(),
                figure.control.clone(),
                figure.verdict(),
            ]);
        }
        let width = |column: usize| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..head.len()).map(width).collect();
        say("");
        for row in &rows {
            let cells = row.iter().zip(&widths);
            let cells = cells.map(|(cell, width)| format!("{cell:width$}"));
            say(cells.collect::<Vec<String>>().join("  ").trim_end());
        }
        let skipped = self.count(|figure| matches!(figure.verdict, Verdict::Skipped(_)));
        say(&format!(
            "\n{} figures: {} held, {} missed or not shown, {skipped} skipped\n",
            self.lines.len(),
            self.count(|figure| figure.verdict == Verdict::Held),
            self.missed(),
        ));
    }
}

/// Writes a line for whoever waits.
pub(crate) fn say(line: &str) {
    // Nobody to tell it to: the verdict stays the same.
    drop(writeln!(std::io::stderr(), "{line}"));
}

#[test]
fn a_promise_that_would_be_held_without_the_defence_is_not_shown() {
    let figure = || Figure::fact("errors", 0).phases(0, 0, 0);
    assert!(figure().held(true).is_well());
    assert!(figure().control(7, true).held(true).is_well());
    assert!(!figure().control(0, false).held(true).is_well());
    assert!(!figure().control(7, true).held(false).is_well());
    assert!(figure().skipped("no right to").is_well());
}
