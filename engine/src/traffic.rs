//! Traffic: what was seen, per source, in fixed memory.
//!
//! Each worker records its requests with its own [`Recorder`]; the control side collects all of them
//! once a tick through [`Traffic::collect`]. Nothing is judged here: see [`crate::detect`].
//!
//! What is kept of a tick: how many requests each combination of attribute values had
//! ([`CocoSketch`]), a coordinated sample of instances and of addresses with their requests
//! ([`Sample`]), the busiest addresses ([`Talkers`]), and texts for the hashes ([`Names`]). What is
//! kept for longer: which instances are known from before ([`Familiar`]).
//!
//! Memory, fixed at start: 1.0 MiB a worker (8,192 × 80 B of leaves, 2 × 1,024 × 84 B of samples,
//! 512 × 40 B of talkers, 4,096 × 8 B of names seen, 256 texts of up to 256 B), one such buffer more
//! for the control side, and 4 MiB of [`Familiar`]: 21 MiB at 16 workers. With the 30.6 MiB
//! of [`crate::detect`] at worst: 51.6 MiB.

mod familiar;
mod heavy;
mod leaf;
mod names;
mod sample;
mod sketch;

use std::mem;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::attribute::Schema;
use crate::request::RequestFacts;

pub use familiar::Familiar;
pub(crate) use familiar::KNOWN_WORDS;
pub use heavy::{Talker, Talkers};
pub use leaf::{COLUMNS_MAX, Column, Columns, LeafKey, LeafMask};
pub use names::Names;
pub use sample::{ROWS_MAX, Sample, SampleRow};
pub use sketch::{CocoSketch, Random};

use names::{NewName, Seen};

/// Buckets of a worker's sketch: 8,192 × 80 B = 640 KiB. One worker serves fewer requests in a tick,
/// so even if each is a combination of its own, most find a bucket.
const WORKER_BUCKETS: usize = 1 << 13;

/// The most sources that strangers are held against: 96 × 152 B.
const SUSPECTS_MAX: usize = 96;

/// How a request stands with the rules, for what may be learnt from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Let through by all rules and limits; also when it was shed afterwards for lack of capacity.
    Passed,
    /// Refused by a rule or a limit. Counts as offered by its source, is no evidence otherwise.
    Refused,
    /// Of a trusted proxy or under an operator's `allow`: never judged.
    Exempt,
}

/// What is recorded of a request besides its facts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// How it stands with the rules.
    pub standing: Standing,
}

/// The counts of one worker since the last tick.
#[derive(Debug)]
pub struct Counts {
    /// Requests by combination of attribute values.
    pub leaves: CocoSketch,
    /// Requests of a sample of the instances.
    pub instances: Sample,
    /// Requests of a sample of the addresses.
    pub addresses: Sample,
    /// The busiest addresses.
    pub talkers: Talkers,
    /// Requests that are never judged.
    pub exempt: u64,
    names: Vec<NewName>,
}

impl Counts {
    fn new() -> Self {
        Self {
            leaves: CocoSketch::new(WORKER_BUCKETS),
            instances: Sample::new(),
            addresses: Sample::new(),
            talkers: Talkers::new(),
            exempt: 0,
            names: Vec::with_capacity(names::NEW_NAMES_MAX),
        }
    }

    fn clear(&mut self, instances_shift: u32, addresses_shift: u32) {
        self.leaves.clear();
        self.instances.clear(instances_shift);
        self.addresses.clear(addresses_shift);
        self.talkers.clear();
        self.exempt = 0;
        self.names.clear();
    }
}

/// What one worker owns: its counts, and what it needs to make them.
#[derive(Debug)]
struct Worker {
    counts: Counts,
    seen: Seen,
    random: Random,
    /// The sources of which no stranger becomes known.
    suspects: Arc<[LeafMask]>,
}

/// The traffic of all workers, as the control side sees it.
#[derive(Debug)]
pub struct Traffic {
    columns: Arc<Columns>,
    familiar: Arc<Familiar>,
    workers: Vec<Arc<Mutex<Worker>>>,
    /// The buffer that is handed to the next worker. Held by one collector at a time.
    spare: Mutex<Counts>,
}

