//! What operators see: the admin API, the metrics, the access log; and what nobody ever sees.

use std::io::Write as _;
use std::process::{Command, Stdio};

use super::harness::{Message, Proxy, Setup, Upstream, Wire};

const GET: &str = "GET /x?key=1 HTTP/1.1\r\nHost: a\r\nX-App-Id: acme\r\n\r\n";

fn admin(proxy: &Proxy, request: &str) -> Message {
    Wire::connect(proxy.running.admin_address).exchange(request)
}

#[test]
fn only_known_paths_and_reading_are_answered() {
    let upstream = Upstream::recording();
    let proxy = Proxy::to(upstream.address);
    let ask = |request: &str| {
        admin(
            &proxy,
            &format!("{request} HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        )
    };
    for path in [
        "/healthz",
        "/readyz",
        "/metrics",
        "/api/v1/status",
        "/api/v1/rules",
        "/api/v1/services",
        "/api/v1/incidents",
        "/api/v1/sources",
    ] {
        assert_eq!(ask(&format!("GET {path}")).status(), 200, "{path}");
        let refused = ask(&format!("DELETE {path}x"));
        assert_eq!(refused.status(), 404, "{path}x");
    }
    for path in [
        "/nothing",
        "/api/v1/rules/none",
        "/api/v1/incidents/7",
        "/api/v2/status",
        "/metrics/",
    ] {
        let answer = ask(&format!("GET {path}"));
        assert_eq!(answer.status(), 404, "{path}");
        assert_eq!(answer.json()["status"], 404);
    }
    let refused = ask("POST /metrics");
    assert_eq!(refused.status(), 405);
    assert!(refused.header("allow").unwrap().contains("GET"));
    assert_eq!(ask("GET /api/v1/sources?by=nothing").status(), 400);
    for list in ["rules", "services", "incidents", "sources"] {
        let answer = ask(&format!("GET /api/v1/{list}"));
        assert!(answer.json().is_array(), "{list}: {answer:?}");
    }
}

#[test]
fn a_page_in_an_operators_browser_cannot_reach_the_api_by_a_name_of_its_own() {
    let upstream = Upstream::recording();
    let proxy = Proxy::to(upstream.address);
    for (host, status) in [
        ("evil.example.com", 421),
        ("localhost.evil.example.com:9900", 421),
        ("localhost:9900", 200),
        ("127.0.0.1", 200),
    ] {
        let answer = admin(
            &proxy,
            &format!("GET /api/v1/status HTTP/1.1\r\nHost: {host}\r\n\r\n"),
        );
        assert_eq!(answer.status(), status, "{host}");
    }
}

#[test]
fn a_token_guards_everything_but_the_probes() {
    let upstream = Upstream::recording();
    let token = std::env::temp_dir().join(format!("tidegate-it-token-{}", std::process::id()));
    std::fs::write(&token, "0123456789abcdef-token\n").unwrap();
    let admin_settings = format!(", token_file: {}", token.display());
    let proxy = Setup {
        admin: &admin_settings,
        ..Setup::to(upstream.address)
    }
    .start();
    std::fs::remove_file(&token).unwrap();
    let ask = |path: &str, line: &str| {
        let text = format!("GET {path} HTTP/1.1\r\nHost: any.example.com\r\n{line}\r\n");
        admin(&proxy, &text).status()
    };
    for path in ["/metrics", "/api/v1/status", "/nothing"] {
        assert_eq!(ask(path, ""), 401, "{path}");
        assert_eq!(
            ask(path, "Authorization: Bearer 0123456789abcdef-toke\r\n"),
            401
        );
    }
    assert_eq!(
        ask(
            "/metrics",
            "Authorization: Bearer 0123456789abcdef-token\r\n"
        ),
        200
    );
    assert_eq!(ask("/healthz", ""), 200);
    assert_eq!(ask("/readyz", ""), 200);
}

#[test]
fn every_series_that_operators_were_promised_is_there_after_one_request() {
    let upstream = Upstream::recording();
    let proxy = Setup {
        rules: "limits: [{ name: wide, key: [ip], rate: 100/s, burst: 100 }]
rules: [{ name: no-one, when: { app: nobody }, action: block }]",
        ..Setup::to(upstream.address)
    }
    .start();
    assert_eq!(proxy.ask(GET).status(), 200);
    proxy.metric_reaches(
        "tidegate_requests_total{service=\"chat\",verdict=\"forward\"}",
        1,
    );
    let text = proxy.admin("/metrics").text();
    for series in [
        "tidegate_requests_total{service=\"chat\",verdict=\"forward\"} 1",
        "tidegate_request_duration_seconds_count{service=\"chat\"} 1",
        "tidegate_decision_seconds_count 1",
        "tidegate_rule_matches_total{rule=\"no-one\"} 0",
        "tidegate_limit_refusals_total{limit=\"wide\"} 0",
        "tidegate_rules{action=\"block\",origin=\"file\"} 1",
        "tidegate_incident_active 0",
        "tidegate_incident_time_to_rule_seconds_count 0",
        "tidegate_inflight_requests{service=\"chat\"} 0",
        "tidegate_oldest_inflight_seconds{service=\"chat\"} 0",
        "tidegate_policy_published_timestamp_seconds ",
        "tidegate_reload_failures_total 0",
        "tidegate_panics_total 0",
    ] {
        let is_there = text.lines().any(|line| line.starts_with(series));
        assert!(is_there, "{series} is missing in\n{text}");
    }
    let foreign = text
        .lines()
        .find(|line| !line.starts_with('#') && !line.starts_with("tidegate_"));
    assert_eq!(foreign, None);
    lint(&text);
}

/// Has promtool look at the metrics, where it is installed.
#[expect(clippy::print_stdout, reason = "a test that was left out says so")]
fn lint(text: &str) {
    let spawned = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut promtool) = spawned else {
        println!("skipped: promtool is missing (apt-get install -y prometheus)");
        return;
    };
    let mut input = promtool.stdin.take().expect("promtool runs");
    input.write_all(text.as_bytes()).expect("promtool runs");
    drop(input);
    let output = promtool.wait_with_output().expect("promtool runs");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success(), "{said}");
}

