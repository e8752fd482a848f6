//! Takes over what was found in the files: puts it in force, or says why not and leaves what is.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hasher as _};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tidegate_engine::attribute::Schema;
use tidegate_engine::detect::Detector;
use tidegate_engine::problem::{Place, Problem, Problems};
use tidegate_engine::rules::Rules;
use tidegate_engine::time::Instant;

use super::{Control, Reload};
use crate::reload::Loaded;
use crate::settings::Settings;
use crate::setup::service_specs;

/// The most problems of one reload that are logged line by line.
const PROBLEMS_LOGGED_MAX: usize = 100;
/// Settings that are read at the start only.
const NEED_A_RESTART: [&str; 4] = ["listeners", "admin", "workers", "state"];
/// How long the same is not said again.
const SAID_AGAIN_AFTER: Duration = Duration::from_mins(1);
/// The most different things that are remembered as said.
const SAID_MAX: usize = 64;

impl Control {
    /// Takes over what was found in the files. What is not right changes nothing.
    pub fn take(&mut self, loaded: Loaded) {
        let now = self.parts.clock.wall();
        match loaded {
            Loaded::Changed { rules, settings } => self.take_changed(rules, settings, now),
            Loaded::Again => self.take_again(now),
            Loaded::RulesOnly {
                rules,
                problems,
                is_asked,
            } => {
                self.take_rules(rules);
                let taken =
                    "the rules were taken over; all else stays in force as it was good last";
                self.tell_refused(&problems, is_asked, taken, now);
            }
            Loaded::Refused { problems, is_asked } => self.refuse(&problems, is_asked, now),
        }
    }

    fn take_changed(&mut self, rules: Rules, settings: Option<Box<Settings>>, now: SystemTime) {
        let (count, limits) = (rules.rules.len(), rules.limits.len());
        match settings {
            None => self.take_rules(rules),
            Some(settings) => {
                if let Err(problem) = self.take_settings(*settings, rules) {
                    self.refuse(&problem.into(), true, now);
                    return;
                }
            }
        }
        self.succeed(now);
        tracing::info!(rules = count, limits, "the rules folder was read again");
    }

    /// Puts other rules in force, under the settings as they are.
    fn take_rules(&mut self, rules: Rules) {
        self.give_way_to(&rules);
        self.parts.rules = rules;
        self.publish();
    }

    /// Puts other settings in force, and the rules that were read with them.
    ///
    /// # Errors
    ///
    /// Something that they need cannot be opened. Nothing has changed then.
    fn take_settings(&mut self, mut settings: Settings, rules: Rules) -> Result<(), Problem> {
        let before = Arc::clone(&self.parts.setup);
        keep_what_needs_a_restart(&mut settings, &before.settings);
        let opened = match self.parts.ground.open(&settings, Some(&before)) {
            Ok(opened) => opened,
            Err(error) => {
                // It could be opened a moment ago, when the settings were read.
                // The rules were read with these settings, and would mean something else without them.
                let error = format!("{:#}", anyhow::Error::new(error));
                return Err(Problem::new(Place::new("settings", 1, 1), &error));
            }
        };
        let changed = before.settings.differs_in(&settings);
        let schema = if settings.schema == *before.schema {
            Arc::clone(&before.schema)
        } else {
            Arc::new(settings.schema.clone())
        };
        if !Arc::ptr_eq(&schema, &before.schema) {
            self.renew_detector(&schema);
        }
        self.parts.detector.set_spec(settings.detection_spec());
        let mut vocabulary = settings.vocabulary();
        let moved = self.parts.operator.read_again(&mut vocabulary, &rules);
        self.tell_moved(&moved);
        self.give_way_to_promoted(&rules);
        self.parts.rules = rules;
        let policy = self.compile(&schema, service_specs(&settings));
        let policy = self.parts.publisher.move_on(policy);
        if !settings.not_in_force.is_empty() {
            tracing::warn!(keys = settings.not_in_force.join(", "), "not in force yet");
        }
        let ground = &self.parts.ground;
        let setup = Arc::new(ground.setup(settings, policy, opened, Some(&before)));
        self.parts.setup = Arc::clone(&setup);
        self.parts.setups.send_replace(setup);
        self.note_published();
        if !changed.is_empty() {
            let keys = changed.join(", ");
            tracing::info!(keys, "settings have changed and are in force");
        }
        Ok(())
    }

    /// Begins detection anew: what was learnt speaks of other attributes. Incidents stay to be seen.
    fn renew_detector(&mut self, schema: &Arc<Schema>) {
        let (now, wall) = (self.parts.clock.now(), self.parts.clock.wall());
        let before = &self.parts.detector;
        let (carried, spec) = (before.carried(wall, now), before.spec().clone());
        let rules = before.rules(wall, now).len();
        let mut detector = Detector::new(Arc::clone(schema), spec, self.parts.ground.seed);
        detector.set_clock(wall, now);
        detector.carry_on(carried, "the attributes are others now", wall, now);
        self.parts.detector = detector;
        tracing::warn!(
            rules_ended = rules,
            "the attributes are others now: what is normal is learnt anew, and detected rules have ended"
        );
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
        let taken = "nothing was taken over; what was good last stays in force";
        self.tell_refused(problems, is_asked, taken, now);
    }

    /// Tells what is wrong, and what was taken over nevertheless.
    fn tell_refused(&mut self, problems: &Problems, is_asked: bool, taken: &str, now: SystemTime) {
        let metrics = &self.parts.metrics;
        metrics.reload_failures_total.inc();
        metrics.reload_last_successful.set(0);
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        // Whoever asks gets an answer, however often he asks.
        if self.repeats.may_say(&lines, self.parts.clock.now()) || is_asked {
            for line in lines.iter().take(PROBLEMS_LOGGED_MAX) {
                tracing::warn!("{line}");
            }
            tracing::warn!(problems = lines.len(), "{taken}");
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

/// Leaves what needs a restart as it is, and says so.
fn keep_what_needs_a_restart(settings: &mut Settings, before: &Settings) {
    let changed = before.differs_in(settings).into_iter();
    let keys: Vec<_> = changed.filter(|key| NEED_A_RESTART.contains(key)).collect();
    settings.listeners.clone_from(&before.listeners);
    settings.admin.clone_from(&before.admin);
    settings.workers = before.workers;
    settings.state.clone_from(&before.state);
    if !keys.is_empty() {
        let keys = keys.join(", ");
        tracing::warn!(keys, "these settings have changed and need a restart");
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
