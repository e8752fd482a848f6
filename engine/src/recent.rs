//! The requests of the last minute or so: a sample of all of them, to try a rule on before it is in
//! force, and the ids of those that were refused, with what refused them.
//!
//! No bodies, no secrets: of a secret it is kept whether the request has it. Values above
//! [`crate::request::VALUE_BYTES_MAX`] are kept as the `hash:` that stands for them, so texts are compared as
//! in a decision; a prefix or a regex, which there looks at all of such a value, does not meet it here.
//! What does not fit into [`VALUES_BYTES_MAX`] is present and has no text. Workers write into buffers of their own; the control side gathers them ten
//! times a second and keeps what is here. Nothing is judged here: see [`crate::policy`].
//!
//! Memory, bounded: [`REQUESTS_MAX`] × at most 1.1 KiB = 8.8 MiB (2 MiB with values of usual length), and
//! 2 × [`REFUSALS_MAX`] × 64 B = 1 MiB a worker.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::mem;
use std::net::IpAddr;
use std::sync::Arc;

use ahash::RandomState;
use parking_lot::Mutex;

use crate::attribute::{ATTRIBUTES_MAX, AttributeId, Schema};
use crate::request::{HashKey, RequestFacts};
use crate::time::Instant;
use crate::traffic::Random;
use crate::verdict::{Name, Verdict};

/// The most requests that are kept.
pub const REQUESTS_MAX: usize = 8192;

/// Requests that all workers together hand over in a tick at most: the sample goes back 25 s at 100 ms a
/// tick, and as long as it takes to fill where less comes.
const SAMPLED_A_TICK: usize = 32;

/// The most bytes of values kept of one request. What comes last is left out: the user agent.
const VALUES_BYTES_MAX: usize = 1024;

/// What stands for a value that is not kept.
const PRESENT: &[u8] = b"present";

/// The most refusals that a worker remembers: so many of the latest, and as many that are spread over
/// rules and time.
pub const REFUSALS_MAX: usize = 8192;

/// The most refusals of one rule or limit in one tick that are kept for longer than the latest, so that a
/// flood does not push out the one that somebody asks about; and the most rules and limits that are told
/// apart in it.
const REFUSALS_OF_ONE_MAX: u32 = 16;
const CAUSES_MAX: usize = 64;

/// The attributes and values of one request, in bytes: its id, the length, the text, and so on.
#[derive(Clone, Debug, Default)]
struct Values(Vec<u8>);

impl Values {
    fn take(&mut self, facts: &RequestFacts<'_>) {
        self.0.clear();
        // The operator's attributes come last in the schema, and matter most.
        for index in (0..ATTRIBUTES_MAX).rev() {
            let id = AttributeId::at(index);
            let Some(value) = facts.value(id) else {
                continue;
            };
            let Ok(length) = u16::try_from(value.len()) else {
                continue;
            };
            if self.0.len() + 3 + value.len() <= VALUES_BYTES_MAX {
                self.0.push(index as u8);
                self.0.extend_from_slice(&length.to_le_bytes());
                self.0.extend_from_slice(value.as_bytes());
            }
        }
    }

    fn iter(&self) -> impl Iterator<Item = (AttributeId, &str)> {
        let mut rest = self.0.as_slice();
        std::iter::from_fn(move || {
            let (head, tail) = rest.split_at_checked(3)?;
            let [index, low, high] = head else {
                return None;
            };
            let length = u16::from_le_bytes([*low, *high]) as usize;
            let (value, after) = tail.split_at_checked(length)?;
            rest = after;
            let text = std::str::from_utf8(value).ok()?;
            Some((AttributeId::at(usize::from(*index)), text))
        })
    }
}

/// One request of the sample.
#[derive(Clone, Debug)]
struct Sampled {
    address: IpAddr,
    from_trusted_proxy: bool,
    passed: bool,
    /// A bit for each attribute that it has, secret or not.
    present: u32,
    values: Values,
}

const _: () = assert!(ATTRIBUTES_MAX <= u32::BITS as usize);

/// Returns a bit for each attribute that a request has.
fn presence(facts: &RequestFacts<'_>) -> u32 {
    (0..ATTRIBUTES_MAX)
        .filter(|index| facts.is_present(AttributeId::at(*index)))
        .fold(0, |present, index| present | 1 << index)
}

