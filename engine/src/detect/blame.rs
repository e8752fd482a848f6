//! Which sources explain a surge? Runs on alarm only.
//!
//! [`search`] finds the conjunction of values with the most excess for the least normal traffic;
//! [`describe`] turns it into the source that people would name; what a mere shift of the mix explains
//! is refused. Then its traffic is taken out and the rest searched again.

mod describe;
mod search;
mod table;

pub(super) use table::Table;

use table::{Majors, Row, Sums};

use super::gate::floor_of;
use super::pattern::{Literal, Pattern};
use crate::attribute::Side;
use crate::traffic::Columns;

/// The most causes of one surge.
const CAUSES_MAX: usize = 8;

/// The most refused candidates that are kept for people.
pub(super) const REJECTED_MAX: usize = 16;

/// Share of the surge below which a cause is not worth a rule.
const COVERAGE_MIN: f64 = 0.1;

/// How much normal traffic weighs against excess. First what is nearly pure (more than five times
/// what was expected), then what at least doubled.
/// Last what is so large that even all of the surge is less than what it usually sends: then only if
/// the others stand still.
const LAMBDAS: [f64; 3] = [4.0, 1.0, 0.25];

/// How many times what was expected must have come from a cause, and from it for each time that came
/// from its siblings: where everybody sends five times as much, somebody always sends six.
const RISE_MIN: f64 = 2.0;

/// The same of a source that sends much in any case, and up to how many times what was expected all
/// others may then have sent: whether it rose or everybody did is hard to tell from so little.
const RISE_OF_MANY_MIN: f64 = 1.4;
const OTHERS_RISE_MAX: f64 = 1.1;

/// Share of normal traffic from which on a source is everybody by another name.
const MOST_OF_EVERYBODY: f64 = 0.5;

/// Share of a cause's excess that each more general source must show too, everybody included. A
/// version that replaces another has excess, everybody has none.
const PARENT_EXCESS_MIN: f64 = 0.5;

/// What blame needs to know of the rest.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms<'a> {
    pub(super) columns: &'a Columns,
    /// Requests per second that are no surge.
    pub(super) floor_per_second: f64,
    /// Variance / mean of everybody's counts.
    pub(super) dispersion: f64,
    /// The column of the service.
    pub(super) service: usize,
}

/// A source that explains part of a surge.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Cause {
    pub(super) pattern: Pattern,
    /// Requests per second.
    pub(super) observed: f64,
    /// Requests per second.
    pub(super) expected: f64,
    /// Share of the surge that it explains.
    pub(super) coverage: f64,
    /// Share of normal traffic that a rule would hit.
    pub(super) collateral: f64,
    /// The same of the service that most of it goes to.
    pub(super) collateral_of_service: f64,
}

/// A source that was considered and refused.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Refused {
    pub(super) pattern: Pattern,
    pub(super) why: String,
}

/// What blame found.
#[derive(Clone, Debug, Default)]
pub(super) struct Blame {
    pub(super) causes: Vec<Cause>,
    pub(super) refused: Vec<Refused>,
    /// How many sources were considered.
    pub(super) considered: u32,
}

impl Blame {
    fn refuse(&mut self, pattern: Pattern, why: String) {
        let known = self
            .refused
            .iter()
            .any(|refused| refused.pattern == pattern);
        if self.refused.len() < REJECTED_MAX && !known {
            self.refused.push(Refused { pattern, why });
        }
    }
}

