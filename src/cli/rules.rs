//! `tidegate rules`: shows and changes the rules in force, over the admin API.

#![expect(
    clippy::indexing_slicing,
    reason = "of JSON: what is not there is null, and never a panic"
)]

mod add;
mod show;

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::process::ExitCode;

use anyhow::bail;
use clap::{Args, Subcommand};
use http::{Method, StatusCode};
use serde_json::{Value, json};

use self::add::Add;
use self::show::{lines_of, number, preview_text, rule_text};
pub(super) use self::show::{source_text, table, word};
use super::client::{Client, escaped};
use super::plain::{Plain, json_text};
use super::{complain, say};

#[derive(Debug, Args)]
pub(super) struct Rules {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    client: Client,
    /// Why, for the audit trail and the incident.
    #[arg(long, value_name = "TEXT", global = true)]
    reason: Option<String>,
    /// Prints JSON.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Lists the rules in force, in the order in which they are asked, and operators' that are idle.
    List {
        /// Only those from here: file, operator or detected.
        #[arg(long, value_name = "ORIGIN")]
        origin: Option<String>,
    },
    /// Shows one rule, with its evidence.
    Show {
        /// The rule's name.
        name: String,
    },
    /// Adds a rule, after showing whose requests of the last seconds it would meet.
    Add(Add),
    /// Takes a rule back: an operator's or the detector's.
    Revoke {
        /// The rule's name.
        name: String,
    },
    /// Has a detected rule act that waits for it (`detection.mode: suggest`).
    Approve {
        /// The rule's name.
        name: String,
        #[command(flatten)]
        insist: Insist,
    },
    /// Has a rule act.
    Enforce {
        /// The rule's name.
        name: String,
        #[command(flatten)]
        insist: Insist,
    },
    /// Has a rule count only.
    Shadow {
        /// The rule's name.
        name: String,
    },
    /// Writes a detected rule into the rules folder, to be kept and committed.
    Promote {
        /// The rule's name.
        name: String,
        /// What it is called from then on.
        #[arg(long = "as", value_name = "NAME")]
        new_name: Option<String>,
        /// Prints the file, and writes nothing.
        #[arg(long, conflicts_with_all = ["json", "dry_run"])]
        print: bool,
        #[command(flatten)]
        insist: Insist,
    },
    /// Takes back all detected rules.
    RevokeAllDetected,
}

#[derive(Clone, Copy, Debug, Args)]
struct Insist {
    /// Also when it would meet more than 25 % of the recent normal traffic.
    #[arg(long)]
    force: bool,
    /// Only shows what it would meet.
    #[arg(long)]
    dry_run: bool,
}

