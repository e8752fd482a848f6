//! Upstreams that go wrong: U1 to U9.

mod broken;
mod dead;
mod silent;
mod slow;

pub(crate) use broken::{u3, u6, u7, u8, u9};
pub(crate) use dead::u4;
pub(crate) use silent::{u1, u2};
pub(crate) use slow::u5;
