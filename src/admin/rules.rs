//! Rules as JSON: those in force with what they did, and operators' that are not in force with why.

use std::collections::HashMap;

use serde_json::{Map, Value, json};
use tidegate_engine::attribute::Schema;
use tidegate_engine::detect::Incident;
use tidegate_engine::policy::RuleInForce;
use tidegate_engine::rules::{Action, Rule, whole_rule};

use super::api::rfc3339;
use crate::control::Control;
use crate::control::operator::IdleRule;

/// Shows one rule, one in force first; null where there is none of this name.
pub(super) fn one(control: &Control, name: &str) -> Value {
    let policy = control.policy();
    let is_it = |rule: &&RuleInForce| rule.rule().name.as_str() == name;
    let Some(rule) = policy.rules().find(is_it) else {
        return idle(control, name).unwrap_or_default();
    };
    let of_rule = |incident: &&Incident| {
        let rule = incident.rule.as_ref();
        rule.is_some_and(|rule| rule.as_str() == whole_rule(name))
    };
    let incident = control.incidents().iter().rev().find(of_rule);
    in_force_json(rule, policy.schema(), incident)
}

/// Shows an operator's rule that is not in force.
pub(super) fn idle(control: &Control, name: &str) -> Option<Value> {
    let mut all = control.idle_rules();
    let found = all.find(|idle| idle.rule.name.as_str() == name);
    found.map(idle_json)
}

/// Shows all rules: those in force, in the order in which they are asked, then operators' that are not.
pub(super) fn all(control: &Control) -> Value {
    let policy = control.policy();
    let evidence: HashMap<&str, &Incident> = control
        .incidents()
        .iter()
        .filter_map(|incident| Some((incident.rule.as_ref()?.as_str(), incident)))
        .collect();
    let rule = |rule: &RuleInForce| {
        let incident = evidence.get(whole_rule(rule.rule().name.as_str()));
        in_force_json(rule, policy.schema(), incident.copied())
    };
    let in_force = policy.rules().map(rule);
    in_force
        .chain(control.idle_rules().map(idle_json))
        .collect()
}

fn in_force_json(in_force: &RuleInForce, schema: &Schema, incident: Option<&Incident>) -> Value {
    let mut shown = rule_json(in_force.rule(), Some(schema));
    let mut set = |key: &str, value: Value| {
        shown.insert(key.into(), value);
    };
    set("matches", json!(in_force.matches()));
    set("shadow_matches", json!(in_force.shadow_matches()));
    set("refusals", json!(in_force.refusals()));
    set("spared", json!(in_force.spared()));
    set("created", json!(rfc3339(in_force.created())));
    if let Some(incident) = incident {
        let evidence = serde_json::to_value(&incident.evidence).unwrap_or_default();
        set("evidence", evidence);
        set("incident", json!(incident.id));
    }
    Value::Object(shown)
}

/// Shows a rule that meets nothing, and why.
fn idle_json(idle: &IdleRule) -> Value {
    let mut shown = rule_json(&idle.rule, None);
    for counter in ["matches", "shadow_matches", "refusals", "spared"] {
        shown.insert(counter.into(), json!(0));
    }
    shown.insert("created".into(), json!(idle.created()));
    shown.insert("idle".into(), json!(idle.why.to_string()));
    Value::Object(shown)
}

/// Shows a rule under the names that it has in YAML. Without a schema, attributes have no names but those in
/// `when`.
fn rule_json(rule: &Rule, schema: Option<&Schema>) -> Map<String, Value> {
    let mut shown = Map::new();
    let mut set = |key: &str, value: Value| {
        shown.insert(key.into(), value);
    };
    set("name", json!(rule.name));
    set("when", json!(rule.when_text));
    set("action", json!(rule.action.word()));
    match &rule.action {
        Action::Block { status } => set("status", json!(status)),
        Action::Throttle { rate, burst, per } => {
            set("rate", json!(rate.to_string()));
            set("burst", json!(burst));
            if let Some(schema) = schema.filter(|_| !per.is_empty()) {
                let names: Vec<&str> = per.iter().map(|id| schema.name(*id)).collect();
                set("per", json!(names));
            }
        }
        Action::Allow | Action::Drop | Action::Tarpit | Action::Log => {}
    }
    set("mode", json!(rule.mode));
    set("percent", json!(rule.percent));
    if let Some(until) = rule.until {
        set("until", json!(rfc3339(until)));
    }
    if let Some(reason) = &rule.reason {
        set("reason", json!(reason));
    }
    set("origin", json!(rule.origin));
    shown
}
