//! Changes that operators make to the rules in force. Who may, and what is written to the audit trail,
//! is the admin API's business.

use serde_json::{Value, json};
use tidegate_engine::policy::Preview;
use tidegate_engine::problem::Problems;
use tidegate_engine::rules::{Mode, Origin, Rule, Rules, whole_rule};
use tidegate_engine::verdict::Name;

use super::Control;
use super::operator::{
    Idle, IdleRule, Moved, OPERATOR_BYTES_MAX, OPERATOR_RULES_MAX, OperatorRule, names, say_idle,
};
use crate::state::Done;

/// The most lines of the audit trail that one reload makes: few beside what may wait for the disk.
const MOVED_AUDITED_MAX: usize = 16;

/// Why a change is not made.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The rule is not right.
    #[error("{0}")]
    Wrong(Problems),
    /// The name is taken.
    #[error(
        "there is a rule or limit `{0}` already; revoke it first (`tidegate rules revoke {0}`), or choose \
         another name"
    )]
    Taken(Name),
    /// There is no such rule.
    #[error("there is no rule `{0}` in force; `tidegate rules list` shows those that are")]
    Unknown(String),
    /// The rule is an operator's and not in force.
    #[error("`{0}` is not in force: {1}; revoke it (`tidegate rules revoke {0}`), or mend that")]
    Idle(String, Idle),
    /// The rule is written in a file.
    #[error(
        "`{0}` is written in a file of the rules folder; change it there, and it is read again within \
         seconds"
    )]
    InAFile(String),
    /// Only the detector's rules can be approved and promoted.
    #[error("`{0}` is no detected rule, so it cannot be {1}")]
    NotDetected(String, &'static str),
    /// Too many rules.
    #[error("there are {OPERATOR_RULES_MAX} rules of operators; revoke some, or write a file")]
    Full,
    /// Too long rules.
    #[error(
        "with this one the rules of operators would take more than {} MiB; revoke some, or write a file",
        OPERATOR_BYTES_MAX >> 20
    )]
    TooMuch,
    /// The rule is on its way into a file.
    #[error("`{0}` is being written as `{1}` already; see whether that is in force in a moment")]
    Promoting(String, Name),
    /// A file cannot say what the rule says, and would hit others.
    #[error(
        "`{0}` of this rule cannot be said exactly in a file ({1}); write a rule of your own that hits whom \
         you mean"
    )]
    NotExact(String, String),
}

/// What a rule would meet if it acted, and whether somebody must insist for that.
#[derive(Clone, Debug)]
pub struct Weighed {
    /// What it would meet.
    pub preview: Preview,
    /// Whether that is so much of the normal traffic that somebody must insist.
    pub needs_force: bool,
}

/// A rule that could be added, and what it would meet.
#[derive(Debug)]
pub struct Tried {
    /// The rule.
    pub rule: OperatorRule,
    /// What it would meet.
    pub weighed: Weighed,
}

impl Control {
    /// Reads a rule and tries it on the recent requests. Changes nothing but that rules whose time is over
    /// are forgotten.
    ///
    /// # Errors
    ///
    /// The rule is not right, its name is taken, or there is no room.
    pub fn try_rule(&mut self, text: &str) -> Result<Tried, Refused> {
        let mut vocabulary = self.parts.setup.settings.vocabulary();
        let wall = self.parts.clock.wall();
        self.parts.operator.forget_ended(wall);
        let rule = OperatorRule::read(text, &mut vocabulary, wall).map_err(Refused::Wrong)?;
        let name = &rule.rule.name;
        if self.parts.operator.has(name.as_str())
            || names(&self.parts.rules).any(|other| other == name)
        {
            return Err(Refused::Taken(name.clone()));
        }
        if self.parts.operator.is_full() {
            return Err(Refused::Full);
        }
        if self.parts.operator.is_too_much(&rule) {
            return Err(Refused::TooMuch);
        }
        let weighed = self.weigh(&rule.rule);
        Ok(Tried { rule, weighed })
    }

    /// Tries a rule on the recent requests.
    pub(super) fn weigh(&self, rule: &Rule) -> Weighed {
        let (policy, now) = (self.policy(), self.parts.clock.now());
        let preview = Preview::of(rule, &self.parts.setup.recent, policy.schema(), now);
        let needs_force = preview.needs_force(rule);
        Weighed {
            preview,
            needs_force,
        }
    }

