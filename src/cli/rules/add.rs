//! A rule as it is given on the command line.

use std::io::Read as _;
use std::path::PathBuf;

use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use serde_json::{Map, json};

use super::Insist;

#[derive(Debug, Args)]
pub(super) struct Add {
    /// A file with one rule, as YAML or JSON; `-` is standard input.
    #[arg(value_name = "FILE", conflicts_with_all = ["name", "when", "action"])]
    file: Option<PathBuf>,
    /// The rule's name.
    #[arg(long, value_name = "NAME", required_unless_present = "file")]
    name: Option<String>,
    /// Which requests; may be given several times, then all must hold.
    #[arg(long, value_name = "ATTRIBUTE=VALUE", required_unless_present = "file")]
    when: Vec<String>,
    /// What is done: allow, block, throttle, tarpit, drop or log.
    #[arg(long, value_name = "ACTION", required_unless_present = "file")]
    action: Option<String>,
    /// For throttle: how many requests pass, like `5/s`.
    #[arg(long, value_name = "RATE")]
    rate: Option<String>,
    /// How long, like `2h`; without it, until it is revoked.
    #[arg(long, value_name = "DURATION")]
    ttl: Option<String>,
    /// Counts only.
    #[arg(long)]
    shadow: bool,
    #[command(flatten)]
    pub(super) insist: Insist,
    /// Does not ask.
    #[arg(long, short)]
    pub(super) yes: bool,
}

impl Add {
    /// Returns the rule as it is sent.
    pub(super) fn text(&self, reason: Option<&str>) -> anyhow::Result<String> {
        if let Some(file) = &self.file {
            if file.as_os_str() == "-" {
                let mut text = String::new();
                std::io::stdin()
                    .read_to_string(&mut text)
                    .context("read the rule from standard input")?;
                return Ok(text);
            }
            return std::fs::read_to_string(file)
                .with_context(|| format!("{}: the rule cannot be read", file.display()));
        }
        let mut when = Map::new();
        for condition in &self.when {
            let (attribute, value) = condition
                .split_once('=')
                .ok_or_else(|| anyhow!("`--when {condition}`: write it like `--when app=acme`"))?;
            if when.insert(attribute.to_owned(), json!(value)).is_some() {
                bail!(
                    "`--when {attribute}=…` is given twice; for any of several values write the rule in a \
                     file"
                );
            }
        }
        let mut rule = json!({ "name": self.name, "when": when, "action": self.action });
        let fields = [
            ("rate", self.rate.as_deref()),
            ("ttl", self.ttl.as_deref()),
            ("mode", self.shadow.then_some("shadow")),
            ("reason", reason),
        ];
        if let Some(rule) = rule.as_object_mut() {
            for (key, value) in fields {
                if let Some(value) = value {
                    rule.insert(key.to_owned(), json!(value));
                }
            }
        }
        Ok(rule.to_string())
    }
}
