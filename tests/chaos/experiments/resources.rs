//! Too few descriptors, too little memory, no ports left: F1 to F4.

mod descriptors;
mod memory;
mod ports;

pub(crate) use descriptors::f1;
pub(crate) use memory::f2;
pub(crate) use ports::f3;

use crate::table::{Figure, Scale, Table};

/// F4: a panic costs one request. Nothing outside can make the built program panic on purpose, so
/// that is tested inside (`src/app/tests.rs`); every experiment fails where the log tells of a panic.
pub(crate) fn f4(_: Scale, table: &mut Table) {
    let why = "tested in src/app/tests.rs; no experiment here may leave a panic in the log";
    table.add(Figure::fact("a panic costs one request", 0).skipped(why));
}
