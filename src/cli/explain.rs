//! `tidegate explain`: what a request would meet, without sending it.

#![expect(
    clippy::indexing_slicing,
    reason = "of JSON: what is not there is null, and never a panic"
)]

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use serde_json::json;
use tidegate_engine::policy::{Explanation, Policy, PolicyParts};
use tidegate_engine::request::HashKey;
use tidegate_engine::rules::Mode;
use tidegate_engine::time::Instant;

use super::client::{Answered, Client};
use super::plain::{Plain, json_text};
use super::rules::{source_text, word};
use super::{complain, say};
use crate::check::EXIT_CONFIG;
use crate::request::{self, identify::Identify};
use crate::rules_folder::{load_rules, load_settings};

#[derive(Debug, Args)]
pub(super) struct Explain {
    /// The settings file.
    #[arg(long, value_name = "FILE", default_value = "config/tidegate.yaml")]
    config: PathBuf,
    /// A header of the request; may be given several times.
    #[arg(long = "header", short = 'H', value_name = "NAME: VALUE")]
    headers: Vec<String>,
    /// The client's address.
    #[arg(long, value_name = "ADDRESS", default_value = "192.0.2.1")]
    ip: IpAddr,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
    /// Asks the proxy that runs what refused the request with this id, lately.
    #[arg(long, value_name = "ID", conflicts_with_all = ["method", "url", "headers"])]
    request_id: Option<String>,
    #[command(flatten)]
    client: Client,
    /// The method.
    #[arg(required_unless_present = "request_id", default_value = "GET")]
    method: Method,
    /// The URL, for example `http://acme.api.example.com/c/v1/chat/settings`.
    #[arg(required_unless_present = "request_id")]
    url: Option<Uri>,
}

impl Explain {
    pub(super) fn run(&self) -> ExitCode {
        if let Some(id) = &self.request_id {
            return self.explain_refusal(id);
        }
        let loaded = load_settings(&self.config).and_then(|settings| {
            let rules = load_rules(&settings, SystemTime::now())?;
            Ok((settings, rules))
        });
        let (settings, rules) = match loaded {
            Ok(loaded) => loaded,
            Err(problems) => {
                for problem in problems.iter() {
                    complain(&problem.to_string());
                }
                return ExitCode::from(EXIT_CONFIG);
            }
        };
        let schema = Arc::new(settings.schema.clone());
        let parts = PolicyParts {
            schema: Arc::clone(&schema),
            services: settings
                .services
                .iter()
                .map(|service| service.spec.clone())
                .collect(),
            rules: rules.rules,
            limits: rules.limits,
            generation: 0,
        };
        let now = Instant::from_secs_f64(3600.0);
        let policy = Policy::compile(parts, None, now, SystemTime::now());
        // Nothing is stored, so any key will do.
        let identify = Identify::new(schema, HashKey::from_seed(0), &settings.identity);
        match self.explain(&identify, &policy, now) {
            Ok(explanation) => {
                self.show(&explanation);
                ExitCode::SUCCESS
            }
            Err(error) => {
                complain(&format!("{error:#}"));
                ExitCode::FAILURE
            }
        }
    }

    fn explain(
        &self,
        identify: &Identify,
        policy: &Policy,
        now: Instant,
    ) -> anyhow::Result<Explanation> {
        let mut headers = HeaderMap::new();
        for line in &self.headers {
            let (name, value) = line
                .split_once(':')
                .ok_or_else(|| anyhow!("`{line}` is no header; write it like `x-app-id: acme`"))?;
            let name: HeaderName = name
                .trim()
                .parse()
                .with_context(|| format!("`{name}` is no header name"))?;
            let value: HeaderValue = value
                .trim()
                .parse()
                .with_context(|| format!("`{value}` is no header value"))?;
            headers.append(name, value);
        }
        let url = self.url.clone().unwrap_or_default();
        if url.authority().is_none() && !headers.contains_key(http::header::HOST) {
            bail!("the URL has no host; write it like `http://acme.example.com{url}`");
        }
        request::explain(
            identify,
            policy,
            self.ip,
            (&self.method, &url, &headers),
            now,
        )
        .map_err(|(status, detail)| anyhow!("the request would be answered {status}: {detail}"))
    }

    /// Shows what refused a request, as the proxy remembers it.
    fn explain_refusal(&self, id: &str) -> ExitCode {
        let body = json!({ "request_id": id }).to_string();
        let answer = self
            .client
            .ask(
                Method::POST,
                "/api/v1/explain",
                Some(("application/json", body)),
            )
            .and_then(Answered::ok);
        match answer {
            Ok(found) if self.json => say(&json_text(&found)),
            Ok(found) => {
                say(&format!(
                    "{} was refused at {}: {} by {}",
                    id,
                    word(&found["at"]),
                    word(&found["verdict"]),
                    word(&found["rule"])
                ));
                if !found["in_force"].is_null() {
                    let when = source_text(&found["in_force"]["when"]);
                    say(&format!("  it is in force: {when}"));
                }
                if !found["incident"].is_null() {
                    say(&format!("  why: tidegate incidents {}", found["incident"]));
                }
            }
            Err(error) => {
                complain(&format!("{error:#}"));
                return ExitCode::FAILURE;
            }
        }
        ExitCode::SUCCESS
    }

    fn show(&self, explanation: &Explanation) {
        if self.json {
            match serde_json::to_string_pretty(explanation) {
                Ok(text) => say(&text),
                Err(error) => complain(&error.to_string()),
            }
            return;
        }
        say("attributes");
        for attribute in &explanation.attributes {
            let (name, value) = (&attribute.name, Plain(&attribute.value));
            say(&format!("  {name:<14}{value}"));
        }
        say("rules and limits that match, in order");
        if explanation.steps.is_empty() {
            say("  none");
        }
        for step in &explanation.steps {
            let mode = if step.mode == Mode::Shadow {
                " (shadow)"
            } else {
                ""
            };
            say(&format!(
                "  {} {}: {}{mode}",
                step.kind, step.name, step.outcome
            ));
        }
        let rule = explanation
            .rule
            .as_ref()
            .map(|rule| format!(" by {rule}"))
            .unwrap_or_default();
        say(&format!("verdict: {}{rule}", explanation.verdict.word()));
    }
}
