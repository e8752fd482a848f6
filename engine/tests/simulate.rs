//! What simulations promise: equal seeds, equal outcomes; traffic as described; judgement by matching.

#![expect(clippy::unwrap_used, reason = "a test helper fails by panicking")]

use tidegate_engine::detect::{Incident, Nature};
use tidegate_engine::rules::Rules;
use tidegate_engine::simulate::{Inputs, Outcome, Scenario, Shape, Simulation, Table, TableReader};

fn play(text: &str, table: Option<Table>) -> Outcome {
    play_shaped(text, table, None)
}

fn play_shaped(text: &str, table: Option<Table>, shape: Option<Shape>) -> Outcome {
    let scenario = Scenario::parse("test.yaml", text).unwrap();
    let mut schema = scenario.schema();
    if let Some(table) = &table {
        table.add_attributes(&mut schema).unwrap();
    }
    let inputs = Inputs {
        table,
        shape,
        rules: Rules::default(),
        schema,
    };
    Simulation::new(scenario, inputs).play(|_| {})
}

fn table(text: &str) -> Table {
    let mut reader = TableReader::new("counts.csv");
    for line in text.lines() {
        assert!(reader.line(line));
    }
    reader.finish().unwrap()
}

const LOOP: &str = "
name: loop
seed: 5
duration: 50s
services: [chat, kb]
detection: { warmup: 10s }
background:
  rate: 300/s
  clients: 6000
  attributes:
    sdk: { android: 5, ios: 4 }
    app: { zipf: { values: 100, prefix: app- } }
events:
  - surge: loop
    from: 10s
    until: 20s
    rate: 3000/s
    source: { app: acme, sdk: android }
    clients: 500
";

#[test]
fn equal_seeds_give_equal_outcomes_and_others_do_not() {
    let said = |text: &str| format!("{:?}", play(text, None));
    assert_eq!(said(LOOP), said(LOOP));
    assert_ne!(said(LOOP), said(&LOOP.replace("seed: 5", "seed: 6")));
}

#[test]
fn a_surge_is_counted_timed_and_judged() {
    let outcome = play(LOOP, None);
    let surge = &outcome.surges[0];
    assert!(
        (29_000..31_000).contains(&surge.requests),
        "{}",
        surge.requests
    );
    assert!(surge.exact, "{surge:?}");
    assert!(surge.throttled_after_s.unwrap() <= surge.blocked_after_s.unwrap());
    assert!(surge.blocked_after_s.unwrap() < surge.released_after_s.unwrap());
    assert!(surge.bad_refused_ratio > 0.5, "{surge:?}");
    assert_eq!((outcome.rules_installed, outcome.false_rules), (1, 0));
    let expected = 15_000.0 + surge.requests as f64;
    assert!((outcome.requests as f64 / expected - 1.0).abs() < 0.05);
}

/// The negative control: without a detector nothing is refused.
#[test]
fn without_detection_nothing_is_refused() {
    let off = LOOP.replace("{ warmup: 10s }", "{ warmup: 10s, mode: off }");
    let surge = play(&off, None).surges.remove(0);
    assert!(surge.bad_refused_ratio < f64::EPSILON);
    assert_eq!(surge.source_found, None);
    assert!(!surge.exact);
}

#[test]
fn a_table_played_faster_keeps_its_rate() {
    let counts = table("ts,app,count\n0,a,6000\n60,a,6000\n120,b,18000\n180,b,18000\n");
    for speed in [1, 10] {
        let text = format!(
            "name: t\nduration: {}s\ncold: true\nbackground: {{ table: counts.csv, speed: {speed} }}\n",
            240 / speed
        );
        let outcome = play(&text, Some(counts.clone()));
        // The mean of 100 and 300 requests a second.
        let rate = outcome.requests as f64 / outcome.duration_s;
        assert!((rate / 200.0 - 1.0).abs() < 0.05, "{speed}: {rate}");
    }
    let text = "name: t\nduration: 24s\ncold: true\nbackground: { table: counts.csv, speed: 10, rate: 50/s }\n";
    let scaled = play(text, Some(counts));
    let rate = scaled.requests as f64 / scaled.duration_s;
    assert!((rate / 50.0 - 1.0).abs() < 0.1, "{rate}");
}

/// The same clients once sent as many times more: then a crowd was a loop of everybody.
#[test]
fn where_a_shape_rises_more_clients_come_each_as_usual() {
    let counts = table("ts,app,count\n0,a,30000\n60,a,30000\n120,a,30000\n180,a,30000\n");
    // 150 requests a second in the training and for 20 s, 750 from then on.
    let header = std::iter::once("period,count".to_owned());
    let periods = (0..40).map(|period| {
        let count = if period < 36 { 100 } else { 500 };
        format!("{},{count}", period * 20)
    });
    let lines: Vec<String> = header.chain(periods).collect();
    let shape = Shape::parse("shape.csv", &lines.join("\n")).unwrap();
    let text = "name: t\nduration: 30s\ndetection: { warmup: 60s }\n\
                background: { table: counts.csv, rate: 200/s, begin: 710s }\n";
    let outcome = play_shaped(text, Some(counts), Some(shape));
    let incident = outcome.incidents.first().unwrap();
    let crowd = |incident: &Incident| incident.nature == Some(Nature::Crowd);
    assert!(crowd(incident), "{incident:?}");
}

#[test]
fn everything_wrong_in_a_scenario_is_said_at_once() {
    let text = "name: x\nduration: 5\nbackground: { rate: nan, attributes: { sdk: { a: -1 } } }\nevents:\n  - surge: s\n    rate: 5/s\n    source: {}\n";
    let problems = Scenario::parse("a.yaml", text).unwrap_err().to_string();
    assert_eq!(
        problems,
        "a.yaml:2:11: `duration`: `5` has no unit; write it like `250ms`, `15s`, `10m`, `2h` or `1d`\n\
         a.yaml:3:21: the background: `rate`: `nan` is not a rate; write it like `20/s`, `600/m` or `10/h`\n\
         a.yaml:3:50: the background: `a`: `-1` is not a number from 0 to 1000000000; write it like `1.5`\n\
         a.yaml:7:13: surge `s`: `source` is empty; write it like `{ app: acme }`"
    );
}

#[test]
fn a_table_that_is_none_says_where_and_why() {
    let mut reader = TableReader::new("t.csv");
    for line in ["ts,app,count", "1,a,NaN", "2,a,-5", "x,a,1", "3,a"] {
        reader.line(line);
    }
    let problems = reader.finish().unwrap_err().to_string();
    let places: Vec<&str> = problems
        .lines()
        .filter_map(|line| line.split(' ').next())
        .collect();
    assert_eq!(
        places,
        ["t.csv:2:5:", "t.csv:3:5:", "t.csv:4:1:", "t.csv:5:1:"]
    );
}
