//! Makes a detected rule a file of the rules folder: its text ([`text`]), in words that mean exactly what
//! the detector means ([`exact`]), written where nothing is overwritten ([`mod@write`]). The control thread
//! makes the text and notes what comes of it; the disk is waited for elsewhere.

mod exact;
mod text;
mod write;

use std::collections::HashSet;
use std::io;
use std::path::PathBuf;

use tidegate_engine::rules::{DETECTED_PREFIX, Origin, Rules, whole_rule};
use tidegate_engine::verdict::Name;

pub use self::write::Written;
use super::Control;
use super::changes::{Refused, Weighed};
use super::operator::names;

/// A detected rule as the file that it can become.
#[derive(Clone, Debug)]
pub struct Promotion {
    /// The detected rule.
    pub detected: Name,
    /// The name of the rule in the file.
    pub name: Name,
    /// What the file says.
    pub text: String,
    /// What the rule would meet if it acted for everybody.
    pub weighed: Weighed,
    folder: PathBuf,
    why: String,
}

/// A detected rule that gives way to its file.
#[derive(Debug)]
pub(super) struct GivingWay {
    detected: Name,
    filed: Name,
    why: String,
    is_written: bool,
}

impl Promotion {
    /// Writes the file. Waits for the disk.
    ///
    /// # Errors
    ///
    /// There is a file of this name, or the folder cannot be written.
    pub fn write(&self) -> io::Result<Written> {
        write::write(&self.folder, self.name.as_str(), &self.text)
    }
}

impl Control {
    /// Makes the file of a detected rule, under another name. Writes and changes nothing.
    ///
    /// # Errors
    ///
    /// There is no such rule, it is not the detector's or is being written, the name is taken or is none,
    /// or the rule cannot be said exactly in a file.
    pub fn prepare_promotion(
        &self,
        name: &str,
        new_name: Option<&str>,
        by: &str,
    ) -> Result<Promotion, Refused> {
        if self.origin_of(name)? != Origin::Detected {
            return Err(Refused::NotDetected(name.to_owned(), "promoted"));
        }
        let name = whole_rule(name);
        let under_way = |giving: &&GivingWay| giving.detected.as_str() == name;
        if let Some(giving) = self.promoted.iter().find(under_way)
            && !giving.is_written
        {
            return Err(Refused::Promoting(name.to_owned(), giving.filed.clone()));
        }
        let new_name = match new_name {
            Some(new_name) => new_name.to_owned(),
            None => format!("loop-{}", name.trim_start_matches(DETECTED_PREFIX)),
        };
        let filed = Name::new(&new_name);
        let is_promised = self.promoted.iter().any(|giving| giving.filed == filed);
        if is_promised
            || self.origin_of(&new_name).is_ok()
            || self.parts.operator.has(&new_name)
            || names(&self.parts.rules).any(|name| *name == filed)
        {
            return Err(Refused::Taken(filed));
        }
        let policy = self.policy();
        let in_force = policy
            .rules()
            .find(|rule| rule.rule().name.as_str() == name)
            .ok_or_else(|| Refused::Unknown(name.to_owned()))?;
        let rule = in_force.rule();
        let wall = self.parts.clock.wall();
        let at = humantime::format_rfc3339_seconds(wall).to_string();
        let provenance = text::Provenance {
            incident: self
                .incidents()
                .iter()
                .find(|incident| incident.rule.as_ref().is_some_and(|r| r.as_str() == name)),
            by,
            at: &at,
        };
        let mut vocabulary = self.parts.setup.settings.vocabulary();
        let conditions = exact::conditions(rule, &mut vocabulary)?;
        let text = text::rule_file(rule, &filed, &conditions, provenance);
        exact::check(&text, rule, &filed, &mut vocabulary, wall)?;
        Ok(Promotion {
            detected: Name::new(name),
            name: filed.clone(),
            text,
            weighed: self.weigh(rule),
            folder: self.parts.setup.settings.rules.path.clone(),
            why: format!("promoted to `{filed}` by {by}"),
        })
    }

    /// Notes that the file of a detected rule is being written. The detected rule ends when its file is in
    /// force, and holds until then.
    pub fn begin_promotion(&mut self, promotion: &Promotion) {
        let policy = self.policy();
        let in_force: HashSet<&Name> = policy.rules().map(|rule| &rule.rule().name).collect();
        // Never more than there are detected rules, and one for each name while it is being written.
        self.promoted.retain(|giving| {
            in_force.contains(&giving.detected) && giving.detected != promotion.detected
        });
        self.promoted.push(GivingWay {
            detected: promotion.detected.clone(),
            filed: promotion.name.clone(),
            why: promotion.why.clone(),
            is_written: false,
        });
    }

    /// Notes whether the file was written.
    pub fn end_promotion(&mut self, promotion: &Promotion, is_written: bool) {
        let is_it = |giving: &GivingWay| giving.filed == promotion.name;
        if !is_written {
            self.promoted.retain(|giving| !is_it(giving));
            return;
        }
        for giving in &mut self.promoted {
            giving.is_written |= giving.filed == promotion.name;
        }
        // The file may have been read before this was noted.
        let is_in_force = names(&self.parts.rules).any(|name| *name == promotion.name);
        if is_in_force {
            let filed = HashSet::from([promotion.name.clone()]);
            self.end_promoted(&filed);
            self.publish();
        }
    }

    /// Ends the detected rules that have become files which are in force now.
    pub(super) fn give_way_to_promoted(&mut self, rules: &Rules) {
        if self.promoted.is_empty() {
            return;
        }
        let filed: HashSet<Name> = names(rules).cloned().collect();
        self.end_promoted(&filed);
    }

    fn end_promoted(&mut self, filed: &HashSet<Name>) {
        let now = self.parts.clock.now();
        let (done, waiting): (Vec<_>, Vec<_>) = std::mem::take(&mut self.promoted)
            .into_iter()
            .partition(|giving| giving.is_written && filed.contains(&giving.filed));
        self.promoted = waiting;
        for giving in &done {
            let name = giving.detected.as_str();
            self.parts.detector.revoke(name, &giving.why, now);
        }
        if !done.is_empty() {
            drop(self.keep_detected());
        }
    }
}

#[cfg(test)]
mod tests;
