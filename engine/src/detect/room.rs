//! Which rules there is room for: so many at a time, and together so much of normal traffic. Who
//! offers more above what is expected goes first, whoever came first: many small loops must not keep
//! a large one from its rule.

use super::Detector;
use super::act::Measure;
use super::blame::Cause;
use super::pattern::Pattern;

/// The most rules at a time.
pub(super) const MEASURES_MAX: usize = 64;

/// How many times the excess of the rules that give way a cause must have, so that two of a size do
/// not push each other out in turns.
const LARGER_MIN: f64 = 1.5;

/// From how many rules on that differ in one value of one attribute a wider one takes their place.
const MERGED_MIN: usize = 3;

/// What must be done before a cause gets its rule.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Room {
    /// Places of the rules that give way, in descending order.
    pub(super) leaving: Vec<usize>,
}

impl Detector {
    /// Returns which rules give way to a cause, or in words why there is no room for it.
    pub(super) fn room_for(&self, cause: &Cause) -> Result<Room, String> {
        let gain = cause.observed - cause.expected;
        let own = |measure: &&Measure| !measure.shares;
        let mut count = self.measures.iter().filter(own).count();
        let mut spent: f64 = self
            .measures
            .iter()
            .filter(own)
            .map(|measure| measure.collateral)
            .sum();
        let budget = self.spec.budget - cause.collateral;
        let mut smallest: Vec<(usize, &Measure)> = self
            .measures
            .iter()
            .enumerate()
            .filter(|(_, measure)| !measure.shares)
            .collect();
        smallest.sort_by(|a, b| a.1.excess().total_cmp(&b.1.excess()).then(b.0.cmp(&a.0)));
        let mut room = Room::default();
        let mut lost = 0.0;
        for (at, measure) in smallest {
            if count < MEASURES_MAX && spent <= budget {
                break;
            }
            // Where only the budget is short, who does not use it need not go.
            if count < MEASURES_MAX && measure.collateral <= 0.0 {
                continue;
            }
            lost += measure.excess();
            if lost * LARGER_MIN > gain {
                break;
            }
            count -= 1;
            spent -= measure.collateral;
            room.leaving.push(at);
        }
        if spent > budget {
            return Err(format!(
                "all detected rules together would hit {:.1} % of normal traffic, more than the \
                 budget, and those in force stop more",
                100.0 * (spent + cause.collateral)
            ));
        }
        if count >= MEASURES_MAX {
            return Err(format!(
                "there are {MEASURES_MAX} detected rules, and those stop more"
            ));
        }
        room.leaving.sort_unstable_by(|a, b| b.cmp(a));
        Ok(room)
    }

    /// Returns the wider source that a cause and rules in force have in common, and the places of
    /// those rules in descending order: where several differ in the value of one attribute alone,
    /// whoever floods changes that value.
    pub(super) fn siblings(&self, cause: &Pattern) -> Option<(Pattern, Vec<usize>)> {
        cause
            .literals()
            .iter()
            .filter_map(|literal| {
                let wider = cause.without(*literal);
                if wider.who(&self.columns).is_everybody() {
                    return None;
                }
                let is_sibling = |measure: &Measure| {
                    let literals = measure.pattern.literals();
                    measure.address.is_none()
                        && !measure.shares
                        && measure.nature.is_misbehaviour()
                        && literals.len() == cause.literals().len()
                        && literals
                            .iter()
                            .any(|other| measure.pattern.without(*other) == wider
                                && other.column == literal.column)
                };
                let places: Vec<usize> = (0..self.measures.len())
                    .rev()
                    .filter(|at| self.measures.get(*at).is_some_and(is_sibling))
                    .collect();
                (places.len() + 1 >= MERGED_MIN).then_some((wider, places))
            })
            .max_by_key(|(_, places)| places.len())
    }
}
