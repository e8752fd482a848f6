//! What happens when things go wrong, measured from outside: the built program between open-loop
//! clients and upstreams that freeze, break, drown and come back. Each figure is taken before, during
//! and after the fault, beside what was promised, and once more without the defence, or where it cannot be
//! taken away, without the fault or without the proxy.
//!
//! The short forms are ordinary tests and claim facts only: who was served, what was answered, what
//! was held in memory. `make chaos` runs the whole, times included, and prints one table.

#[path = "../support/program.rs"]
mod program;

mod background;
mod clients;
mod experiments;
mod fault_proxy;
mod network;
mod outcomes;
mod proxy;
mod settings;
mod stage;
mod table;
mod upstream;
mod wire;

use std::sync::{Mutex, PoisonError};

use experiments::{EXPERIMENTS, Experiment, fairness, overload, resources, upstreams};
use table::{Scale, Table};

/// Which experiments `make chaos` runs, by their names: `TIDEGATE_CHAOS="U1 M2"`. All, if not set.
const CHOICE: &str = "TIDEGATE_CHAOS";

/// Each loads the machine by itself. (Where every test has a process of its own, see
/// `.config/nextest.toml`.)
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Runs the short form of an experiment.
#[track_caller]
fn short(experiment: Experiment) {
    // One that failed leaves nothing behind that would matter.
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mut table = Table::default();
    experiments::prepare();
    experiment(Scale::Short, &mut table);
    table.expect_facts();
}

#[test]
#[ignore = "minutes; `make chaos`"]
fn every_promise_is_held() {
    let choice = std::env::var(CHOICE).unwrap_or_default();
    let chosen: Vec<&str> = choice.split_whitespace().collect();
    for name in &chosen {
        let is_known = EXPERIMENTS.iter().any(|(id, ..)| id == name);
        assert!(is_known, "{CHOICE}: there is no experiment `{name}`");
    }
    experiments::prepare();
    let mut table = Table::default();
    for (id, what, experiment) in EXPERIMENTS {
        if chosen.is_empty() || chosen.contains(id) {
            table.begin(id, what);
            experiment(Scale::Full, &mut table);
        }
    }
    table.print();
    assert_eq!(
        table.missed(),
        0,
        "promises were missed, or not shown to be ours"
    );
}

#[test]
fn u1_a_frozen_upstream_costs_its_own_service_only() {
    short(upstreams::u1);
}

#[test]
fn u2_bodies_that_nobody_reads_stay_with_their_clients() {
    short(upstreams::u2);
}

#[test]
fn u3_an_upstream_that_resets_is_never_taken_for_one_that_answered() {
    short(upstreams::u3);
}

#[test]
fn u4_a_dead_connection_costs_the_one_request_that_met_it() {
    short(upstreams::u4);
}

#[test]
fn u5_slow_answers_and_slow_readers_cost_little_each() {
    short(upstreams::u5);
}

#[test]
fn u6_garbage_is_told_and_reaches_nobody() {
    short(upstreams::u6);
}

#[test]
fn u7_a_connection_closed_as_it_is_used_costs_no_error() {
    short(upstreams::u7);
}

#[test]
fn u8_an_upstream_that_refuses_is_told_at_once() {
    short(upstreams::u8);
}

#[test]
fn u9_what_a_wire_does_is_told_or_only_slow() {
    short(upstreams::u9);
}

#[test]
fn m1_beyond_the_knee_as_much_is_served_as_at_it() {
    short(overload::m1);
}

#[test]
fn m2_clients_that_send_again_do_not_keep_a_service_down() {
    short(overload::m2);
}

#[test]
fn m3_a_broken_sdk_is_held_to_its_limit_and_nobody_else_notices() {
    short(overload::m3);
}

#[test]
fn m4_everybody_who_reconnects_is_answered() {
    short(overload::m4);
}

#[test]
fn m5_large_bodies_cost_small_calls_no_error() {
    short(overload::m5);
}

#[test]
fn fairness_a_flood_is_held_off() {
    short(fairness::share);
}

#[test]
fn f1_with_no_descriptor_left_the_proxy_comes_back() {
    short(resources::f1);
}

#[test]
fn f2_attacks_on_memory_have_a_ceiling() {
    short(resources::f2);
}

#[test]
fn f3_with_no_port_left_the_proxy_comes_back() {
    short(resources::f3);
}
