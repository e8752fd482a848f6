//! `tidegate incidents`: what happened, what was done about it, and why, over the admin API.

use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use super::client::Client;
use super::plain::{Plain, json_text};
use super::rules::{source_text, table, word};
use super::{complain, say};

#[derive(Debug, Args)]
pub(super) struct Incidents {
    /// The number of one incident, to see all of it.
    id: Option<u64>,
    #[command(flatten)]
    client: Client,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

impl Incidents {
    pub(super) fn run(&self) -> ExitCode {
        let path = match self.id {
            Some(id) => format!("/api/v1/incidents/{id}"),
            None => "/api/v1/incidents".to_owned(),
        };
        match self.client.get(&path) {
            Ok(found) if self.json => say(&json_text(&found)),
            Ok(found) if self.id.is_some() => say(&one(&found)),
            Ok(found) => say(&all(&found)),
            Err(error) => {
                complain(&format!("{error:#}"));
                return ExitCode::FAILURE;
            }
        }
        ExitCode::SUCCESS
    }
}

fn all(incidents: &Value) -> String {
    let incidents = incidents.as_array().cloned().unwrap_or_default();
    if incidents.is_empty() {
        return "no incident since the start".to_owned();
    }
    let head = ["ID", "", "BEGAN", "RULE", "LAST", "SOURCE"];
    let rows = incidents.iter().map(|incident| {
        let is_active = incident["active"] == true;
        let last = incident["timeline"].as_array().and_then(|all| all.last());
        [
            word(&incident["id"]),
            if is_active { "active" } else { "over" }.to_owned(),
            word(&incident["began"]),
            word(&incident["rule"]),
            last.map_or_else(String::new, |last| word(&last["what"])),
            if incident["source"].is_null() {
                "not known".to_owned()
            } else {
                source_text(&incident["source"])
            },
        ]
    });
    table(&head, rows)
}

fn one(incident: &Value) -> String {
    let evidence = &incident["evidence"];
    let real = |key: &str| evidence[key].as_f64().unwrap_or_default();
    let source = if incident["source"].is_null() {
        "not known".to_owned()
    } else {
        source_text(&incident["source"])
    };
    let state = if incident["active"] == true {
        "active"
    } else {
        "over"
    };
    let mut lines = vec![
        format!(
            "incident {}, {state}, began {}",
            incident["id"],
            word(&incident["began"])
        ),
        format!("source    {source}"),
        format!("nature    {}", word(&incident["nature"])),
        format!("rule      {}", word(&incident["rule"])),
        format!(
            "evidence  {:.0} requests a second where {:.0} were expected; explains {:.1} % of the surge, would hit \
             {:.2} % of normal traffic",
            real("observed_rate"),
            real("expected_rate"),
            100.0 * real("coverage"),
            100.0 * real("collateral"),
        ),
        format!(
            "          {:.0} instances with {:.1} requests a second each; {} candidates were considered",
            real("instances"),
            real("requests_per_instance"),
            word(&evidence["candidates"]),
        ),
    ];
    let rejected = evidence["rejected_candidates"].as_array();
    for candidate in rejected.into_iter().flatten() {
        let (when, why) = (source_text(&candidate["when"]), word(&candidate["why"]));
        lines.push(format!("not       {when}: {why}"));
    }
    lines.push("timeline".to_owned());
    for moment in incident["timeline"].as_array().into_iter().flatten() {
        let after = moment["after_s"].as_f64().unwrap_or_default();
        let why = moment["why"].as_str().map(Plain);
        let why = why.map(|why| format!("  ({why})"));
        lines.push(format!(
            "  {after:>8.1} s  {}{}",
            word(&moment["what"]),
            why.unwrap_or_default()
        ));
        if let Some(effect) = moment.get("effect") {
            lines.push(format!("              {}", effect_text(effect)));
        }
    }
    lines.join("\n")
}

/// Says in one line what was seen in the second before a step.
fn effect_text(effect: &Value) -> String {
    let seen = |who: &str| {
        let seen = &effect[who];
        let rate = seen["requests_per_second"].as_f64().unwrap_or_default();
        let refused = seen["refused_share"].as_f64();
        let refused = refused.map(|share| format!(", {:.1} % refused", 100.0 * share));
        format!("{who} {rate:.0}/s{}", refused.unwrap_or_default())
    };
    let upstream = if effect["upstream"].is_object() {
        upstream_text(&effect["upstream"])
    } else {
        String::new()
    };
    format!("{}; {}{upstream}", seen("others"), seen("source"))
}

/// Without answers there is nothing to say of how they were.
fn upstream_text(upstream: &Value) -> String {
    let number = |key: &str| upstream[key].as_f64().unwrap_or_default();
    let answered = number("answered_per_second");
    let how = if answered > 0.0 {
        format!(
            " in {:.0} ms, {:.1} % failed",
            1000.0 * number("latency_s"),
            100.0 * number("failed_share")
        )
    } else {
        String::new()
    };
    format!(
        "; upstream asked {:.0}/s, answered {answered:.0}/s{how}, {:.0} in flight, {:.0} waiting, {:.0}/s got no \
         place",
        number("arrived_per_second"),
        number("in_flight"),
        number("waiting"),
        number("shed_per_second"),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// What a client called itself went to the operator's terminal as it was.
    #[test]
    fn a_client_cannot_write_to_the_terminal_of_whoever_looks() {
        let nasty = "\u{1b}]0;owned\u{7}";
        let incident = json!({
            "id": 1, "began": "2026-11-25T00:00:00Z", "active": true,
            "source": { "app": nasty, nasty: { "present": false } },
            "nature": "loop", "rule": "detected-1",
            "evidence": {
                "candidates": 2,
                "rejected_candidates": [{ "when": { "app": nasty }, "why": nasty }],
            },
            "timeline": [{ "what": "revoked", "after_s": 1.0, "why": nasty }],
        });
        for shown in [one(&incident), all(&json!([incident]))] {
            assert!(shown.contains("owned"), "{shown:?}");
            let rest = shown.replace('\n', "");
            assert!(!rest.contains(char::is_control), "{shown:?}");
        }
    }

    #[test]
    fn an_effect_says_what_is_known_and_no_more() {
        let mut effect = json!({
            "others": { "requests_per_second": 90.0, "refused_share": 0.25 },
            "source": { "requests_per_second": 500.0, "refused_share": 0.5 },
            "upstream": {
                "arrived_per_second": 340.0, "answered_per_second": 300.0, "shed_per_second": 20.0,
                "waiting": 12.0, "in_flight": 64.0, "latency_s": 0.2, "failed_share": 0.1,
            },
        });
        assert_eq!(
            effect_text(&effect),
            "others 90/s, 25.0 % refused; source 500/s, 50.0 % refused; upstream asked 340/s, answered 300/s in \
             200 ms, 10.0 % failed, 64 in flight, 12 waiting, 20/s got no place"
        );
        effect["source"] = json!({ "requests_per_second": 500.0 });
        effect["upstream"]["answered_per_second"] = json!(0.0);
        assert_eq!(
            effect_text(&effect),
            "others 90/s, 25.0 % refused; source 500/s; upstream asked 340/s, answered 0/s, 64 in flight, 12 \
             waiting, 20/s got no place"
        );
        effect["upstream"] = Value::Null;
        assert!(effect_text(&effect).ends_with("source 500/s"));
    }
}
