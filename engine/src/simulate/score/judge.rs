//! Says which rule met which event, by judging requests and the background, not by comparing texts.

use std::net::{IpAddr, Ipv4Addr};

use super::Seen;
use crate::attribute::Schema;
use crate::detect::{Happening, Incident, Moment};
use crate::request::RequestFacts;
use crate::rules::When;
use crate::simulate::background::Mix;
use crate::simulate::load::{Stream, holds, when_of};
use crate::simulate::values::Values;
use crate::source::Source;
use crate::traffic::Random;

/// Share of a surge's requests from which on a rule is about it.
pub(super) const HITS_MIN: f64 = 0.5;

/// What `exact` asks for.
const MATCHED_MIN: f64 = 0.99;
const NORMAL_MAX: f64 = 1.05;

/// A rule that is made later than this after an event is about another one.
const LATE_S: f64 = 60.0;

/// Requests of each event that rules are judged on.
const JUDGED: usize = 1000;

/// How well a rule fits an event.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fit {
    /// Share of the event's requests that the rule matches.
    pub(super) matched: f64,
    /// Share of normal traffic that it matches.
    pub(super) normal: f64,
    pub(super) exact: bool,
}

/// Returns the event that a rule is about: one that it fits exactly, else the one that it matches the
/// most of.
pub(super) fn best(fits: &[Fit]) -> Option<usize> {
    let candidates = fits.iter().enumerate();
    candidates
        .filter(|(_, fit)| fit.matched >= HITS_MIN)
        .max_by(|(i, a), (j, b)| {
            let order = a.exact.cmp(&b.exact).then(a.matched.total_cmp(&b.matched));
            // Of equals, the first.
            order.then(j.cmp(i))
        })
        .map(|(at, _)| at)
}

/// Judges conditions against events and the background.
pub(super) struct Judge<'a> {
    pub(super) mix: &'a Mix,
    pub(super) values: &'a Values,
    pub(super) schema: &'a Schema,
    /// The scenario's beginning on the detector's clock.
    pub(super) begun: f64,
    pub(super) streams: &'a [Stream],
    /// Per event, its source's share of normal traffic.
    pub(super) shares: Vec<f64>,
}

impl Judge<'_> {
    /// Judges a rule against each event that it was there for.
    pub(super) fn fits(&self, rule: &Seen, end: f64) -> Vec<Fit> {
        let normal = self.mix.share(self.values, &rule.when);
        let streams = self.streams.iter().zip(&self.shares).enumerate();
        streams
            .map(|(at, (stream, share))| {
                let (from, until) = (&stream.event.from, &stream.event.until);
                let late = until.as_secs_f64() + LATE_S;
                let is_there = rule.since <= late && rule.gone.unwrap_or(end) >= from.as_secs_f64();
                let matched = if is_there {
                    self.matched(at, &rule.when)
                } else {
                    0.0
                };
                let exact = matched >= MATCHED_MIN && normal <= NORMAL_MAX * share + 1e-9;
                Fit {
                    matched,
                    normal,
                    exact,
                }
            })
            .collect()
    }

    /// Returns the share of an event's requests for which a condition holds.
    fn matched(&self, at: usize, when: &When) -> f64 {
        let Some(stream) = self.streams.get(at) else {
            return 0.0;
        };
        let nowhere = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let mut random = Random::from_seed(at as u64);
        // All its clients take part once it has ramped up.
        let t = (stream.event.from + stream.event.ramp).as_secs_f64();
        let moment = self.mix.moment(t);
        let mut matched = 0_usize;
        for _ in 0..JUDGED {
            let mut facts = RequestFacts::new(self.values.key(), nowhere);
            stream.request(self.mix, self.values, &moment, t, &mut random, &mut facts);
            matched += usize::from(holds(when, &facts));
        }
        matched as f64 / JUDGED as f64
    }

    /// Returns when an event's first alarm was: of an incident of its source, or one that has none.
    pub(super) fn detected(&self, at: usize, incidents: &[Incident], until: f64) -> Option<f64> {
        let from = self.streams.get(at)?.event.from.as_secs_f64();
        let is_alarm = |moment: &Moment| {
            let t = moment.at.as_secs_f64() - self.begun;
            moment.what == Happening::Surge && (from..until).contains(&t)
        };
        let alarms = incidents.iter().filter(|incident| {
            if !incident.timeline.iter().any(is_alarm) {
                return false;
            }
            incident.source.as_ref().is_none_or(|source| {
                let when = when_of(source, self.schema);
                self.matched(at, &when) >= HITS_MIN
            })
        });
        alarms
            .flat_map(|incident| &incident.timeline)
            .filter(|moment| is_alarm(moment))
            .map(|moment| moment.at.as_secs_f64() - self.begun)
            .min_by(f64::total_cmp)
    }

    /// Returns the moment from which an event's times count: when it first adds half of what was
    /// expected of its scope; the end of its ramp where it never does.
    pub(super) fn counted_from(&self, stream: &Stream) -> f64 {
        const STEP_S: f64 = 0.05;
        let event = &stream.event;
        let from = event.from.as_secs_f64();
        let scope = match event.source.get("service") {
            Some(service) => Source::everybody().with("service", service),
            None => Source::everybody(),
        };
        let when = when_of(&scope, self.schema);
        let share = self.mix.share(self.values, &when);
        let steps = ((event.until.as_secs_f64() - from) / STEP_S).min(2e6) as usize;
        for step in 0..=steps {
            let t = from + step as f64 * STEP_S;
            if event.rate_at(t) >= 0.5 * share * self.mix.moment(t).rate && event.rate_at(t) > 0.0 {
                return t;
            }
        }
        from + event.ramp.as_secs_f64()
    }
}
