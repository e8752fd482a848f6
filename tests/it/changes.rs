//! What operators change over the admin API, and who may not.

use serde_json::{Value, json};

use super::harness::{Description, Message, Proxy, Setup, Upstream, Wire, eventually};

const GET: &str = "GET /x HTTP/1.1\r\nHost: a\r\nX-App-Id: acme\r\n\r\n";
const OTHER: &str = "GET /x HTTP/1.1\r\nHost: a\r\nX-App-Id: other\r\n\r\n";
const BLOCK: &str =
    r#"{ "name": "r", "when": { "app": "acme" }, "action": "block", "reason": "loop" }"#;

/// Sends a change as the command line does.
pub(crate) fn send(proxy: &Proxy, method: &str, path: &str, body: &str) -> Message {
    let kind = "Content-Type: application/json";
    send_with(proxy, method, path, kind, body)
}

fn send_with(proxy: &Proxy, method: &str, path: &str, headers: &str, body: &str) -> Message {
    let length = body.len();
    let text = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nX-Tidegate-Operator: me@here\r\nConnection: close\r\n\
         Content-Length: {length}\r\n{headers}\r\n\r\n{body}"
    );
    Wire::connect(proxy.running.admin_address).exchange(text)
}

#[track_caller]
fn add(proxy: &Proxy, rule: &str) -> Value {
    let answer = send(proxy, "POST", "/api/v1/rules", rule);
    assert_eq!(answer.status(), 201, "{answer:?}");
    answer.json()
}

#[test]
fn a_rule_is_in_force_when_it_is_answered_and_gone_when_it_is_revoked() {
    let upstream = Upstream::recording();
    let proxy = Proxy::to(upstream.address);
    assert_eq!(proxy.ask(GET).status(), 200);
    let rule = add(&proxy, BLOCK);
    assert_eq!(rule["origin"], "operator");
    assert_eq!(rule["persisted"], true);
    assert_eq!(proxy.ask(GET).status(), 403);
    assert_eq!(proxy.ask(OTHER).status(), 200, "nobody else");

    let shadow = send(&proxy, "POST", "/api/v1/rules/r/shadow", "");
    assert_eq!(shadow.status(), 200, "{shadow:?}");
    assert_eq!(proxy.ask(GET).status(), 200);
    assert_eq!(proxy.admin("/api/v1/rules/r").json()["mode"], "shadow");
    let enforce = send(&proxy, "POST", "/api/v1/rules/r/enforce", "");
    assert_eq!(enforce.status(), 200, "{enforce:?}");
    assert_eq!(proxy.ask(GET).status(), 403);

    let revoked = send(&proxy, "DELETE", "/api/v1/rules/r?reason=over+now", "");
    assert_eq!(revoked.json()["rule"], Value::Null);
    assert_eq!(proxy.ask(GET).status(), 200);
    assert_eq!(proxy.admin("/api/v1/rules/r").status(), 404);

    let trail = proxy.admin("/api/v1/audit").json();
    let steps: Vec<_> = trail
        .as_array()
        .unwrap()
        .iter()
        .map(|line| line["what"].clone())
        .collect();
    assert_eq!(steps, ["add", "shadow", "enforce", "revoke"]);
    let last = trail.as_array().unwrap().last().unwrap();
    assert_eq!(
        (&last["who"], &last["why"]),
        (&json!("me@here"), &json!("over now"))
    );
    assert_eq!(last["before"]["mode"], "enforce");
    assert_eq!(last["after"], Value::Null);
    assert_eq!(trail[0]["why"], "loop", "the rule's own reason");
    assert_eq!(trail[0]["before"], Value::Null);
    assert_eq!(trail[0]["after"]["action"], "block");
}

