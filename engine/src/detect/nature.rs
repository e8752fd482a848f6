//! Loop or crowd? A looping client sends more than usual; a crowd is more clients, each as usual.

use std::time::Duration;

use super::pattern::Pattern;
use super::usual::{Length, Tally, Usual};
use super::window::{ClientKind, Clients, SHORT, Window};
use crate::time::Instant;
use crate::traffic::LeafKey;

/// From how many times the usual requests per client on the excess is a loop.
pub(super) const LOOP_MIN: f64 = 2.0;

/// Up to how many times it is a crowd.
const CROWD_MAX: f64 = 1.5;

/// From how many times everybody's usual traffic on, as excess of one source, the shortest window may
/// say that it is a loop. In it a crowd whose clients open with a burst looks like one; but no crowd
/// comes so many within [`SHORT`], and what does hurts everybody with each tick that it goes on.
const DRASTIC_MIN: f64 = 4.0;

/// Sampled clients below which nothing is said of a crowd.
const SAMPLED_MIN: usize = 8;

/// From which share of instances with exactly one request on they look forged, where usually at most
/// [`USUALLY_SINGLE_MAX`] have.
const FORGED_SINGLE_MIN: f64 = 0.9;
const USUALLY_SINGLE_MAX: f64 = 0.6;

/// Where usually more have, instances are forged if at most this share of those come back that usually
/// do, and if it can be told: from so many requests per instance seen on.
const FORGED_BACK_MAX: f64 = 0.25;
const COMES_BACK_MIN: f64 = 1.05;

/// How old a surge must be before its instances may be called forged: every instance has sent one
/// request when it has only just come.
const FORGED_AFTER: Duration = Duration::from_secs(2);

/// How old a surge must be before it may be called a crowd: clients that loop slowly have sent little
/// more than others until then.
const CROWD_AFTER: Duration = Duration::from_secs(3);

/// From how many times the usual rate on a client that sends seldom seems to loop, and how old the
/// surge must be. In a drastic surge ([`DRASTIC_MIN`]) less suffices: no more than what a crowd may send.
const LIKELY_MIN: f64 = 3.0;
const LIKELY_IF_DRASTIC_MIN: f64 = CROWD_MAX;
const LIKELY_AFTER: Duration = Duration::from_millis(300);

/// Up to how many requests per client seen its clients usually send seldom. Who usually sends more is
/// told by his requests alone, and a crowd that opens with a burst must not be taken for a loop.
const SELDOM_MAX: f64 = 1.45;

/// Up to how many times the usual requests per client in a second clients send steadily; how many times
/// as often as usual the typical one must come for them to seem to loop; how old the surge must be, so
/// that who only opens an app has had the time to stop; and the sampled clients that it takes to say so.
const STEADY_MAX: f64 = 1.3;
const KEEP_COMING_MIN: f64 = 1.8;
const KEEP_COMING_AFTER: Duration = Duration::from_secs(2);
const KEEP_COMING_CLIENTS_MIN: f64 = 50.0;

/// Share of the usual clients by which their number may be wrong.
const BEFORE_ERROR: f64 = 0.05;

/// The least that a client is believed to send usually in a window, and to send again: below, nearly
/// nobody is seen twice, and what is usual cannot be told.
const SENT_MIN: f64 = 0.02;
const AGAIN_MIN: f64 = SENT_MIN / 2.0;

/// What a surge is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Nature {
    /// Each instance sends more than usual.
    Loop,
    /// Instances seem to send far more often than usual, but have sent too little yet to be sure.
    LikelyLoop,
    /// Instances live for one request, and their addresses send far more than usual.
    ForgedInstances,
    /// There are more instances, each as usual.
    Crowd,
    /// Neither can be told.
    Unclear,
}

impl Nature {
    /// Returns whether somebody is known to misbehave: that justifies a rule by itself.
    pub(super) fn is_misbehaviour(self) -> bool {
        matches!(self, Self::Loop | Self::LikelyLoop | Self::ForgedInstances)
    }

    /// Returns whether it is sure enough for a block.
    pub(super) fn is_sure(self) -> bool {
        matches!(self, Self::Loop | Self::ForgedInstances)
    }
}

/// What was found, with the figures for people.
#[derive(Clone, Copy, Debug)]
pub(super) struct Finding {
    pub(super) nature: Nature,
    /// Instances active within the last second.
    pub(super) instances: f64,
    /// Requests of each within it.
    pub(super) requests_per_instance: f64,
}

/// What one judgement needs.
#[derive(Clone, Debug)]
pub(super) struct Judge<'a> {
    pub(super) window: &'a Window,
    pub(super) instances: &'a Usual,
    pub(super) addresses: &'a Usual,
    /// Clients that have a rule of their own: what they do says nothing of others that they have a
    /// value in common with.
    pub(super) besides: Vec<Pattern>,
    /// Requests per second that are expected of everybody.
    pub(super) level: f64,
    pub(super) now: Instant,
}

