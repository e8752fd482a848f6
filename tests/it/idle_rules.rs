//! Operators' rules that are not in force: their time is over, a file has their name, or the settings do
//! not allow them.

use serde_json::{Value, json};

use super::changes::send;
use super::harness::{Description, Proxy, Upstream, eventually};

const GET: &str = "GET /x HTTP/1.1\r\nHost: a\r\nX-App-Id: acme\r\n\r\n";
const BLOCK: &str = r#"{ "name": "r", "when": { "app": "acme" }, "action": "block" }"#;
const FILE: &str = "rules: [{ name: r, when: { app: acme }, action: log }]\n";

/// Returns the rules of the name `r`, in force or not.
fn rules(proxy: &Proxy) -> Vec<Value> {
    let answer = proxy.admin("/api/v1/rules");
    Description::of(proxy).holds("get", "/api/v1/rules", &answer);
    let all = answer.json();
    let all = all.as_array().expect("a list").iter();
    all.filter(|rule| rule["name"] == "r").cloned().collect()
}

fn trail(proxy: &Proxy) -> Vec<Value> {
    let answer = proxy.admin("/api/v1/audit");
    Description::of(proxy).holds("get", "/api/v1/audit", &answer);
    answer.json().as_array().expect("a list").clone()
}

fn is_idle(proxy: &Proxy) -> bool {
    rules(proxy).iter().any(|rule| rule["idle"].is_string())
}

/// Its name was taken for good: adding it was answered "revoke it first", and revoking it "there is none".
#[test]
fn the_name_of_a_rule_whose_time_is_over_is_free() {
    let upstream = Upstream::recording();
    let proxy = Proxy::to(upstream.address);
    let brief = r#"{ "name": "r", "when": { "app": "acme" }, "action": "log", "ttl": "1s" }"#;
    let add = |rule| send(&proxy, "POST", "/api/v1/rules", rule).status();
    assert_eq!(add(brief), 201);
    assert_eq!(add(BLOCK), 409);
    eventually("its time is over", || add(BLOCK) == 201);
    assert_eq!(proxy.ask(GET).status(), 403);
}

#[test]
fn a_rule_whose_name_a_file_takes_is_idle_until_the_file_drops_it() {
    let upstream = Upstream::recording();
    let proxy = Proxy::to(upstream.address);
    assert_eq!(send(&proxy, "POST", "/api/v1/rules", BLOCK).status(), 201);
    assert_eq!(proxy.ask(GET).status(), 403);

    proxy.folder.write("rules/more.yaml", FILE);
    eventually("the file's rule is in force", || is_idle(&proxy));
    assert_eq!(proxy.ask(GET).status(), 200, "the file's only counts");
    let both = rules(&proxy);
    assert_eq!(
        (&both[0]["origin"], &both[1]["origin"]),
        (&json!("file"), &json!("operator"))
    );
    assert_eq!(both[1]["idle"], "a file has a rule or limit of this name");
    assert_eq!(proxy.admin("/api/v1/rules/r").json()["origin"], "file");
    assert_eq!(send(&proxy, "POST", "/api/v1/rules", BLOCK).status(), 409);

    std::fs::remove_file(proxy.folder.path().join("rules/more.yaml")).expect("a file of ours");
    eventually("it is in force again", || proxy.ask(GET).status() == 403);
    assert!(!is_idle(&proxy));
    let what = |line: &Value| line["what"].as_str().map(str::to_owned);
    let mut steps: Vec<_> = Vec::new();
    eventually("the trail has what happened", || {
        steps = trail(&proxy).iter().filter_map(what).collect();
        steps.len() >= 3
    });
    assert_eq!(steps, ["add", "idle", "in_force_again"]);
    assert_eq!(trail(&proxy)[1]["who"], "tidegate");

    proxy.folder.write("rules/more.yaml", FILE);
    eventually("it is idle again", || is_idle(&proxy));
    let revoked = send(&proxy, "DELETE", "/api/v1/rules/r", "");
    Description::of(&proxy).holds("delete", "/api/v1/rules/{name}", &revoked);
    assert_eq!(revoked.status(), 200, "{revoked:?}");
    assert_eq!(revoked.json()["rule"]["origin"], "file", "that one stays");
    assert_eq!(rules(&proxy).len(), 1);
    let last = trail(&proxy).pop().expect("lines");
    assert_eq!(
        (&last["what"], &last["before"]["origin"]),
        (&json!("revoke"), &json!("operator"))
    );
    let filed = send(&proxy, "DELETE", "/api/v1/rules/r", "");
    assert_eq!(filed.status(), 409, "{filed:?}");
}

#[test]
fn a_rule_that_the_settings_do_not_allow_is_shown_and_can_be_revoked() {
    let upstream = Upstream::recording();
    let proxy = Proxy::to(upstream.address);
    assert_eq!(send(&proxy, "POST", "/api/v1/rules", BLOCK).status(), 201);
    let settings = proxy.folder.read("tidegate.yaml");
    let renamed = settings.replace("    app: {", "    tenant: {");
    assert_ne!(renamed, settings);
    proxy.folder.write("tidegate.yaml", &renamed);
    eventually("it is idle", || is_idle(&proxy));
    assert_eq!(proxy.ask(GET).status(), 200);
    let shown = proxy.admin("/api/v1/rules/r").json();
    assert_eq!(shown["when"]["app"], "acme", "{shown}");
    let why = shown["idle"].as_str().unwrap_or_default();
    assert!(why.contains("unknown attribute `app`"), "{shown}");
    for action in ["enforce", "shadow", "approve", "promote"] {
        let refused = send(&proxy, "POST", &format!("/api/v1/rules/r/{action}"), "");
        assert_eq!(refused.status(), 409, "{refused:?}");
        let detail = refused.json()["detail"].clone();
        assert!(detail.to_string().contains("is not in force"), "{detail}");
    }
    proxy.folder.write("tidegate.yaml", &settings);
    eventually("it is back", || proxy.ask(GET).status() == 403);
    proxy.folder.write("tidegate.yaml", &renamed);
    eventually("it is idle again", || is_idle(&proxy));
    let revoked = send(&proxy, "DELETE", "/api/v1/rules/r", "");
    assert_eq!(revoked.status(), 200, "{revoked:?}");
    assert_eq!(proxy.admin("/api/v1/rules/r").status(), 404);
    assert!(rules(&proxy).is_empty());
}
