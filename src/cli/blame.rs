//! `tidegate blame`: which sources explain what changed in tables of counts.
//!
//! Reads ([`read`]), asks the engine, and shows ([`show`]). A table that cannot be read is told and
//! left out; the others are answered all the same.

mod read;
mod show;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Args;
use tidegate_engine::diagnose::diagnose;

use super::progress::Progress;
use super::{complain, say};
use crate::check::EXIT_CONFIG;

#[derive(Debug, Args)]
pub(super) struct Blame {
    /// CSV tables: one column per attribute, and `real` and `predict`, the observed and the expected
    /// count of each combination.
    #[arg(required = true, value_name = "TABLE.csv")]
    tables: Vec<PathBuf>,
    /// Prints one JSON object a line and table.
    #[arg(long)]
    json: bool,
}

impl Blame {
    pub(super) fn run(&self) -> ExitCode {
        let mut progress = Progress::new("table", self.tables.len());
        let mut wrong = 0;
        for (at, path) in self.tables.iter().enumerate() {
            progress.begin(at, path);
            let begun = Instant::now();
            let table = match read::table(path, &mut progress) {
                Ok(table) => table,
                Err(problem) => {
                    progress.clear();
                    complain(&problem.to_string());
                    wrong += 1;
                    continue;
                }
            };
            progress.searching(table.rows());
            let diagnosis = diagnose(&table);
            let answer = show::Answer {
                path,
                table: &table,
                diagnosis: &diagnosis,
                elapsed: begun.elapsed(),
            };
            progress.clear();
            if self.json {
                say(&answer.json());
            } else {
                say(&answer.to_string());
            }
        }
        if wrong == 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::from(EXIT_CONFIG)
        }
    }
}