#[test]
fn what_is_wrong_is_said_and_changes_nothing() {
    let upstream = Upstream::recording();
    let proxy = Setup {
        rules: "rules: [{ name: filed, when: { app: x }, action: block }]\nlimits: [{ name: lim, key: [ip], rate: 9/s }]\n",
        ..Setup::to(upstream.address)
    }
    .start();
    let wrong = "{ name: r, when: { ap: acme }, action: blok, percent: 101, extra: 1 }";
    let answer = send(&proxy, "POST", "/api/v1/rules", wrong);
    assert_eq!(answer.status(), 422);
    let errors = answer.json()["errors"].as_array().unwrap().len();
    assert_eq!(errors, 4, "all of them at once: {answer:?}");
    for (body, status) in [
        ("", 422),
        ("{", 422),
        ("[]", 422),
        ("null", 422),
        ("{ name: null, when: null, action: null }", 422),
        ("{ name: detected-1, when: { app: a }, action: block }", 422),
        ("{ name: filed, when: { app: a }, action: block }", 409),
        ("{ name: lim, when: { app: a }, action: block }", 409),
        (
            "{ name: r, when: { instance: a }, action: block, ttl: 0s }",
            422,
        ),
        (
            "{ name: r, when: { app: &a [*a, *a] }, action: block }",
            422,
        ),
    ] {
        let answer = send(&proxy, "POST", "/api/v1/rules", body);
        assert_eq!(answer.status(), status, "{body}: {answer:?}");
        assert!(
            answer.json()["detail"].as_str().unwrap().len() > 20,
            "{answer:?}"
        );
    }
    let deep = format!(
        "{{ name: r, when: {}1{}, action: block }}",
        "[".repeat(5000),
        "]".repeat(5000)
    );
    assert_eq!(send(&proxy, "POST", "/api/v1/rules", &deep).status(), 422);
    let large = "x".repeat(100_000);
    assert_eq!(send(&proxy, "POST", "/api/v1/rules", &large).status(), 413);
    for (method, path, status) in [
        ("DELETE", "/api/v1/rules/none", 404),
        ("DELETE", "/api/v1/rules/filed", 409),
        ("POST", "/api/v1/rules/filed/shadow", 409),
        ("POST", "/api/v1/rules/filed/approve", 409),
        ("POST", "/api/v1/rules/filed/promote", 409),
        ("POST", "/api/v1/rules/none/approve", 404),
        ("POST", "/api/v1/rules/filed/nothing", 404),
        ("DELETE", "/api/v1/rules", 400),
        ("DELETE", "/api/v1/rules?origin=file", 400),
        ("DELETE", "/api/v1/rules/filed?nothing=1", 400),
        ("PUT", "/api/v1/rules/filed", 405),
        ("POST", "/api/v1/status", 405),
        ("DELETE", "/api/v1/incidents/1", 405),
    ] {
        let answer = send(&proxy, method, path, "");
        assert_eq!(answer.status(), status, "{method} {path}: {answer:?}");
    }
    assert_eq!(
        proxy
            .admin("/api/v1/rules")
            .json()
            .as_array()
            .unwrap()
            .len(),
        1
    );
    assert_eq!(
        proxy.admin("/api/v1/audit").json(),
        json!([]),
        "nothing was changed"
    );
}

#[test]
fn pages_of_other_sites_change_nothing() {
    let upstream = Upstream::recording();
    let proxy = Proxy::to(upstream.address);
    for (headers, status) in [
        ("Content-Type: text/plain", 415),
        ("Content-Type: application/x-www-form-urlencoded", 415),
        ("X-None: 1", 415),
        (
            "Content-Type: application/json\r\nOrigin: http://evil.example.com",
            403,
        ),
        ("Content-Type: application/json\r\nOrigin: null", 403),
        (
            "Content-Type: application/json\r\nSec-Fetch-Site: cross-site",
            403,
        ),
        (
            "Content-Type: application/json\r\nOrigin: http://localhost",
            201,
        ),
    ] {
        let answer = send_with(&proxy, "POST", "/api/v1/rules", headers, BLOCK);
        assert_eq!(answer.status(), status, "{headers}: {answer:?}");
    }
    let revoke = send_with(
        &proxy,
        "DELETE",
        "/api/v1/rules/r",
        "Origin: http://evil.example.com",
        "",
    );
    assert_eq!(revoke.status(), 403);
    assert_eq!(proxy.ask(GET).status(), 403, "the rule is still there");
}

#[test]
fn a_rule_is_tried_on_the_recent_requests_first() {
    let upstream = Upstream::recording();
    let proxy = Proxy::to(upstream.address);
    for _ in 0..10 {
        proxy.ask(GET);
        proxy.ask(OTHER);
    }
    let dry = "/api/v1/rules?dry_run=true";
    let mut preview = Value::Null;
    eventually("the sample is gathered", || {
        preview = send(&proxy, "POST", dry, BLOCK).json();
        preview["preview"]["sampled"] == 20
    });
    assert_eq!(preview["preview"]["matched"], 10);
    assert_eq!(preview["preview"]["share_of_normal"], 0.5);
    assert_eq!(preview["preview"]["sources"][0]["source"]["app"], "acme");
    assert_eq!(preview["needs_force"], true);
    assert_eq!(proxy.ask(GET).status(), 200, "nothing is in force yet");

    let refused = send(&proxy, "POST", "/api/v1/rules", BLOCK);
    assert_eq!(refused.status(), 409);
    assert!(
        refused.json()["preview"]["share_of_normal"]
            .as_f64()
            .unwrap()
            > 0.25
    );
    assert_eq!(proxy.ask(GET).status(), 200);
    let forced = send(&proxy, "POST", "/api/v1/rules?force=true", BLOCK);
    assert_eq!(forced.status(), 201);
    assert_eq!(proxy.ask(GET).status(), 403);
    let small = "{ name: s, when: { app: nobody }, action: block }";
    assert_eq!(send(&proxy, "POST", "/api/v1/rules", small).status(), 201);
    let everybody = "{ name: t, when: { ip: 0.0.0.0/0 }, action: block }";
    assert_eq!(
        send(&proxy, "POST", "/api/v1/rules", everybody).status(),
        409
    );
}

