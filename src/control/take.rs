//! Takes over what was found in the files: puts it in force, or says why not and leaves what is.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hasher as _};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tidegate_engine::problem::Problems;
use tidegate_engine::rules::Rules;
use tidegate_engine::time::Instant;

use super::{Control, Reload};
use crate::reload::Loaded;
use crate::settings::{Service, Settings};

/// The most problems of one reload that are logged line by line.
const PROBLEMS_LOGGED_MAX: usize = 100;
/// How long the same is not said again.
const SAID_AGAIN_AFTER: Duration = Duration::from_mins(1);
/// The most different things that are remembered as said.
const SAID_MAX: usize = 64;

impl Control {
    /// Takes over what was found in the files. What is not right changes nothing.
    pub fn take(&mut self, loaded: Loaded) {
        let now = self.parts.clock.wall();
        match loaded {
            Loaded::Changed { rules, settings } => {
                if let Some(settings) = settings {
                    self.take_settings(&settings);
                }
                self.take_rules(rules, now);
            }
            Loaded::Again => self.take_again(now),
            Loaded::Refused { problems, is_asked } => self.refuse(&problems, is_asked, now),
        }
    }

    /// Takes over what the settings say of detection; the rest needs a restart, which is said.
    fn take_settings(&mut self, new: &Settings) {
        let mut settings = Settings::clone(&self.parts.settings);
        settings.detection = new.detection;
        for service in &mut settings.services {
            let same = |other: &&Service| other.spec.name == service.spec.name;
            if let Some(new) = new.services.iter().find(same) {
                service.detection = new.detection;
            }
        }
        let spec = settings.detection_spec();
        let is_new = spec != *self.parts.detector.spec();
        if is_new {
            self.parts.detector.set_spec(spec);
            tracing::info!(
                mode = settings.detection.mode.word(),
                "the settings of `detection` have changed and are in force"
            );
        }
        let others = settings.differs_in(new);
        if !others.is_empty() {
            tracing::warn!(
                keys = others.join(", "),
                "these settings have changed and need a restart"
            );
        }
        self.parts.settings = Arc::new(settings);
    }

    fn take_rules(&mut self, rules: Rules, now: SystemTime) {
        let (count, limits) = (rules.rules.len(), rules.limits.len());
        self.give_way_to(&rules);
        self.parts.rules = rules;
        self.succeed(now);
        self.publish();
        tracing::info!(rules = count, limits, "the rules folder was read again");
    }

    /// The files say what is in force. Worth a word only where they had said something else.
    fn take_again(&mut self, now: SystemTime) {
        let was_refused = !self.reload.problems.is_empty();
        self.succeed(now);
        let text = "the files say what is in force, again";
        if was_refused && self.repeats.may_say(&text, self.parts.clock.now()) {
            tracing::info!("{text}");
        }
    }

    fn succeed(&mut self, now: SystemTime) {
        self.parts.metrics.reload_last_successful.set(1);
        self.reload = Reload {
            at: now,
            problems: Vec::new(),
        };
    }

    fn refuse(&mut self, problems: &Problems, is_asked: bool, now: SystemTime) {
        let metrics = &self.parts.metrics;
        metrics.reload_failures_total.inc();
        metrics.reload_last_successful.set(0);
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        // Whoever asks gets an answer, however often he asks.
        if self.repeats.may_say(&lines, self.parts.clock.now()) || is_asked {
            for line in lines.iter().take(PROBLEMS_LOGGED_MAX) {
                tracing::warn!("{line}");
            }
            tracing::warn!(
                problems = lines.len(),
                "nothing was taken over; what was good last stays in force"
            );
        }
        self.reload = Reload {
            at: now,
            problems: lines,
        };
    }
}

/// What was said lately, so that files that change all the time do not fill the log.
#[derive(Debug, Default)]
pub(super) struct Repeats {
    said: VecDeque<(u64, Instant)>,
}

impl Repeats {
    /// Returns whether something was not said within the last minute, and notes that it is now.
    fn may_say(&mut self, what: &impl std::hash::Hash, now: Instant) -> bool {
        let mut hasher = DefaultHasher::new();
        what.hash(&mut hasher);
        let what = hasher.finish();
        self.said
            .retain(|(_, at)| now.since(*at) < SAID_AGAIN_AFTER);
        if self.said.iter().any(|(said, _)| *said == what) {
            return false;
        }
        if self.said.len() >= SAID_MAX {
            self.said.pop_front();
        }
        self.said.push_back((what, now));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_said_once_a_minute_and_what_is_remembered_is_bounded() {
        let mut repeats = Repeats::default();
        let at = |seconds| Instant::ZERO + Duration::from_secs(seconds);
        assert!(repeats.may_say(&"a", at(0)));
        assert!(repeats.may_say(&"b", at(1)));
        for second in 2..60 {
            assert!(!repeats.may_say(&"a", at(second)));
        }
        assert!(repeats.may_say(&"a", at(60)));
        for number in 0..1000 {
            assert!(repeats.may_say(&number, at(61)));
        }
        assert_eq!(repeats.said.len(), SAID_MAX);
    }
}
