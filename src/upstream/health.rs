//! What is known of one endpoint's health, and what follows from it. Knows nothing of the other
//! endpoints and of how it was found out.
//!
//! An endpoint is in, until it is ejected. When its time out is over, one request is let through as a
//! probe; if that goes well, the endpoint is in again and its share grows over [`SLOW_START`], and if
//! not, it is out for longer than before. Health checks stand beside that: an endpoint that fails them
//! is not asked, whatever requests say of it.

use std::time::Duration;

use tidegate_engine::time::Instant;

/// How long the share of an endpoint grows that has come (back).
pub(crate) const SLOW_START: Duration = Duration::from_secs(10);
/// The share with which it begins.
const SLOW_START_SHARE: f64 = 0.1;
/// How long an endpoint is out the first time.
const EJECTED_FIRST: Duration = Duration::from_secs(5);
/// How long at most, however often it was out before.
const EJECTED_MAX: Duration = Duration::from_mins(1);
/// An endpoint that was in for so long begins anew.
const FORGIVEN_AFTER: Duration = Duration::from_mins(5);
/// Health checks in a row that take an endpoint out, or in again.
const CHECKS_IN_A_ROW: u32 = 2;

/// Whether requests go to an endpoint, as far as requests have shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Since then; [`Instant::ZERO`] where it was from the beginning.
    In(Instant),
    /// Until then, when a probe is due.
    Out(Instant),
    /// One request is on its way to find out.
    Probing,
}

impl Standing {
    /// Returns the part of its weight that an endpoint has, 0 to 1.
    pub(crate) fn share(self, now: Instant) -> f64 {
        match self {
            Self::In(Instant::ZERO) => 1.0,
            Self::In(since) => {
                let grown = now.since(since).as_secs_f64() / SLOW_START.as_secs_f64();
                grown.clamp(SLOW_START_SHARE, 1.0)
            }
            Self::Out(_) | Self::Probing => 0.0,
        }
    }

    /// Returns whether requests have shown that the endpoint is no good.
    pub(crate) fn is_out(self) -> bool {
        !matches!(self, Self::In(_))
    }

    /// Returns whether it is time for a probe.
    pub(crate) fn is_due(self, now: Instant) -> bool {
        matches!(self, Self::Out(until) if now >= until)
    }
}

/// One endpoint's health.
#[derive(Clone, Debug)]
pub(crate) struct Health {
    standing: Standing,
    failures_in_a_row: u32,
    connect_failures_in_a_row: u32,
    /// How often it was out without having been in for long.
    ejections: u32,
    /// Checks in a row with the same outcome.
    checks_in_a_row: u32,
    last_check_passed: bool,
    fails_checks: bool,
}

impl Health {
    /// Begins as an endpoint that came at `since`; [`Instant::ZERO`]: that was there from the beginning
    /// and gets its full share at once.
    pub(crate) fn since(since: Instant) -> Self {
        Self {
            standing: Standing::In(since),
            failures_in_a_row: 0,
            connect_failures_in_a_row: 0,
            ejections: 0,
            checks_in_a_row: 0,
            last_check_passed: true,
            fails_checks: false,
        }
    }

    /// Returns whether requests go there, as far as requests have shown.
    pub(crate) fn standing(&self) -> Standing {
        self.standing
    }

    /// Returns whether the endpoint fails its health checks.
    pub(crate) fn fails_checks(&self) -> bool {
        self.fails_checks
    }

    /// Returns failures in a row.
    pub(crate) fn failures_in_a_row(&self) -> u32 {
        self.failures_in_a_row
    }

    /// Returns how many connections in a row could not be made.
    pub(crate) fn connect_failures_in_a_row(&self) -> u32 {
        self.connect_failures_in_a_row
    }

    /// Notes that a request got no answer. A failed probe puts the endpoint out again.
    pub(crate) fn failed(&mut self, now: Instant) {
        self.failures_in_a_row = self.failures_in_a_row.saturating_add(1);
        if self.standing == Standing::Probing {
            self.eject(now);
        }
    }

    /// Notes that no connection could be made; also a failure.
    pub(crate) fn connect_failed(&mut self, now: Instant) {
        self.connect_failures_in_a_row = self.connect_failures_in_a_row.saturating_add(1);
        self.failed(now);
    }

    /// Notes that a connection was made.
    pub(crate) fn connected(&mut self) {
        self.connect_failures_in_a_row = 0;
    }

    /// Notes an answer. Returns whether that brought the endpoint back in.
    pub(crate) fn answered(&mut self, now: Instant) -> bool {
        self.failures_in_a_row = 0;
        self.connect_failures_in_a_row = 0;
        let is_back = self.standing == Standing::Probing;
        if is_back {
            self.standing = Standing::In(now);
        }
        is_back
    }

