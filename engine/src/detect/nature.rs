//! Loop or crowd? A looping client sends more than usual; a crowd is more clients, each as usual.

use std::time::Duration;

use super::pattern::Pattern;
use super::usual::{Length, Tally, Usual};
use super::window::{CLIENTS_KEPT, ClientKind, Clients, SECOND, Window};
use crate::time::Instant;
use crate::traffic::{Columns, LeafKey};

/// From how many times the usual requests per client on the excess is a loop.
const LOOP_MIN: f64 = 2.0;

/// Up to how many times it is a crowd.
const CROWD_MAX: f64 = 1.5;

/// Sampled clients below which nothing is said of a crowd.
const SAMPLED_MIN: usize = 8;

/// From which share of instances with exactly one request on they look forged, where usually at most
/// [`USUALLY_SINGLE_MAX`] have.
const FORGED_SINGLE_MIN: f64 = 0.9;
const USUALLY_SINGLE_MAX: f64 = 0.6;

/// How old a surge must be before its instances may be called forged: every instance has sent one
/// request when it has only just come.
const FORGED_AFTER: Duration = Duration::from_secs(2);

/// How old a surge must be before it may be called a crowd: clients that loop slowly have sent little
/// more than others until then.
const CROWD_AFTER: Duration = Duration::from_secs(3);

/// What a surge is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Nature {
    /// Each instance sends more than usual.
    Loop,
    /// Instances live for one request, and their addresses send far more than usual.
    ForgedInstances,
    /// There are more instances, each as usual.
    Crowd,
    /// Neither can be told.
    Unclear,
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
#[derive(Clone, Copy, Debug)]
pub(super) struct Judge<'a> {
    pub(super) window: &'a Window,
    pub(super) columns: &'a Columns,
    pub(super) instances: &'a Usual,
    pub(super) addresses: &'a Usual,
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
    /// Judges a source of which `expected` requests per second were expected, in a surge that began
    /// at `since`.
    pub(super) fn find(&self, source: &Pattern, expected: f64, since: Instant) -> Finding {
        let who = source.who(self.columns);
        let age = self.now.since(since);
        let second = self.clients(ClientKind::Instance, &who, SECOND);
        let long = self.clients(ClientKind::Instance, &who, CLIENTS_KEPT);
        let usual_second = self.instances.of(&who, Length::Second);
        let usual_long = self.instances.of(&who, Length::Long);
        let says = [
            self.says(&second, SECOND, usual_second, expected),
            self.says(&long, CLIENTS_KEPT, usual_long, expected),
        ];
        let nature = if says.contains(&Says::Fewer) {
            Nature::Loop
        } else if self.are_forged(&who, &long, usual_long, expected, age) {
            Nature::ForgedInstances
        } else if age >= CROWD_AFTER && says.iter().all(|says| *says == Says::More) {
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

    fn clients(&self, kind: ClientKind, who: &Pattern, length: Duration) -> Clients {
        let belongs = |key: &LeafKey| who.matches(key);
        let clients = self.window.clients_since(kind, self.now - length, belongs);
        one_row_each(clients)
    }

    /// Compares the number of clients with the number that would explain the excess. With a usual
    /// mean of `m` requests per client, `f` expected and `v` observed requests: as many as
    /// `f/m + (v-f)/m` clients make a crowd; at most `f/m + (v-f)/(2m)`, and the excess comes from
    /// clients that send at least twice as much as usual.
    fn says(
        &self,
        clients: &Clients,
        length: Duration,
        usual: Option<Tally>,
        expected: f64,
    ) -> Says {
        let Some(usual) = usual else {
            return Says::Neither;
        };
        let scale = f64::from(clients.shift).exp2();
        let sampled = clients.rows.len() as f64;
        let seconds = self.window.seconds_since(self.now - length);
        let came = requests(clients) * scale;
        let excess = came - expected * seconds;
        if excess <= 0.0 || clients.rows.is_empty() {
            return Says::Neither;
        }
        let mean = usual.mean();
        let before = expected * seconds / mean;
        // Two standard errors either way where clients were sampled; none where all were counted.
        let error = if clients.shift == 0 {
            0.0
        } else {
            2.0 * sampled.sqrt()
        };
        let most = (sampled + error) * scale;
        let least = (sampled - error) * scale;
        if most < before + excess / (LOOP_MIN * mean) {
            Says::Fewer
        } else if clients.rows.len() >= SAMPLED_MIN
            && least >= before + excess / (CROWD_MAX * mean) - 2.0 * before.sqrt()
        {
            Says::More
        } else {
            Says::Neither
        }
    }

    fn are_forged(
        &self,
        who: &Pattern,
        long: &Clients,
        usual: Option<Tally>,
        expected: f64,
        age: Duration,
    ) -> bool {
        let Some(usual) = usual else {
            return false;
        };
        let singles = long.rows.iter().filter(|row| row.requests == 1).count();
        let share = singles as f64 / long.rows.len().max(1) as f64;
        age >= FORGED_AFTER
            && long.rows.len() >= SAMPLED_MIN
            && share >= FORGED_SINGLE_MIN
            && usual.single_share() <= USUALLY_SINGLE_MAX
            && [(SECOND, Length::Second), (CLIENTS_KEPT, Length::Long)]
                .into_iter()
                .any(|(window, length)| {
                    let addresses = self.clients(ClientKind::Address, who, window);
                    let usual = self.addresses.of(who, length);
                    self.says(&addresses, window, usual, expected) == Says::Fewer
                })
    }
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
