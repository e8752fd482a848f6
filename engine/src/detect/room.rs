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

/// The part of the normal traffic under it that a throttle counts as refusing.
const THROTTLED_HIT: f64 = 0.1;

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
        let mut spent = self.spent_besides(&[]);
        let budget = self.spec.budget - self.hit(cause.collateral);
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
            spent -= self.hit(measure.collateral);
            room.leaving.push(at);
        }
        if spent > budget {
            return Err(format!(
                "all detected rules together would hit {:.1} % of normal traffic, more than the \
                 budget, and those in force stop more",
                100.0 * (spent + self.hit(cause.collateral))
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

    /// Returns which share of normal traffic the rules in force may refuse, but for those at `places`.
    pub(super) fn spent_besides(&self, places: &[usize]) -> f64 {
        let measures = self.measures.iter().enumerate();
        let others = measures.filter(|(at, measure)| !measure.shares && !places.contains(at));
        others
            .map(|(_, measure)| self.hit(measure.collateral))
            .sum()
    }

    /// Returns which share of normal traffic a rule may refuse. One that may never block lets through
    /// what is usual, the known first: it refuses strangers while the source is at its upper bound.
    pub(super) fn hit(&self, collateral: f64) -> f64 {
        if collateral > self.spec.collateral_max {
            THROTTLED_HIT * collateral
        } else {
            collateral
        }
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
                        && literals.iter().any(|other| {
                            measure.pattern.without(*other) == wider
                                && other.column == literal.column
                        })
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::attribute::{AttributeId, Schema};
    use crate::detect::DetectionSpec;
    use crate::detect::act::{Opinion, Stage, name_of};
    use crate::detect::incident::IncidentId;
    use crate::detect::nature::Nature;
    use crate::detect::pattern::Literal;
    use crate::source::Source;
    use crate::time::Instant;

    fn detector() -> Detector {
        Detector::new(Arc::new(Schema::built_in()), DetectionSpec::default(), 1)
    }

    fn agent(detector: &Detector, value: u32) -> Literal {
        let column = detector.columns.of_attribute(AttributeId::USER_AGENT);
        Literal {
            column: column.unwrap(),
            value,
        }
    }

    fn fingerprint(detector: &Detector, value: u32) -> Literal {
        let column = detector.columns.of_attribute(AttributeId::JA4);
        Literal {
            column: column.unwrap(),
            value,
        }
    }

    fn cause(pattern: Pattern, observed: f64, collateral: f64) -> Cause {
        Cause {
            pattern,
            observed,
            expected: 0.0,
            coverage: 1.0,
            collateral,
            collateral_of_service: collateral,
        }
    }

    fn put_in_force(detector: &mut Detector, pattern: Pattern, offered: f64, collateral: f64) {
        let incident = IncidentId(detector.measures.len() as u64 + 1);
        detector.measures.push(Measure {
            incident,
            name: name_of(incident),
            pattern,
            services: Vec::new(),
            said: None,
            address: None,
            shares: false,
            made: Instant::ZERO,
            began: Instant::ZERO,
            source: Source::everybody(),
            nature: Nature::Loop,
            opinion: Opinion::new(Nature::Loop, Instant::ZERO),
            expected: 0.0,
            held: 0.0,
            floor: 20.0,
            upper_bound: 0.0,
            collateral,
            usual_per_instance: 1.0,
            observed: offered,
            offered,
            ttl: Duration::from_mins(1),
            stage: Stage::Block,
            ramped: 0,
            eased: false,
            pure_since: None,
            calm_since: None,
            renewed: Instant::ZERO,
        });
    }

    #[test]
    fn a_large_loop_takes_the_place_of_the_smallest_of_as_many_as_there_may_be() {
        let mut detector = detector();
        for at in 0..MEASURES_MAX as u32 {
            let pattern = Pattern::default().with(agent(&detector, at + 1));
            put_in_force(&mut detector, pattern, f64::from(100 + at), 0.0);
        }
        let pattern = Pattern::default().with(agent(&detector, 1000));
        let large = cause(pattern.clone(), 10_000.0, 0.0);
        assert_eq!(detector.room_for(&large).unwrap().leaving, [0]);
        let small = cause(pattern, 100.0, 0.0);
        assert!(detector.room_for(&small).is_err());
    }

    #[test]
    fn a_large_loop_gets_the_budget_that_small_ones_use() {
        let mut detector = detector();
        for at in 0..12 {
            let pattern = Pattern::default().with(agent(&detector, at + 1));
            put_in_force(&mut detector, pattern, 100.0, 0.008);
        }
        let pattern = Pattern::default().with(agent(&detector, 1000));
        let large = cause(pattern.clone(), 10_000.0, 0.01);
        let room = detector.room_for(&large).unwrap();
        assert_eq!(room.leaving.len(), 1, "{room:?}");
        assert!(
            detector
                .room_for(&cause(pattern.clone(), 120.0, 0.01))
                .is_err()
        );
        let alone_too_much = cause(pattern, 1e6, 2.0);
        assert!(detector.room_for(&alone_too_much).is_err());
    }

    #[test]
    fn rules_that_differ_in_one_value_have_a_wider_source_in_common() {
        let mut detector = detector();
        let shared = fingerprint(&detector, 7);
        let with_agent =
            |detector: &Detector, at| Pattern::default().with(shared).with(agent(detector, at));
        for at in 0..2 {
            let pattern = with_agent(&detector, at + 1);
            put_in_force(&mut detector, pattern, 100.0, 0.0);
        }
        let third = with_agent(&detector, 9);
        let (wider, places) = detector.siblings(&third).unwrap();
        assert_eq!(
            (wider, places),
            (Pattern::default().with(shared), vec![1, 0])
        );
        let other = Pattern::default()
            .with(fingerprint(&detector, 8))
            .with(agent(&detector, 9));
        assert_eq!(detector.siblings(&other), None);
    }
}
