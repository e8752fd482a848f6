//! The engine in virtual time, against described or recorded traffic.
//!
//! A [`Scenario`] says what is normal, what happens, and what must come of it. A [`Simulation`] plays
//! it, tick by tick of 100 ms, through the code that the proxy runs: each request is judged by a
//! [`crate::policy::Policy`] and counted by a [`crate::traffic::Recorder`], and once a tick the
//! [`crate::detect::Detector`] looks at the counts and its rules become the next policy. What came of
//! it is an [`Outcome`]. Equal scenarios give equal outcomes.
//!
//! Reads no file: whoever calls hands in the texts of scenarios, tables and rules.

mod background;
mod course;
mod draw;
mod expect;
mod load;
mod outcome;
mod read;
mod recorded;
mod scenario;
mod score;
mod sending;
mod table;
mod upstream;
mod values;
mod world;

pub use course::Shape;
pub use outcome::{Met, Outcome, RuleSeen, SurgeOutcome};
pub use scenario::{
    Background, Drawn, Draws, Event, Expectation, Instances, Kind, Scenario, TableSpec, Wanted,
    Written,
};
pub use table::{LINE_BYTES_MAX, Table, TableReader};
pub use world::{Inputs, Simulation, TICK};
