//! `tidegate run`: the proxy until a signal ends it.

use std::io::IsTerminal as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::{Context as _, bail};
use tokio::signal::unix::{SignalKind, signal};
use tracing_appender::non_blocking::WorkerGuard;
use tracing_subscriber::EnvFilter;

use super::complain;
use crate::app::{self, Running, Start};
use crate::check::{EXIT_CONFIG, not_in_force};
use crate::reload::ConfigFiles;

/// Runs the proxy with a settings file.
pub(super) fn run(config: &Path) -> ExitCode {
    let _log = begin_log();
    let (settings, rules, files) = match ConfigFiles::open(config, SystemTime::now()) {
        Ok(loaded) => loaded,
        Err(problems) => {
            for problem in problems.iter() {
                complain(&problem.to_string());
            }
            complain("not started; `tidegate check` says the same without starting");
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    if let Some(warning) = not_in_force(config, &settings) {
        tracing::warn!("{warning}");
    }
    let detection = settings.detection_spec();
    let start = Start {
        settings,
        files: Some(files),
        rules,
        detection,
        listeners: Vec::new(),
    };
    match app::start(start).and_then(serve) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Waits for signals until the proxy is drained. A second signal ends the process at once.
fn serve(running: Running) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let result = runtime.block_on(until_drained(running));
    // The drain may still be under way on a thread of its own, which nobody waits for any more.
    runtime.shutdown_background();
    result
}

async fn until_drained(running: Running) -> anyhow::Result<()> {
    let mut reload = signal(SignalKind::hangup()).context("listen for SIGHUP")?;
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    // Said only now: whoever waits for these lines may send a signal at once, and until it is
    // listened for, SIGHUP ends the process.
    for address in &running.addresses {
        tracing::info!(%address, "serving");
    }
    tracing::info!(address = %running.admin_address, "admin API and metrics");
    loop {
        tokio::select! {
            _ = reload.recv() => running.reload(),
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    tracing::info!(seconds_max = app::DRAIN_TIMEOUT.as_secs(), "draining");
    running.drain();
    let drained = tokio::task::spawn_blocking(move || running.join());
    tokio::select! {
        drained = drained => drained.context("wait for the drain")??,
        _ = terminate.recv() => bail!("ended by a second signal; requests under way were cut off"),
        _ = interrupt.recv() => bail!("ended by a second signal; requests under way were cut off"),
    }
    tracing::info!("drained");
    Ok(())
}

/// Logs to standard error: text on a terminal, JSON otherwise. `RUST_LOG` chooses what.
///
/// A thread of its own writes: a reader of the log that stands still costs lines (those beyond
/// 128,000), and stops nobody. The guard writes the rest when it is dropped.
fn begin_log() -> WorkerGuard {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let is_terminal = std::io::stderr().is_terminal();
    let (writer, guard) = tracing_appender::non_blocking(std::io::stderr());
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer);
    if is_terminal {
        log.with_target(false).init();
    } else {
        log.json()
            .flatten_event(true)
            .with_current_span(false)
            .with_target(false)
            .init();
    }
    guard
}
