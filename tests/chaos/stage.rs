//! When what happens: rounds of calm, fault and recovery, so that a figure is compared with one of
//! the seconds next to it, and not of a minute ago when the machine had other things to do.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::outcomes::{End, Outcomes};
use crate::proxy::Proxy;

/// How often a process is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The timetable of an experiment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stage {
    /// When it began.
    pub(crate) began: Instant,
    /// Until connections are made and all is warm.
    settle: Duration,
    calm: Duration,
    fault: Duration,
    after: Duration,
    rounds: u32,
}

/// A phase of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Before,
    During,
    After,
}

impl Stage {
    /// Begins now, for facts. Times are in seconds: of calm, of the fault, after it.
    pub(crate) fn short(times: [f64; 3]) -> Self {
        Self::begin(1, 0.3, times)
    }

    /// Begins now, for figures.
    pub(crate) fn full(rounds: u32, times: [f64; 3]) -> Self {
        Self::begin(rounds, 1.0, times)
    }

    fn begin(rounds: u32, settle: f64, [calm, fault, after]: [f64; 3]) -> Self {
        Self {
            began: Instant::now(),
            settle: Duration::from_secs_f64(settle),
            calm: Duration::from_secs_f64(calm),
            fault: Duration::from_secs_f64(fault),
            after: Duration::from_secs_f64(after),
            rounds,
        }
    }

    /// Returns the rounds, counted from 0.
    pub(crate) fn rounds(&self) -> std::ops::Range<u32> {
        0..self.rounds
    }

    /// Returns when all is over.
    pub(crate) fn ends(&self) -> Duration {
        self.settle + (self.calm + self.fault + self.after) * self.rounds
    }

    /// Returns from when to when a phase of a round, counted from 0, lasts.
    pub(crate) fn phase(&self, round: u32, phase: Phase) -> (Duration, Duration) {
        let calm = self.settle + (self.calm + self.fault + self.after) * round;
        let fault = calm + self.calm;
        let after = fault + self.fault;
        match phase {
            Phase::Before => (calm, fault),
            Phase::During => (fault, after),
            Phase::After => (after, after + self.after),
        }
    }

    /// Waits until then.
    pub(crate) fn wait_until(&self, moment: Duration) {
        std::thread::sleep((self.began + moment).saturating_duration_since(Instant::now()));
    }

    /// Plays all rounds: `set` is called with true when the fault begins, with false when it ends.
    pub(crate) fn play(&self, mut set: impl FnMut(bool)) {
        for round in 0..self.rounds {
            let (begins, ends) = self.phase(round, Phase::During);
            self.wait_until(begins);
            set(true);
            self.wait_until(ends);
            set(false);
        }
        self.wait_until(self.ends());
    }

    /// Cuts a phase out of all rounds.
    pub(crate) fn cut(&self, outcomes: &Outcomes, phase: Phase) -> Vec<Outcomes> {
        let part = |round| {
            let (from, to) = self.phase(round, phase);
            outcomes.between(from, to)
        };
        (0..self.rounds).map(part).collect()
    }

    /// Returns all of a phase, whatever the round.
    pub(crate) fn all(&self, outcomes: &Outcomes, phase: Phase) -> Outcomes {
        let parts = self.cut(outcomes, phase);
        parts
            .iter()
            .fold(Outcomes::default(), |all, part| all.with(part))
    }

    /// Returns what was due in the last second.
    pub(crate) fn last_second(&self, outcomes: &Outcomes) -> Outcomes {
        let end = self.ends();
        outcomes.between(end.saturating_sub(Duration::from_secs(1)), end)
    }

    /// Returns the median over the rounds of the 99th percentile in a phase. The median: what other
    /// programs do in one round does not decide.
    pub(crate) fn p99(&self, outcomes: &Outcomes, phase: Phase) -> Duration {
        self.percentile(outcomes, phase, 0.99, End::is_good)
    }