impl Rules {
    pub(super) fn run(&self) -> ExitCode {
        match self.act() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                complain(&format!("{error:#}"));
                ExitCode::FAILURE
            }
        }
    }

    fn act(&self) -> anyhow::Result<()> {
        match &self.command {
            Command::List { origin } => self.list(origin.as_deref()),
            Command::Show { name } => {
                let rule = self.client.get(&at(name)?)?;
                self.show(&rule, || rule_text(&rule));
                Ok(())
            }
            Command::Add(add) => self.add(add),
            Command::Revoke { name } => self.revoke(name),
            Command::Approve { name, insist } => {
                self.insist(name, "approve", "is approved and acts now", *insist)
            }
            Command::Enforce { name, insist } => self.insist(name, "enforce", "acts now", *insist),
            Command::Shadow { name } => {
                let path = format!("{}/shadow", at(name)?);
                self.change(Method::POST, &path, &format!("`{name}` only counts now"))
            }
            Command::Promote {
                name,
                new_name,
                print: true,
                insist,
            } => self.print(name, new_name.as_deref(), insist.force),
            Command::Promote {
                name,
                new_name,
                print: false,
                insist,
            } => self.promote(name, new_name.as_deref(), *insist),
            Command::RevokeAllDetected => {
                let path = self.with_reason("/api/v1/rules?origin=detected");
                let body = self.client.ask(Method::DELETE, &path, None)?.ok()?;
                self.show(&body, || {
                    format!("{} detected rules are revoked", body["revoked"])
                });
                warn_if_not_kept(&body);
                Ok(())
            }
        }
    }

    fn list(&self, origin: Option<&str>) -> anyhow::Result<()> {
        let rules = self.client.get("/api/v1/rules")?;
        let mut rules = rules.as_array().cloned().unwrap_or_default();
        if let Some(origin) = origin {
            if !["file", "operator", "detected"].contains(&origin) {
                bail!("`--origin {origin}`: write `file`, `operator` or `detected`");
            }
            rules.retain(|rule| rule["origin"] == origin);
        }
        self.show(&Value::Array(rules.clone()), || {
            let head = [
                "NAME", "ORIGIN", "ACTION", "MODE", "REFUSED", "MATCHED", "WHEN",
            ];
            let idle = json!("idle");
            let rows = rules.iter().map(|rule| {
                let matched = number(&rule["matches"]) + number(&rule["shadow_matches"]);
                let action = match rule["rate"].as_str() {
                    Some(rate) => format!("{} {rate}", word(&rule["action"])),
                    None => word(&rule["action"]),
                };
                [
                    word(&rule["name"]),
                    word(&rule["origin"]),
                    action,
                    word(if rule["idle"].is_string() {
                        &idle
                    } else {
                        &rule["mode"]
                    }),
                    word(&rule["refusals"]),
                    matched.to_string(),
                    source_text(&rule["when"]),
                ]
            });
            table(&head, rows)
        });
        Ok(())
    }

    fn add(&self, add: &Add) -> anyhow::Result<()> {
        let text = add.text(self.reason.as_deref())?;
        let body = || Some(("application/yaml", text.clone()));
        let path = "/api/v1/rules?dry_run=true";
        let tried = self.client.ask(Method::POST, path, body())?.ok()?;
        if add.insist.dry_run {
            self.show(&tried, || preview_text(&tried));
            return Ok(());
        }
        if !self.json {
            say(&preview_text(&tried));
        }
        let needs_force = tried["needs_force"] == true;
        if needs_force && !add.insist.force {
            bail!(
                "`{}` would meet more than 25 % of the recent normal traffic; add `--force` if that is meant",
                word(&tried["name"])
            );
        }
        if !add.yes && !asked(&format!("put `{}` in force?", word(&tried["name"])))? {
            bail!("nothing was changed");
        }
        let path = if add.insist.force {
            "/api/v1/rules?force=true"
        } else {
            "/api/v1/rules"
        };
        let path = self.with_reason(path);
        let answer = self.client.ask(Method::POST, &path, body())?;
        if answer.status == StatusCode::CREATED {
            let rule = answer.body;
            self.show(&rule, || format!("`{}` is in force", word(&rule["name"])));
            warn_if_not_kept(&rule);
            return Ok(());
        }
        answer.ok().map(|_| ())
    }

    fn promote(&self, name: &str, new_name: Option<&str>, insist: Insist) -> anyhow::Result<()> {
        let path = promote_at(name, new_name, insist)?;
        let path = self.with_reason(&path);
        let answer = self.client.ask(Method::POST, &path, None)?;
        if answer.status == StatusCode::INSUFFICIENT_STORAGE {
            // What was to be written is not lost: it is what standard output has.
            let body = &answer.body;
            self.show(body, || lines_of(&body["yaml"]));
        }
        let body = answer.ok()?;
        self.show(&body, || {
            if insist.dry_run {
                return format!("{}\n\n{}", preview_text(&body), lines_of(&body["yaml"]));
            }
            format!(
                "`{name}` is written to {} as `{}`:\n\n{}",
                word(&body["path"]),
                word(&body["name"]),
                lines_of(&body["yaml"])
            )
        });
        warn_if_not_kept(&body);
        Ok(())
    }

    /// Prints the file that a detected rule would become, and nothing else.
    fn print(&self, name: &str, new_name: Option<&str>, force: bool) -> anyhow::Result<()> {
        let dry_run = Insist {
            force,
            dry_run: true,
        };
        let path = promote_at(name, new_name, dry_run)?;
        let tried = self.client.ask(Method::POST, &path, None)?.ok()?;
        if tried["needs_force"] == true && !force {
            bail!(
                "{}\nthat is more than 25 % of the recent normal traffic; add `--force` if that is meant",
                preview_text(&tried)
            );
        }
        say(&lines_of(&tried["yaml"]));
        Ok(())
    }

    fn insist(&self, name: &str, action: &str, what: &str, insist: Insist) -> anyhow::Result<()> {
        let path = insist.on(format!("{}/{action}", at(name)?));
        if insist.dry_run {
            let tried = self.client.ask(Method::POST, &path, None)?.ok()?;
            self.show(&tried, || preview_text(&tried));
            return Ok(());
        }
        self.change(Method::POST, &path, &format!("`{name}` {what}"))
    }

    fn revoke(&self, name: &str) -> anyhow::Result<()> {
        let path = self.with_reason(&at(name)?);
        let body = self.client.ask(Method::DELETE, &path, None)?.ok()?;
        self.show(&body, || {
            if body["rule"].is_null() {
                format!("`{name}` is revoked")
            } else {
                format!("the operator's rule `{name}` is revoked; the one in a file is in force")
            }
        });
        warn_if_not_kept(&body);
        Ok(())
    }

    fn change(&self, method: Method, path: &str, said: &str) -> anyhow::Result<()> {
        let body = self
            .client
            .ask(method, &self.with_reason(path), None)?
            .ok()?;
        self.show(&body, || said.to_owned());
        warn_if_not_kept(&body);
        Ok(())
    }

    fn with_reason(&self, path: &str) -> String {
        match &self.reason {
            Some(reason) => with(path, &format!("reason={}", escaped(reason))),
            None => path.to_owned(),
        }
    }

    fn show(&self, value: &Value, text: impl FnOnce() -> String) {
        if self.json {
            say(&json_text(value));
        } else {
            say(&text());
        }
    }
}

