//! Which sources had a rule before. Who comes back soon finds the rule still there; who comes back
//! within a day is watched for longer.

use std::time::Duration;

use super::act::{Measure, PURITY_MIN};
use super::nature::Nature;
use super::pattern::Pattern;
use crate::rules::DETECTED_TTL;
use crate::source::Source;
use crate::time::Instant;

/// The longest that a rule lives without its source offering more.
const TTL_MAX: Duration = Duration::from_hours(1);

/// After which time a source is a stranger again.
const FORGOTTEN_AFTER: Duration = Duration::from_hours(24);

/// The most sources whose recurrence is remembered.
const PAST_MAX: usize = 256;

/// The most released rules that are kept, each for its `ttl`: 32 × about 1 KiB.
const DORMANT_MAX: usize = 32;

/// For how long a source is not acted upon by itself again after its rule was withdrawn.
const SPARED_FOR: Duration = Duration::from_mins(5);

/// For how long a source is left alone after an operator took its rule back, and of how many that is
/// remembered: of 64 × about 1 KiB the oldest goes first.
pub(super) const LEFT_ALONE_FOR: Duration = Duration::from_mins(10);
const LEFT_ALONE_MAX: usize = 64;

/// A source whose rule an operator took back.
#[derive(Debug)]
struct LeftAlone {
    source: Source,
    /// What matches it, and the requests per second that are expected of that; `None` where the rule was
    /// for one address or for all, which cannot be left out of what is seen.
    seen: Option<(Pattern, f64)>,
    since: Instant,
}

/// Released rules.
#[derive(Debug, Default)]
pub(super) struct Past {
    sources: Vec<(Source, Duration, Instant)>,
    dormant: Vec<Measure>,
    withdrawn: Vec<(Source, Instant)>,
    left_alone: Vec<LeftAlone>,
}

impl Past {
    /// Returns how long a rule for the source lives: twice as long as the last one.
    pub(super) fn ttl(&self, source: &Source, now: Instant) -> Duration {
        self.sources
            .iter()
            .find(|(past, _, at)| past == source && now.since(*at) < FORGOTTEN_AFTER)
            .map_or(DETECTED_TTL, |(_, ttl, _)| (*ttl * 2).min(TTL_MAX))
    }

    /// Walks the sources that had a rule, with its `ttl` and when it ended.
    pub(super) fn recurring(&self) -> impl Iterator<Item = (&Source, Duration, Instant)> {
        let sources = self.sources.iter();
        sources.map(|(source, ttl, at)| (source, *ttl, *at))
    }

    /// Remembers that a source had a rule.
    pub(super) fn recur(&mut self, source: Source, ttl: Duration, at: Instant) {
        if self.sources.len() < PAST_MAX {
            self.sources.push((source, ttl.min(TTL_MAX), at));
        }
    }

    /// Remembers a released rule, unless it was a crowd's. One against a known misbehaviour sleeps until
    /// its `ttl` is over.
    pub(super) fn remember(&mut self, measure: Measure, now: Instant) {
        if measure.nature == Nature::Crowd {
            return;
        }
        self.sources
            .retain(|(past, _, at)| *past != measure.source && now.since(*at) < FORGOTTEN_AFTER);
        if self.sources.len() >= PAST_MAX {
            self.sources.remove(0);
        }
        self.sources
            .push((measure.source.clone(), measure.ttl, now));
        if measure.nature.is_sure() {
            if self.dormant.len() >= DORMANT_MAX {
                self.dormant.remove(0);
            }
            self.dormant.push(measure);
        }
    }

    /// Remembers that a rule for the source refused the wrong ones, `at` some time before `now`.
    pub(super) fn withdraw(&mut self, source: &Source, at: Instant, now: Instant) {
        self.withdrawn
            .retain(|(past, at)| past != source && now.since(*at) < SPARED_FOR);
        if self.withdrawn.len() >= PAST_MAX {
            self.withdrawn.remove(0);
        }
        self.withdrawn.push((source.clone(), at));
    }

    /// Walks the sources whose rules refused the wrong ones, and when that was.
    pub(super) fn withdrawn(&self) -> impl Iterator<Item = (&Source, Instant)> {
        self.withdrawn.iter().map(|(source, at)| (source, *at))
    }

