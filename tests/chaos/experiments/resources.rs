//! Too few descriptors, too little memory, no ports left: F1 to F4.

mod descriptors;
mod memory;
mod ports;

pub(crate) use descriptors::f1;
pub(crate) use memory::f2;
pub(crate) use ports::f3;

use crate::table::{Figure, Scale, Table};

/// F4: a panic costs one request. Nothing outside can make the proxy panic on purpose, and a way to
/// do so is not built in for this; every experiment fails where the proxy's log tells of a panic.
pub(crate) fn f4(_: Scale, table: &mut Table) {
    let why = "the proxy offers no way to make it panic; each experiment expects none in its log";
    table.add(Figure::fact("a panic costs one request", 0).skipped(why));
}