/// What one window says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Says {
    Fewer,
    More,
    Neither,
}

impl Judge<'_> {
    /// Judges the clients of `who`, of which `expected` requests per second were expected, in a surge
    /// that began at `since`.
    pub(super) fn find(&self, who: &Pattern, expected: f64, since: Instant) -> Finding {
        let age = self.now.since(since);
        let [short, second, long] = [Length::Short, Length::Second, Length::Long]
            .map(|length| self.clients(ClientKind::Instance, who, length));
        let says = |clients: &Clients, length| {
            let usual = self.instances.of(who, length);
            self.says(clients, length, usual, expected)
        };
        let says_second = says(&second, Length::Second);
        let says_long = says(&long, Length::Long);
        let is_drastic = self.is_drastic(&short, expected);
        let is_loop = [says_second, says_long].contains(&Says::Fewer)
            || is_drastic && says(&short, Length::Short) == Says::Fewer;
        let times = if is_drastic {
            LIKELY_IF_DRASTIC_MIN
        } else {
            LIKELY_MIN
        };
        let age_of_long = age.max(self.age_of_excess(&long, Length::Long, &second, expected));
        let nature = if is_loop {
            Nature::Loop
        } else if self.are_forged(who, &long, expected, age) {
            Nature::ForgedInstances
        } else if [
            (&second, Length::Second, age),
            (&long, Length::Long, age_of_long),
        ]
        .into_iter()
        .any(|(clients, length, age)| self.seem_to_loop(clients, length, who, expected, age, times))
            || self.keep_coming(&second, who, expected, age_of_long)
        {
            Nature::LikelyLoop
        } else if age >= CROWD_AFTER && says_second == Says::More && says_long == Says::More {
            Nature::Crowd
        } else {
            Nature::Unclear
        };
        let count = second.rows.len() as f64 * f64::from(second.shift).exp2();
        let rows = second.rows.len().max(1) as f64;
        Finding {
            nature,
            instances: count,
            requests_per_instance: requests(&second) / rows,
        }
    }

    fn clients(&self, kind: ClientKind, who: &Pattern, length: Length) -> Clients {
        self.clients_of(kind, who, length.duration())
    }

    /// Returns the clients of the last `span`.
    fn clients_of(&self, kind: ClientKind, who: &Pattern, span: Duration) -> Clients {
        let belongs = |key: &LeafKey| {
            who.matches(key) && !self.besides.iter().any(|other| other.matches(key))
        };
        let clients = self.window.clients_since(kind, self.now - span, belongs);
        one_row_each(clients)
    }

    /// Returns whether so much more came than from everybody else that the short window may decide.
    fn is_drastic(&self, short: &Clients, expected: f64) -> bool {
        let seconds = self.window.seconds_since(self.now - SHORT);
        let came = requests(short) * f64::from(short.shift).exp2();
        came - expected * seconds >= DRASTIC_MIN * self.level * seconds
    }

    /// Compares the number of clients with the number that would explain the excess. With a usual
    /// mean of `m` requests per client, `f` expected and `v` observed requests: as many as
    /// `f/m + (v-f)/m` clients make a crowd; at most `f/m + (v-f)/(2m)`, and the excess comes from
    /// clients that send at least twice as much as usual.
    fn says(&self, clients: &Clients, length: Length, usual: Option<Tally>, expected: f64) -> Says {
        let Some(usual) = usual else {
            return Says::Neither;
        };
        let scale = f64::from(clients.shift).exp2();
        let sampled = clients.rows.len() as f64;
        let seconds = self.window.seconds_since(self.now - length.duration());
        let came = requests(clients) * scale;
        let excess = came - expected * seconds;
        if excess <= 0.0 || clients.rows.is_empty() {
            return Says::Neither;
        }
        let mean = usual.mean();
        let before = expected * seconds / mean;
        // How many clients there are beyond those that the excess is worth at so many times the usual.
        let beyond = |times: f64| sampled * scale - before - excess / (times * mean);
        if beyond(LOOP_MIN) + error_of(clients, LOOP_MIN * mean) < 0.0 {
            Says::Fewer
        } else if clients.rows.len() >= SAMPLED_MIN
            && beyond(CROWD_MAX) - error_of(clients, CROWD_MAX * mean) >= -2.0 * before.sqrt()
        {
            Says::More
        } else {
            Says::Neither
        }
    }

    /// Returns how long it took the excess of a window to come at the rate of the last second. What had
    /// drifted above what is expected before the surge began has had the whole window to come back.
    fn age_of_excess(
        &self,
        clients: &Clients,
        length: Length,
        second: &Clients,
        expected: f64,
    ) -> Duration {
        let excess = |clients: &Clients, length: Length| {
            let seconds = self.window.seconds_since(self.now - length.duration());
            let came = requests(clients) * f64::from(clients.shift).exp2();
            (came - expected * seconds, seconds)
        };
        let (of_second, seconds) = excess(second, Length::Second);
        let (all, longest) = excess(clients, length);
        let took = all * seconds / of_second.max(f64::MIN_POSITIVE);
        Duration::try_from_secs_f64(took.clamp(0.0, longest)).unwrap_or_default()
    }

    /// Returns whether the clients of the excess send so many `times` as often as usual, told from how
    /// many of them have come back already.
    ///
    /// Who sends seldom is seen once in a short window, whether he loops or not: requests per client
    /// seen are near 1 for both. But those who come at `x` requests a window each send
    /// `x / (1 − e^−x)` of those that are seen (Poisson, without its zero), and the other way round
    /// what is seen tells `x`. A surge is only as long as it is old, so its rate is over that time.
    fn seem_to_loop(
        &self,
        clients: &Clients,
        length: Length,
        who: &Pattern,
        expected: f64,
        age: Duration,
        times: f64,
    ) -> bool {
        let Some(usual) = self.instances.of(who, length) else {
            return false;
        };
        let scale = f64::from(clients.shift).exp2();
        let seconds = self.window.seconds_since(self.now - length.duration());
        let excess = requests(clients) * scale - expected * seconds;
        let tells = usual.mean() <= SELDOM_MAX && clients.rows.len() >= SAMPLED_MIN;
        if age < LIKELY_AFTER || excess <= 0.0 || !tells {
            return false;
        }
        let span = age.as_secs_f64().min(seconds) / seconds;
        let looping = seen_of(times * sent_of(usual.mean()) * span);
        let before = expected * seconds / usual.mean();
        let came = clients.rows.len() as f64 * scale - before;
        let back = excess * (1.0 - 1.0 / looping);
        let error = error_of(clients, looping)
            + 2.0 * back.sqrt()
            + BEFORE_ERROR * before
            + SAMPLED_MIN as f64 * scale;
        came + error < excess / looping
    }

    /// Returns whether far fewer clients of the excess than usual were seen once only, while none of
    /// them sends in bursts. Where clients are uneven, the mean is that of the few busy ones, and clients
    /// that all send five times as often as most do are below it; but hardly any of them is seen once.
    ///
    /// Looked at is the time since the surge began, 8 s at most. Who comes `x` times in it (Poisson) is
    /// seen once with probability `x / (e^x − 1)` if at all: the other way round, the share of those seen
    /// once tells `x` of a typical client. What is usual in that time is between what is usual in a second
    /// and in eight.
    fn keep_coming(&self, second: &Clients, who: &Pattern, expected: f64, age: Duration) -> bool {
        let [Some(of_second), Some(of_long)] =
            [Length::Second, Length::Long].map(|length| self.instances.of(who, length))
        else {
            return false;
        };
        let bursts = requests(second) > STEADY_MAX * of_second.mean() * second.rows.len() as f64;
        if bursts || age < KEEP_COMING_AFTER {
            return false;
        }
        let span = age.min(Length::Long.duration());
        let clients = self.clients_of(ClientKind::Instance, who, span);
        let seconds = self.window.seconds_since(self.now - span);
        let usual = Habit::between(of_second, of_long, seconds);
        let scale = f64::from(clients.shift).exp2();
        let before = expected * seconds / usual.mean;
        let came = clients.rows.len() as f64 * scale - before;
        let singles = clients.rows.iter().filter(|row| row.requests == 1).count() as f64 * scale;
        let share = (singles - before * single_of(usual.comes)) / came.max(1.0);
        let sampled = came / scale;
        let error = 2.0 * (0.25 / sampled.max(1.0)).sqrt() + BEFORE_ERROR * before / came.max(1.0);
        sampled >= KEEP_COMING_CLIENTS_MIN
            && share.clamp(0.0, 1.0) + error <= single_of(KEEP_COMING_MIN * usual.comes)
    }

    fn are_forged(&self, who: &Pattern, long: &Clients, expected: f64, age: Duration) -> bool {
        let Some(usual) = self.instances.of(who, Length::Long) else {
            return false;
        };
        let singles = long.rows.iter().filter(|row| row.requests == 1).count();
        let share = singles as f64 / long.rows.len().max(1) as f64;
        let live_once = if usual.single_share() <= USUALLY_SINGLE_MAX {
            age >= FORGED_AFTER && share >= FORGED_SINGLE_MIN
        } else {
            age >= Length::Long.duration() && self.never_come_back(long, usual, expected)
        };
        live_once
            && long.rows.len() >= SAMPLED_MIN
            && [Length::Second, Length::Long].into_iter().any(|length| {
                let addresses = self.clients(ClientKind::Address, who, length);
                let usual = self.addresses.of(who, length);
                self.says(&addresses, length, usual, expected) == Says::Fewer
            })
    }

    /// Returns whether instances of the excess come back far more seldom than usual, where most are
    /// seen once in any case. Of a crowd as many come back as usual; of forged ones, none.
    fn never_come_back(&self, long: &Clients, usual: Tally, expected: f64) -> bool {
        let scale = f64::from(long.shift).exp2();
        let seconds = self
            .window
            .seconds_since(self.now - Length::Long.duration());
        let mean = usual.mean();
        let before = expected * seconds / mean;
        let excess = requests(long) * scale - expected * seconds;
        let new = long.rows.len() as f64 * scale - before;
        let per_instance = 1.0 + (mean - 1.0) * FORGED_BACK_MAX;
        let error = error_of(long, per_instance) + 2.0 * before.sqrt() + BEFORE_ERROR * before;
        mean >= COMES_BACK_MIN && excess > 0.0 && new - error >= excess / per_instance
    }
}

