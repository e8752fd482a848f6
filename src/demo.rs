//! The 2020 incident in one process: upstreams with a capacity, honest clients, a loop, and the proxy
//! between them, all over real sockets. Tells the story as it happens and holds it against the
//! promises.
//!
//! The proxy is the one that `tidegate run` starts; nothing tells it what will loop. Clients have
//! addresses of their own in 127.0.0.0/8, which all lead back to this machine.

mod background;
mod clients;
mod devices;
mod machine;
mod report;
mod screen;
mod upstream;
mod wire;

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use tidegate_engine::detect::{DetectionMode, Event, Happening, IncidentId};
use tidegate_engine::rules::Rules;
use tidegate_engine::source::Source;

use self::background::Background;
use self::clients::LoopTally;
use self::machine::ProcessorTime;
use self::report::{Figures, LoopCount, Outcome, Timeline};
use self::screen::{Colour, Screen, Second};
use self::upstream::{COUNT, SERVICES, Upstreams};
use crate::app::{self, Running, Start};
use crate::settings::Settings;

/// Until when clients get into their rhythm.
const CALM_FROM: Duration = Duration::from_secs(2);
/// When the loop begins: after 10 s of calm, longer than the warm-up in the settings.
const LOOP_AT: Duration = Duration::from_secs(12);
/// How long it runs.
const LOOP_FOR: Duration = Duration::from_secs(14);
/// How long a release is waited for: 15 s of calm and 5 s of probing are right, the rest is patience.
const RELEASE_MAX: Duration = Duration::from_secs(40);
/// How long lines go on after the last thing of interest.
const AFTERWARDS: Duration = Duration::from_secs(3);
/// How often a line is written once the story is over and the proxy goes on.
const IDLE_LINE_EVERY: Duration = Duration::from_secs(10);
/// From which share of the processors on other programs make the latencies noisy. It is told, and
/// excuses nothing.
const OTHERS_NOISY: f64 = 0.3;
/// How often the clock is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Outcomes on their way to the report: 160 s of them, which are read within 20 ms.
const OUTCOMES_MAX: usize = 1 << 16;
/// Events on their way here; an incident has about six.
const EVENTS_MAX: usize = 256;
/// How to run it.
#[derive(Clone, Debug)]
pub struct Options {
    /// End after the release.
    pub once: bool,
    /// Where the figures are written.
    pub json: Option<PathBuf>,
    /// What the detector may do: `auto`, or `off` for what happens without it.
    pub detection: DetectionMode,
}

/// Runs the story. Returns whether the promises were held.
///
/// # Errors
///
/// Something that the story needs cannot be had, or the figures cannot be written.
pub fn run(options: &Options) -> anyhow::Result<bool> {
    machine::raise_open_files()?;
    machine::check_addresses()?;
    let interrupted = machine::listen_for_interrupt()?;
    let folder = machine::Folder::create()?;
    let upstreams = Upstreams::start().context("start the upstreams")?;
    let (events_in, events) = sync_channel(EVENTS_MAX);
    let settings = settings(options, folder.path(), &upstreams.addresses)?;
    let detection = settings.detection_spec();
    let proxy = app::start(Start {
        settings,
        files: None,
        rules: Rules::default(),
        detection,
        listeners: vec![events_in],
    })?;
    let address = *proxy
        .addresses
        .first()
        .context("the proxy listens nowhere")?;
    let screen = Screen::new();
    introduce(options, &proxy, address);
    let began = Instant::now();
    let (outcomes_in, outcomes) = sync_channel(OUTCOMES_MAX);
    let honest =
        clients::start_honest(address, began, outcomes_in).context("start the honest clients")?;
    let mut story = Story {
        options,
        screen,
        proxy: address,
        admin: proxy.admin_address,
        upstreams: &upstreams,
        events,
        outcomes,
        interrupted,
        began,
        timeline: Timeline {
            calm_from: CALM_FROM,
            ..Timeline::default()
        },
        ruled: BTreeSet::new(),
        told: Vec::new(),
        tally: Arc::default(),
        line: Line::default(),
        line_every: Duration::from_secs(1),
        processors: None,
    };
    let held = story.tell();
    honest.stop().context("run the honest clients")?;
    proxy.drain();
    upstreams.stop().context("run the upstreams")?;
    proxy.join()?;
    held
}

