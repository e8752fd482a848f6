//! The proxy around the engine: sockets, HTTP, files, time, metrics.
//!
//! Two ways lead through it. A request goes through [`request`], reads one policy and waits for
//! nothing but its upstream; everything else happens in [`control`], which publishes policies, and
//! [`admin`], which shows what goes on. They meet in [`handover`] and in the traffic counters.

pub mod access_log;
pub mod admin;
mod alarm;
pub mod app;
mod bounded_file;
pub mod check;
pub mod cli;
pub mod clock;
pub mod control;
pub mod demo;
pub mod endpoint_board;
mod faults;
pub mod handover;
pub mod metrics;
mod outlet;
pub mod overload;
pub mod reload;
pub mod request;
pub mod resources;
pub mod rules_folder;
pub mod service;
pub mod settings;
pub mod setup;
pub mod state;
pub mod upstream;
