//! What the admin API shows, as JSON. Reads only; for changes see [`super::change`].

use std::collections::HashSet;
use std::time::SystemTime;

use serde_json::{Value, json};
use tidegate_engine::detect::Incident;
use tidegate_engine::policy::Policy;
use tidegate_engine::rules::whole_rule;
use tidegate_engine::time::Instant;

use super::{Admin, Answer, json_answer, problem, rules};
use crate::control::Control;
use crate::metrics::{Metrics, forget_but, raise_to};
use crate::state::last_lines;

/// The most sources that are listed.
const TOP_MAX: usize = 100;
/// How many sources are listed where nothing is said, and in the metrics.
const TOP_DEFAULT: usize = 20;
/// By what the metrics tell sources apart.
const METRIC_SOURCE_ATTRIBUTES: [&str; 3] = ["sdk", "sdk_version", "app"];

/// What is served, and by which methods. `{…}` stands for any one segment.
const PATHS: [(&str, &str); 18] = [
    ("/", "GET"),
    ("/healthz", "GET"),
    ("/readyz", "GET"),
    ("/metrics", "GET"),
    ("/api/openapi.json", "GET"),
    ("/api/v1/status", "GET"),
    ("/api/v1/rules", "GET, POST, DELETE"),
    ("/api/v1/rules/{name}", "GET, DELETE"),
    ("/api/v1/rules/{name}/approve", "POST"),
    ("/api/v1/rules/{name}/promote", "POST"),
    ("/api/v1/rules/{name}/enforce", "POST"),
    ("/api/v1/rules/{name}/shadow", "POST"),
    ("/api/v1/incidents", "GET"),
    ("/api/v1/incidents/{id}", "GET"),
    ("/api/v1/sources", "GET"),
    ("/api/v1/services", "GET"),
    ("/api/v1/explain", "POST"),
    ("/api/v1/audit", "GET"),
];

/// The one that streams is apart: it has no end to be tested.
const EVENTS: &str = "/api/v1/events";

/// Where all paths are described.
pub(super) const SEE_PATHS: &str = "see /api/openapi.json";

/// Returns the methods that are served at a path, or `None` where nothing is.
pub(super) fn methods_at(path: &str) -> Option<&'static str> {
    if path == EVENTS {
        return Some("GET");
    }
    let is_at = |pattern: &str| {
        let (mut wanted, mut given) = (pattern.split('/'), path.split('/'));
        loop {
            match (wanted.next(), given.next()) {
                (None, None) => return true,
                (Some(wanted), Some(given)) if wanted == given => {}
                (Some(wanted), Some(given)) if wanted.starts_with('{') && !given.is_empty() => {}
                _ => return false,
            }
        }
    };
    let found = PATHS.iter().find(|(pattern, _)| is_at(pattern));
    found.map(|(_, methods)| *methods)
}

/// Answers a GET under `/api/v1`.
pub(super) fn read(admin: &Admin, path: &str, query: &str) -> Answer {
    let control = admin.control.borrow();
    let nothing = |what: &str, list: &str| problem(404, what, &format!("see {list}"));
    match path {
        "/api/v1/status" => json_answer(&status(admin, &control)),
        "/api/v1/rules" => json_answer(&rules::all(&control)),
        "/api/v1/incidents" => json_answer(&incidents(&control)),
        "/api/v1/services" => json_answer(&services(&control, admin)),
        "/api/v1/audit" => audit(&control, query),
        "/api/v1/sources" => match sources(&control, query) {
            Ok(sources) => json_answer(&sources),
            Err(what) => problem(400, &what, "write it like `?by=sdk,sdk_version,app&top=20`"),
        },
        _ => {
            if let Some(name) = path.strip_prefix("/api/v1/rules/") {
                return match rules::one(&control, name) {
                    Value::Null => nothing("there is no rule of this name", "/api/v1/rules"),
                    rule => json_answer(&rule),
                };
            }
            if let Some(id) = path.strip_prefix("/api/v1/incidents/") {
                let id = id.parse::<u64>().ok();
                let mut all = control.incidents().iter();
                return match all.find(|incident| Some(incident.id.0) == id) {
                    Some(incident) => json_answer(&incident_json(&control, incident)),
                    None => nothing("there is no incident of this id", "/api/v1/incidents"),
                };
            }
            problem(404, "there is nothing at this path", SEE_PATHS)
        }
    }
}