/// What clients usually do in some seconds.
#[derive(Clone, Copy, Debug)]
struct Habit {
    /// Requests per client that sent any.
    mean: f64,
    /// How often the typical client comes.
    comes: f64,
}

impl Habit {
    /// Finds what is usual in `seconds` from what is usual in one and in eight: how often a client comes
    /// (again) grows by a power of time.
    fn between(second: Tally, long: Tally, seconds: f64) -> Self {
        let [short, whole] = [Length::Second, Length::Long].map(|of| of.duration().as_secs_f64());
        let part = (seconds.clamp(short, whole) / short).ln() / (whole / short).ln();
        let power = |from: f64, to: f64| {
            let from = from.max(AGAIN_MIN);
            from * (to / from).max(1.0).powf(part)
        };
        let [of_second, of_long] = [second, long].map(|tally| comes_of(tally.single_share()));
        Self {
            mean: 1.0 + power(second.mean() - 1.0, long.mean() - 1.0),
            comes: power(of_second, of_long),
        }
    }
}

/// Returns the share of clients seen once, of those seen, where each comes `x` times in the mean.
fn single_of(x: f64) -> f64 {
    if x < 1e-6 { 1.0 } else { x / x.exp_m1() }
}

/// Returns how often clients come of which such a share is seen once: the inverse of [`single_of`], by
/// bisection, as it only falls.
fn comes_of(share: f64) -> f64 {
    let (mut low, mut high) = (SENT_MIN, 32.0);
    for _ in 0..40 {
        let middle = f64::midpoint(low, high);
        if single_of(middle) > share {
            low = middle;
        } else {
            high = middle;
        }
    }
    low
}

