//! All scenarios in `tests/scenarios` come out as they say.

use std::path::PathBuf;
use std::process::Command;

/// Plays each scenario with the program itself; which expectation was missed stands in its summary.
#[test]
fn every_scenario_comes_out_as_it_expects() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "yaml")
        })
        .collect();
    files.sort();
    assert!(files.len() > 10, "there are scenarios");
    // Two at a time: each is one thread.
    let halves =
        [0, 1].map(|half| -> Vec<&PathBuf> { files.iter().skip(half).step_by(2).collect() });
    let running = halves.map(|files| {
        Command::new(env!("CARGO_BIN_EXE_tidegate"))
            .arg("simulate")
            .args(files)
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap()
    });
    for child in running {
        let output = child.wait_with_output().unwrap();
        assert!(
            output.status.success(),
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
}
