//! Who is served inside a source under a detected rule, in virtual time.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;
use std::time::{Duration, SystemTime};

use super::*;
use crate::attribute::{AttributeId, Schema};
use crate::policy::{Policy, PolicyParts};
use crate::request::{HashKey, RequestFacts};
use crate::rules::{Action, LimitRule, Mode, Origin, Rule, When};
use crate::source::Source;
use crate::units::Rate;
use crate::verdict::{Name, Verdict};

/// The devices with these numbers are known.
#[derive(Debug)]
struct KnownDevices(Vec<u64>);

impl Known for KnownDevices {
    fn is_known(&self, instance: u64) -> bool {
        self.0.binary_search(&instance).is_ok()
    }
}

/// Devices in one source that is under a detected rule.
struct Incident {
    key: HashKey,
    known: Range<u32>,
    expected: f64,
    usual: f64,
    limits: Vec<LimitRule>,
}

impl Incident {
    /// Devices `known` were there before; 10/s were expected of all, 0.1/s of each.
    fn with_known(known: Range<u32>) -> Self {
        Self {
            key: HashKey::from_seed(1),
            known,
            expected: 10.0,
            usual: 0.1,
            limits: Vec::new(),
        }
    }

    fn rule(&self, action: Action) -> Policy {
        self.escalate(action, None)
    }

    fn escalate(&self, action: Action, previous: Option<&Policy>) -> Policy {
        let rule = Rule {
            name: Name::new("detected-1"),
            when: When::default(),
            when_text: Source::everybody(),
            action,
            mode: Mode::Enforce,
            percent: 100,
            until: None,
            reason: None,
            origin: Origin::Detected,
            sparing: Some(Sparing {
                expected_per_second: self.expected,
                usual_per_instance_per_second: self.usual,
                familiar: Arc::default(),
            }),
        };
        let parts = PolicyParts {
            schema: Arc::new(Schema::built_in()),
            services: Arc::from([]),
            rules: vec![rule],
            limits: self.limits.clone(),
            generation: 1,
        };
        let mut policy = Policy::compile(parts, previous, Instant::ZERO, SystemTime::UNIX_EPOCH);
        let mut known: Vec<u64> = self
            .known
            .clone()
            .map(|device| self.key.hash(device.to_string().as_bytes()))
            .collect();
        known.sort_unstable();
        let rule = policy.rules.first_mut().unwrap();
        rule.sparing.as_mut().unwrap().known = Arc::new(KnownDevices(known));
        policy
    }

    fn facts(&self, device: u32) -> RequestFacts<'_> {
        let address = IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + device));
        let mut facts = RequestFacts::new(&self.key, address);
        facts.set(AttributeId::INSTANCE, Cow::Owned(device.to_string()));
        facts
    }

    fn verdict(&self, policy: &Policy, device: u32, now: Instant) -> Verdict {
        policy.decide(&self.facts(device), now)
    }

    fn is_served(&self, policy: &Policy, device: u32, now: Instant) -> bool {
        self.verdict(policy, device, now) == Verdict::Forward
    }

    /// Lets groups of devices send, each at its rate, evenly spread, from `from_s` to `until_s`.
    /// Returns the share served of each group, and how many were served of all.
    fn run(&self, policy: &Policy, window_s: Range<u64>, groups: &[(Range<u32>, f64)]) -> Outcome {
        let mut arrivals = Vec::new();
        for (group, (devices, rate)) in groups.iter().enumerate() {
            for device in devices.clone() {
                // Each device has its own phase: a fraction of its interval.
                let phase = f64::from(device.wrapping_mul(2_654_435_761) >> 8) / f64::from(1 << 24);
                let mut at = window_s.start as f64 + phase / rate;
                while at < window_s.end as f64 {
                    arrivals.push((Instant::from_secs_f64(at), device, group));
                    at += 1.0 / rate;
                }
            }
        }
        arrivals.sort_unstable();
        let mut sent = vec![0_u32; groups.len()];
        let mut served = vec![0_u32; groups.len()];
        for (now, device, group) in arrivals {
            sent[group] += 1;
            served[group] += u32::from(self.is_served(policy, device, now));
        }
        let shares = served.iter().zip(&sent);
        Outcome {
            total: served.iter().sum(),
            shares: shares
                .map(|(served, sent)| f64::from(*served) / f64::from(*sent))
                .collect(),
        }
    }
}

struct Outcome {
    total: u32,
    shares: Vec<f64>,
}

fn block() -> Action {
    Action::Block { status: 403 }
}

fn throttle(per_second: u32) -> Action {
    Action::Throttle {
        rate: Rate::new(per_second, Duration::from_secs(1)).unwrap(),
        burst: per_second,
        per: Vec::new(),
    }
}

#[test]
fn inside_a_block_a_known_quiet_device_is_served_and_a_stranger_is_not() {
    let incident = Incident::with_known(0..10);
    let policy = incident.rule(block());
    assert!(incident.is_served(&policy, 3, Instant::ZERO));
    assert!(!incident.is_served(&policy, 10, Instant::ZERO));
    let rule = policy.rules().next().unwrap();
    assert_eq!((rule.matches(), rule.spared(), rule.refusals()), (2, 1, 1));
}

#[test]
fn known_devices_that_loop_do_not_starve_known_devices_that_do_not() {
    // 90 quiet devices at 0.1/s send 9/s of the 10/s expected; 1,000 loop at 2/s each.
    let incident = Incident::with_known(0..1090);
    let policy = incident.rule(block());
    let groups = [(0..90, 0.1), (90..1090, 2.0)];
    incident.run(&policy, 0..10, &groups);
    let settled = incident.run(&policy, 10..70, &groups);
    assert!(settled.shares[0] > 0.99, "quiet ones: {:?}", settled.shares);
    assert!(
        settled.shares[1] < 0.01,
        "looping ones: {:?}",
        settled.shares
    );
}