    /// Takes the endpoint out: 5 s the first time, 5 s more each time, a minute at most.
    pub(crate) fn eject(&mut self, now: Instant) {
        if let Standing::In(since) = self.standing
            && now.since(since) > FORGIVEN_AFTER
        {
            self.ejections = 0;
        }
        self.ejections = self.ejections.saturating_add(1);
        let time_out = EJECTED_FIRST
            .saturating_mul(self.ejections)
            .min(EJECTED_MAX);
        self.standing = Standing::Out(now + time_out);
        self.failures_in_a_row = 0;
    }

    /// Claims the probe that is due. False: it is not due, or somebody else has it.
    pub(crate) fn claim_probe(&mut self, now: Instant) -> bool {
        let is_due = self.standing.is_due(now);
        if is_due {
            self.standing = Standing::Probing;
        }
        is_due
    }

    /// Gives a probe back that ended without telling anything, for example because its client left.
    pub(crate) fn give_probe_back(&mut self, now: Instant) {
        if self.standing == Standing::Probing {
            self.standing = Standing::Out(now);
        }
    }

    /// Notes a health check. Returns whether the endpoint changed sides. While the check is not
    /// `believed`, it takes nobody out.
    pub(crate) fn checked(&mut self, passed: bool, believed: bool, now: Instant) -> bool {
        if passed == self.last_check_passed {
            self.checks_in_a_row = self.checks_in_a_row.saturating_add(1);
        } else {
            self.last_check_passed = passed;
            self.checks_in_a_row = 1;
        }
        let changes = passed == self.fails_checks
            && self.checks_in_a_row >= CHECKS_IN_A_ROW
            && (passed || believed);
        if changes {
            self.fails_checks = !passed;
            if passed && let Standing::In(_) = self.standing {
                self.standing = Standing::In(now);
            }
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: f64) -> Instant {
        Instant::from_secs_f64(1e6 + seconds)
    }

    /// Its share in percent.
    fn share(health: &Health, t: f64) -> u32 {
        (health.standing().share(at(t)) * 100.0).round() as u32
    }

    #[test]
    fn an_ejected_endpoint_is_probed_once_when_its_time_is_over_and_grows_slowly() {
        let mut health = Health::since(Instant::ZERO);
        assert_eq!(share(&health, 0.0), 100);
        health.eject(at(0.0));
        assert!(!health.claim_probe(at(4.9)));
        assert!(health.claim_probe(at(5.0)));
        assert!(!health.claim_probe(at(5.0)), "one probe at a time");
        assert_eq!(share(&health, 5.0), 0);
        assert!(health.answered(at(6.0)));
        let shares = [6.0, 11.0, 16.0, 99.0].map(|t| share(&health, t));
        assert_eq!(shares, [10, 50, 100, 100]);
    }

    #[test]
    fn each_time_out_is_longer_up_to_a_minute() {
        let mut health = Health::since(Instant::ZERO);
        let mut now = at(0.0);
        let mut times = Vec::new();
        health.eject(now);
        for _ in 0..14 {
            let Standing::Out(until) = health.standing() else {
                panic!("{health:?}")
            };
            times.push(until.since(now).as_secs());
            now = until;
            assert!(health.claim_probe(now));
            health.failed(now);
        }
        assert_eq!(
            times,
            [5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 60, 60]
        );
    }

    #[test]
    fn an_endpoint_that_was_in_for_long_begins_anew() {
        let mut health = Health::since(Instant::ZERO);
        for round in 0..3 {
            let began = at(f64::from(round) * 400.0);
            health.eject(began);
            assert_eq!(health.standing(), Standing::Out(began + EJECTED_FIRST));
            assert!(health.claim_probe(began + EJECTED_FIRST));
            assert!(health.answered(began + EJECTED_FIRST));
        }
    }

    #[test]
    fn a_probe_that_tells_nothing_is_given_back_to_the_next() {
        let mut health = Health::since(Instant::ZERO);
        health.eject(at(0.0));
        assert!(health.claim_probe(at(5.0)));
        health.give_probe_back(at(6.0));
        assert!(health.claim_probe(at(6.0)));
        assert!(health.answered(at(6.0)));
        health.give_probe_back(at(7.0));
        assert_eq!(health.standing(), Standing::In(at(6.0)), "it has told");
    }

    #[test]
    fn two_checks_in_a_row_decide_and_a_return_is_slow() {
        let mut health = Health::since(Instant::ZERO);
        let mut check = |passed, t| {
            health.checked(passed, true, at(t));
            (health.fails_checks(), share(&health, t))
        };
        assert_eq!(check(false, 0.0), (false, 100));
        assert_eq!(check(true, 1.0), (false, 100));
        assert_eq!(check(false, 2.0), (false, 100));
        assert_eq!(check(false, 3.0), (true, 100));
        assert_eq!(check(true, 4.0), (true, 100));
        assert_eq!(check(true, 5.0), (false, 10));
    }

    #[test]
    fn a_check_that_is_not_believed_takes_nobody_out_until_it_is() {
        let mut health = Health::since(Instant::ZERO);
        for t in 0..5 {
            assert!(!health.checked(false, false, at(f64::from(t))));
        }
        assert!(health.checked(false, true, at(6.0)));
        assert!(health.fails_checks());
    }
}
