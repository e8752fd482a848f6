//! Which service a request belongs to.

use std::sync::Arc;
use std::time::SystemTime;

use tidegate_engine::attribute::Schema;
use tidegate_engine::policy::{Policy, PolicyParts, Route};
use tidegate_engine::service::{HostPattern, Match, Priority, ServiceSpec};
use tidegate_engine::time::Instant;

fn service(name: &str, matches: Vec<Match>) -> ServiceSpec {
    ServiceSpec {
        name: name.into(),
        matches,
        priority: Priority::Normal,
    }
}

fn path(path: &str) -> Match {
    Match {
        path: Some(path.into()),
        host: None,
    }
}

fn below(path: Option<&str>, suffix: &str) -> Match {
    Match {
        path: path.map(Arc::from),
        host: Some(HostPattern::Below(suffix.into())),
    }
}

fn policy(services: Vec<ServiceSpec>) -> Policy {
    let parts = PolicyParts {
        schema: Arc::new(Schema::built_in()),
        services: services.into(),
        rules: Vec::new(),
        limits: Vec::new(),
        generation: 1,
    };
    Policy::compile(parts, None, Instant::ZERO, SystemTime::UNIX_EPOCH)
}

#[test]
fn the_first_service_with_a_match_wins() {
    let policy = policy(vec![
        service("login", vec![path("/v1/auth/"), path("/p/v1/auth/")]),
        service(
            "chat",
            vec![path("/c/v1/"), below(Some("/v1/chat/"), ".api.example.com")],
        ),
        service("tenants", vec![below(None, ".example.com")]),
        service("v1", vec![path("/v1")]),
    ]);
    for (host, asked, expected) in [
        ("x", "/v1/auth", Some((0, "login", Some("/v1/auth/")))),
        (
            "x",
            "/p/v1/auth/token",
            Some((0, "login", Some("/p/v1/auth/"))),
        ),
        (
            "a.example.com",
            "/v1/auth/x",
            Some((0, "login", Some("/v1/auth/"))),
        ),
        (
            "a.api.example.com",
            "/v1/chat/1",
            Some((1, "chat", Some("/v1/chat/"))),
        ),
        ("a.example.com", "/v1/chat/1", Some((2, "tenants", None))),
        ("example.com", "/v1/chat/1", Some((3, "v1", Some("/v1")))),
        ("x", "/v1/authx", Some((3, "v1", Some("/v1")))),
        ("x", "/v2", None),
        ("x", "", None),
    ] {
        let expected = expected.map(|(index, service, path)| Route {
            index,
            service,
            path,
        });
        assert_eq!(policy.route(host, asked), expected, "{host} {asked}");
    }
}

#[test]
fn without_services_nothing_is_routed() {
    assert_eq!(policy(vec![]).route("x", "/"), None);
}
