//! How the total of the background goes on over time.

use std::time::{Duration, SystemTime};

use crate::problem::{Problem, Problems};
use crate::yaml::Mark;

/// The most periods of a shape: five years of minutes.
const PERIODS_MAX: usize = 3_000_000;

/// A total over time, relative to its mean: equally long periods, begun anew after the last.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// The length of a period in seconds.
    period: f64,
    /// Per period, its count divided by the mean.
    factors: Vec<f32>,
}

impl Shape {
    /// Reads `period,count` lines: the period is a time (`1998-04-30 21:30:00`, or seconds since
    /// 1970), the count what came in it. The length of a period is that of the first.
    pub fn parse(path: &str, text: &str) -> Result<Self, Problems> {
        let problem = |line: usize, column: u32, text: String| {
            let mark = Mark {
                line: line as u32,
                column,
            };
            Problem::new(mark.in_file(path), &text)
        };
        let mut lines = text.lines().enumerate();
        let header = lines.next().map(|(_, line)| line.trim().to_owned());
        if header.as_deref() != Some("period,count") {
            let text =
                "the first line is not `period,count`; write a period and its count per line";
            return Err(problem(1, 1, text.to_owned()).into());
        }
        let mut begun: Vec<f64> = Vec::new();
        let mut counts: Vec<f64> = Vec::new();
        for (at, line) in lines {
            if line.trim().is_empty() {
                continue;
            }
            let Some((period, count)) = line.split_once(',') else {
                let text = "there is no comma; write it like `1998-04-30 21:30:00,120`".to_owned();
                return Err(problem(at + 1, 1, text).into());
            };
            let Some(seconds) = seconds(period) else {
                let text = format!("`{period}` is not a time; write it like `1998-04-30 21:30:00`");
                return Err(problem(at + 1, 1, text).into());
            };
            let column = period.chars().count() as u32 + 2;
            let count = super::table::count(count).map_err(|why| problem(at + 1, column, why))?;
            if counts.len() >= PERIODS_MAX {
                let text = format!("there are more than {PERIODS_MAX} periods; write fewer");
                return Err(problem(at + 1, 1, text).into());
            }
            begun.push(seconds);
            counts.push(count);
        }
        let mean = counts.iter().sum::<f64>() / counts.len().max(1) as f64;
        let period = match begun.as_slice() {
            [first, second, ..] if second > first => second - first,
            _ => {
                let text = "there are not two periods, the later one second; write at least two";
                return Err(problem(2, 1, text.to_owned()).into());
            }
        };
        if mean <= 0.0 {
            let text = "all counts are zero; write one that is not";
            return Err(problem(2, 2, text.to_owned()).into());
        }
        Ok(Self {
            period,
            factors: counts.iter().map(|count| (count / mean) as f32).collect(),
        })
    }

    /// Returns the total at `position` seconds, relative to the mean; between the middles of two
    /// periods it goes straight.
    pub(super) fn factor(&self, position: f64) -> f64 {
        let length = self.factors.len();
        let place = (position / self.period - 0.5).rem_euclid(length as f64);
        let at = place as usize % length.max(1);
        let of =
            |at: usize| f64::from(self.factors.get(at % length.max(1)).copied().unwrap_or(1.0));
        of(at) + (of(at + 1) - of(at)) * place.fract()
    }
}

/// Reads a moment: seconds since 1970, or a time in UTC.
pub(super) fn seconds(text: &str) -> Option<f64> {
    let text = text.trim();
    if let Ok(seconds) = text.parse::<f64>() {
        return (seconds.is_finite() && seconds.abs() < 1e12).then_some(seconds);
    }
    let at = humantime::parse_rfc3339_weak(text).ok()?;
    let since = at.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    Some(since.as_secs_f64())
}

/// A clock of recorded time: where in the record a moment of the scenario is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tape {
    pub(super) speed: f64,
    pub(super) begin: f64,
}

impl Tape {
    pub(super) fn new(speed: f64, begin: Duration) -> Self {
        Self {
            speed,
            begin: begin.as_secs_f64(),
        }
    }

    /// Returns the position at `t` seconds of the scenario; below zero while it is trained.
    pub(super) fn position(self, t: f64) -> f64 {
        self.begin + t * self.speed
    }
}