    /// Tries on the recent requests what a rule would do if it acted. Nobody must insist on what it does
    /// already. Changes nothing.
    ///
    /// # Errors
    ///
    /// There is no such rule, or it stands in a file.
    pub fn try_enforcing(&self, name: &str) -> Result<Weighed, Refused> {
        let name = match self.origin_of(name)? {
            Origin::File => return Err(Refused::InAFile(name.to_owned())),
            Origin::Operator => name,
            Origin::Detected => whole_rule(name),
        };
        let policy = self.policy();
        let in_force = policy
            .rules()
            .find(|rule| rule.rule().name.as_str() == name)
            .ok_or_else(|| Refused::Unknown(name.to_owned()))?;
        let rule = in_force.rule();
        let acting = Rule {
            mode: Mode::Enforce,
            ..rule.clone()
        };
        let mut weighed = self.weigh(&acting);
        weighed.needs_force &= rule.mode == Mode::Shadow;
        Ok(weighed)
    }

    /// Tries on the recent requests what a detected rule would do if it were approved. Changes nothing.
    ///
    /// # Errors
    ///
    /// There is no such rule, or it is not the detector's.
    pub fn try_approving(&self, name: &str) -> Result<Weighed, Refused> {
        if self.origin_of(name)? != Origin::Detected {
            return Err(Refused::NotDetected(name.to_owned(), "approved"));
        }
        self.try_enforcing(name)
    }

    /// Puts an operator's rule in force. Returns when it is kept, too.
    pub fn add_rule(&mut self, rule: OperatorRule) -> Option<Done> {
        self.parts.operator.add(rule);
        self.publish();
        self.keep_operator_rules()
    }

    /// Takes a rule back; an operator's that is idle, before the one in a file that has its name. Returns
    /// when that is kept, too.
    ///
    /// # Errors
    ///
    /// There is no such rule, or it stands in a file.
    pub fn revoke_rule(&mut self, name: &str, why: &str) -> Result<Option<Done>, Refused> {
        if self.parts.operator.remove_idle(name) {
            return Ok(self.keep_operator_rules());
        }
        match self.origin_of(name)? {
            Origin::File => Err(Refused::InAFile(name.to_owned())),
            Origin::Operator => {
                self.parts.operator.remove(name);
                self.publish();
                Ok(self.keep_operator_rules())
            }
            Origin::Detected => {
                let now = self.parts.clock.now();
                self.parts.detector.revoke(whole_rule(name), why, now);
                self.publish();
                Ok(self.keep_detected())
            }
        }
    }

    /// Takes back all detected rules. Returns how many there were, and when that is kept, too.
    pub fn revoke_detected(&mut self, why: &str) -> (usize, Option<Done>) {
        let now = self.parts.clock.now();
        let count = self.parts.detector.revoke_all(why, now);
        self.publish();
        (count, self.keep_detected())
    }

    /// Makes a rule act, or count only. Returns when that is kept, too.
    ///
    /// # Errors
    ///
    /// There is no such rule, or it stands in a file.
    pub fn set_rule_mode(
        &mut self,
        name: &str,
        mode: Mode,
        why: &str,
    ) -> Result<Option<Done>, Refused> {
        match self.origin_of(name)? {
            Origin::File => Err(Refused::InAFile(name.to_owned())),
            Origin::Operator => {
                self.parts.operator.set_mode(name, mode);
                self.publish();
                Ok(self.keep_operator_rules())
            }
            Origin::Detected => {
                let now = self.parts.clock.now();
                let name = whole_rule(name);
                self.parts.detector.set_mode_of_rule(name, mode, why, now);
                self.publish();
                Ok(self.keep_detected())
            }
        }
    }

    /// Has a detected rule act that waits for it. Returns when that is kept, too.
    ///
    /// # Errors
    ///
    /// There is no such rule, or it is not the detector's.
    pub fn approve_rule(&mut self, name: &str, why: &str) -> Result<Option<Done>, Refused> {
        if self.origin_of(name)? != Origin::Detected {
            return Err(Refused::NotDetected(name.to_owned(), "approved"));
        }
        let now = self.parts.clock.now();
        self.parts.detector.approve(whole_rule(name), why, now);
        self.publish();
        Ok(self.keep_detected())
    }