/// A request of the sample, as those see it who try a rule on it.
#[derive(Debug)]
pub struct RecentRequest<'a> {
    /// What is known of it; secrets are present, as something else.
    pub facts: RequestFacts<'a>,
    /// Whether no rule and no limit refused it.
    pub passed: bool,
    /// How many requests it stands for.
    pub weight: f64,
}

/// A refused request.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    /// When.
    pub at: Instant,
    /// What the request met: the word of the verdict.
    pub verdict: &'static str,
    /// The rule or limit that refused it.
    pub by: Name,
}

/// One worker's part.
#[derive(Debug)]
struct Worker {
    /// Requests since the last tick.
    seen: u64,
    /// A uniform sample of them (Vitter's algorithm R, 1985).
    sample: Vec<Sampled>,
    sample_max: usize,
    random: Random,
    latest: VecDeque<(u64, Refusal)>,
    /// A few of each rule and limit and tick.
    spread: VecDeque<(u64, Refusal)>,
    /// Refusals of this tick by their cause.
    causes: Vec<(Name, u32)>,
}

impl Worker {
    fn sample(&mut self, facts: &RequestFacts<'_>, passed: bool) {
        self.seen += 1;
        let at = if self.sample.len() < self.sample_max {
            self.sample.len()
        } else {
            // Exact as far as 2^32 requests a tick.
            ((u64::from(self.random.bits() as u32) * self.seen) >> 32) as usize
        };
        if at >= self.sample_max {
            return;
        }
        if at == self.sample.len() {
            self.sample.push(Sampled {
                address: facts.address(),
                from_trusted_proxy: false,
                passed,
                present: 0,
                values: Values::default(),
            });
        }
        if let Some(sampled) = self.sample.get_mut(at) {
            sampled.address = facts.address();
            sampled.from_trusted_proxy = facts.is_trusted_proxy();
            sampled.passed = passed;
            sampled.present = presence(facts);
            sampled.values.take(facts);
        }
    }

    fn note_refusal(&mut self, id: u64, verdict: &Verdict, by: &Name, at: Instant) {
        let verdict = verdict.word();
        let by_name = by.clone();
        let refusal = Refusal {
            at,
            verdict,
            by: by_name,
        };
        keep(&mut self.latest, id, refusal.clone());
        let is_full = self.causes.len() >= CAUSES_MAX;
        let known = self.causes.iter_mut().find(|(cause, _)| cause == by);
        match known {
            Some((_, count)) if *count >= REFUSALS_OF_ONE_MAX => return,
            Some((_, count)) => *count += 1,
            None if is_full => return,
            None => self.causes.push((by.clone(), 1)),
        }
        keep(&mut self.spread, id, refusal);
    }
}

/// Remembers a refusal; the oldest goes first.
fn keep(ring: &mut VecDeque<(u64, Refusal)>, id: u64, refusal: Refusal) {
    if ring.len() >= REFUSALS_MAX {
        ring.pop_front();
    }
    ring.push_back((id, refusal));
}

/// What the control side keeps of one tick: requests, and how many each of them stands for.
#[derive(Debug)]
struct Gathered {
    at: Instant,
    weight: f64,
    requests: Vec<Sampled>,
}

/// The recent requests of all workers.
#[derive(Debug)]
pub struct Recent {
    workers: Vec<Arc<Mutex<Worker>>>,
    ids: RandomState,
    gathered: Mutex<VecDeque<Gathered>>,
}

/// One worker's hand. Its lock is never contended but for the moment in which the control side gathers.
#[derive(Debug)]
pub struct RecentRecorder {
    worker: Arc<Mutex<Worker>>,
    ids: RandomState,
}

impl Recent {
    /// Makes the buffers of `workers` workers. The seed decides which requests are kept, nothing else.
    pub fn new(workers: usize, seed: u64) -> Self {
        let workers = workers.max(1);
        let worker = |at: usize| {
            Arc::new(Mutex::new(Worker {
                seen: 0,
                sample: Vec::new(),
                sample_max: (SAMPLED_A_TICK / workers).max(1),
                random: Random::from_seed(seed ^ (at as u64).wrapping_mul(0x9E37_79B9)),
                latest: VecDeque::new(),
                spread: VecDeque::new(),
                causes: Vec::new(),
            }))
        };
        Self {
            workers: (0..workers).map(worker).collect(),
            ids: RandomState::with_seeds(seed, !seed, seed.rotate_left(17), seed.rotate_left(41)),
            gathered: Mutex::default(),
        }
    }