impl Insist {
    fn on(self, mut path: String) -> String {
        for (flag, is_set) in [("dry_run", self.dry_run), ("force", self.force)] {
            if is_set {
                path = with(&path, &format!("{flag}=true"));
            }
        }
        path
    }
}

/// Adds to the query of a path.
fn with(path: &str, pair: &str) -> String {
    let sign = if path.contains('?') { '&' } else { '?' };
    format!("{path}{sign}{pair}")
}

fn at(name: &str) -> anyhow::Result<String> {
    Ok(format!("/api/v1/rules/{}", checked(name)?))
}

fn promote_at(name: &str, new_name: Option<&str>, insist: Insist) -> anyhow::Result<String> {
    let path = insist.on(format!("{}/promote", at(name)?));
    Ok(match new_name {
        Some(new_name) => with(&path, &format!("name={}", checked(new_name)?)),
        None => path,
    })
}

/// Returns a name as it stands in a path: names have nothing that would have to be escaped, and what has
/// is no name.
fn checked(name: &str) -> anyhow::Result<&str> {
    let is_name = name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    if !is_name {
        bail!(
            "`{}` is no name of a rule; those are letters, digits, `-`, `_` and `.`, a letter or digit first",
            Plain(name)
        );
    }
    Ok(name)
}

/// Asks on the terminal; nothing but `y` or `yes` is a yes.
fn asked(question: &str) -> anyhow::Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!("nobody can be asked here; add `--yes`");
    }
    let mut out = std::io::stderr().lock();
    write!(out, "{question} [y/N] ")?;
    out.flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn warn_if_not_kept(body: &Value) {
    if body["persisted"] == false {
        complain(
            "in force, but not kept: the state folder cannot be written, so a restart would undo it; see the \
             log, and `tidegate_state_writable`",
        );
    }
}
