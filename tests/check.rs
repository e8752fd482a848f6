//! `tidegate check` on what is right.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tidegate::check::{Report, check};
use tidegate::settings::{
    AccessLog, DetectionSettings, Ejection, Endpoint, Listener, Settings, Tls, ValueFrom, Workers,
};
use tidegate_engine::detect::DetectionMode;

const MINIMAL: &str = "services:
  - name: chat
    match: [{ path: /v1/ }]
    upstream: chat
upstreams:
  - name: chat
    endpoints: [\"127.0.0.1:9001\"]
";

fn parse(text: &str) -> Settings {
    match Settings::parse("etc/tidegate.yaml", text) {
        Ok(settings) => settings,
        Err(problems) => panic!("{problems}"),
    }
}

fn check_all(paths: &[&Path]) -> Report {
    let paths: Vec<PathBuf> = paths.iter().map(PathBuf::from).collect();
    check(&paths, SystemTime::UNIX_EPOCH, |_, _, _| Ok(()))
}

/// A folder of its own for each test, removed with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("tidegate-check-{test}-{}", std::process::id()));
        fs::create_dir_all(path.join("rules")).expect("a folder for temporary files");
        Self(path)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, text).expect("a folder of our own");
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

#[test]
fn the_default_configuration_passes() {
    let report = check_all(&[Path::new("config")]);
    assert_eq!(report.to_string(), "ok: 3 files, 5 tests passed");
    // The same through the settings alone: they name the folder.
    let report = check_all(&[Path::new("config/tidegate.yaml")]);
    assert_eq!(report.to_string(), "ok: 3 files, 5 tests passed");
}

#[test]
fn a_minimal_file_needs_services_and_upstreams_only() {
    let settings = parse(MINIMAL);
    assert_eq!(settings.listeners, [Listener::default()]);
    assert_eq!(settings.listeners[0].address.to_string(), "0.0.0.0:8080");
    assert_eq!(settings.admin.address.to_string(), "127.0.0.1:9900");
    assert_eq!(settings.workers, Workers::Auto);
    assert_eq!(settings.detection, DetectionSettings::default());
    assert_eq!(settings.access_log, AccessLog::Stdout);
    assert_eq!(settings.rules.path, Path::new("etc/rules"));
    assert_eq!(settings.state, Path::new("etc/state"));
    let upstream = &settings.upstreams[0];
    assert_eq!(upstream.connect_timeout, Duration::from_secs(1));
    assert_eq!(upstream.response_timeout, Duration::from_secs(15));
    assert_eq!(upstream.idle_timeout, Duration::from_secs(30));
    assert_eq!(upstream.max_age, Duration::from_mins(5));
    assert_eq!(upstream.resolve_every, Duration::from_secs(10));
    assert_eq!(upstream.ejection, Some(Ejection::default()));
    assert_eq!((&upstream.health, &upstream.tls), (&None, &None));
    assert!(settings.not_in_force.is_empty());
}

#[test]
fn every_key_is_accepted_and_what_is_not_built_is_named() {
    let all = r#"
listeners:
  - address: "[::]:8080"
    trusted_proxies: [10.0.0.0/8, "2001:db8::1"]
    proxy_protocol: true
    tls: { certificate: tls/chain.pem, key: tls/key.pem }
admin: { address: 0.0.0.0:9900, token_file: admin.token }
workers: 4
identity:
  attributes:
    sdk_version: { header: X-Version, pattern: "release-v(.+)", type: version }
    app: { first_of: [{ header: x-app-id }, { query: app }, { cookie: app }, { jwt_claim: app }] }
    tenant: { host_label: 1 }
    area: { path_segment: 2 }
    instance: { header: x-token, secret: true }
services:
  - name: login
    match: [{ path: /v1/auth/, host: "*.API.example.com" }, { host: "[2001:db8::1]" }]
    upstream: login
    priority: critical
    concurrency: { max: 400, queue: 200, queue_timeout: 500ms }
    detection: { mode: suggest }
  - name: kb
    match: [{ path: /v1/kb/ }]
    upstream: login
upstreams:
  - name: login
    endpoints: ["127.0.0.1:9001"]
detection: { mode: throttle, collateral_max: 0.5%, budget: 10%, warmup: 0s }
rules: rules/
state: /var/lib/tidegate
access_log: access.log
"#;
    let settings = parse(all);
    assert_eq!(
        settings.not_in_force,
        ["listeners: proxy_protocol", "listeners: tls",]
    );
    assert_eq!(
        settings.admin.token_file.as_deref(),
        Some(Path::new("etc/admin.token"))
    );
    assert_eq!(settings.state, Path::new("/var/lib/tidegate"));
    assert_eq!(
        settings.access_log,
        AccessLog::File("etc/access.log".into())
    );
    let detection = settings.detection_spec();
    assert_eq!(detection.mode, DetectionMode::Throttle);
    let own = vec![("login".into(), DetectionMode::Suggest)];
    assert_eq!(detection.services, own);
    let ValueFrom::FirstOf(places) = &settings.identity[1].from else {
        panic!("first_of")
    };
    assert_eq!(places.len(), 4);
    assert_eq!(
        settings.identity[0].from,
        ValueFrom::Header(http::HeaderName::from_static("x-version"))
    );
    assert!(settings.identity[4].spec.secret);
    assert_eq!(
        settings.schema.iter().count(),
        9 + 4,
        "instance takes the built-in's place"
    );
}