    /// Returns the same of another percentile of those that ended so.
    pub(crate) fn percentile(
        &self,
        outcomes: &Outcomes,
        phase: Phase,
        share: f64,
        is: impl Fn(End) -> bool,
    ) -> Duration {
        let parts = self.cut(outcomes, phase);
        let times = parts.iter().map(|part| part.percentile(share, &is));
        median(times.collect())
    }

    /// Returns how long after the fault's end all was well again, in the worst round.
    pub(crate) fn recovery(
        &self,
        outcomes: &Outcomes,
        success: f64,
        limit: Duration,
    ) -> Option<Duration> {
        let step = Duration::from_millis(100);
        let mut worst = Duration::ZERO;
        for round in 0..self.rounds {
            let (from, to) = self.phase(round, Phase::After);
            worst = worst.max(outcomes.well_from(from, to, step, success, limit)?);
        }
        Some(worst)
    }
}

/// Returns the middle of a list; of two in the middle the larger.
pub(crate) fn median(mut all: Vec<Duration>) -> Duration {
    all.sort_unstable();
    all.get(all.len() / 2).copied().unwrap_or_default()
}

/// Looks at a proxy's memory, processor time and files all the time.
#[derive(Debug)]
pub(crate) struct Witness {
    is_over: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Vec<Look>>,
}

/// What was seen at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look {
    at: Duration,
    bytes: u64,
    processor_seconds: f64,
}

/// What was seen.
#[derive(Debug)]
pub(crate) struct Seen(Vec<Look>);

impl Witness {
    /// Begins to look.
    pub(crate) fn of(proxy: &Proxy, stage: &Stage) -> Self {
        let is_over = Arc::<AtomicBool>::default();
        let (over, began, process) = (Arc::clone(&is_over), stage.began, proxy.system());
        let watch = move || {
            let mut looks = Vec::new();
            while !over.load(Ordering::Relaxed) {
                looks.push(Look {
                    at: began.elapsed(),
                    bytes: process.resident_bytes(),
                    processor_seconds: process.processor_seconds(),
                });
                std::thread::sleep(LOOK_EVERY);
            }
            looks
        };
        Self {
            is_over,
            thread: std::thread::spawn(watch),
        }
    }

    /// Returns what was seen.
    pub(crate) fn seen(self) -> Seen {
        self.is_over.store(true, Ordering::Relaxed);
        Seen(self.thread.join().expect("nobody panics here"))
    }
}

impl Seen {
    fn between(&self, (from, to): (Duration, Duration)) -> impl Iterator<Item = &Look> {
        let is_inside = move |look: &&Look| (from..to).contains(&look.at);
        self.0.iter().filter(is_inside)
    }

    /// Returns the most resident memory from here to there.
    pub(crate) fn peak(&self, range: (Duration, Duration)) -> u64 {
        self.between(range)
            .map(|look| look.bytes)
            .max()
            .unwrap_or(0)
    }

    /// Returns the median of resident memory from here to there.
    pub(crate) fn usual(&self, range: (Duration, Duration)) -> u64 {
        let mut all: Vec<u64> = self.between(range).map(|look| look.bytes).collect();
        all.sort_unstable();
        all.get(all.len() / 2).copied().unwrap_or(0)
    }

    /// Returns by how much memory grew at most, in bytes, from what is usual before to the fault
    /// and after.
    pub(crate) fn growth(&self, stage: &Stage, round: u32) -> u64 {
        let before = self.usual(stage.phase(round, Phase::Before));
        let during = self.peak(stage.phase(round, Phase::During));
        let after = self.peak(stage.phase(round, Phase::After));
        during.max(after).saturating_sub(before)
    }

    /// Returns the share of one processor that was used from here to there.
    pub(crate) fn processors(&self, range: (Duration, Duration)) -> f64 {
        let looks: Vec<&Look> = self.between(range).collect();
        let (Some(first), Some(last)) = (looks.first(), looks.last()) else {
            return 0.0;
        };
        let elapsed = last.at.saturating_sub(first.at).as_secs_f64().max(0.001);
        (last.processor_seconds - first.processor_seconds) / elapsed
    }
}
