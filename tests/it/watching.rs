//! Files that change while the proxy runs, in all the ways in which they do.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::time::Duration;

use super::harness::{Proxy, Recorder, Setup, Upstream, eventually};

pub(super) const GET: &str = "GET /x HTTP/1.1\r\nHost: a\r\nX-App-Id: acme\r\n\r\n";

/// A rules file that answers `acme` with this status.
pub(super) fn block(status: u16) -> String {
    format!("rules: [{{ name: r, when: {{ app: acme }}, action: block, status: {status} }}]\n")
}

#[track_caller]
pub(super) fn answered(proxy: &Proxy, status: u16) {
    let what = format!("a request is answered {status}");
    eventually(&what, || proxy.ask(GET).status() == status);
}

pub(super) fn status(proxy: &Proxy, pointer: &str) -> serde_json::Value {
    let status = proxy.admin("/api/v1/status").json();
    status.pointer(pointer).cloned().unwrap_or_default()
}

/// Waits until the files were found wrong, with this in the reason; what was in force still is.
#[track_caller]
pub(super) fn refused(proxy: &Proxy, because: &str, in_force: u16) {
    let reload = || status(proxy, "/reload");
    eventually(because, || reload().to_string().contains(because));
    assert_eq!(status(proxy, "/reload/successful"), false);
    assert_eq!(proxy.metric("tidegate_reload_last_successful"), 0);
    assert_eq!(proxy.ask(GET).status(), in_force);
}

pub(super) fn start(upstream: &Recorder) -> Proxy {
    let proxy = Setup {
        rules: &block(401),
        ..Setup::to(upstream.address)
    }
    .start();
    answered(&proxy, 401);
    proxy
}