/// `dry_run` was read everywhere and honoured at one place only.
#[test]
fn a_dry_run_changes_nothing_and_what_means_nothing_is_refused() {
    let upstream = Upstream::recording();
    let proxy = Proxy::to(upstream.address);
    let shadow =
        r#"{ "name": "r", "when": { "app": "acme" }, "action": "block", "mode": "shadow" }"#;
    add(&proxy, shadow);
    let tried = send(&proxy, "POST", "/api/v1/rules/r/enforce?dry_run=true", "");
    assert_eq!(tried.status(), 200, "{tried:?}");
    assert_eq!(tried.json()["needs_force"], false);
    assert!(tried.json()["preview"].is_object(), "{tried:?}");
    for (method, path) in [
        ("DELETE", "/api/v1/rules/r?dry_run=true"),
        ("DELETE", "/api/v1/rules/r?force=true"),
        ("DELETE", "/api/v1/rules/r?name=x"),
        ("DELETE", "/api/v1/rules/r?origin=operator"),
        ("DELETE", "/api/v1/rules?origin=detected&dry_run=true"),
        ("DELETE", "/api/v1/rules?origin=detected&force=true"),
        ("POST", "/api/v1/rules/r/shadow?dry_run=true"),
        ("POST", "/api/v1/rules/r/shadow?force=true"),
        ("POST", "/api/v1/rules/r/enforce?name=x"),
        ("POST", "/api/v1/rules/r/enforce?origin=operator"),
        ("POST", "/api/v1/rules/r/approve?name=x"),
        ("POST", "/api/v1/rules/r/promote?origin=detected"),
        ("POST", "/api/v1/rules?name=x"),
        ("POST", "/api/v1/rules?origin=operator"),
        ("POST", "/api/v1/explain?dry_run=true"),
        ("POST", "/api/v1/explain?reason=x"),
    ] {
        let answer = send(&proxy, method, path, BLOCK);
        assert_eq!(answer.status(), 400, "{method} {path}: {answer:?}");
        let detail = answer.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains("means nothing here; write "), "{detail}");
    }
    let shown = proxy.admin("/api/v1/rules").json();
    assert_eq!(shown.as_array().unwrap().len(), 1);
    assert_eq!(shown[0]["mode"], "shadow", "{shown}");
    let trail = proxy.admin("/api/v1/audit").json();
    assert_eq!(trail.as_array().unwrap().len(), 1, "the adding: {trail}");
}

/// What was added in shadow could be enforced against everybody without a word.
#[test]
fn what_would_meet_much_is_enforced_only_where_somebody_insists() {
    let upstream = Upstream::recording();
    let proxy = Proxy::to(upstream.address);
    for _ in 0..10 {
        proxy.ask(GET);
        proxy.ask(OTHER);
    }
    let shadow =
        r#"{ "name": "r", "when": { "app": "acme" }, "action": "block", "mode": "shadow" }"#;
    eventually("the sample is gathered", || {
        let tried = send(&proxy, "POST", "/api/v1/rules?dry_run=true", BLOCK).json();
        tried["needs_force"] == true
    });
    let dry = send(&proxy, "POST", "/api/v1/rules?dry_run=true", shadow).json();
    assert_eq!(dry["preview"]["share_of_normal"], 0.5, "{dry}");
    assert_eq!(dry["needs_force"], false, "it counts only: {dry}");
    add(&proxy, shadow);
    let enforce = |query: &str| {
        let path = format!("/api/v1/rules/r/enforce{query}");
        send(&proxy, "POST", &path, "")
    };
    let refused = enforce("");
    assert_eq!(refused.status(), 409, "{refused:?}");
    assert_eq!(refused.json()["preview"]["share_of_normal"], 0.5);
    Description::of(&proxy).holds("post", "/api/v1/rules/{name}/enforce", &refused);
    assert_eq!(enforce("?dry_run=true").json()["needs_force"], true);
    assert_eq!(proxy.ask(GET).status(), 200, "it still counts only");
    assert_eq!(enforce("?force=true").status(), 200);
    assert_eq!(proxy.ask(GET).status(), 403);
    assert_eq!(enforce("").status(), 200, "it acts already");
    let trail = proxy.admin("/api/v1/audit").json();
    assert_eq!(trail[1]["forced"], true, "{trail}");
}

