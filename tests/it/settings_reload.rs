//! Settings that change while the proxy runs: what is under way ends as it began, the next request meets
//! the new settings, and what has a memory keeps it.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::harness::{OK, Proxy, Setup, Upstream, eventually};

const GET: &str = "GET /x HTTP/1.1\r\nHost: a\r\nX-App-Id: acme\r\n\r\n";
const BLOCK: &str = "rules: [{ name: r, when: { app: acme }, action: block, status: 401 }]\n";

/// Changes one place of the settings.
#[track_caller]
fn change(proxy: &Proxy, from: &str, to: &str) {
    let settings = proxy.folder.read("tidegate.yaml");
    assert!(settings.contains(from), "{from}");
    let settings = settings.replace(from, to);
    proxy.folder.write("tidegate.yaml", &settings);
}

fn problems(proxy: &Proxy) -> String {
    let status = proxy.admin("/api/v1/status").json();
    status
        .pointer("/reload/problems")
        .map(ToString::to_string)
        .unwrap_or_default()
}

#[test]
fn a_request_under_way_ends_where_it_began_and_the_next_goes_where_the_settings_say() {
    let (old, new) = (Upstream::new(), Upstream::recording());
    let proxy = Proxy::to(old.address);
    let mut client = proxy.client();
    client.send(GET);
    let mut under_way = old.accept();
    under_way.request();

    change(&proxy, &old.address.to_string(), &new.address.to_string());
    let inflight = "tidegate_inflight_requests{service=\"chat\"}";
    // Others may still meet the old one for a moment. It answers nobody, whoever is answered met the new.
    eventually("the new upstream is asked", || {
        proxy.client().send(GET);
        !new.take().is_empty()
    });
    assert!(proxy.metric(inflight) >= 1, "it is still counted");
    under_way.send(OK);
    assert_eq!(client.response().status(), 200);
    assert_eq!(client.exchange(GET).status(), 200, "on the same connection");
    eventually("all are gone", || proxy.metric(inflight) == 0);
    assert_eq!(proxy.metric("tidegate_panics_total"), 0);
}

#[test]
fn who_is_in_a_service_counts_when_its_budget_changes() {
    let upstream = Upstream::new();
    let one = "concurrency: { max: 1 }";
    let service =
        format!("services: [{{ name: chat, match: [{{ path: / }}], upstream: chat, {one} }}]");
    let proxy = Setup {
        services: &service,
        ..Setup::to(upstream.address)
    }
    .start();
    let mut first = proxy.client();
    first.send(GET);
    let mut held = upstream.accept();
    held.request();
    assert_eq!(proxy.ask(GET).status(), 503);
    change(&proxy, one, "concurrency: { max: 2 }");
    let (mut clients, mut second) = (Vec::new(), None);
    eventually("there is another place", || {
        let mut client = proxy.client();
        client.send(GET);
        clients.push(client);
        second = upstream.accept_if_any();
        second.is_some()
    });
    assert_eq!(proxy.ask(GET).status(), 503, "two are in, and two may be");
    held.send(OK);
    assert_eq!(first.response().status(), 200);
}

#[test]
fn attributes_can_be_read_from_elsewhere_and_new_ones_be_named_by_rules() {
    let upstream = Upstream::recording();
    let proxy = Setup {
        rules: BLOCK,
        ..Setup::to(upstream.address)
    }
    .start();
    assert_eq!(proxy.ask(GET).status(), 401);
    change(&proxy, "header: x-app-id", "header: x-app");
    eventually("the old header says nothing", || {
        proxy.ask(GET).status() == 200
    });
    let by_new = GET.replace("X-App-Id", "X-App");
    assert_eq!(proxy.ask(&by_new).status(), 401);

    // An attribute more, and a rule that needs it: both are taken over together.
    let rule = "rules: [{ name: r, when: { plan: free }, action: block, status: 402 }]\n";
    proxy.folder.write("rules/rules.yaml", rule);
    eventually("there is no such attribute yet", || {
        problems(&proxy).contains("plan")
    });
    let attributes = "attributes:\n    plan: { header: x-plan }\n";
    change(&proxy, "attributes:\n", attributes);
    let free = GET.replace("X-App-Id: acme", "X-Plan: free");
    eventually("the new attribute is known", || {
        proxy.ask(&free).status() == 402
    });
    assert_eq!(proxy.ask(GET).status(), 200);
    // What watches the traffic has gone over to the new attributes, too.
    eventually("sources are told apart by it", || {
        let shown = proxy.admin("/api/v1/sources?by=plan").text();
        proxy.ask(&free);
        shown.contains("free")
    });
    assert_eq!(proxy.metric("tidegate_panics_total"), 0);
}

#[test]
fn services_come_and_go() {
    let upstream = Upstream::recording();
    let services = "services: [{ name: chat, match: [{ path: /c/ }], upstream: chat }]";
    let proxy = Setup {
        services,
        ..Setup::to(upstream.address)
    }
    .start();
    let at = |path: &str| proxy.ask(GET.replace("/x", path)).status();
    assert_eq!((at("/c/"), at("/kb/")), (200, 404));
    let limit = "limits: [{ name: l, key: [ip], rate: 1/h, burst: 1, services: [kb] }]\n";
    proxy.folder.write("rules/rules.yaml", limit);
    let kb = "services: [{ name: kb, match: [{ path: /kb/ }], upstream: chat }]";
    change(&proxy, services, kb);
    eventually("kb is served", || at("/kb/") == 200);
    assert_eq!((at("/kb/"), at("/c/")), (429, 404));
    let shown = proxy.admin("/api/v1/services").json();
    assert_eq!(shown.pointer("/0/name"), Some(&"kb".into()));
    let metrics = proxy.admin("/metrics").text();
    assert!(!metrics.contains("tidegate_inflight_requests{service=\"chat\"}"));
}