/// Finds the sources that explain the excess of `table`; `services` are the alarmed ones, searched by
/// themselves when everybody together shows no surge.
pub(super) fn blame(table: &Table, services: &[Literal], terms: &Terms<'_>) -> Blame {
    let mut found = Blame::default();
    let roots = std::iter::once(Pattern::default()).chain(
        services
            .iter()
            .map(|service| Pattern::default().with(*service)),
    );
    let mut taken: Vec<Pattern> = Vec::new();
    for root in roots {
        let within = |row: &Row| {
            root.matches(&row.key) && !taken.iter().any(|cause| cause.matches(&row.key))
        };
        let rows = table.pick(within);
        let surge = table.sum(&rows);
        let noise = 3.0 * (terms.dispersion * surge.expected / table.seconds).sqrt();
        let floor = floor_of(table.sum_of(&root).expected, terms.floor_per_second);
        let least = (COVERAGE_MIN * surge.excess()).max(floor);
        if surge.excess() < least.max(noise) {
            continue;
        }
        let mut majors = Majors::of(table, &rows, terms.columns.len(), least);
        for pattern in taken.iter().chain([&root]) {
            majors.add(pattern);
        }
        let full = table;
        let table = &full.condensed(&majors, terms.columns.len());
        let mut rows = table.pick(within);
        while found.causes.len() < CAUSES_MAX {
            let rest = table.sum(&rows);
            if rest.excess() < least.max(noise) {
                break;
            }
            let Some(cause) = next_cause(full, table, &rows, &root, terms, least, &mut found)
            else {
                break;
            };
            rows.retain(|row| table.row(*row).is_some_and(|row| !cause.matches(&row.key)));
            let sums = table.sum_of(&cause);
            taken.push(cause.clone());
            found.causes.push(Cause {
                observed: sums.observed,
                expected: sums.expected,
                coverage: (sums.excess() / surge.excess()).clamp(0.0, 1.0),
                collateral: sums.expected / table.everybody().expected.max(f64::MIN_POSITIVE),
                collateral_of_service: collateral_of_service(full, &cause, terms.service),
                pattern: cause,
            });
        }
    }
    found
}

/// Returns the values by which a source may be narrowed and keep nearly all of its excess, with the share
/// that each keeps: the one that leaves the least of what is expected first.
pub(super) fn narrower(table: &Table, source: &Pattern, columns: &Columns) -> Vec<(Literal, f64)> {
    let rows = table.pick(|row| source.matches(&row.key));
    let all = table.sum(&rows);
    let mut found: Vec<(f64, f64, Literal)> = describe::narrower(table, &rows, source, columns)
        .into_iter()
        .map(|literal| {
            let sums = table.sum_within(&rows, &source.with(literal));
            (sums.expected, sums.excess() / all.excess(), literal)
        })
        .filter(|(expected, ..)| *expected < all.expected)
        .collect();
    found.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.2.cmp(&b.2)));
    found
        .into_iter()
        .map(|(_, kept, literal)| (literal, kept.min(1.0)))
        .collect()
}

/// Finds the one source with the most excess for the least normal traffic in `table`, which is `full`
/// condensed.
fn next_cause(
    full: &Table,
    table: &Table,
    rows: &[u32],
    root: &Pattern,
    terms: &Terms<'_>,
    least: f64,
    found: &mut Blame,
) -> Option<Pattern> {
    for lambda in LAMBDAS {
        let searched = search::search(table, rows, root, lambda, terms.columns);
        found.considered = found.considered.saturating_add(searched.considered);
        let Some(core) = searched.best else {
            continue;
        };
        let rise_min = if lambda < 1.0 {
            RISE_OF_MANY_MIN
        } else {
            RISE_MIN
        };
        let described = describe::describe(table, rows, &core, lambda, terms.columns);
        let sums = table.sum_within(rows, &described);
        if sums.excess() < least || sums.observed < rise_min * sums.expected {
            found.refuse(described, "too small a part of the surge".to_owned());
            continue;
        }
        if let Some(parent) = shift_of_the_mix(table, rows, &described, terms) {
            let than = if parent.is_everybody() {
                "the total"
            } else {
                "what it is part of"
            };
            found.refuse(
                described,
                format!("a shift of the mix: {than} has not risen with it"),
            );
            continue;
        }
        let everybody = table.everybody();
        if sums.expected > MOST_OF_EVERYBODY * everybody.expected {
            found.refuse(described, "is most of normal traffic".to_owned());
            continue;
        }
        let others = (everybody.observed - sums.observed) / (everybody.expected - sums.expected);
        if rise_min < RISE_MIN && others > OTHERS_RISE_MAX {
            let why = format!("little more than others: those have risen {others:.1} times, too");
            found.refuse(described, why);
            continue;
        }
        let siblings = rise_of_siblings(full, &described);
        if sums.observed < rise_min * siblings * sums.expected {
            let why = format!("no more than others: those have risen {siblings:.1} times, too");
            found.refuse(described, why);
            continue;
        }
        let everybody = everybody.expected.max(f64::MIN_POSITIVE);
        let shorter = |literal: &Literal| described.without(*literal);
        let single = |literal: &Literal| Pattern::default().with(*literal);
        let literals = described.literals().iter();
        for wider in literals.clone().map(shorter).chain(literals.map(single)) {
            let expected = table.sum_of(&wider).expected;
            if !wider.is_everybody() && wider != described && expected > sums.expected {
                let share = 100.0 * expected / everybody;
                found.refuse(wider, format!("would hit {share:.2} % of normal traffic"));
            }
        }
        for (other, sums_of_other) in searched.others {
            if other == described || other.literals().iter().all(|one| described.names(*one)) {
                continue;
            }
            let why = format!(
                "explains {:.0} % of what the chosen source does and would hit {:.2} % of normal \
                 traffic",
                100.0 * sums_of_other.excess() / sums.excess(),
                100.0 * sums_of_other.expected / everybody,
            );
            found.refuse(other, why);
        }
        return Some(described);
    }
    None
}

