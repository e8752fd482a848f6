//! `tidegate demo`: the 2020 incident, replayed in one process.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use tidegate_engine::detect::DetectionMode;

use super::complain;
use crate::demo::{self, Options};

/// What `tidegate demo` is asked for.
#[derive(Debug, Args)]
pub(super) struct Demo {
    /// End after the release instead of running on; exit 0 only if the promises were held.
    #[arg(long)]
    once: bool,
    /// Write the figures to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// `off` shows what happens without it: the promises are missed.
    #[arg(long, value_enum, default_value_t = Detection::Auto)]
    detection: Detection,
}

/// What the detector may do in the demonstration.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Detection {
    Auto,
    Off,
}

impl Demo {
    /// Runs it.
    pub(super) fn run(self) -> ExitCode {
        let options = Options {
            once: self.once,
            json: self.json,
            detection: match self.detection {
                Detection::Auto => DetectionMode::Auto,
                Detection::Off => DetectionMode::Off,
            },
        };
        match demo::run(&options) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                complain(&format!("{error:#}"));
                ExitCode::FAILURE
            }
        }
    }
}