    /// Walks the operators' rules that are not in force.
    pub fn idle_rules(&self) -> impl Iterator<Item = &IdleRule> {
        self.parts.operator.idle()
    }

    /// Returns when a line of the audit trail is kept; `None` where it will not be.
    pub fn audit(&self, line: String) -> Option<Done> {
        let writer = self.parts.state_writer.as_ref()?;
        writer.audit(line)
    }

    pub(super) fn origin_of(&self, name: &str) -> Result<Origin, Refused> {
        let policy = self.policy();
        let rule = policy
            .rules()
            .find(|rule| rule.rule().name.as_str() == name);
        rule.map(|rule| rule.rule().origin).ok_or_else(|| {
            let mut idle = self.parts.operator.idle();
            match idle.find(|idle| idle.rule.name.as_str() == name) {
                Some(idle) => Refused::Idle(name.to_owned(), idle.why.clone()),
                None => Refused::Unknown(name.to_owned()),
            }
        })
    }

    /// Has the detector's rules kept. Returns when they are.
    pub(super) fn keep_detected(&mut self) -> Option<Done> {
        let (now, wall) = (self.parts.clock.now(), self.parts.clock.wall());
        let carried = self.parts.detector.carried(wall, now);
        let file = &self.parts.detected_file;
        let writer = self.parts.state_writer.as_ref()?;
        self.detected_kept = now;
        self.detected_changed = false;
        Some(writer.write(file.file(), &file.content(carried)))
    }

    fn keep_operator_rules(&mut self) -> Option<Done> {
        let wall = self.parts.clock.wall();
        self.parts.operator.forget_ended(wall);
        let writer = self.parts.state_writer.as_ref()?;
        let operator = &self.parts.operator;
        Some(writer.write(operator.file(), &operator.content(wall)))
    }

    /// Makes room for what the files say now: one name is one rule, and the file's is the newer word.
    /// Detected rules that have become files end.
    pub(super) fn give_way_to(&mut self, rules: &Rules) {
        let moved = self.parts.operator.make_way(rules);
        self.tell_moved(&moved);
        self.give_way_to_promoted(rules);
    }

    /// Says which operators' rules the files and settings have put out of force, or back into it, in the
    /// log and in the audit trail: nobody asked for it by name.
    pub(super) fn tell_moved(&self, moved: &Moved) {
        let is = |rule: &Rule| {
            json!({
                "name": rule.name, "when": rule.when_text, "action": rule.action.word(), "mode": rule.mode,
            })
        };
        let idle = moved.idle.iter().map(|(rule, why)| {
            say_idle(rule, why);
            (
                "idle",
                rule.name.as_str(),
                why.to_string(),
                (is(rule), Value::Null),
            )
        });
        let back = moved.back.iter().map(|rule| {
            tracing::warn!(
                rule = rule.name.as_str(),
                "an operator's rule is in force again"
            );
            let why = "what stood in its way is gone".to_owned();
            (
                "in_force_again",
                rule.name.as_str(),
                why,
                (Value::Null, is(rule)),
            )
        });
        let at = humantime::format_rfc3339_millis(self.parts.clock.wall()).to_string();
        let line = |what: &str, rule: &str, why: &str, (before, after): (Value, Value)| {
            let line = json!({
                "time": at, "who": "tidegate", "peer": "", "what": what, "rule": rule, "why": why,
                "forced": false, "before": before, "after": after,
            });
            // Nobody waits for it; whether it came to the disk is seen in the metrics.
            drop(self.audit(line.to_string()));
        };
        let all: Vec<_> = idle.chain(back).collect();
        let left_out = all.len().saturating_sub(MOVED_AUDITED_MAX);
        for (what, rule, why, change) in all.into_iter().take(MOVED_AUDITED_MAX) {
            line(what, rule, &why, change);
        }
        if left_out > 0 {
            let why = format!(
                "{left_out} more operators' rules went out of force or came back; the log has all"
            );
            line("idle", "", &why, (Value::Null, Value::Null));
        }
    }
}
