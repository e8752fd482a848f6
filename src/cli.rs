//! The command line: what can be asked of the program, and with which exit code it ends.

mod blame;
mod client;
mod demo;
mod explain;
mod incidents;
mod plain;
mod progress;
mod replay;
mod rules;
mod run;
mod simulate;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use clap::{CommandFactory as _, Parser, Subcommand};
use tidegate_engine::policy::{Policy, PolicyParts};
use tidegate_engine::rules::{RuleTest, Rules as ValidRules};

use crate::check;

/// A reverse proxy that finds the source of a flood by itself and stops it, sparing everybody else.
#[derive(Debug, Parser)]
#[command(name = "tidegate", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the proxy. SIGHUP reads the rules folder again, SIGTERM drains.
    Run {
        /// The settings file.
        #[arg(long, value_name = "FILE", default_value = "config/tidegate.yaml")]
        config: PathBuf,
    },
    /// Validates settings and rule files, and runs the tests in them. Exit 0, or 78.
    Check {
        /// Files or folders.
        #[arg(required = true, value_name = "PATH")]
        paths: Vec<PathBuf>,
    },
    /// Replays the 2020 incident in one process, over real sockets, and tells it as it happens.
    Demo(demo::Demo),
    /// Plays scenarios in virtual time. Exit 0 if all expectations are met, 1 if not.
    Simulate(simulate::Simulate),
    /// Finds the sources that explain what changed in tables of observed and expected counts.
    Blame(blame::Blame),
    /// Shows what a policy would have done to recorded access logs. Sends and changes nothing.
    Replay(replay::Replay),
    /// Shows which attributes, rules and limits a request would meet, or what refused one. Spends nothing.
    Explain(explain::Explain),
    /// Shows and changes the rules in force of a proxy that runs.
    Rules(rules::Rules),
    /// Shows the incidents of a proxy that runs.
    Incidents(incidents::Incidents),
    /// Prints the completions for a shell.
    Completions {
        /// bash, elvish, fish, powershell or zsh.
        shell: clap_complete::Shell,
    },
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Run { config } => run::run(&config),
        Command::Check { paths } => run_check(&paths),
        Command::Demo(demo) => demo.run(),
        Command::Simulate(simulate) => simulate.run(),
        Command::Blame(blame) => blame.run(),
        Command::Replay(replay) => replay.run(),
        Command::Explain(explain) => explain.run(),
        Command::Rules(rules) => rules.run(),
        Command::Incidents(incidents) => incidents.run(),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "tidegate", &mut script);
            say(String::from_utf8_lossy(&script).trim_end());
            ExitCode::SUCCESS
        }
    }
}

fn run_check(paths: &[PathBuf]) -> ExitCode {
    let report = check::check(paths, SystemTime::now(), |rules, schema, test| {
        run_test(rules, schema, test)
    });
    say(&report.to_string());
    ExitCode::from(report.exit_code())
}

/// Runs one test of a rule file against a policy of its own.
fn run_test(
    rules: &ValidRules,
    schema: &tidegate_engine::attribute::Schema,
    test: &RuleTest,
) -> Result<(), String> {
    let parts = PolicyParts {
        schema: std::sync::Arc::new(schema.clone()),
        services: [].into(),
        rules: rules.rules.clone(),
        limits: rules.limits.clone(),
        generation: 0,
    };
    let now = tidegate_engine::time::Instant::from_secs_f64(3600.0);
    Policy::compile(parts, None, now, SystemTime::now()).run_test(test, now)
}

/// Prints to standard output. A reader that went away (`| head`) is no error of ours.
fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    drop(writeln!(out, "{text}").and_then(|()| out.flush()));
}

/// Prints an error with its causes to standard error.
fn complain(text: &str) {
    drop(writeln!(std::io::stderr().lock(), "tidegate: {text}"));
}