#[test]
fn a_request_is_explained_before_and_after() {
    let upstream = Upstream::recording();
    let proxy = Proxy::to(upstream.address);
    add(&proxy, BLOCK);
    let asked = json!({ "method": "GET", "url": "http://a/x", "headers": { "x-app-id": "acme" } });
    let explained = send(&proxy, "POST", "/api/v1/explain", &asked.to_string());
    assert_eq!(explained.json()["verdict"], "block");
    assert_eq!(explained.json()["rule"], "r");
    let refused = proxy.ask(GET);
    let id = refused.header("x-request-id").unwrap().to_owned();
    let asked = json!({ "request_id": id }).to_string();
    let found = send(&proxy, "POST", "/api/v1/explain", &asked).json();
    assert_eq!(
        (&found["rule"], &found["verdict"]),
        (&json!("r"), &json!("block"))
    );
    assert_eq!(found["in_force"]["action"], "block");
    let passed = proxy.ask(OTHER);
    let id = passed.header("x-request-id").unwrap().to_owned();
    let asked = json!({ "request_id": id }).to_string();
    assert_eq!(
        send(&proxy, "POST", "/api/v1/explain", &asked).status(),
        404
    );
    for wrong in [
        "",
        "[]",
        "{\"url\": 1}",
        "{\"nothing\": 1}",
        "{\"url\": \"\"}",
        "{}",
    ] {
        let answer = send(&proxy, "POST", "/api/v1/explain", wrong);
        assert_eq!(answer.status(), 400, "{wrong}");
    }
    assert_eq!(
        proxy.admin("/api/v1/rules/r").json()["refusals"],
        1,
        "nothing was spent"
    );
}

/// What the description says is there, is there, and answers as it says.
#[test]
fn the_server_is_what_its_description_says() {
    let upstream = Upstream::recording();
    let proxy = Proxy::to(upstream.address);
    add(&proxy, BLOCK);
    proxy.ask(GET);
    let description = Description::of(&proxy);
    let mut checked = 0;
    for (path, methods) in description.paths() {
        for method in methods.as_object().unwrap().keys() {
            if path == "/api/v1/events" {
                continue;
            }
            let asked = path.replace("{name}", "r").replace("{id}", "1");
            let body = match (method.as_str(), path.as_str()) {
                ("post", "/api/v1/rules") => "{ name: s, when: { app: s }, action: log }",
                ("post", "/api/v1/explain") => r#"{ "url": "http://a/x" }"#,
                _ => "",
            };
            // What takes the rule away comes last: methods are in order, and so are paths.
            let answer = if method == "delete" && path.ends_with("{name}") {
                add(&proxy, "{ name: gone, when: { app: g }, action: log }");
                send(&proxy, "DELETE", "/api/v1/rules/gone", "")
            } else {
                send(&proxy, &method.to_uppercase(), &asked, body)
            };
            description.holds(method, path, &answer);
            checked += 1;
        }
    }
    assert_eq!(checked, 21);
    let undescribed = send(&proxy, "PATCH", "/api/v1/rules/r", "");
    assert_eq!(undescribed.status(), 405);
}

#[test]
fn a_token_is_asked_for_before_anything_is_changed() {
    let upstream = Upstream::recording();
    let token = std::env::temp_dir().join(format!("tidegate-it-changes-{}", std::process::id()));
    std::fs::write(&token, "0123456789abcdef\n").unwrap();
    let proxy = Setup {
        admin: &format!(", token_file: {token:?}"),
        ..Setup::to(upstream.address)
    }
    .start();
    assert_eq!(send(&proxy, "POST", "/api/v1/rules", BLOCK).status(), 401);
    let wrong = "Authorization: Bearer 0123456789abcdeX\r\nContent-Type: application/json";
    assert_eq!(
        send_with(&proxy, "POST", "/api/v1/rules", wrong, BLOCK).status(),
        401
    );
    let right = "Authorization: Bearer 0123456789abcdef\r\nContent-Type: application/json";
    assert_eq!(
        send_with(&proxy, "POST", "/api/v1/rules", right, BLOCK).status(),
        201
    );
    std::fs::remove_file(token).unwrap();
}

#[test]
fn events_are_streamed_and_nobody_listens_without_end() {
    let upstream = Upstream::recording();
    let proxy = Proxy::to(upstream.address);
    let ask = "GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let mut open = Vec::new();
    for _ in 0..16 {
        let mut wire = Wire::connect(proxy.running.admin_address);
        wire.send(ask);
        let head = wire.read_until(b": tidegate\n\n");
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        assert!(head.contains("text/event-stream"), "{head}");
        open.push(wire);
    }
    let refused = Wire::connect(proxy.running.admin_address).exchange(ask);
    assert_eq!(refused.status(), 503);
    assert_eq!(proxy.admin("/api/v1/status").status(), 200);
}