fn status(admin: &Admin, control: &Control) -> Value {
    let policy = control.policy();
    let detector = control.detector();
    let reload = control.last_reload();
    let active = control
        .incidents()
        .iter()
        .filter(|incident| incident.active)
        .count();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "workers": admin.workers,
        "draining": *admin.drain.borrow(),
        "policy": {
            "generation": policy.generation(),
            "published": rfc3339(control.published()),
            "rules": policy.rules().count(),
            "limits": policy.limits().count(),
        },
        "reload": {
            "successful": reload.problems.is_empty(),
            "at": rfc3339(reload.at),
            "problems": reload.problems,
        },
        "detection": {
            "mode": detector.mode().word(),
            "warm": detector.is_warm(),
            "trained_s": detector.trained().as_secs_f64(),
            "incidents_active": active,
        },
        "not_in_force": control.settings().not_in_force,
    })
}

fn incidents(control: &Control) -> Value {
    let all = control.incidents().iter();
    all.map(|incident| incident_json(control, incident))
        .collect()
}

fn incident_json(control: &Control, incident: &Incident) -> Value {
    let clock = control.clock();
    let (now, wall) = (clock.now(), clock.wall());
    let when = |at: Instant| rfc3339(wall.checked_sub(now.since(at)).unwrap_or(wall));
    let timeline: Vec<Value> = incident
        .timeline
        .iter()
        .map(|moment| {
            let after = moment.at.since(incident.began).as_secs_f64();
            let mut shown = json!({ "what": moment.what, "at": when(moment.at), "after_s": after });
            if let (Some(why), Some(shown)) = (&moment.why, shown.as_object_mut()) {
                shown.insert("why".into(), json!(why));
            }
            if let (Some(effect), Some(shown)) = (&moment.effect, shown.as_object_mut()) {
                shown.insert("effect".into(), json!(effect));
            }
            shown
        })
        .collect();
    json!({
        "id": incident.id,
        "began": when(incident.began),
        "active": incident.active,
        "source": incident.source,
        "nature": incident.nature,
        "rule": incident.rule,
        "evidence": incident.evidence,
        "timeline": timeline,
    })
}

/// Shows the last changes that somebody made, oldest first.
fn audit(control: &Control, query: &str) -> Answer {
    let top = query
        .split('&')
        .find_map(|pair| pair.strip_prefix("top="))
        .map_or(Ok(TOP_MAX), str::parse);
    let Ok(top) = top else {
        return problem(400, "`top` is no number", "write it like `?top=20`");
    };
    match last_lines(&control.settings().state, top) {
        Ok((lines, damaged)) => {
            if damaged > 0 {
                tracing::warn!(damaged, "lines of the audit trail are damaged and left out");
            }
            json_answer(&Value::Array(lines))
        }
        Err(error) => problem(
            500,
            &format!("the audit trail cannot be read: {error}"),
            "check the state folder",
        ),
    }
}

/// Returns the number of the incident that a rule belongs to; null where there is none.
pub(super) fn incident_of_rule(control: &Control, name: &str) -> Value {
    let of_rule = |incident: &&Incident| {
        let rule = incident.rule.as_ref();
        rule.is_some_and(|rule| rule.as_str() == whole_rule(name))
    };
    let found = control.incidents().iter().find(of_rule);
    found.map_or(Value::Null, |incident| json!(incident.id))
}

fn services(control: &Control, admin: &Admin) -> Value {
    let now = control.clock().now();
    let setup = control.setup();
    let each = setup.settings.services.iter().zip(&setup.services);
    let shown = each.map(|(service, shared)| {
        let (count, oldest) = shared.in_flight();
        json!({
            "name": service.spec.name,
            "upstream": service.upstream,
            "priority": service.spec.priority.word(),
            "inflight": count,
            "waiting": shared.waiting(),
            "limit": shared.limit(),
            "oldest_inflight_s": oldest.map(|oldest| now.since(oldest).as_secs_f64()),
            "endpoints": admin.endpoints.read(&service.upstream),
        })
    });
    shown.collect()
}

