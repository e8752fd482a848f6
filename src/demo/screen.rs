//! What the person at the terminal reads. Decides nothing.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use tidegate_engine::detect::{Event, Happening};
use tidegate_engine::source::Source;

use super::report::{Outcome, Promise, p99_ms, share};
use super::upstream::COUNT;

/// How an event or a figure is coloured on a terminal.
#[derive(Clone, Copy, Debug)]
pub(super) enum Colour {
    /// As it should be.
    Good,
    /// Worth a look.
    Notable,
    /// As it should not be.
    Bad,
    /// The frame around the rest.
    Faint,
}

/// The terminal, or whatever standard output is.
#[derive(Debug)]
pub(super) struct Screen {
    coloured: bool,
}

/// One second of the story.
#[derive(Debug)]
pub(super) struct Second<'a> {
    /// Since the start.
    pub(super) at: Duration,
    /// How long it was.
    pub(super) length: Duration,
    /// Honest requests that ended in it.
    pub(super) honest: &'a [Outcome],
    /// Of the loop: sent and refused.
    pub(super) bad: (u64, u64),
    /// Load of each service as a share of its capacity.
    pub(super) load: [f64; COUNT],
    /// Requests that wait for a slot of any service.
    pub(super) waiting: u64,
}

/// Writes a line. A reader that went away (`| head`) is no error of ours.
pub(super) fn line(text: &str) {
    let mut out = std::io::stdout().lock();
    drop(writeln!(out, "{text}").and_then(|()| out.flush()));
}

impl Screen {
    /// Looks at what standard output is. `NO_COLOR` is respected.
    pub(super) fn new() -> Self {
        let coloured = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { coloured }
    }