    /// Returns whether a rule for the source was withdrawn lately.
    pub(super) fn was_withdrawn(&self, source: &Source, now: Instant) -> bool {
        self.withdrawn
            .iter()
            .any(|(past, at)| past == source && now.since(*at) < SPARED_FOR)
    }

    /// Remembers that an operator took a rule back: its source does not find it again, nor get another.
    pub(super) fn leave_alone(&mut self, measure: Measure, now: Instant) {
        self.supersede(&measure.source);
        let is_seen = measure.address.is_none() && !measure.shares;
        let seen = is_seen.then_some((measure.pattern, measure.held));
        self.go_on_leaving_alone(measure.source, seen, now);
    }

    /// Leaves a source alone from `since` on, which may be of before a restart.
    pub(super) fn go_on_leaving_alone(
        &mut self,
        source: Source,
        seen: Option<(Pattern, f64)>,
        since: Instant,
    ) {
        self.left_alone.retain(|past| past.source != source);
        if self.left_alone.len() >= LEFT_ALONE_MAX {
            self.left_alone.remove(0);
        }
        self.left_alone.push(LeftAlone {
            source,
            seen,
            since,
        });
    }

    /// Walks the sources that are left alone, what matches each, and since when.
    pub(super) fn all_left_alone(
        &self,
    ) -> impl Iterator<Item = (&Source, Option<&(Pattern, f64)>, Instant)> {
        let all = self.left_alone.iter();
        all.map(|past| (&past.source, past.seen.as_ref(), past.since))
    }

    /// Forgets the sources that were left alone for long enough.
    pub(super) fn forget_left_alone(&mut self, now: Instant) {
        self.left_alone
            .retain(|past| now.since(past.since) < LEFT_ALONE_FOR);
    }

    /// Returns whether an operator took back the rule for the source lately.
    pub(super) fn is_left_alone(&self, source: &Source) -> bool {
        self.left_alone.iter().any(|past| past.source == *source)
    }

    /// Walks what matches the sources that are left alone, with what is expected of each.
    pub(super) fn left_alone(&self) -> impl Iterator<Item = (&Pattern, f64)> {
        let seen = self.left_alone.iter().filter_map(|past| past.seen.as_ref());
        seen.map(|(pattern, held)| (pattern, *held))
    }

    /// Returns whether any rule sleeps.
    pub(super) fn has_sleepers(&self) -> bool {
        !self.dormant.is_empty()
    }

    /// Takes out the sleeping rules whose source is back, given the requests per second that each
    /// offers, and forgets those whose `ttl` is over.
    pub(super) fn wake(&mut self, now: Instant, offered: impl Fn(&Measure) -> f64) -> Vec<Measure> {
        self.dormant
            .retain(|measure| now.since(measure.renewed) < measure.ttl);
        let is_back = |measure: &mut Measure| {
            measure.offered = offered(measure);
            let purity = measure.excess() / measure.offered.max(f64::MIN_POSITIVE);
            !measure.is_calm(measure.offered) && purity >= PURITY_MIN
        };
        self.dormant.extract_if(.., is_back).collect()
    }

    /// Lets a rule sleep on for which there was no room, or that slept before a restart, unless others have
    /// taken its place meanwhile.
    pub(super) fn put_back(&mut self, measure: Measure) {
        if self.dormant.len() < DORMANT_MAX {
            self.dormant.push(measure);
        }
    }

    /// Walks the sleeping rules.
    pub(super) fn sleeping(&self) -> impl Iterator<Item = &Measure> {
        self.dormant.iter()
    }

    /// Forgets the sleeping rules that a new one makes superfluous.
    pub(super) fn supersede(&mut self, source: &Source) {
        self.dormant.retain(|measure| measure.source != *source);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_a_stranger_again_after_a_day_without_a_rule() {
        let source = Source::everybody().with("app", "acme");
        let ended = Instant::from_secs_f64(1000.0);
        let mut past = Past::default();
        past.recur(source.clone(), Duration::from_mins(4), ended);
        let ttl = |hours| past.ttl(&source, ended + Duration::from_hours(hours));
        assert_eq!(ttl(23), Duration::from_mins(8));
        assert_eq!(ttl(24), DETECTED_TTL);
        let other = Source::everybody().with("app", "globex");
        assert_eq!(past.ttl(&other, ended), DETECTED_TTL);
    }
}