/// The story as it is told.
#[derive(Debug)]
struct Story<'a> {
    options: &'a Options,
    screen: Screen,
    proxy: SocketAddr,
    admin: SocketAddr,
    upstreams: &'a Upstreams,
    events: Receiver<Event>,
    outcomes: Receiver<Outcome>,
    interrupted: Arc<AtomicBool>,
    began: Instant,
    timeline: Timeline,
    /// Incidents that have a rule at present.
    ruled: BTreeSet<IncidentId>,
    /// All honest requests of the story.
    told: Vec<Outcome>,
    tally: Arc<LoopTally>,
    line: Line,
    line_every: Duration,
    /// Shares of the processors that this process and others used while the loop ran.
    processors: Option<(f64, f64)>,
}

/// What the next line is made of.
#[derive(Debug, Default)]
struct Line {
    /// When the last one was due, and when it was written.
    due: Duration,
    since: Duration,
    honest: Vec<Outcome>,
    bad: (u64, u64),
    busy: [f64; COUNT],
}

impl Story<'_> {
    /// Tells it from the beginning to the end. Returns whether the promises were held.
    fn tell(&mut self) -> anyhow::Result<bool> {
        self.screen.header();
        self.watch_until(LOOP_AT);
        if self.is_interrupted() {
            screen::line("\ninterrupted before the loop began");
            return Ok(false);
        }
        let looping = self.begin_loop()?;
        let before = ProcessorTime::now();
        self.watch_until(self.timeline.loop_began + LOOP_FOR);
        let after = ProcessorTime::now();
        self.processors = after.zip(before).map(|(now, then)| now.shares_since(then));
        looping.stop().context("run the loop")?;
        self.end_loop();
        self.await_release();
        let held = self.summarise()?;
        if !self.options.once && !self.is_interrupted() {
            self.go_on();
        }
        Ok(held)
    }

    fn begin_loop(&mut self) -> anyhow::Result<Background> {
        self.timeline.loop_began = self.began.elapsed();
        let looping =
            clients::start_loop(self.proxy, Arc::clone(&self.tally)).context("start the loop")?;
        let capacity: f64 = SERVICES
            .iter()
            .map(upstream::Service::capacity_per_second)
            .sum();
        self.screen.happening(
            self.timeline.loop_began,
            Colour::Bad,
            "LOOP",
            &format!(
                "acme updates its Android app; its chat SDK, 3.2.1, asks in an endless\n             \
                 loop: {} requests/s, {:.0} times what the services can serve",
                clients::LOOP_PER_SECOND,
                f64::from(clients::LOOP_PER_SECOND) / capacity
            ),
        );
        Ok(looping)
    }

    fn end_loop(&mut self) {
        self.timeline.loop_ended = self.began.elapsed();
        let then = if self.ruled.is_empty() {
            "nothing had stopped it"
        } else {
            "Tidegate waits for 15 s of calm"
        };
        let words = format!("acme takes its update back; {then}");
        let at = self.timeline.loop_ended;
        self.screen.happening(at, Colour::Good, "LOOP ENDS", &words);
    }

    /// Waits until all rules are gone, or for a while where there is none.
    fn await_release(&mut self) {
        let deadline = self.timeline.loop_ended + RELEASE_MAX;
        while !self.ruled.is_empty() && self.began.elapsed() < deadline && !self.is_interrupted() {
            self.look();
        }
        self.watch_until(self.began.elapsed() + AFTERWARDS);
    }

    fn summarise(&self) -> anyhow::Result<bool> {
        let (sent, refused) = self.tally.read();
        let figures = Figures::of(&self.timeline, &self.told, LoopCount { sent, refused });
        let promises = figures.promises(&looping_source());
        let held = promises.iter().all(|promise| promise.held);
        screen::line("\nWhat Tidegate promises, and what came of it:\n");
        self.screen.promises(&promises);
        screen::line("");
        for remark in figures.remarks() {
            screen::line(&format!("  {remark}"));
        }
        if let Some((ours, others)) = self.processors {
            let noisy = if others > OTHERS_NOISY {
                "; with so much else to do, latencies say little"
            } else {
                ""
            };
            screen::line(&format!(
                "  processors in the loop: {:.0} % used by all this, {:.0} % by other programs{noisy}",
                100.0 * ours,
                100.0 * others
            ));
        }
        if self.options.detection == DetectionMode::Off {
            screen::line("\n  Detection was off: this is what happens without it.");
        }
        if let Some(path) = &self.options.json {
            let mut json = serde_json::to_string_pretty(&figures)?;
            json.push('\n');
            fs::write(path, json)
                .with_context(|| format!("write the figures to {}", path.display()))?;
        }
        Ok(held)
    }

    /// Lets the proxy run on with calm traffic, for whoever wants to look at it.
    fn go_on(&mut self) {
        let admin = self.admin;
        screen::line(&format!(
            "\nThe proxy and its honest clients run on until Ctrl-C. Look around:\n\n  \
             curl http://{admin}/api/v1/incidents\n  \
             curl http://{admin}/metrics\n  \
             curl -i -H 'x-app-id: acme' http://{}{}\n",
            self.proxy,
            SERVICES.first().map_or("/", |service| service.path)
        ));
        self.line_every = IDLE_LINE_EVERY;
        while !self.is_interrupted() {
            self.look();
            self.told.clear();
        }
    }

    /// Writes a line a second until then.
    fn watch_until(&mut self, until: Duration) {
        while self.began.elapsed() < until && !self.is_interrupted() {
            self.look();
        }
    }

    fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }

    /// Waits a moment for events, and writes a line when it is time for one.
    fn look(&mut self) {
        match self.events.recv_timeout(LOOK_EVERY) {
            Ok(event) => self.hear(&event),
            Err(RecvTimeoutError::Timeout) => {}
            // The proxy is gone, and so is the story.
            Err(RecvTimeoutError::Disconnected) => self.interrupted.store(true, Ordering::Relaxed),
        }
        while let Ok(outcome) = self.outcomes.try_recv() {
            self.told.push(outcome);
            self.line.honest.push(outcome);
        }
        let every = self.line_every;
        let now = self.began.elapsed();
        let due = self.line.due + every;
        if now >= due {
            self.write_line(now);
            // On the beat, however late this line is; after a long stall, from now on.
            self.line.due = if now < due + every { due } else { now };
        }
    }

    fn hear(&mut self, event: &Event) {
        let at = self.began.elapsed();
        self.screen.event(at, event);
        match event.what {
            Happening::Throttled => {
                self.ruled.insert(event.incident);
                self.timeline.sources.extend(event.source.clone());
                if self.timeline.loop_began > Duration::ZERO {
                    self.timeline.throttled.get_or_insert(at);
                }
            }
            Happening::Blocked => {
                if self.timeline.loop_began > Duration::ZERO {
                    self.timeline.blocked.get_or_insert(at);
                }
            }
            Happening::Released => {
                self.ruled.remove(&event.incident);
                if self.timeline.loop_ended > Duration::ZERO && self.ruled.is_empty() {
                    self.timeline.released = Some(at);
                }
            }
            Happening::Surge
            | Happening::Suggested
            | Happening::Ramped
            | Happening::Approved
            | Happening::Shadowed
            | Happening::Revoked
            | Happening::LeftAlone
            | Happening::Probing
            | Happening::Crowd
            | Happening::NotLocalisable
            | Happening::Shared
            | Happening::Eased
            | Happening::Merged
            | Happening::Displaced
            | Happening::Narrowed
            | Happening::Withdrawn
            | Happening::Ended => {}
        }
    }

    fn write_line(&mut self, now: Duration) {
        let length = now.saturating_sub(self.line.since);
        let mut load = [0.0; COUNT];
        let mut waiting = 0;
        let busy_before = self.line.busy.iter_mut().zip(&self.upstreams.loads);
        for ((load, service), (before, now)) in load.iter_mut().zip(&SERVICES).zip(busy_before) {
            let busy = now.busy_seconds();
            *load = upstream::share_of_capacity(service, busy - *before, length);
            *before = busy;
            waiting += now.waiting();
        }
        let (sent, refused) = self.tally.read();
        let (sent_before, refused_before) = std::mem::replace(&mut self.line.bad, (sent, refused));
        let honest = std::mem::take(&mut self.line.honest);
        self.screen.second(&Second {
            at: now,
            length,
            honest: &honest,
            bad: (sent - sent_before, refused - refused_before),
            load,
            waiting,
        });
        self.line.since = now;
    }
}

