//! More than there is room for: M1 to M5.

mod bodies;
mod crowds;
mod knee;

pub(crate) use bodies::m5;
pub(crate) use crowds::{m3, m4};
pub(crate) use knee::{m1, m2};