    /// Returns the hand of worker `at`, or `None` where there are fewer workers.
    pub fn recorder(&self, at: usize) -> Option<RecentRecorder> {
        Some(RecentRecorder {
            worker: Arc::clone(self.workers.get(at)?),
            ids: self.ids.clone(),
        })
    }

    /// Takes over what the workers sampled. To be called once a tick.
    pub fn gather(&self, now: Instant) {
        let mut gathered = self.gathered.lock();
        for worker in &self.workers {
            let (seen, requests) = {
                let mut worker = worker.lock();
                worker.causes.clear();
                (mem::take(&mut worker.seen), mem::take(&mut worker.sample))
            };
            if !requests.is_empty() {
                gathered.push_back(Gathered {
                    at: now,
                    weight: seen as f64 / requests.len() as f64,
                    requests,
                });
            }
        }
        let mut kept: usize = gathered.iter().map(|tick| tick.requests.len()).sum();
        while kept > REQUESTS_MAX {
            let oldest = gathered.pop_front();
            kept -= oldest.map_or(kept, |tick| tick.requests.len());
        }
    }

    /// Shows each request that is kept, oldest first. Returns the seconds that they cover.
    pub fn each(&self, now: Instant, mut show: impl FnMut(&RecentRequest<'_>)) -> f64 {
        let key = HashKey::from_seed(0);
        let gathered = self.gathered.lock();
        for tick in gathered.iter() {
            for sampled in &tick.requests {
                let mut facts = RequestFacts::new(&key, sampled.address);
                if sampled.from_trusted_proxy {
                    facts.mark_trusted_proxy();
                }
                for (id, value) in sampled.values.iter() {
                    facts.set(id, Cow::Borrowed(value));
                }
                for index in 0..ATTRIBUTES_MAX {
                    let id = AttributeId::at(index);
                    if sampled.present & (1 << index) != 0 && !facts.is_present(id) {
                        facts.set_secret(id, PRESENT);
                    }
                }
                show(&RecentRequest {
                    facts,
                    passed: sampled.passed,
                    weight: tick.weight,
                });
            }
        }
        gathered
            .front()
            .map_or(0.0, |oldest| now.since(oldest.at).as_secs_f64())
    }

    /// Returns what refused the request with this id, if that was lately.
    pub fn refusal(&self, request_id: &[u8]) -> Option<Refusal> {
        let id = self.ids.hash_one(request_id);
        self.workers.iter().find_map(|worker| {
            let worker = worker.lock();
            let mut all = worker.latest.iter().rev().chain(worker.spread.iter().rev());
            let found = all.find(|(of, _)| *of == id);
            found.map(|(_, refusal)| refusal.clone())
        })
    }
}

impl RecentRecorder {
    /// Notes a request that was decided. O(1); allocates only for what is kept.
    pub fn note(
        &self,
        facts: &RequestFacts<'_>,
        verdict: &Verdict,
        request_id: &[u8],
        now: Instant,
    ) {
        let passed = matches!(verdict, Verdict::Forward | Verdict::Allow { .. });
        let mut worker = self.worker.lock();
        worker.sample(facts, passed);
        if let (false, Some(by)) = (passed, verdict.cause()) {
            worker.note_refusal(self.ids.hash_one(request_id), verdict, by, now);
        }
    }
}

/// Returns the attributes by which people tell sources apart: the operator's first three of clients
/// besides `tenant`, or the address where there are none.
pub fn telling_attributes(schema: &Schema) -> Vec<AttributeId> {
    let own = schema.own_who().filter(|id| schema.name(*id) != "tenant");
    let own: Vec<AttributeId> = own.take(3).collect();
    if own.is_empty() {
        vec![AttributeId::IP]
    } else {
        own
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts<'a>(key: &'a HashKey, agent: &'a str) -> RequestFacts<'a> {
        let mut facts = RequestFacts::new(key, "192.0.2.1".parse().unwrap());
        facts.set(AttributeId::USER_AGENT, Cow::Borrowed(agent));
        facts.set_secret(AttributeId::INSTANCE, b"token");
        facts
    }

    /// A tenth of the traffic is a tenth of the sample, and weights add up to what came.
    #[test]
    fn the_sample_has_the_shares_of_the_traffic() {
        let recent = Recent::new(2, 7);
        let recorders = [0, 1].map(|at| recent.recorder(at).unwrap());
        let key = HashKey::from_seed(1);
        let mut now = Instant::ZERO;
        for _ in 0..200 {
            for request in 0..1000 {
                let agent = if request % 10 == 0 { "loop" } else { "calm" };
                recorders[usize::from(request % 20 < 7)].note(
                    &facts(&key, agent),
                    &Verdict::Forward,
                    b"id",
                    now,
                );
            }
            now = now + std::time::Duration::from_millis(100);
            recent.gather(now);
        }
        let (mut all, mut looping, mut rows) = (0.0, 0.0, 0);
        recent.each(now, |request| {
            rows += 1;
            all += request.weight;
            if request.facts.value(AttributeId::USER_AGENT) == Some("loop") {
                looping += request.weight;
            }
            assert_eq!(request.facts.value(AttributeId::INSTANCE), None, "a secret");
            let kept = key.hash(b"token");
            assert_ne!(request.facts.hash(AttributeId::INSTANCE), kept, "a secret");
            assert!(request.facts.is_present(AttributeId::INSTANCE));
            assert!(!request.facts.is_present(AttributeId::HOST));
        });
        assert_eq!(rows, 200 * SAMPLED_A_TICK);
        assert!((all - 200_000.0).abs() < 1.0, "{all}");
        assert!((looping / all - 0.1).abs() < 0.02, "{}", looping / all);
    }

    #[test]
    fn however_many_come_and_however_long_they_are_the_bound_holds() {
        let recent = Recent::new(1, 7);
        let recorder = recent.recorder(0).unwrap();
        let key = HashKey::from_seed(1);
        let long = "x".repeat(250);
        for tick in 0..600_u32 {
            for _ in 0..100 {
                let mut facts = facts(&key, &long);
                for index in 5..ATTRIBUTES_MAX {
                    facts.set(AttributeId::at(index), Cow::Borrowed(&long));
                }
                let by = Name::new("flood");
                let refused = Verdict::Tarpit { rule: by };
                recorder.note(&facts, &refused, &tick.to_le_bytes(), Instant::ZERO);
            }
            recent.gather(Instant::ZERO);
        }
        let (mut rows, mut values) = (0, 0);
        recent.each(Instant::ZERO, |_| rows += 1);
        for tick in recent.gathered.lock().iter() {
            values += tick
                .requests
                .iter()
                .map(|r| r.values.0.len())
                .sum::<usize>();
        }
        assert!(rows <= REQUESTS_MAX && rows > REQUESTS_MAX - SAMPLED_A_TICK);
        assert!(values <= REQUESTS_MAX * VALUES_BYTES_MAX);
        let worker = recent.workers[0].lock();
        assert!(worker.latest.len() <= REFUSALS_MAX && worker.spread.len() <= REFUSALS_MAX);
    }

    #[test]
    fn one_refusal_is_found_behind_a_flood_of_others() {
        let recent = Recent::new(1, 7);
        let recorder = recent.recorder(0).unwrap();
        let key = HashKey::from_seed(1);
        let facts = facts(&key, "a");
        let refused = |name| Verdict::Block {
            rule: Name::new(name),
            status: 403,
        };
        recorder.note(&facts, &refused("mistake"), b"asked-for", Instant::ZERO);
        for request in 0..100_000_u32 {
            if request % 1000 == 0 {
                recent.gather(Instant::ZERO);
            }
            let id = request.to_le_bytes();
            recorder.note(&facts, &refused("flood"), &id, Instant::ZERO);
        }
        let found = recent.refusal(b"asked-for").unwrap();
        assert_eq!((found.by.as_str(), found.verdict), ("mistake", "block"));
        let last = 99_999_u32.to_le_bytes();
        assert_eq!(
            recent.refusal(&last).map(|last| last.by),
            Some(Name::new("flood"))
        );
        assert_eq!(recent.refusal(b"never seen"), None);
        recorder.note(&facts, &Verdict::Forward, b"passed", Instant::ZERO);
        assert_eq!(recent.refusal(b"passed"), None);
    }
}