#[test]
fn the_access_log_has_one_line_for_each_request() {
    let upstream = Upstream::recording();
    let proxy = Setup {
        rules: "rules: [{ name: no-old, when: { app: old }, action: block }]",
        services: "services: [{ name: chat, match: [{ host: a.example.com }], upstream: chat }]",
        workers: 2,
        ..Setup::to(upstream.address)
    }
    .start();
    let first = proxy.ask("GET /a%22b/\u{e9}?q=1 HTTP/1.1\r\nHost: A.example.com:80\r\nX-App-Id: ac\"me\\\r\nUser-Agent: \u{2028}\tx\r\n\r\n");
    assert_eq!(first.status(), 200);
    assert_eq!(
        proxy
            .ask("GET / HTTP/1.1\r\nHost: a.example.com\r\nX-App-Id: old\r\n\r\n")
            .status(),
        403
    );
    assert_eq!(
        proxy
            .ask("GET / HTTP/1.1\r\nHost: b.example.com\r\n\r\n")
            .status(),
        404
    );
    assert_eq!(
        proxy
            .ask("GET /.. HTTP/1.1\r\nHost: a.example.com\r\n\r\n")
            .status(),
        400
    );
    let lines = proxy.log(4);
    assert_eq!(lines.len(), 4, "{lines:?}");
    let line = |status: u16| {
        lines
            .iter()
            .find(|line| line["status"] == status)
            .unwrap_or_else(|| panic!("{lines:?}"))
    };
    let good = line(200);
    assert_eq!(good["verdict"], "forward");
    assert_eq!(good["service"], "chat");
    assert_eq!(good["host"], "a.example.com");
    assert_eq!(good["app"], "ac\"me\\");
    assert_eq!(good["method"], "GET");
    assert_eq!(good["ip"], "127.0.0.1");
    assert_eq!(good["bytes"], 2);
    assert_eq!(good["request_id"], first.header("x-request-id").unwrap());
    assert!(good["duration_us"].is_u64() && good["time"].is_string());
    assert_eq!(good.get("error"), None);
    assert_eq!(line(403)["rule"], "no-old");
    assert_eq!(line(403)["verdict"], "block");
    assert_eq!(line(404)["verdict"], "unmatched");
    assert_eq!(line(400)["verdict"], "invalid");
}

#[test]
fn a_secret_is_shown_nowhere() {
    let upstream = Upstream::recording();
    let proxy = Setup {
        rules: "limits: [{ name: per-device, key: [instance], rate: 1/h, burst: 1 }]",
        ..Setup::to(upstream.address)
    }
    .start();
    let request = "GET / HTTP/1.1\r\nHost: a\r\nX-Device: device-secret\r\nX-App-Id: acme\r\nX-Sdk: web\r\n\r\n";
    assert_eq!(proxy.ask(request).status(), 200);
    let refused = proxy.ask(request);
    assert_eq!(refused.status(), 429, "the secret tells devices apart");
    let mut shown = format!("{refused:?}{}", refused.text());
    proxy.metric_reaches("tidegate_limit_refusals_total{limit=\"per-device\"}", 1);
    for path in [
        "/metrics",
        "/api/v1/status",
        "/api/v1/rules",
        "/api/v1/services",
        "/api/v1/incidents",
        "/api/v1/sources?by=instance,app&top=20",
    ] {
        shown += &proxy.admin(path).text();
    }
    proxy.log(2);
    shown += &proxy.folder.read("access.log");
    assert!(shown.contains("acme"), "the client is shown somewhere");
    assert!(!shown.contains("device-secret"), "{shown}");
    let key = std::fs::metadata(proxy.folder.path().join("state/identity.key")).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::mode(&key.permissions());
    assert_eq!(mode & 0o077, 0, "the key is its owner's only: {mode:o}");
}
