//! End-to-end tests: a proxy on loopback between a raw client and a scripted upstream, both of which
//! see every byte. Decisions are tested in the engine; here the wiring is.

#[path = "../support/program.rs"]
mod program;

mod admin;
mod blame;
mod changes;
mod commands;
mod detected;
mod endpoints;
mod forwarding;
mod framing;
mod harness;
mod identity;
mod idle_rules;
mod isolation;
mod keeping;
mod refusals;
mod reload_and_drain;
mod replay;
mod rules_command;
mod settings_reload;
mod timeouts;
mod uploads;
mod upstream_faults;
mod upstream_tls;
mod watching;
mod watching_long;