fn introduce(options: &Options, proxy: &Running, address: SocketAddr) {
    let capacities: Vec<String> = SERVICES
        .iter()
        .map(|service| format!("{} {:.0}/s", service.name, service.capacity_per_second()))
        .collect();
    let then = if options.detection == DetectionMode::Off {
        "Detection is off, so nobody will\nstop it."
    } else {
        "Nobody tells Tidegate: it has to\nfind out who it is, stop exactly that, and let it in again when it is over."
    };
    screen::line(&format!(
        "Tidegate stands in front of three small services ({}). {} honest\n\
         clients of ten apps use them. After {} seconds one version of one SDK inside one of these\n\
         apps begins to ask in an endless loop, on {} phones at a time. {then}\n\n\
         proxy http://{address}   admin http://{}",
        capacities.join(", "),
        clients::HONEST,
        LOOP_AT.as_secs(),
        clients::LOOPERS,
        proxy.admin_address,
    ));
    if cfg!(debug_assertions) {
        screen::line(
            "\nThis is a debug build, several times slower than a release: its latencies say little.\n\
             Better: cargo run --release -- demo",
        );
    }
}

/// Returns the source that loops.
fn looping_source() -> Source {
    devices::LOOP
        .iter()
        .fold(Source::everybody(), |source, (attribute, value)| {
            source.with(attribute, value)
        })
}