/// Returns requests per client seen, where each client sends `x` in the mean.
fn seen_of(x: f64) -> f64 {
    if x < 1e-6 { 1.0 } else { x / -(-x).exp_m1() }
}

/// Returns requests per client, where `seen` are seen of those that sent any: the inverse of
/// [`seen_of`], by Newton's method from above, where it only falls.
fn sent_of(seen: f64) -> f64 {
    let mut x = seen;
    for _ in 0..16 {
        x -= (x + seen * (-x).exp_m1()) / (1.0 - seen * (-x).exp()).max(1e-3);
    }
    x.max(SENT_MIN)
}

/// Two standard errors of `clients − requests / per_client` as it is estimated from a sample (Horvitz
/// and Thompson, 1952); 0 where all clients were counted. Numbers of clients and of requests are from
/// one sample and err together: a loop whose clients all send alike is sure from a few of them.
fn error_of(clients: &Clients, per_client: f64) -> f64 {
    let scale = f64::from(clients.shift).exp2();
    let squares = clients
        .rows
        .iter()
        .map(|row| (1.0 - f64::from(row.requests) / per_client).powi(2));
    2.0 * (scale * (scale - 1.0) * squares.sum::<f64>()).sqrt()
}

fn requests(clients: &Clients) -> f64 {
    clients.rows.iter().map(|row| f64::from(row.requests)).sum()
}

/// Adds up what one client sent with several sets of attributes.
fn one_row_each(mut clients: Clients) -> Clients {
    clients.rows.sort_unstable_by_key(|row| row.client);
    clients.rows.dedup_by(|next, kept| {
        let same = next.client == kept.client;
        if same {
            kept.requests = kept.requests.saturating_add(next.requests);
        }
        same
    });
    clients
}
