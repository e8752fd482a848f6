//! The command line: exit codes, and what is said on the way out.

use std::net::TcpListener;
use std::process::Output;

use super::harness::{Folder, Setup, tidegate};

fn nobody() -> std::net::SocketAddr {
    std::net::SocketAddr::from(([127, 0, 0, 1], 9))
}

fn path(folder: &Folder, name: &str) -> String {
    folder.path().join(name).display().to_string()
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A good configuration with these rules.
fn configuration(rules: &str) -> Folder {
    let folder = Folder::new();
    Setup {
        rules,
        ..Setup::to(nobody())
    }
    .write(&folder);
    folder
}

#[test]
fn broken_settings_end_with_78_and_every_problem() {
    let folder = configuration("");
    folder.write(
        "tidegate.yaml",
        "listeners: [{ address: nowhere }]\nworker: 2\nservices: [{ name: chat, match: [{ path: v1 }], upstream: nobody }]\nupstreams: [{ name: chat, endpoints: [] }]\n",
    );
    let config = path(&folder, "tidegate.yaml");
    let run = tidegate(&["run", "--config", &config]);
    assert_eq!(run.status.code(), Some(78));
    let text = errors(&run);
    for line in 1..=4 {
        assert!(
            text.contains(&format!("{config}:{line}:")),
            "line {line}: {text}"
        );
    }
    assert!(text.contains("not started"), "{text}");
    let check = tidegate(&["check", &config]);
    assert_eq!(check.status.code(), Some(78));
    // Both say the same.
    for line in said(&check)
        .lines()
        .filter(|line| line.starts_with(&config))
    {
        assert!(text.contains(line), "{line} is missing in {text}");
    }
}

#[test]
fn settings_that_are_not_there_end_with_78() {
    let run = tidegate(&["run", "--config", "/nowhere/tidegate.yaml"]);
    assert_eq!(run.status.code(), Some(78));
    assert!(errors(&run).contains("/nowhere/tidegate.yaml:1:1: cannot be read"));
}

#[test]
fn a_rules_folder_that_cannot_be_read_ends_with_78() {
    let folder = configuration("rules: [{ name: x }]");
    let config = path(&folder, "tidegate.yaml");
    for prepare in [
        // Broken rules, a broken link, a folder that is a file, none at all.
        (|_: &Folder| {}) as fn(&Folder),
        |folder| {
            let link = folder.path().join("rules/rules.yaml");
            std::fs::remove_file(&link).unwrap();
            std::os::unix::fs::symlink("nowhere", link).unwrap();
        },
        |folder| {
            std::fs::remove_dir_all(folder.path().join("rules")).unwrap();
            folder.write("rules", "");
        },
        |folder| std::fs::remove_file(folder.path().join("rules")).unwrap(),
    ] {
        prepare(&folder);
        let run = tidegate(&["run", "--config", &config]);
        assert_eq!(run.status.code(), Some(78), "{}", errors(&run));
        assert!(errors(&run).contains("/rules"), "{}", errors(&run));
        assert_eq!(tidegate(&["check", &config]).status.code(), Some(78));
    }
}

#[test]
fn an_empty_rules_folder_is_a_problem_and_a_file_without_rules_is_none() {
    let folder = configuration("");
    let settings = path(&folder, "tidegate.yaml");
    let check = tidegate(&["check", &settings]);
    assert_eq!(check.status.code(), Some(0), "{}", said(&check));
    assert!(said(&check).starts_with("ok: "), "{}", said(&check));
    // An unmounted volume must not let everybody in.
    std::fs::remove_file(folder.path().join("rules/rules.yaml")).unwrap();
    let check = tidegate(&["check", &settings]);
    assert_eq!(check.status.code(), Some(78), "{}", said(&check));
    assert!(
        said(&check).contains("holds no `*.yaml` file"),
        "{}",
        said(&check)
    );
    let run = tidegate(&["run", "--config", &settings]);
    assert_eq!(run.status.code(), Some(78), "{}", errors(&run));
}

#[test]
fn a_port_in_use_ends_with_1_and_says_which() {
    for key in ["listeners", "admin"] {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap().to_string();
        let folder = configuration("");
        let settings = folder.read("tidegate.yaml");
        let part = settings.split(key).nth(1).unwrap();
        let replaced = part.replacen("127.0.0.1:0", &address, 1);
        folder.write("tidegate.yaml", &settings.replace(part, &replaced));
        let run = tidegate(&["run", "--config", &path(&folder, "tidegate.yaml")]);
        assert_eq!(run.status.code(), Some(1), "{}", errors(&run));
        let text = errors(&run);
        assert!(
            text.contains(&format!("cannot listen on {address}; ")),
            "{text}"
        );
        assert!(text.contains("Address already in use"), "{text}");
    }
}

#[test]
fn a_state_folder_that_cannot_be_made_ends_with_1_and_says_where() {
    let folder = configuration("");
    folder.write("state", "a file");
    let run = tidegate(&["run", "--config", &path(&folder, "tidegate.yaml")]);
    assert_eq!(run.status.code(), Some(1));
    assert!(
        errors(&run).contains(&path(&folder, "state")),
        "{}",
        errors(&run)
    );
}

#[test]
fn check_runs_the_tests_in_the_rules() {
    let rules = |verdict: &str| {
        format!(
            "rules: [{{ name: no-acme, when: {{ app: acme }}, action: block }}]\ntests: [{{ given: {{ app: acme }}, expect: {{ verdict: {verdict} }} }}]\n"
        )
    };
    let good = configuration(&rules("block"));
    let check = tidegate(&["check", &path(&good, "tidegate.yaml")]);
    assert_eq!(said(&check), "ok: 2 files, 1 tests passed\n");
    assert_eq!(check.status.code(), Some(0));
    let bad = configuration(&rules("forward"));
    let check = tidegate(&["check", &path(&bad, "tidegate.yaml")]);
    assert_eq!(check.status.code(), Some(78));
    assert!(said(&check).contains("rules.yaml:2:"), "{}", said(&check));
}

#[test]
fn explain_says_what_a_request_would_meet() {
    let folder = configuration(
        "rules: [{ name: no-acme, when: { app: acme }, action: block }]\nlimits: [{ name: per-address, key: [ip], rate: 5/s, burst: 5 }]",
    );
    let config = path(&folder, "tidegate.yaml");
    let explain =
        |more: &[&str]| tidegate(&[&["explain", "--config", config.as_str()], more].concat());
    let blocked = explain(&[
        "--header",
        "X-App-Id: acme",
        "GET",
        "http://a.example.com/x",
    ]);
    assert_eq!(blocked.status.code(), Some(0), "{}", errors(&blocked));
    let text = said(&blocked);
    for word in ["block", "no-acme", "acme", "chat"] {
        assert!(text.contains(word), "{word} is missing in {text}");
    }
    let json = explain(&[
        "--json",
        "--header",
        "X-App-Id: other",
        "GET",
        "http://a.example.com/x",
    ]);
    let parsed: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert!(parsed.is_object(), "{parsed}");
    assert!(said(&json).contains("per-address"), "{parsed}");
    // The same refusals as on the wire, before anybody decides.
    let double = explain(&[
        "-H",
        "X-App-Id: a",
        "-H",
        "X-App-Id: b",
        "GET",
        "http://a/x",
    ]);
    assert_eq!(double.status.code(), Some(1));
    assert!(
        errors(&double).contains("given twice"),
        "{}",
        errors(&double)
    );
    let no_host = explain(&["GET", "/x"]);
    assert_eq!(no_host.status.code(), Some(1));
    assert!(errors(&no_host).contains("the URL has no host"));
}

#[test]
fn a_wrong_command_line_ends_with_2_and_the_usage() {
    for arguments in [&["nothing"][..], &["check"], &["run", "--nothing"], &[]] {
        let run = tidegate(arguments);
        assert_eq!(run.status.code(), Some(2), "{arguments:?}");
        assert!(errors(&run).contains("Usage:"), "{}", errors(&run));
    }
}