/// Returns the share of normal traffic that a rule would hit of the service that most requests of the
/// cause go to.
fn collateral_of_service(table: &Table, cause: &Pattern, service: usize) -> f64 {
    let services = table.by_value_within(service, cause);
    let busiest = services
        .into_iter()
        .max_by(|a, b| a.1.observed.total_cmp(&b.1.observed).then(b.0.cmp(&a.0)));
    busiest.map_or(0.0, |(value, sums)| {
        let literal = Literal {
            column: service,
            value,
        };
        let all = table.sum_of(&Pattern::default().with(literal)).expected;
        sums.expected / all.max(f64::MIN_POSITIVE)
    })
}

/// Returns the more general source that has not risen as it should have, if there is one.
fn shift_of_the_mix(
    table: &Table,
    rows: &[u32],
    cause: &Pattern,
    terms: &Terms<'_>,
) -> Option<Pattern> {
    let excess = table.sum_within(rows, cause).excess();
    let parents = cause
        .literals()
        .iter()
        .map(|literal| cause.without(*literal))
        .chain(std::iter::once(Pattern::default()));
    parents.into_iter().find(|parent| {
        let sums = table.sum_within(rows, parent);
        let noise = 2.0 * (terms.dispersion * sums.expected / table.seconds).sqrt();
        sums.excess() < PARENT_EXCESS_MIN * excess + noise
    })
}

/// Returns how many times what was expected came from the siblings of a cause: the other values of
/// its attributes. The median over normal traffic, so that a second cause among them does not count;
/// of several attributes the lowest; at least 1.
fn rise_of_siblings(table: &Table, cause: &Pattern) -> f64 {
    let rises = cause.literals().iter().filter_map(|named| {
        let mut siblings: Vec<Sums> = table
            .by_value(named.column)
            .into_iter()
            .filter(|(value, sums)| *value != named.value && sums.expected > 0.0)
            .map(|(_, sums)| sums)
            .collect();
        siblings.sort_by(|a, b| {
            let by_rise = a.rise().total_cmp(&b.rise());
            by_rise.then(a.expected.total_cmp(&b.expected))
        });
        let half = siblings.iter().map(|sums| sums.expected).sum::<f64>() / 2.0;
        let mut below = 0.0;
        let median = siblings.iter().find(|sums| {
            below += sums.expected;
            below >= half
        });
        median.map(Sums::rise)
    });
    rises.min_by(f64::total_cmp).unwrap_or(1.0).max(1.0)
}

/// Returns whether a column describes the client.
fn is_who(columns: &Columns, column: usize) -> bool {
    columns
        .get(column)
        .is_some_and(|column| column.side == Side::Who)
}
