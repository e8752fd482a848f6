//! `tidegate replay`: what a recorded log would have met, and what is said of files that are no logs.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use super::harness::{Folder, Setup, Upstream, tidegate};

const RULES: &str = "limits: [{ name: few, key: [app], rate: 1/h, burst: 3 }]
rules:
  - { name: no-acme, when: { app: acme }, action: block }
  - { name: trial, when: { app: other }, action: block, mode: shadow }
";

/// Serves requests with these rules; returns the folder with its log.
fn recorded(rules: &str) -> super::harness::Proxy {
    let upstream = Upstream::recording();
    let proxy = Setup {
        rules,
        ..Setup::to(upstream.address)
    }
    .start();
    for app in [
        "acme", "other", "other", "acme", "third", "other", "other", "other",
    ] {
        proxy.ask(format!(
            "GET /x HTTP/1.1\r\nHost: a\r\nX-App-Id: {app}\r\n\r\n"
        ));
    }
    proxy.log(8);
    proxy
}

fn replay(folder: &Folder, logs: &[&str]) -> (Output, serde_json::Value) {
    let at = |name: &str| folder.path().join(name).display().to_string();
    let config = at("tidegate.yaml");
    let logs: Vec<String> = logs.iter().map(|log| at(log)).collect();
    let mut arguments = vec!["replay", "--json", "--host", "a", "--config", &config];
    arguments.extend(logs.iter().map(String::as_str));
    let output = tidegate(&arguments);
    let json = serde_json::from_slice(&output.stdout).unwrap_or_default();
    (output, json)
}

/// What the proxy did under these rules is what a replay under the same rules says.
#[test]
fn a_replay_agrees_with_what_the_proxy_did() {
    let proxy = recorded(RULES);
    let (output, report) = replay(&proxy.folder, &["access.log"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(report["in_log"]["verdicts"], 8);
    assert_eq!(report["in_log"]["same"], 8, "{report}");
    assert_eq!(report["verdicts"]["block"], 2);
    assert_eq!(report["verdicts"]["limit"], 2);
}

#[test]
fn rules_that_are_not_in_force_yet_are_tried_on_what_was() {
    let proxy = recorded("rules: []\n");
    let (_, before) = replay(&proxy.folder, &["access.log"]);
    assert_eq!(before["refused"], 0, "without rules nothing is refused");
    proxy.folder.write("rules/rules.yaml", RULES);
    let (_, report) = replay(&proxy.folder, &["access.log"]);
    assert_eq!(report["in_log"]["now_refused"], 4, "{report}");
    let rules = report["rules"].as_array().expect("a list");
    let of = |name: &str| {
        let found = rules.iter().find(|rule| rule["name"] == name);
        found.unwrap_or_else(|| panic!("{name}: {report}"))
    };
    assert_eq!(of("no-acme")["refused"], 2);
    assert_eq!(of("few")["refused"], 2);
    assert_eq!(of("trial")["refused"], 0, "a shadow refuses nothing");
    assert_eq!(of("trial")["refused_in_shadow"], 5);
}

#[test]
fn combined_lines_plain_and_compressed_are_read() {
    let proxy = recorded("rules: [{ name: r, when: { app: acme }, action: block }]\n");
    let line = |second: u32, app: &str| {
        format!(
            "192.0.2.7 - - [25/Nov/2026:10:00:{second:02} +0000] \"GET /x?app={app} HTTP/1.1\" 200 5 \"-\" \"curl/8\"\n"
        )
    };
    let text = line(1, "acme") + &line(2, "calm") + "no line of a log\n" + &line(3, "acme");
    proxy.folder.write("combined.log", &text);
    let compressed = Command::new("gzip")
        .arg("-k")
        .arg(proxy.folder.path().join("combined.log"))
        .status();
    assert!(compressed.is_ok_and(|status| status.success()));
    for log in ["combined.log", "combined.log.gz"] {
        let (output, report) = replay(&proxy.folder, &[log]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert_eq!(report["lines"]["combined"], 3, "{report}");
        assert_eq!(report["lines"]["unreadable"], 1);
        assert_eq!(
            (&report["requests"], &report["refused"]),
            (&3.into(), &2.into())
        );
    }
}

#[test]
fn what_is_no_log_is_said_with_its_place() {
    let proxy = recorded("rules: []\n");
    let folder = &proxy.folder;
    folder.write("empty.log", "");
    folder.write("text.log", "a\nb\n");
    folder.write("long.log", &"x".repeat(3 << 20));
    folder.write("cut.gz", "\u{1f}\u{8b}");
    for log in [
        "empty.log",
        "text.log",
        "long.log",
        "cut.gz",
        "none.log",
        "rules",
    ] {
        let (output, _) = replay(folder, &[log]);
        assert_eq!(output.status.code(), Some(78), "{log}: {output:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains(log), "{log}: {said}");
    }
    // What can be read is replayed all the same.
    let (output, report) = replay(folder, &["access.log", "none.log"]);
    assert_eq!(output.status.code(), Some(78));
    assert_eq!(report["requests"], 8);
}

#[test]
fn a_log_is_read_from_standard_input() {
    let proxy = recorded("rules: []\n");
    let mut child = Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .args(["replay", "--json", "--config"])
        .arg(proxy.folder.path().join("tidegate.yaml"))
        .arg("-")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program was built");
    let mut input = child.stdin.take().expect("a pipe");
    let log = proxy.folder.read("access.log");
    input.write_all(log.as_bytes()).expect("it reads");
    drop(input);
    let output = child.wait_with_output().expect("a child of ours");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["requests"], 8);
}