    fn paint(&self, colour: Colour, text: &str) -> String {
        if !self.coloured {
            return text.to_owned();
        }
        let code = match colour {
            Colour::Good => "32",
            Colour::Notable => "1;33",
            Colour::Bad => "1;31",
            Colour::Faint => "2",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    /// Writes the header of the lines that follow.
    pub(super) fn header(&self) {
        line("");
        for text in [
            "            honest clients           the loop              load of the services",
            "   time    done succeed     p99    sent/s refused    chat    kb login  waiting",
        ] {
            line(&self.paint(Colour::Faint, text));
        }
    }

    /// Writes one second.
    pub(super) fn second(&self, second: &Second<'_>) {
        let seconds = second.length.as_secs_f64();
        let succeeded = share(second.honest, super::report::End::Succeeded);
        let p99 = p99_ms(second.honest);
        let honest = format!(
            "{:>5.0}/s {} {}",
            second.honest.len() as f64 / seconds,
            self.figure(
                succeeded.map(|share| 100.0 * share),
                "%",
                5,
                |percent| match percent {
                    99.9.. => Colour::Good,
                    _ => Colour::Bad,
                }
            ),
            self.figure(p99, "ms", 5, |ms| match ms {
                ..40.0 => Colour::Good,
                ..200.0 => Colour::Notable,
                _ => Colour::Bad,
            }),
        );
        let (sent, refused) = second.bad;
        let bad = if sent == 0 {
            format!("{:>9} {:>7}", "-", "-")
        } else {
            let refused = (100.0 * refused as f64 / sent as f64).min(100.0);
            format!("{:>9.0} {refused:>5.1} %", sent as f64 / seconds)
        };
        let load = second.load.map(|share| {
            let percent = (100.0 * share).min(100.0);
            let colour = if percent < 90.0 {
                Colour::Good
            } else {
                Colour::Bad
            };
            self.paint(colour, &format!("{percent:>3.0} %"))
        });
        let at = second.at.as_secs_f64();
        line(&format!(
            "{at:>5.0} s {honest} {bad}   {} {:>8}",
            load.join(" "),
            second.waiting
        ));
    }

    /// Writes a figure of a column, right-aligned, or a dash.
    fn figure(
        &self,
        value: Option<f64>,
        unit: &str,
        width: usize,
        colour: impl FnOnce(f64) -> Colour,
    ) -> String {
        match value {
            None => format!(
                "{:>width$} {:unit_width$}",
                "-",
                "",
                unit_width = unit.len()
            ),
            Some(value) => {
                let decimals = usize::from(unit == "%");
                self.paint(colour(value), &format!("{value:>width$.decimals$} {unit}"))
            }
        }
    }

    /// Writes that something happened, in the middle of the lines.
    pub(super) fn happening(&self, at: Duration, colour: Colour, what: &str, words: &str) {
        let what = self.paint(colour, &format!("{what:<9}"));
        line(&format!("{:>7.1} s >> {what} {words}", at.as_secs_f64()));
    }

    /// Writes an event of the detector.
    pub(super) fn event(&self, at: Duration, event: &Event) {
        let (colour, what) = match event.what {
            Happening::Surge => (Colour::Bad, "SURGE"),
            Happening::Throttled => (Colour::Notable, "THROTTLED"),
            Happening::Ramped => (Colour::Notable, "RAMP"),
            Happening::Blocked => (Colour::Good, "BLOCKED"),
            Happening::Probing => (Colour::Notable, "PROBING"),
            Happening::Released => (Colour::Good, "RELEASED"),
            Happening::Crowd => (Colour::Notable, "CROWD"),
            Happening::NotLocalisable => (Colour::Bad, "UNKNOWN"),
            Happening::Shared => (Colour::Notable, "SHARED"),
            Happening::Eased => (Colour::Notable, "EASED"),
            Happening::Merged => (Colour::Notable, "MERGED"),
            Happening::Displaced => (Colour::Notable, "DISPLACED"),
            Happening::Narrowed => (Colour::Notable, "NARROWED"),
            Happening::Withdrawn => (Colour::Notable, "WITHDRAWN"),
            Happening::Suggested => (Colour::Notable, "SUGGESTED"),
            Happening::Approved => (Colour::Notable, "APPROVED"),
            Happening::Shadowed => (Colour::Notable, "SHADOWED"),
            Happening::Revoked => (Colour::Notable, "REVOKED"),
            Happening::LeftAlone => (Colour::Notable, "LEFT"),
            Happening::Ended => (Colour::Good, "ENDED"),
        };
        self.happening(at, colour, what, &words(event));
    }

    /// Writes the promises and whether they were held.
    pub(super) fn promises(&self, promises: &[Promise]) {
        for promise in promises {
            let held = if promise.held {
                self.paint(Colour::Good, "held  ")
            } else {
                self.paint(Colour::Bad, "MISSED")
            };
            line(&format!("  {held}  {:<42} {}", promise.text, promise.value));
        }
    }
}

/// Says what an event means.
fn words(event: &Event) -> String {
    let everybody = Source::everybody();
    let source = event.source.as_ref().unwrap_or(&everybody);
    let evidence = &event.evidence;
    match event.what {
        Happening::Surge => {
            "far more requests than usual; Tidegate looks for who sends them".to_owned()
        }
        Happening::Throttled => format!(
            "found: {source}\n             {:.0} requests/s where {:.0} were expected, {:.1} per \
             device; {:.0} % of the surge,\n             {:.1} % of normal traffic. It gets what it \
             usually sends, and no more",
            evidence.observed_rate,
            evidence.expected_rate,
            evidence.requests_per_instance,
            100.0 * evidence.coverage,
            100.0 * evidence.collateral,
        ),
        Happening::Ramped => format!(
            "the block comes over the throttle: {}",
            event.why.as_deref().unwrap_or_default()
        ),
        Happening::Blocked => format!("certain now: {source} gets nothing"),
        Happening::Probing => {
            "calm for a while: a few of its requests may pass, to see what they do".to_owned()
        }
        Happening::Released => format!("the rule is gone; {source} is served again"),
        Happening::Crowd => format!("{source}: more clients, each as usual; nobody is blocked"),
        Happening::NotLocalisable => {
            "nothing that separates good from bad explains the surge; no rule".to_owned()
        }
        Happening::Shared => {
            "the upstream suffers and nobody stands out: all share what it can do".to_owned()
        }
        Happening::Eased => format!("{source} is a crowd after all: no longer blocked"),
        Happening::Merged => format!("the rule for {source} is part of a wider one now"),
        Happening::Displaced => format!("the rule for {source} gave way to a larger surge"),
        Happening::Narrowed => {
            format!("the rule refused too many that are well-behaved; now it is for {source} alone")
        }
        Happening::Withdrawn => {
            format!("the rule for {source} refused too many that are well-behaved; it is gone")
        }
        Happening::Suggested => format!("found: {source}; its rule waits for approval"),
        Happening::Approved => format!("an operator has the rule for {source} act"),
        Happening::Shadowed => format!("an operator has the rule for {source} only count"),
        Happening::Revoked => format!("an operator took the rule for {source} back"),
        Happening::LeftAlone => format!("{source} is left alone, as an operator said"),
        Happening::Ended => "the surge went away by itself".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_columns_stand_under_their_header() {
        let screen = Screen { coloured: false };
        let none = screen.figure(None, "ms", 5, |_| Colour::Good);
        let some = screen.figure(Some(12.4), "ms", 5, |_| Colour::Good);
        assert_eq!(none.len(), some.len());
        assert_eq!(some, "   12 ms");
    }
}