/// One worker's hand in the traffic. The worker's lock is never contended but for the moment in
/// which the control side swaps buffers.
#[derive(Debug)]
pub struct Recorder {
    columns: Arc<Columns>,
    familiar: Arc<Familiar>,
    worker: Arc<Mutex<Worker>>,
}

impl Traffic {
    /// Makes the counters of `workers` workers. The seed decides which labels sketches keep, nothing
    /// else.
    pub fn new(schema: &Schema, workers: usize, seed: u64) -> Self {
        let worker = |at: usize| {
            Arc::new(Mutex::new(Worker {
                counts: Counts::new(),
                seen: Seen::default(),
                random: Random::from_seed(seed ^ (at as u64).wrapping_mul(0x9E37_79B9)),
                suspects: Arc::default(),
            }))
        };
        Self {
            columns: Arc::new(Columns::of(schema)),
            familiar: Arc::new(Familiar::default()),
            workers: (0..workers.max(1)).map(worker).collect(),
            spare: Mutex::new(Counts::new()),
        }
    }

    /// Returns the hand of worker `at`, or `None` where there are fewer workers.
    pub fn recorder(&self, at: usize) -> Option<Recorder> {
        Some(Recorder {
            columns: Arc::clone(&self.columns),
            familiar: Arc::clone(&self.familiar),
            worker: Arc::clone(self.workers.get(at)?),
        })
    }

    /// Returns the instances known from before.
    pub fn familiar(&self) -> &Arc<Familiar> {
        &self.familiar
    }

    /// Returns which attributes take part.
    pub fn columns(&self) -> &Arc<Columns> {
        &self.columns
    }

    /// Says of which sources nobody is met from now on ([`Familiar`]). Each stranger is held against all of
    /// them; more than [`SUSPECTS_MAX`] count as everybody.
    pub fn suspect(&self, mut sources: Vec<LeafMask>) {
        if sources.len() > SUSPECTS_MAX {
            sources = vec![LeafMask::default()];
        }
        let sources: Arc<[LeafMask]> = sources.into();
        for worker in &self.workers {
            worker.lock().suspects = Arc::clone(&sources);
        }
    }

    /// Takes what each worker counted since the last time, worker by worker, and leaves empty
    /// buffers behind whose samples begin at the given shifts. Texts go to `names`.
    pub fn collect(
        &self,
        names: &mut Names,
        (instances_shift, addresses_shift): (u32, u32),
        mut each: impl FnMut(&Counts),
    ) {
        let mut spare = self.spare.lock();
        for worker in &self.workers {
            spare.clear(instances_shift, addresses_shift);
            {
                let mut worker = worker.lock();
                mem::swap(&mut worker.counts, &mut *spare);
                worker.seen.follow(names.epoch());
            }
            names.learn(spare.names.drain(..));
            each(&spare);
        }
    }
}

impl Recorder {
    /// Counts one request.
    ///
    /// O(1) without allocation, but for the text of a value that this worker has not met in the last
    /// minutes: at most 256 of those a tick.
    pub fn record(&self, facts: &RequestFacts<'_>, arrival: Arrival) {
        if arrival.standing == Standing::Exempt || facts.is_trusted_proxy() {
            self.worker.lock().counts.exempt += 1;
            return;
        }
        let refused = arrival.standing == Standing::Refused;
        let key = self.columns.key(facts, refused);
        let tag = key.tag();
        let instance = facts.instance();
        let address = facts.hash(crate::attribute::AttributeId::IP);
        let mut worker = self.worker.lock();
        let worker = &mut *worker;
        if !refused {
            let is_suspect = || worker.suspects.iter().any(|source| source.picks(&key));
            self.familiar.meet(instance, is_suspect);
        }
        if worker.counts.leaves.add(tag, &key, 1.0, &mut worker.random) {
            let names = &mut worker.counts.names;
            self.columns.each_value(facts, &key, |column, hash, text| {
                worker.seen.note(column, hash, text, names);
            });
        }
        let counts = &mut worker.counts;
        counts
            .talkers
            .add(address, facts.address(), &mut worker.random);
        if counts.instances.takes(instance) {
            counts.instances.add(instance, &self.columns.who(&key));
        }
        if counts.addresses.takes(address) {
            counts.addresses.add(address, &self.columns.who(&key));
        }
    }
}