fn sources(control: &Control, query: &str) -> Result<Value, String> {
    let (mut by, mut top) = (METRIC_SOURCE_ATTRIBUTES.join(","), TOP_DEFAULT);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some(("by", names)) => by = names.replace("%2C", ",").replace("%2c", ","),
            Some(("top", number)) => {
                let number: usize = number
                    .parse()
                    .map_err(|error| format!("`top={number}`: {error}"))?;
                top = number.clamp(1, TOP_MAX);
            }
            _ => return Err(format!("`{pair}` is not known here")),
        }
    }
    let policy = control.policy();
    let schema = policy.schema();
    let mut ids = Vec::new();
    for name in by.split(',') {
        match schema.id(name) {
            Some(id) => ids.push(id),
            // Without a parameter, the usual names are shown as far as there are any.
            None if !query.contains("by=") => {}
            None => return Err(format!("there is no attribute `{name}`")),
        }
    }
    let sources = control.detector().top_sources(&ids, top);
    Ok(sources
        .iter()
        .map(|(source, rate)| json!({ "source": source, "requests_per_second": rate }))
        .collect())
}

/// Brings the series up to date that are kept elsewhere, and writes all of them.
pub(super) fn metrics(control: &Control) -> Vec<u8> {
    let metrics = control.metrics();
    let policy = control.policy();
    set_rules(metrics, &policy);
    set_inflight(metrics, control);
    set_top_sources(metrics, control, &policy);
    metrics.text()
}

fn set_rules(metrics: &Metrics, policy: &Policy) {
    metrics.rules.reset();
    // What is gone takes its series with it, so there are never more than rules and limits.
    let rules: HashSet<&str> = policy
        .rules()
        .map(|rule| rule.rule().name.as_str())
        .collect();
    forget_but(&rules, &metrics.rule_matches_total);
    let limits: HashSet<&str> = policy
        .limits()
        .map(|limit| limit.limit().name.as_str())
        .collect();
    forget_but(&limits, &metrics.limit_refusals_total);
    forget_but(&limits, &metrics.limit_shadow_refusals_total);
    forget_but(&limits, &metrics.limit_keys);
    for rule in policy.rules() {
        let labels = [rule.rule().origin.word(), rule.rule().action.word()];
        metrics.rules.with_label_values(&labels).inc();
        let label = [rule.rule().name.as_str()];
        let matches = rule.matches() + rule.shadow_matches();
        raise_to(
            &metrics.rule_matches_total.with_label_values(&label),
            matches,
        );
    }
    for limit in policy.limits() {
        let label = [limit.limit().name.as_str()];
        raise_to(
            &metrics.limit_refusals_total.with_label_values(&label),
            limit.refusals(),
        );
        let shadow = &metrics.limit_shadow_refusals_total;
        raise_to(&shadow.with_label_values(&label), limit.shadow_refusals());
        metrics
            .limit_keys
            .with_label_values(&label)
            .set(limit.keys() as i64);
    }
}

fn set_inflight(metrics: &Metrics, control: &Control) {
    let now = control.clock().now();
    let setup = control.setup();
    let all = || setup.services.iter().chain([&setup.no_service]);
    let live: HashSet<&str> = all().map(|service| &*service.name).collect();
    forget_but(&live, &metrics.inflight_requests);
    forget_but(&live, &metrics.oldest_inflight_seconds);
    forget_but(&live, &metrics.waiting_requests);
    forget_but(&live, &metrics.concurrency_limit);
    for service in &setup.services {
        let label = [&*service.name];
        let waiting = metrics.waiting_requests.with_label_values(&label);
        waiting.set(service.waiting() as i64);
        let limit = metrics.concurrency_limit.with_label_values(&label);
        limit.set(service.limit() as i64);
    }
    for service in all() {
        let (count, oldest) = service.in_flight();
        let label = [&*service.name];
        let requests = metrics.inflight_requests.with_label_values(&label);
        requests.set(count as i64);
        let age = oldest.map_or(0.0, |oldest| now.since(oldest).as_secs_f64());
        let seconds = metrics.oldest_inflight_seconds.with_label_values(&label);
        seconds.set(age);
    }
}

/// Sets the one gauge whose label clients choose: at most twenty sources, and the sum of the rest.
fn set_top_sources(metrics: &Metrics, control: &Control, policy: &Policy) {
    let schema = policy.schema();
    let ids: Vec<_> = METRIC_SOURCE_ATTRIBUTES
        .iter()
        .filter_map(|name| schema.id(name))
        .collect();
    let gauge = &metrics.top_source_requests_per_second;
    gauge.reset();
    let mut other = control.detector().observed_per_second();
    for (source, rate) in control.detector().top_sources(&ids, TOP_DEFAULT) {
        gauge.with_label_values(&[&source.to_string()]).set(rate);
        other -= rate;
    }
    gauge.with_label_values(&["other"]).set(other.max(0.0));
}

pub(super) fn rfc3339(wall: SystemTime) -> String {
    humantime::format_rfc3339_millis(wall).to_string()
}