#[test]
fn every_key_of_an_upstream_is_read() {
    let all = r#"
services: [{ name: login, match: [{ path: / }], upstream: login }]
upstreams:
  - name: login
    endpoints: ["127.0.0.1:9001", { address: "[::1]:9001", weight: 3 }, "Login.internal:80"]
    connect_timeout: 250ms
    response_timeout: 15s
    idle_timeout: 1m
    max_age: 2m
    resolve_every: 30s
    health: { path: /healthz, interval: 1s }
    ejection: { consecutive_failures: 3, max_ejected: 25% }
    tls: { ca: tls/ca.pem, server_name: Login.internal }
  - name: others
    endpoints: ["127.0.0.1:9002"]
    ejection: off
    tls: on
"#;
    let settings = parse(all);
    assert!(settings.not_in_force.is_empty());
    let [login, others] = settings.upstreams.as_slice() else {
        panic!("two upstreams")
    };
    let endpoint = |address: &str, weight| Endpoint {
        address: address.into(),
        weight,
    };
    assert_eq!(
        login.endpoints,
        [
            endpoint("127.0.0.1:9001", 1),
            endpoint("[::1]:9001", 3),
            endpoint("login.internal:80", 1)
        ]
    );
    let timeouts = [
        login.connect_timeout,
        login.response_timeout,
        login.idle_timeout,
    ];
    assert_eq!(
        timeouts.map(|timeout| timeout.as_millis()),
        [250, 15_000, 60_000]
    );
    assert_eq!(login.max_age, Duration::from_mins(2));
    assert_eq!(login.resolve_every, Duration::from_secs(30));
    let health = login.health.as_ref().expect("it is given");
    assert_eq!(
        health.timeout,
        Duration::from_secs(1),
        "at most the interval"
    );
    let ejection = Ejection {
        consecutive_failures: 3,
        max_ejected: 0.25,
    };
    assert_eq!(login.ejection, Some(ejection));
    let tls = Tls {
        ca: Some("etc/tls/ca.pem".into()),
        ca_digest: 0,
        server_name: Some("login.internal".into()),
    };
    assert_eq!(login.tls, Some(tls));
    assert_eq!(others.ejection, None);
    assert_eq!(others.tls, Some(Tls::default()));
}

#[test]
fn a_byte_order_mark_and_windows_line_ends_change_nothing() {
    let windows = format!("\u{feff}{}", MINIMAL.replace('\n', "\r\n"));
    assert_eq!(
        format!("{:?}", parse(MINIMAL)),
        format!("{:?}", parse(&windows))
    );
}

#[test]
fn rule_files_are_held_against_the_settings_among_the_paths_only() {
    let folder = Folder::new("verified");
    let rules = folder.write(
        "loop.yaml",
        "rules: [{ name: loop, when: { colour: red }, action: block }]",
    );
    let settings = folder.write("tidegate.yaml", MINIMAL);
    assert!(check_all(&[&rules]).problems.is_empty());
    let report = check_all(&[&rules, &settings]);
    assert!(
        report.to_string().contains("unknown attribute `colour`"),
        "{report}"
    );
}

#[test]
fn a_rules_folder_that_is_named_twice_is_read_once() {
    let folder = Folder::new("once");
    folder.write("tidegate.yaml", MINIMAL);
    folder.write(
        "rules/loop.yaml",
        "rules: [{ name: loop, when: { ip: 192.0.2.0/24 }, action: block }]",
    );
    let settings = folder.0.join("tidegate.yaml");
    let rules = folder.0.join("rules");
    for paths in [
        vec![&settings, &rules],
        vec![&rules, &settings],
        vec![&folder.0, &rules],
    ] {
        let paths: Vec<&Path> = paths.into_iter().map(PathBuf::as_path).collect();
        let report = check_all(&paths);
        assert_eq!(report.to_string(), "ok: 2 files, 0 tests passed");
    }
}

#[test]
fn one_name_in_two_files_is_a_problem() {
    let folder = Folder::new("names");
    let rule = "rules: [{ name: loop, when: { ip: 192.0.2.0/24 }, action: block }]";
    folder.write("a.yaml", rule);
    folder.write("b.yaml", rule);
    let report = check_all(&[&folder.0]);
    assert_eq!(report.problems.len(), 1);
    assert!(
        report
            .to_string()
            .contains("b.yaml:1:17: the name `loop` is given twice, first at")
    );
}

#[test]
fn a_test_that_fails_is_a_problem_at_its_place() {
    let folder = Folder::new("tests");
    let path = folder.write(
        "a.yaml",
        "tests:\n  - given: { app: acme }\n    expect: { verdict: block }\n",
    );
    let report = check(&[path], SystemTime::UNIX_EPOCH, |_, _, test| {
        Err(format!(
            "expected {}, got forward; change the rule or the test",
            test.verdict
        ))
    });
    assert_eq!((report.exit_code(), report.tests), (78, 1));
    assert!(
        report
            .to_string()
            .contains("a.yaml:2:5: expected block, got forward"),
        "{report}"
    );
}

#[test]
fn a_path_that_is_not_there_is_a_problem() {
    let report = check_all(&[Path::new("nowhere.yaml")]);
    assert_eq!(report.exit_code(), 78);
    assert!(
        report
            .to_string()
            .starts_with("nowhere.yaml:1:1: cannot be read (")
    );
}