/// Makes the proxy's settings, from text as an operator does.
fn settings(
    options: &Options,
    folder: &Path,
    upstreams: &[SocketAddr],
) -> anyhow::Result<Settings> {
    let mut text =
        include_str!("demo/settings.yaml").replace("DETECTION", options.detection.word());
    for (service, address) in SERVICES.iter().zip(upstreams) {
        let placeholder = format!("\"{}\"", service.name.to_ascii_uppercase());
        text = text.replace(&placeholder, &format!("\"{address}\""));
    }
    // Paths are relative to where the text would stand: rules and state are in the folder.
    let path = folder.join("tidegate.yaml");
    Settings::parse(&path.to_string_lossy(), &text).map_err(|problems| {
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        anyhow!("the demonstration's own settings:\n{}", lines.join("\n"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_settings_are_valid_and_those_of_the_upstreams() {
        for detection in [DetectionMode::Auto, DetectionMode::Off] {
            let options = Options {
                once: true,
                json: None,
                detection,
            };
            let upstreams = [1, 2, 3].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
            let settings = settings(&options, Path::new("/nowhere"), &upstreams).unwrap();
            assert_eq!(settings.detection.mode, detection);
            assert!(settings.not_in_force.is_empty());
            assert!(settings.state.starts_with("/nowhere"));
            let endpoints: Vec<_> = settings
                .upstreams
                .iter()
                .flat_map(|upstream| upstream.endpoints.iter().map(|at| at.address.to_string()))
                .collect();
            assert_eq!(endpoints, ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"]);
            assert!(CALM_FROM + settings.detection.warmup < LOOP_AT);
        }
    }
}