#[test]
fn a_device_that_stops_looping_is_served_again() {
    let incident = Incident::with_known(0..1);
    let policy = incident.rule(block());
    incident.run(&policy, 0..60, &[(0..1, 5.0)]);
    assert!(!incident.is_served(&policy, 0, Instant::from_secs_f64(60.0)));
    assert!(incident.is_served(&policy, 0, Instant::from_secs_f64(60.0 + 10.0 / 3.0)));
}

#[test]
fn all_that_are_spared_stay_within_what_was_expected_of_the_source() {
    let incident = Incident::with_known(0..10_000);
    let policy = incident.rule(block());
    let outcome = incident.run(&policy, 0..60, &[(0..10_000, 0.1)]);
    let bound = 10 * 60 + 50;
    assert!(outcome.total <= bound, "{} of {bound}", outcome.total);
    assert!(outcome.total >= 10 * 60, "and use it: {}", outcome.total);
}

#[test]
fn nobody_is_spared_in_a_source_that_was_never_seen() {
    let incident = Incident {
        expected: 0.0,
        ..Incident::with_known(0..10)
    };
    let policy = incident.rule(block());
    assert!(!incident.is_served(&policy, 3, Instant::ZERO));
}

#[test]
fn what_a_device_offered_under_the_throttle_counts_under_the_block() {
    let incident = Incident::with_known(0..2);
    let throttled = incident.rule(throttle(20));
    incident.run(&throttled, 0..30, &[(0..1, 5.0)]);
    let blocked = incident.escalate(block(), Some(&throttled));
    let now = Instant::from_secs_f64(30.0);
    assert!(
        !incident.is_served(&blocked, 0, now),
        "it looped under the throttle"
    );
    assert!(incident.is_served(&blocked, 1, now), "it did not");
    let anew = incident.rule(block());
    assert!(
        incident.is_served(&anew, 0, now),
        "the control: without what was carried over"
    );
}

#[test]
fn under_a_throttle_one_loud_stranger_does_not_take_it_all() {
    // 20/s for all: 200 quiet strangers send 0.05/s each, 10/s in all; one sends 1,000/s.
    let incident = Incident::with_known(0..0);
    let policy = incident.rule(throttle(20));
    let outcome = incident.run(&policy, 0..100, &[(0..200, 0.05), (200..201, 1000.0)]);
    assert!(outcome.shares[0] > 0.95, "quiet ones: {:?}", outcome.shares);
}

#[test]
fn under_a_throttle_known_quiet_devices_are_served_first() {
    // 12/s for all: 90 known at 0.1/s send 9/s, 2,000 strangers 200/s.
    let incident = Incident::with_known(0..90);
    let policy = incident.rule(throttle(12));
    let outcome = incident.run(&policy, 0..60, &[(0..90, 0.1), (90..2090, 0.1)]);
    assert!(outcome.shares[0] > 0.99, "known ones: {:?}", outcome.shares);
    let bound = 12 * 60 + 12 + 20;
    assert!(
        outcome.total <= bound,
        "the throttle's rate is for all: {}",
        outcome.total
    );
}

#[test]
fn a_spared_request_that_a_limit_refuses_costs_nothing_of_what_was_expected() {
    let nothing_for_device_0 = LimitRule {
        name: Name::new("per-address"),
        key: vec![AttributeId::IP],
        rate: Rate::new(1, Duration::from_hours(1)).unwrap(),
        burst: 1,
        keys_max: 1000,
        services: Vec::new(),
        when: When::default(),
        mode: Mode::Enforce,
    };
    let incident = Incident {
        expected: 1.0,
        limits: vec![nothing_for_device_0],
        ..Incident::with_known(0..10)
    };
    let policy = incident.rule(block());
    assert!(incident.is_served(&policy, 0, Instant::ZERO));
    for _ in 0..5 {
        let verdict = incident.verdict(&policy, 0, Instant::ZERO);
        assert_eq!(verdict.word(), "limit");
    }
    for device in 1..5 {
        assert!(
            incident.is_served(&policy, device, Instant::ZERO),
            "{device} is one of five"
        );
    }
    assert!(
        !incident.is_served(&policy, 5, Instant::ZERO),
        "the control: there are but five"
    );
}

#[test]
fn under_a_throttle_known_devices_share_the_rest_when_what_was_expected_is_used_up() {
    let incident = Incident {
        expected: 1.0,
        ..Incident::with_known(0..30)
    };
    let policy = incident.rule(throttle(20));
    let served = (0..30).filter(|device| incident.is_served(&policy, *device, Instant::ZERO));
    assert_eq!(
        served.count(),
        20,
        "two are spared, and draw on the 20 of the throttle"
    );
}

#[test]
fn an_explanation_of_a_spared_request_spends_nothing() {
    let incident = Incident::with_known(0..1);
    let policy = incident.rule(block());
    for _ in 0..100 {
        let explained = policy.explain(&incident.facts(0), Instant::ZERO);
        let [step] = explained.steps.as_slice() else {
            panic!("there is one rule");
        };
        assert_eq!(
            (step.outcome, explained.verdict),
            ("spared", Verdict::Forward)
        );
    }
    assert!(incident.is_served(&policy, 0, Instant::ZERO));
    assert_eq!(policy.rules().next().unwrap().spared(), 1);
}