#[test]
fn however_a_file_is_written_it_is_taken_over() {
    let upstream = Upstream::recording();
    let proxy = start(&upstream);
    let folder = proxy.folder.path().join("rules");
    let file = folder.join("rules.yaml");

    // In place.
    fs::write(&file, block(402)).unwrap();
    answered(&proxy, 402);
    // Another file moved over it, as editors and deployments do.
    let new = proxy.folder.path().join("new");
    fs::write(&new, block(404)).unwrap();
    fs::rename(&new, &file).unwrap();
    answered(&proxy, 404);
    // Deleted and created.
    fs::remove_file(&file).unwrap();
    fs::write(&file, block(405)).unwrap();
    answered(&proxy, 405);
    // The whole folder is swapped.
    let other = proxy.folder.path().join("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("rules.yaml"), block(406)).unwrap();
    fs::rename(&folder, proxy.folder.path().join("old")).unwrap();
    fs::rename(&other, &folder).unwrap();
    answered(&proxy, 406);
    // And in the new one it goes on, in a folder below, too.
    fs::create_dir(folder.join("below")).unwrap();
    fs::rename(&file, folder.join("below/moved.yaml")).unwrap();
    fs::write(folder.join("below/moved.yaml"), block(407)).unwrap();
    answered(&proxy, 407);
    assert_eq!(proxy.metric("tidegate_panics_total"), 0);
}

/// As Kubernetes mounts a `ConfigMap`: the files are links through `..data`, which is swapped.
#[test]
fn the_swap_of_a_config_map_is_taken_over() {
    let upstream = Upstream::recording();
    let proxy = start(&upstream);
    let folder = proxy.folder.path().join("rules");
    fs::remove_file(folder.join("rules.yaml")).unwrap();
    let version = |name: &str, status| {
        fs::create_dir(folder.join(name)).unwrap();
        fs::write(folder.join(name).join("rules.yaml"), block(status)).unwrap();
        symlink(name, folder.join("..data_tmp")).unwrap();
        fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
    };
    version("..2026_1", 402);
    symlink("..data/rules.yaml", folder.join("rules.yaml")).unwrap();
    answered(&proxy, 402);
    version("..2026_2", 404);
    fs::remove_dir_all(folder.join("..2026_1")).unwrap();
    answered(&proxy, 404);
}

#[test]
fn what_is_half_written_or_cannot_be_read_changes_nothing() {
    let upstream = Upstream::recording();
    let proxy = start(&upstream);
    let folder = proxy.folder.path().join("rules");
    let file = folder.join("rules.yaml");

    let whole = block(402);
    let (half, _) = whole.split_at(whole.len() / 2);
    fs::write(&file, half).unwrap();
    refused(&proxy, "rules.yaml", 401);
    fs::write(&file, &whole).unwrap();
    answered(&proxy, 402);

    let in_the_way = folder.join("x.yaml");
    // Nobody writes to it: opening it must not wait.
    let made = Command::new("mkfifo").arg(&in_the_way).status().unwrap();
    assert!(made.success());
    refused(&proxy, "x.yaml", 402);
    fs::remove_file(&in_the_way).unwrap();
    // Larger than any memory: it is not read.
    let sparse = fs::File::create(&in_the_way).unwrap();
    sparse.set_len(1 << 40).unwrap();
    refused(&proxy, "x.yaml", 402);
    fs::remove_file(&in_the_way).unwrap();
    for target in ["nowhere", "x.yaml"] {
        symlink(target, &in_the_way).unwrap();
        refused(&proxy, "x.yaml", 402);
        fs::remove_file(&in_the_way).unwrap();
        eventually("all is well again", || {
            proxy.metric("tidegate_reload_last_successful") == 1
        });
    }
    fs::write(&in_the_way, b"\xff\xfer\0u\0l\0e\0s\0").unwrap();
    refused(&proxy, "x.yaml", 402);
    fs::write(&in_the_way, "\u{feff}rules:\r\n  []\r\n").unwrap();
    eventually("a mark and CRLF are no mistakes", || {
        proxy.metric("tidegate_reload_last_successful") == 1
    });
    fs::remove_dir_all(&folder).unwrap();
    refused(&proxy, "rules", 402);
    fs::create_dir(&folder).unwrap();
    fs::write(&file, block(404)).unwrap();
    answered(&proxy, 404);
    assert_eq!(proxy.metric("tidegate_panics_total"), 0);
}

#[test]
fn what_an_unchanged_limit_has_counted_stays() {
    let upstream = Upstream::recording();
    let limit = "limits: [{ name: few, key: [ip], rate: 1/h, burst: 2 }]\n";
    let proxy = Setup {
        rules: limit,
        ..Setup::to(upstream.address)
    }
    .start();
    let statuses: Vec<_> = (0..3).map(|_| proxy.ask(GET).status()).collect();
    assert_eq!(statuses, [200, 200, 429]);
    proxy
        .folder
        .write("rules/more.yaml", &block(401).replace("acme", "other"));
    eventually("the new rule is in force", || {
        proxy.admin("/api/v1/rules/r").status() == 200
    });
    assert_eq!(proxy.ask(GET).status(), 429);
}

/// Good and bad in turns: what was good last is in force all the time, and the alarm is up while the
/// files are bad.
#[test]
fn good_and_bad_files_in_turns_never_flap() {
    let upstream = Upstream::recording();
    let proxy = start(&upstream);
    let mut statuses = [402, 404].into_iter().cycle();
    let mut in_force = 401;
    for _ in 0..3 {
        proxy
            .folder
            .write("rules/rules.yaml", "rules: [{ name: r, action: blok }]\n");
        refused(&proxy, "blok", in_force);
        let status = statuses.next().unwrap();
        proxy.folder.write("rules/rules.yaml", &block(status));
        let mut seen = Vec::new();
        eventually("the good one is in force", || {
            seen.push(proxy.ask(GET).status());
            seen.last() == Some(&status)
        });
        assert!(
            seen.iter().all(|seen| [in_force, status].contains(seen)),
            "{seen:?}"
        );
        in_force = status;
    }
    assert_eq!(proxy.metric("tidegate_panics_total"), 0);
}

#[test]
fn the_mode_of_detection_is_taken_over_and_the_rest_of_the_settings_said() {
    let upstream = Upstream::recording();
    let proxy = start(&upstream);
    let settings = proxy.folder.read("tidegate.yaml");
    let mode = || status(&proxy, "/detection/mode");
    assert_eq!(mode(), "off");
    proxy.folder.write(
        "tidegate.yaml",
        &settings.replace("mode: off", "mode: suggest"),
    );
    eventually("the mode is taken over", || mode() == "suggest");
    proxy.folder.write(
        "tidegate.yaml",
        &settings.replace("mode: off", "mode: nothing"),
    );
    refused(&proxy, "nothing", 401);
    assert_eq!(mode(), "suggest");
}

/// Fifty changes a second with 10,000 rules: no request is lost. Longer, and with an eye on memory, in
/// `make soak`.
#[test]
fn a_storm_of_changes_loses_no_request() {
    storm(Duration::from_secs(2), 2_000);
}

#[test]
#[ignore = "a minute: make soak"]
fn a_long_storm_of_changes_loses_no_request_and_no_memory() {
    storm(Duration::from_mins(1), 10_000);
}

fn storm(lasts: Duration, rules: usize) {
    let upstream = Upstream::recording();
    let proxy = start(&upstream);
    let text = |round: usize| {
        let first = block(401).replace("[{", "\n  - {").replace("}]", "}");
        let mut text = first;
        for number in 0..rules {
            let when = format!("when: {{ app: a{number} }}, action: block");
            let rule = format!("  - {{ name: n{number}, {when}, percent: {round} }}\n");
            text.push_str(&rule);
        }
        text
    };
    let texts: Vec<String> = (0..10).map(text).collect();
    proxy.folder.write("rules/rules.yaml", text(0).as_str());
    let in_force = || status(&proxy, "/policy/rules").as_u64().unwrap_or_default();
    eventually("all rules are in force", || in_force() == rules as u64 + 1);
    let mut before = 0;
    let began = std::time::Instant::now();
    let mut round = 0;
    while began.elapsed() < lasts {
        round += 1;
        // By then as many policies have been in memory at once as ever will be.
        if before == 0 && began.elapsed() > lasts / 3 {
            before = resident();
        }
        let text = texts.get(round % texts.len()).expect("ten of them");
        proxy.folder.write("rules/new", text);
        let path = proxy.folder.path().join("rules");
        fs::rename(path.join("new"), path.join("rules.yaml")).expect("a folder of ours");
        assert_eq!(proxy.ask(GET).status(), 401, "round {round}");
        let ok = proxy.ask(GET.replace("acme", "other"));
        assert_eq!(ok.status(), 200, "round {round}");
        std::thread::sleep(Duration::from_millis(20));
    }
    eventually("the last one is in force", || {
        proxy.metric("tidegate_reload_last_successful") == 1 && in_force() == rules as u64 + 1
    });
    assert_eq!(proxy.metric("tidegate_reload_failures_total"), 0);
    assert_eq!(proxy.metric("tidegate_panics_total"), 0);
    if lasts > Duration::from_secs(30) {
        let after = resident();
        assert!(
            after as f64 <= 1.1 * before as f64,
            "{before} then {after} KiB"
        );
    }
}

/// Returns the resident memory of this process in KiB; 0 where the system does not say.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}
