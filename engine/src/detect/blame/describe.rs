//! Turns a conjunction that separates into the source that people would name.
//!
//! What separates today may be too wide tomorrow: a version never seen before separates by itself,
//! until the next app ships it. So the source is named by every one of the operator's own client
//! attributes in which the excess shares one value ([`SHARED_MIN`]), whether or not it cuts normal
//! traffic now, except what goes without saying:
//!
//! - a value that nearly everybody has ([`COMMON_MIN`]), and
//! - a twin of a value already named: where the one is, the other nearly always is
//!   ([`TWIN_IMPLIES`]), and not only by being the larger of many ([`TWIN_BACK`]). `platform=android`
//!   is a twin of `sdk=chat-android`; `sdk=chat-android` is none of `app=acme`, even if that customer
//!   has no other client, for most of that SDK's clients are other customers'.
//!
//! A version always goes with what it is a version of: it says little by itself, and without it the
//! rule would hit the next version, which may be the repair. So what has a version is named first,
//! then the rarest value, so that of two twins the narrower remains. Fingerprints (`user_agent`,
//! `ja4`) and what is asked for (`service`, `route`, …) are added only where they spare a good part
//! of the source's normal traffic ([`CUT_MIN`]).

use ahash::AHashMap;

use super::is_who;
use super::table::{Sums, Table};
use crate::detect::pattern::{ABSENT, Literal, OTHER, Pattern};
use crate::traffic::Columns;

/// Share of the excess that has the value.
const SHARED_MIN: f64 = 0.97;

/// Share of the excess that all values together keep.
const KEPT_MIN: f64 = 0.95;

/// Share of normal traffic from which on a value says nothing.
const COMMON_MIN: f64 = 0.9;

/// Share of the one's normal traffic that also has the other.
const TWIN_IMPLIES: f64 = 0.9;

/// Share of the other's that also has the one.
const TWIN_BACK: f64 = 0.5;

/// Share of the source's normal traffic that a fingerprint or a what attribute must spare, and the
/// requests per second below which that is no more than chance: ten in ten minutes.
const CUT_MIN: f64 = 0.3;
const CUT_PER_SECOND_MIN: f64 = 1.0 / 60.0;

/// Utility that the description may lose against the conjunction, as a share of the excess.
const LOSS_MAX: f64 = 0.05;

/// Returns the source to name for `core`, found within `rows`.
pub(super) fn describe(
    table: &Table,
    rows: &[u32],
    core: &Pattern,
    lambda: f64,
    columns: &Columns,
) -> Pattern {
    let target = table.sum_within(rows, core);
    let keeps =
        |pattern: &Pattern| table.sum_within(rows, pattern).excess() >= KEPT_MIN * target.excess();
    let own = shared(
        table,
        rows,
        core,
        |at| columns.get(at).is_some_and(|column| column.own) && is_who(columns, at),
        SHARED_MIN,
        columns,
    );
    let column = |literal: &Literal| columns.get(literal.column);
    let mut own: Vec<(bool, f64, Literal)> = own
        .into_iter()
        .map(|literal| {
            let versioned = column(&literal).is_some_and(|column| column.versioned);
            let alone = Pattern::default().with(literal);
            (!versioned, table.sum_of(&alone).expected, literal)
        })
        .collect();
    own.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)).then(a.2.cmp(&b.2)));

    let mut chosen = Pattern::default();
    for (_, expected, literal) in own {
        let is_version = |literal: &Literal| column(literal).is_some_and(|column| column.version);
        let common = expected >= COMMON_MIN * table.everybody().expected;
        let twin = !is_version(&literal)
            && chosen
                .literals()
                .iter()
                .filter(|other| !is_version(other))
                .any(|other| are_twins(table, *other, literal));
        let tentative = chosen.with(literal);
        if !common && !twin && keeps(&tentative) {
            chosen = tentative;
        }
    }

    let worth = |pattern: &Pattern| table.sum_within(rows, pattern).utility(lambda);
    for literal in core.literals() {
        let loses = worth(&chosen) < target.utility(lambda) - LOSS_MAX * target.excess();
        if chosen.is_everybody() || loses {
            chosen = chosen.with(*literal);
        }
    }

    let others = shared(
        table,
        rows,
        &chosen,
        |at| !(columns.get(at).is_some_and(|column| column.own) && is_who(columns, at)),
        SHARED_MIN,
        columns,
    );
    for literal in others {
        let narrower = chosen.with(literal);
        let before = table.sum_of(&chosen).expected;
        let spared = before - table.sum_of(&narrower).expected;
        if spared >= CUT_PER_SECOND_MIN && spared >= CUT_MIN * before && keeps(&narrower) {
            chosen = narrower;
        }
    }
    chosen
}

/// Returns the values of clients, one a column, by which a source may be narrowed and keep nearly all of
/// its excess.
pub(super) fn narrower(
    table: &Table,
    rows: &[u32],
    source: &Pattern,
    columns: &Columns,
) -> Vec<Literal> {
    let is_new = |at| is_who(columns, at) && !source.names_column(at);
    shared(table, rows, source, is_new, KEPT_MIN, columns)
}

/// Returns the values that at least the share `least` of a source's excess has, one a column.
fn shared(
    table: &Table,
    rows: &[u32],
    source: &Pattern,
    takes_part: impl Fn(usize) -> bool,
    least: f64,
    columns: &Columns,
) -> Vec<Literal> {
    let target = table.sum_within(rows, source).excess();
    let mut found = Vec::new();
    for column in (0..columns.len()).filter(|at| takes_part(*at)) {
        let mut sums: AHashMap<u32, Sums> = AHashMap::new();
        for row in table.rows(rows).filter(|row| source.matches(&row.key)) {
            sums.entry(row.key.value(column)).or_default().add(row);
        }
        let literal = sums
            .into_iter()
            .filter(|(value, sums)| {
                ![ABSENT, OTHER].contains(value) && sums.excess() >= least * target
            })
            .max_by(|a, b| a.1.excess().total_cmp(&b.1.excess()).then(b.0.cmp(&a.0)))
            .map(|(value, _)| Literal { column, value });
        found.extend(literal);
    }
    found
}

/// Returns whether naming `next` besides `named` goes without saying.
fn are_twins(table: &Table, named: Literal, next: Literal) -> bool {
    let expected = |pattern: Pattern| table.sum_of(&pattern).expected;
    let named_alone = expected(Pattern::default().with(named));
    let next_alone = expected(Pattern::default().with(next));
    let both = expected(Pattern::default().with(named).with(next));
    both > 0.0 && both >= TWIN_IMPLIES * named_alone && both >= TWIN_BACK * next_alone
}
