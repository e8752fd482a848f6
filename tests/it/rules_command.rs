//! `tidegate rules`, asked of a process that runs.

use std::process::Output;

use serde_json::Value;

use super::harness::{Process, Recorder, Setup, Upstream, tidegate};

/// Asks a process, and returns how it ended, what was said, and what was complained of.
fn rules(process: &Process, arguments: &[&str]) -> (Option<i32>, String, String) {
    let admin = format!("http://{}", process.admin);
    let Output {
        status,
        stdout,
        stderr,
    } = tidegate(&[&["rules", "--admin", &admin], arguments].concat());
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (status.code(), text(stdout), text(stderr))
}

#[track_caller]
fn said(process: &Process, arguments: &[&str]) -> String {
    let (code, said, complained) = rules(process, arguments);
    assert_eq!(code, Some(0), "{arguments:?}: {said}{complained}");
    said
}

#[track_caller]
fn complained(process: &Process, arguments: &[&str]) -> String {
    let (code, said, complained) = rules(process, arguments);
    assert_eq!(code, Some(1), "{arguments:?}: {said}{complained}");
    complained
}

fn start() -> (Recorder, Process) {
    let upstream = Upstream::recording();
    let process = Process::start(&Setup {
        rules: "rules: [{ name: in-file, when: { app: x }, action: log }]\n",
        ..Setup::to(upstream.address)
    });
    (upstream, process)
}

fn status(process: &Process, app: &str) -> u16 {
    let request = format!("GET /x HTTP/1.1\r\nHost: a\r\nX-App-Id: {app}\r\n\r\n");
    process.client().exchange(request).status()
}

/// Names were escaped and never read back: `show a_b` found nothing.
#[test]
fn a_rule_of_any_name_is_shown_changed_and_revoked() {
    let (_upstream, process) = start();
    for name in ["a-b", "a_b", "a.b", "0a"] {
        let adding = [
            "add", "--name", name, "--when", "app=acme", "--action", "block",
        ];
        let dry = [&adding[..], &["--dry-run"]].concat();
        assert!(said(&process, &dry).contains(name));
        assert!(complained(&process, &adding).contains("add `--yes`"));
        let added = said(&process, &[&adding[..], &["--yes", "--ttl", "1h"]].concat());
        assert!(added.contains(&format!("`{name}` is in force")), "{added}");
        assert_eq!(status(&process, "acme"), 403);
        let list = said(&process, &["list"]);
        assert!(list.contains(name) && list.contains("in-file"), "{list}");
        let own = said(&process, &["list", "--origin", "operator", "--json"]);
        let own: Value = serde_json::from_str(&own).expect("JSON");
        assert_eq!(own[0]["name"], name, "{own}");
        assert_eq!(own.as_array().map(Vec::len), Some(1), "{own}");
        let shown = said(&process, &["show", name]);
        assert!(shown.contains("app=acme"), "{shown}");
        said(&process, &["shadow", name]);
        assert_eq!(status(&process, "acme"), 200);
        let tried = said(&process, &["enforce", name, "--dry-run"]);
        assert!(tried.contains(name), "{tried}");
        assert_eq!(status(&process, "acme"), 200, "it was tried only");
        said(&process, &["enforce", name, "--force"]);
        assert_eq!(status(&process, "acme"), 403);
        for detected in ["approve", "promote"] {
            let refused = complained(&process, &[detected, name]);
            assert!(refused.contains("is no detected rule"), "{refused}");
        }
        let revoked = said(&process, &["revoke", name, "--reason", "over & out"]);
        assert_eq!(revoked, format!("`{name}` is revoked\n"));
        assert_eq!(status(&process, "acme"), 200);
        let gone = complained(&process, &["show", name]);
        assert!(gone.contains("no rule of this name"), "{gone}");
    }
    assert!(complained(&process, &["revoke", "in-file"]).contains("in a file"));
    let none = said(&process, &["revoke-all-detected"]);
    assert_eq!(none, "0 detected rules are revoked\n");
}

#[test]
fn what_is_no_name_is_refused_before_it_is_sent() {
    let (_upstream, process) = start();
    for name in [
        "a/b",
        "../status",
        "a b",
        "a?force=true",
        "a%2Fb",
        "",
        ".a",
        "ü",
        "a#b",
    ] {
        for command in ["show", "revoke", "shadow", "enforce", "approve", "promote"] {
            let refused = complained(&process, &[command, name]);
            assert!(refused.contains("is no name of a rule"), "{refused}");
        }
    }
    let refused = complained(&process, &["promote", "detected-1", "--as", "../x"]);
    assert!(refused.contains("is no name of a rule"), "{refused}");
}

/// A client that calls itself `ESC ]` set the title of the operator's terminal, and could do worse.
#[test]
fn no_value_steers_the_terminal() {
    let (_upstream, process) = start();
    let rule =
        r#"{ "name": "r", "when": { "app": "\u001b]0;owned\u0007\u009b2J" }, "action": "block" }"#;
    process.folder.write("rule.json", rule);
    let file = process
        .folder
        .path()
        .join("rule.json")
        .display()
        .to_string();
    said(&process, &["add", &file, "--yes"]);
    for arguments in [
        &["list"][..],
        &["show", "r"],
        &["list", "--json"],
        &["show", "r", "--json"],
        &["enforce", "r"],
    ] {
        let said = said(&process, arguments);
        let shows = !arguments.contains(&"enforce");
        assert_eq!(said.contains("owned"), shows, "{said:?}");
        assert!(
            !said.replace('\n', "").contains(char::is_control),
            "{said:?}"
        );
    }
    let shown = said(&process, &["show", "r", "--json"]);
    let shown: Value = serde_json::from_str(&shown).expect("JSON");
    assert_eq!(shown["when"]["app"], "\u{1b}]0;owned\u{7}\u{9b}2J");
}
