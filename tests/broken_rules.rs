//! Every file of `tests/broken_rules` is wrong, and this is exactly what the operator reads.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use tidegate::check::{EXIT_CONFIG, Report, check};

/// Checks paths as `tidegate check` does; what their tests would say is told elsewhere.
fn report(paths: &[&Path]) -> Report {
    let paths: Vec<PathBuf> = paths.iter().map(PathBuf::from).collect();
    check(&paths, SystemTime::UNIX_EPOCH, |_, _, _| Ok(()))
}

/// Returns the names of files with an extension, without it.
fn names(folder: &str, extension: &str) -> BTreeSet<String> {
    fs::read_dir(folder)
        .expect("the folder is part of the repository")
        .map(|entry| entry.expect("a readable folder").path())
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        .collect()
}

/// A settings file is checked alone, a rule file against valid settings.
fn check_broken(name: &str) -> Report {
    let path = PathBuf::from(format!("tests/broken_rules/{name}.yaml"));
    if name.starts_with("settings_") {
        report(&[&path])
    } else {
        report(&[Path::new("tests/verified/tidegate.yaml"), &path])
    }
}

#[test]
fn every_broken_file_says_what_is_wrong_and_how_to_write_it() {
    let names = names("tests/broken_rules", "yaml");
    assert!(names.len() >= 45, "{} broken files", names.len());
    for name in &names {
        let report = check_broken(name);
        assert!(!report.problems.is_empty(), "{name} has no problem");
        assert_eq!(report.exit_code(), EXIT_CONFIG, "{name}");
        for problem in report.problems.iter() {
            let text = problem.to_string();
            let place = format!("tests/broken_rules/{name}.yaml:");
            assert!(text.starts_with(&place), "{name}: another place: {text}");
            let has_way_out = problem.text.contains("; ");
            assert!(has_way_out, "{name}: no way out: {text}");
            assert!(text.lines().count() == 1, "{name}: several lines: {text}");
        }
        insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_snapshot!(name.as_str(), report.problems.to_string());
        });
    }
}

#[test]
fn each_broken_file_has_a_snapshot_and_each_snapshot_a_file() {
    let files = names("tests/broken_rules", "yaml");
    let snapshots = names("tests/snapshots", "snap");
    assert_eq!(files, snapshots);
}

#[test]
fn the_settings_that_broken_rules_are_held_against_are_valid() {
    let report = report(&[Path::new("tests/verified/tidegate.yaml")]);
    assert_eq!(report.to_string(), "ok: 1 files, 0 tests passed");
}
