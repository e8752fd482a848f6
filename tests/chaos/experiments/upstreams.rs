//! Upstreams that go wrong: U1 to U9.

mod broken;
mod silent;

pub(crate) use broken::{u3, u6, u7, u8, u9};
pub(crate) use silent::{u1, u2, u4, u5};
