//! Who may know of whom, read from the source: the engine decides and knows nothing of the proxy, a
//! request's way and the control side meet in the published policy only, refusals have one author.

use std::fs;
use std::path::{Path, PathBuf};

/// Returns the Rust files at a path (a file, a folder, or both under one name) with their code:
/// comments are left out, for they may speak of anything.
fn code_of(path: &str) -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    walk(Path::new(path), &mut files);
    let file = PathBuf::from(format!("{path}.rs"));
    if file.is_file() {
        files.push(file);
    }
    assert!(
        !files.is_empty(),
        "{path} is not there any more; mend this test"
    );
    let read = |file: PathBuf| {
        let text = fs::read_to_string(&file).expect("a file of this repository");
        let code: Vec<&str> = text
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"))
            .collect();
        (file, code.join("\n"))
    };
    files.into_iter().map(read).collect()
}

fn walk(path: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(path) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            walk(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// Returns whether code names a module of this crate, in a `use` tree or in a path.
fn names_module(code: &str, module: &str) -> bool {
    let is_word = |text: &str| {
        let next = text.chars().next();
        !next.is_some_and(|letter| letter.is_alphanumeric() || letter == '_')
    };
    let direct = format!("crate::{module}");
    let in_path = code
        .match_indices(&direct)
        .any(|(at, _)| code.get(at + direct.len()..).is_some_and(is_word));
    let in_tree = code.split("use crate::{").skip(1).any(|tree| {
        let tree = tree.split(';').next().unwrap_or_default();
        tree.split(['{', '}', ',', ':', ' ', '\n'])
            .any(|word| word == module)
    });
    in_path || in_tree
}

#[track_caller]
fn assert_unaware(path: &str, modules: &[&str]) {
    for (file, code) in code_of(path) {
        for module in modules {
            let named = names_module(&code, module);
            assert!(!named, "{} names crate::{module}", file.display());
        }
    }
}

#[test]
fn a_module_is_found_in_every_way_to_name_it() {
    for code in [
        "use crate::control;",
        "use crate::control::Control;",
        "use crate::{clock, control::Control};",
        "use crate::{\n    control,\n    clock,\n};",
        "fn f(x: &crate::control::Control) {}",
    ] {
        assert!(names_module(code, "control"), "{code}");
    }
    for code in [
        "use crate::controller;",
        "use crate::{clock}; fn control() {}",
    ] {
        assert!(!names_module(code, "control"), "{code}");
    }
}

#[test]
fn the_engine_knows_nothing_of_the_proxy_and_of_the_world() {
    let manifest = fs::read_to_string("engine/Cargo.toml").expect("the engine's manifest");
    for name in [
        "tidegate ",
        "tidegate.",
        "tokio",
        "hyper",
        "tracing",
        "http.",
        "http ",
        "socket2",
        "prometheus",
    ] {
        let found = manifest.lines().find(|line| line.starts_with(name));
        assert_eq!(found, None, "engine/Cargo.toml");
    }
    for (file, code) in code_of("engine/src") {
        for word in [
            "tidegate::",
            "std::net::Tcp",
            "std::net::Udp",
            "std::fs",
            "std::env",
            "std::process",
            "std::thread",
            "SystemTime::now",
            "std::time::Instant",
        ] {
            assert!(!code.contains(word), "{} names {word}", file.display());
        }
    }
}

#[test]
fn a_requests_way_and_the_control_side_do_not_know_each_other() {
    assert_unaware(
        "src/request",
        &["control", "admin", "app", "cli", "demo", "rules_folder"],
    );
    assert_unaware("src/upstream", &["control", "admin", "app", "cli", "demo"]);
    assert_unaware(
        "src/control",
        &["request", "upstream", "admin", "app", "cli", "demo"],
    );
    assert_unaware("src/admin", &["upstream", "app", "cli", "demo"]);
}

#[test]
fn only_those_who_start_the_proxy_know_all_of_it() {
    for (file, code) in code_of("src") {
        let path = file.to_string_lossy();
        let may = ["src/cli", "src/demo", "src/app"];
        if !may.iter().any(|prefix| path.starts_with(prefix)) {
            assert!(!names_module(&code, "app"), "{path} names crate::app");
            assert!(
                !names_module(&code, "cli") || path == "src/main.rs",
                "{path} names crate::cli"
            );
        }
    }
}

#[test]
fn refusals_and_yaml_have_one_author_each() {
    let holders = |paths: &[&str], word: &str| -> Vec<String> {
        let files = paths.iter().flat_map(|path| code_of(path));
        files
            .filter(|(_, code)| code.contains(word))
            .map(|(file, _)| file.display().to_string())
            .collect()
    };
    assert_eq!(
        holders(&["src/request", "src/upstream"], "problem+json"),
        ["src/request/refuse.rs"]
    );
    assert_eq!(
        holders(&["src", "engine/src"], "serde_saphyr"),
        ["engine/src/yaml.rs"]
    );
}
