//! Shows what was found in a table, to people and to programs.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use tidegate_engine::diagnose::{Diagnosis, Literals, Table};

use crate::cli::plain::Plain;

/// The answer for one table.
pub(super) struct Answer<'a> {
    pub(super) path: &'a Path,
    pub(super) table: &'a Table,
    pub(super) diagnosis: &'a Diagnosis,
    pub(super) elapsed: Duration,
}

#[derive(Serialize)]
struct Json<'a> {
    file: String,
    localisable: bool,
    causes: Vec<Cause<'a>>,
    rejected: Vec<Rejected<'a>>,
    elapsed_ms: f64,
}

#[derive(Serialize)]
struct Cause<'a> {
    source: &'a Literals,
    observed: f64,
    expected: f64,
    coverage: f64,
    collateral: f64,
}

#[derive(Serialize)]
struct Rejected<'a> {
    source: &'a Literals,
    why: &'a str,
}

impl Answer<'_> {
    /// Returns one line of JSON.
    pub(super) fn json(&self) -> String {
        let diagnosis = self.diagnosis;
        let json = Json {
            file: self.path.display().to_string(),
            localisable: diagnosis.is_localisable(),
            causes: diagnosis
                .causes
                .iter()
                .map(|cause| Cause {
                    source: &cause.source,
                    observed: cause.observed,
                    expected: cause.expected,
                    coverage: cause.coverage,
                    collateral: cause.collateral,
                })
                .collect(),
            rejected: diagnosis
                .rejected
                .iter()
                .map(|rejected| Rejected {
                    source: &rejected.source,
                    why: &rejected.why,
                })
                .collect(),
            elapsed_ms: self.elapsed.as_secs_f64() * 1e3,
        };
        // Maps of text and finite numbers: there is nothing that cannot be written.
        serde_json::to_string(&json).unwrap_or_default()
    }
}

impl fmt::Display for Answer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = self.table.rows();
        let elapsed_ms = self.elapsed.as_secs_f64() * 1e3;
        write!(f, "{}: ", self.path.display())?;
        match self.diagnosis.causes.len() {
            0 => write!(f, "not localisable")?,
            1 => write!(f, "1 cause")?,
            many => write!(f, "{many} causes")?,
        }
        write!(f, " ({rows} rows, {elapsed_ms:.1} ms)")?;
        for (place, cause) in (1..).zip(&self.diagnosis.causes) {
            write!(f, "\n  {place}. {}", Named(&cause.source))?;
            write!(
                f,
                "\n     observed {}, expected {}; explains {:.1} % of the change; holds {:.2} % of what was expected",
                Count(cause.observed),
                Count(cause.expected),
                100.0 * cause.coverage,
                100.0 * cause.collateral,
            )?;
        }
        for rejected in &self.diagnosis.rejected {
            write!(f, "\n  not {}: {}", Named(&rejected.source), rejected.why)?;
        }
        Ok(())
    }
}

/// A source as people write it. Values come from a file: control characters are escaped.
struct Named<'a>(&'a Literals);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return write!(f, "everything");
        }
        for (at, (attribute, value)) in self.0.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            write!(f, "{comma}{}={}", Plain(attribute), Plain(value))?;
        }
        Ok(())
    }
}

/// A count with as many digits as matter.
struct Count(f64);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 < 100.0 && self.0.fract() != 0.0 {
            write!(f, "{:.2}", self.0)
        } else {
            write!(f, "{:.0}", self.0)
        }
    }
}