#[test]
fn rules_folder_and_access_log_can_be_others() {
    let upstream = Upstream::recording();
    let proxy = Proxy::to(upstream.address);
    assert_eq!(proxy.ask(GET).status(), 200);
    let path = proxy.folder.path();
    fs::create_dir(path.join("other")).unwrap();
    proxy.folder.write("other/rules.yaml", BLOCK);
    change(&proxy, "rules: rules/", "rules: other/");
    eventually("the other folder is in force", || {
        proxy.ask(GET).status() == 401
    });
    proxy
        .folder
        .write("other/rules.yaml", &BLOCK.replace("401", "402"));
    eventually("and watched", || proxy.ask(GET).status() == 402);

    change(
        &proxy,
        "access_log: access.log",
        "access_log: nowhere/access.log",
    );
    eventually("there is no such folder", || {
        problems(&proxy).contains("nowhere/access.log")
    });
    let lines = || proxy.folder.read("access.log").lines().count();
    let before = lines();
    proxy.ask(GET);
    eventually("lines go where they went", || lines() > before);
    change(
        &proxy,
        "access_log: nowhere/access.log",
        "access_log: other.log",
    );
    eventually("lines go elsewhere", || {
        proxy.ask(GET);
        !proxy.folder.read("other.log").is_empty()
    });
}

/// As logrotate does it without `copytruncate`.
#[test]
fn an_access_log_that_was_moved_away_is_begun_anew() {
    let upstream = Upstream::recording();
    let proxy = Proxy::to(upstream.address);
    proxy.ask(GET);
    proxy.log(1);
    let path = proxy.folder.path();
    fs::rename(path.join("access.log"), path.join("access.log.1")).unwrap();
    eventually("a new file", || {
        proxy.ask(GET);
        !proxy.folder.read("access.log").is_empty()
    });
    let whole = |name| proxy.folder.read(name).ends_with("}\n");
    eventually("whole lines", || {
        whole("access.log") && whole("access.log.1")
    });
}

#[test]
fn what_needs_a_restart_stays_and_the_rest_is_taken_over() {
    let upstream = Upstream::recording();
    let proxy = Setup {
        rules: BLOCK,
        ..Setup::to(upstream.address)
    }
    .start();
    change(&proxy, "workers: 1", "workers: 2");
    change(&proxy, "header: x-app-id", "header: x-app");
    eventually("the rest is taken over", || proxy.ask(GET).status() == 200);
    let status = proxy.admin("/api/v1/status").json();
    assert_eq!(status.pointer("/workers"), Some(&1.into()));
}

/// An operator's rule survives settings that do not know its attribute, and is in force when they do.
#[test]
fn an_operators_rule_waits_for_settings_that_know_its_attribute() {
    let upstream = Upstream::recording();
    let proxy = Proxy::to(upstream.address);
    let rule = r#"{"name":"o","when":{"sdk":"loop"},"action":"block","status":402}"#;
    let post = format!(
        "POST /api/v1/rules HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{rule}",
        rule.len()
    );
    let mut admin = super::harness::Wire::connect(proxy.running.admin_address);
    assert_eq!(admin.exchange(post).status(), 201);
    let ask = || {
        proxy
            .ask(GET.replace("X-App-Id: acme", "X-Sdk: loop"))
            .status()
    };
    assert_eq!(ask(), 402);
    let sdk = "    sdk: { header: x-sdk }\n";
    change(&proxy, sdk, "    other: { header: x-sdk }\n");
    eventually("the attribute is gone", || ask() == 200);
    change(&proxy, "    other: { header: x-sdk }\n", sdk);
    eventually("the rule is back", || ask() == 402);
}

#[test]
fn changes_of_settings_under_load_lose_no_request() {
    let upstream = Upstream::recording();
    let proxy = Setup {
        workers: 2,
        ..Setup::to(upstream.address)
    }
    .start();
    let is_over = AtomicBool::new(false);
    let generation = || {
        let status = proxy.admin("/api/v1/status").json();
        let generation = status.pointer("/policy/generation");
        generation.and_then(serde_json::Value::as_u64).unwrap_or(0)
    };
    std::thread::scope(|scope| {
        let load = |_| {
            scope.spawn(|| {
                let mut client = proxy.client();
                let mut count = 0;
                while !is_over.load(Ordering::Relaxed) {
                    assert_eq!(client.exchange(GET).status(), 200);
                    count += 1;
                }
                count
            })
        };
        let clients: Vec<_> = (0..4).map(load).collect();
        for round in 1..=6 {
            let before = generation();
            let (from, to) = (format!("# {}", round - 1), format!("# {round}"));
            let settings = proxy.folder.read("tidegate.yaml").replace(&from, "");
            let idle = format!("connect_timeout: {round}s\n    {to}\n    endpoints:");
            let base = settings
                .lines()
                .filter(|line| !line.contains("connect_timeout"))
                .collect::<Vec<_>>()
                .join("\n");
            proxy
                .folder
                .write("tidegate.yaml", &base.replace("endpoints:", &idle));
            eventually("the change is in force", || generation() > before);
            std::thread::sleep(Duration::from_millis(50));
        }
        is_over.store(true, Ordering::Relaxed);
        for client in clients {
            let count: u32 = client.join().expect("no request was lost");
            assert!(count > 10, "{count}");
        }
    });
    assert_eq!(proxy.metric("tidegate_panics_total"), 0);
    assert_eq!(problems(&proxy), "[]");
}
