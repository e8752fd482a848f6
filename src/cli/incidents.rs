//! `tidegate incidents`: what happened, what was done about it, and why, over the admin API.

#![expect(
    clippy::indexing_slicing,
    reason = "of JSON: what is not there is null, and never a panic"
)]

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
        let number = |key: &str| effect[who][key].as_f64().unwrap_or_default();
        format!(
            "{who} {:.0}/s, {:.1} % refused",
            number("requests_per_second"),
            100.0 * number("refused_share")
        )
    };
    let upstream = effect["upstream"].as_object().map(|_| {
        let number = |key: &str| effect["upstream"][key].as_f64().unwrap_or_default();
        format!(
            "; upstream {:.0}/s in {:.0} ms, {:.1} in flight, {:.1} % failed",
            number("answered_per_second"),
            1000.0 * number("latency_s"),
            number("in_flight"),
            100.0 * number("failed_share")
        )
    });
    let upstream = upstream.unwrap_or_default();
    format!("{}; {}{upstream}", seen("others"), seen("source"))
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
}
