//! What operators say of detected rules: that one acts, that it only counts, that it goes. Knows nothing
//! of who they are; what they give as a reason is told in the incident.

use std::sync::Arc;

use super::Detector;
use super::incident::Happening;
use crate::rules::Mode;
use crate::time::Instant;

/// The longest reason that is kept, in bytes. Longer ones are cut.
const WHY_MAX: usize = 256;

impl Detector {
    /// Has a rule act that only counted: one that was suggested, or put into shadow. `why` says who
    /// approves it, and for what reason. Returns whether there is a rule of that name.
    pub fn approve(&mut self, name: &str, why: &str, now: Instant) -> bool {
        self.set_mode_of_rule(name, Mode::Enforce, why, now)
    }

    /// Has a rule act, or only count, whatever it did before. Returns whether there is a rule of that
    /// name. It is so until the rule ends, and when its source is back before it was forgotten.
    pub fn set_mode_of_rule(&mut self, name: &str, mode: Mode, why: &str, now: Instant) -> bool {
        let Some(at) = self.place_of(name) else {
            return false;
        };
        let Some(measure) = self.measures.get_mut(at) else {
            return false;
        };
        let before = measure.mode(&self.spec);
        measure.said = Some(mode);
        if before != mode {
            let incident = measure.incident;
            let what = match mode {
                Mode::Enforce => Happening::Approved,
                Mode::Shadow => Happening::Shadowed,
            };
            self.incidents
                .happen_because(incident, what, reason(why), now);
            self.unpublished = true;
        }
        true
    }

    /// Takes back a rule at once. Its source is left alone for ten minutes: what it sends is no surge, and
    /// nothing is learnt from it. Returns whether there was one.
    pub fn revoke(&mut self, name: &str, why: &str, now: Instant) -> bool {
        let at = self.place_of(name);
        if let Some(at) = at {
            self.revoke_at(at, why, now);
        }
        at.is_some()
    }

    /// Takes back all rules at once, each as [`Detector::revoke`] does. Returns how many there were.
    pub fn revoke_all(&mut self, why: &str, now: Instant) -> usize {
        let count = self.measures.len();
        for at in (0..count).rev() {
            self.revoke_at(at, why, now);
        }
        count
    }

    fn revoke_at(&mut self, at: usize, why: &str, now: Instant) {
        if let Some(measure) = self.measures.get(at).cloned() {
            self.end(at, Happening::Revoked, reason(why), now);
            self.past.leave_alone(measure, now);
            self.unpublished = true;
        }
    }

    fn place_of(&self, name: &str) -> Option<usize> {
        let is_it = |measure: &super::Measure| measure.name.as_str() == name;
        self.measures.iter().position(is_it)
    }
}

/// Returns a reason as it is kept; `None` for an empty one.
fn reason(why: &str) -> Option<Arc<str>> {
    let end = why.floor_char_boundary(WHY_MAX);
    let (kept, _) = why.split_at_checked(end)?;
    (!kept.is_empty()).then(|| Arc::from(kept))
}
