//! What the admin API changes. Each change is in the audit trail: who, what, when, why, before, after.
//!
//! A change is in force before it is kept: in an emergency a full disk must stop nobody. Whether it is
//! kept is in the answer, as `persisted`.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use serde_json::{Value, json};
use tidegate_engine::rules::Mode;

use super::action::Action;
use super::explain::explain;
use super::query::{Query, WHY_CHARACTERS_MAX, shortened};
use super::{Admin, Answer, json_answer, json_with, problem, rules};
use crate::control::changes::{Refused, Weighed};
use crate::control::operator::RULE_BYTES_MAX;
use crate::control::promote::Promotion;
use crate::state::Done;

/// How long the body of a change may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an answer waits for the disk.
const DISK_TIMEOUT: Duration = Duration::from_secs(2);

/// How long an answer waits for a rule file, and for its line in the audit trail.
const PROMOTE_TIMEOUT: Duration = Duration::from_secs(5);

/// How operators say who they are; the token says only that they may.
const OPERATOR_HEADER: &str = "x-tidegate-operator";

/// The longest name of an operator, in characters.
const WHO_CHARACTERS_MAX: usize = 100;

/// The kinds of body that are read. A page of another site cannot send them without asking first.
const BODY_KINDS: [&str; 3] = ["application/json", "application/yaml", "application/x-yaml"];

/// One change on its way into the audit trail.
struct Change {
    who: String,
    peer: SocketAddr,
    what: &'static str,
    rule: String,
    why: String,
    forced: bool,
    before: Value,
}

/// Answers a POST or DELETE.
pub(super) async fn change(
    admin: Rc<Admin>,
    request: Request<Incoming>,
    peer: SocketAddr,
) -> Answer {
    let (head, body) = request.into_parts();
    let action = Action::of(&head.method, head.uri.path());
    let query = match Query::read(head.uri.query().unwrap_or_default(), action.keys()) {
        Ok(query) => query,
        Err(what) => {
            let known = match action.keys() {
                [] => "write no query".to_owned(),
                keys => format!("write {}", keys.join(", ")),
            };
            return problem(400, &what, &known);
        }
    };
    let changing = Changing {
        admin,
        query,
        who: operator(&head.headers),
        peer,
    };
    match action {
        Action::Explain => match text_of(&head.headers, body).await {
            Ok(text) => explain(&changing.admin, &text),
            Err(refusal) => refusal,
        },
        Action::Add => match text_of(&head.headers, body).await {
            Ok(text) => changing.add(&text).await,
            Err(refusal) => refusal,
        },
        Action::RevokeDetected => changing.revoke_detected().await,
        Action::Revoke(name) => changing.revoke(name).await,
        Action::Approve(name) => changing.approve(name).await,
        Action::Enforce(name) => changing.enforce(name).await,
        Action::Shadow(name) => changing.shadow(name).await,
        Action::Promote(name) => changing.promote(name).await,
    }
}

struct Changing {
    admin: Rc<Admin>,
    query: Query,
    who: String,
    peer: SocketAddr,
}

impl Changing {
    fn begin(&self, what: &'static str, rule: &str) -> Change {
        Change {
            who: self.who.clone(),
            peer: self.peer,
            what,
            rule: rule.to_owned(),
            why: self.query.why().to_owned(),
            forced: self.query.force,
            before: rules::one(&self.admin.control.borrow(), rule),
        }
    }

    /// Notes a change that was made, waits for the disk, and returns the rule as it is now and whether
    /// all is kept: what was `written`, and the note.
    async fn finish<W>(&self, change: Change, written: W) -> (Value, bool)
    where
        W: IntoIterator<Item = Option<Done>>,
    {
        let (after, audited) = {
            let control = self.admin.control.borrow();
            let after = rules::one(&control, &change.rule);
            let audited = control.audit(change.line(&after, control.clock().wall()));
            (after, audited)
        };
        let mut persisted = true;
        let deadline = tokio::time::Instant::now() + DISK_TIMEOUT;
        for done in written.into_iter().chain([audited]) {
            persisted &= match done {
                Some(done) => {
                    let done = tokio::time::timeout_at(deadline, done).await;
                    matches!(done, Ok(Ok(true)))
                }
                None => false,
            };
        }
        (after, persisted)
    }

    async fn add(&self, text: &str) -> Answer {
        let tried = self.admin.control.borrow_mut().try_rule(text);
        let tried = match tried {
            Ok(tried) => tried,
            Err(refused) => return refusal(&refused),
        };
        let name = tried.rule.rule.name.as_str().to_owned();
        if let Some(answer) = self.weighed(&name, &tried.weighed, None) {
            return answer;
        }
        let preview = json!(tried.weighed.preview);
        let mut change = self.begin("add", &name);
        if let (true, Some(reason)) = (change.why.is_empty(), &tried.rule.rule.reason) {
            change.why = shortened(reason, WHY_CHARACTERS_MAX);
        }
        let kept = self.admin.control.borrow_mut().add_rule(tried.rule);
        let (mut rule, persisted) = self.finish(change, [kept]).await;
        if let Some(rule) = rule.as_object_mut() {
            rule.insert("preview".into(), preview);
            rule.insert("persisted".into(), json!(persisted));
        }
        json_with(StatusCode::CREATED, &rule)
    }

    async fn revoke(&self, name: &str) -> Answer {
        let mut change = self.begin("revoke", name);
        // One that is idle because a file has its name is the one that goes.
        let idle = rules::idle(&self.admin.control.borrow(), name);
        if let Some(idle) = idle {
            change.before = idle;
        }
        let why = self.said();
        let revoked = self.admin.control.borrow_mut().revoke_rule(name, &why);
        self.done(change, revoked).await
    }

    async fn approve(&self, name: &str) -> Answer {
        let tried = self.admin.control.borrow().try_approving(name);
        if let Some(answer) = self.tried(name, tried) {
            return answer;
        }
        let change = self.begin("approve", name);
        let why = self.said();
        let approved = self.admin.control.borrow_mut().approve_rule(name, &why);
        self.done(change, approved).await
    }

    async fn enforce(&self, name: &str) -> Answer {
        let tried = self.admin.control.borrow().try_enforcing(name);
        if let Some(answer) = self.tried(name, tried) {
            return answer;
        }
        self.set_mode("enforce", name, Mode::Enforce).await
    }

    async fn shadow(&self, name: &str) -> Answer {
        self.set_mode("shadow", name, Mode::Shadow).await
    }

    async fn set_mode(&self, what: &'static str, name: &str, mode: Mode) -> Answer {
        let change = self.begin(what, name);
        let why = self.said();
        let set = {
            let mut control = self.admin.control.borrow_mut();
            control.set_rule_mode(name, mode, &why)
        };
        self.done(change, set).await
    }

    async fn promote(self, name: &str) -> Answer {
        let new_name = self.query.name.as_deref();
        let prepared = {
            let control = self.admin.control.borrow();
            control.prepare_promotion(name, new_name, &self.who)
        };
        let promotion = match prepared {
            Ok(promotion) => promotion,
            Err(refused) => return refusal(&refused),
        };
        let yaml = Some(&*promotion.text);
        if let Some(answer) = self.weighed(name, &promotion.weighed, yaml) {
            return answer;
        }
        let change = Change {
            rule: promotion.name.as_str().to_owned(),
            ..self.begin("promote", promotion.detected.as_str())
        };
        let text = promotion.text.clone();
        self.admin.control.borrow_mut().begin_promotion(&promotion);
        // What is begun is brought to its end, whether or not somebody waits for the answer.
        let written = tokio::task::spawn_local(self.write_promoted(promotion, change));
        match tokio::time::timeout(PROMOTE_TIMEOUT, written).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => not_written(&format!("writing it failed: {error}"), &text),
            Err(_elapsed) => {
                let what = format!(
                    "the disk has not answered within {PROMOTE_TIMEOUT:?}, and it is not known yet whether the                      file is written; the audit trail will say so"
                );
                not_written(&what, &text)
            }
        }
    }

    /// Writes the file of a promoted rule, away from the control thread.
    async fn write_promoted(self, promotion: Promotion, change: Change) -> Answer {
        let writing = promotion.clone();
        let written = tokio::task::spawn_blocking(move || writing.write()).await;
        let written = written.unwrap_or_else(|error| Err(io::Error::other(error)));
        let is_written = written.is_ok();
        {
            let mut control = self.admin.control.borrow_mut();
            control.end_promotion(&promotion, is_written);
        }
        match written {
            Ok(written) => {
                let (_, is_kept) = self.finish(change, []).await;
                json_with(
                    StatusCode::CREATED,
                    &json!({
                        "name": promotion.name, "path": written.path.display().to_string(),
                        "yaml": promotion.text, "persisted": is_kept && written.is_kept,
                    }),
                )
            }
            Err(error) => {
                let what = format!(
                    "the file was not written ({error}); put `yaml` into the rules folder yourself, as `{}.yaml`",
                    promotion.name
                );
                not_written(&what, &promotion.text)
            }
        }
    }

    fn tried(&self, name: &str, tried: Result<Weighed, Refused>) -> Option<Answer> {
        match tried {
            Ok(weighed) => self.weighed(name, &weighed, None),
            Err(refused) => Some(refusal(&refused)),
        }
    }

    /// Answers where nothing is to be changed: it is a dry run, or the rule would meet much and nobody
    /// insists.
    fn weighed(&self, name: &str, weighed: &Weighed, yaml: Option<&str>) -> Option<Answer> {
        let preview = &weighed.preview;
        if self.query.dry_run {
            let mut tried = json!({
                "name": name, "preview": preview, "needs_force": weighed.needs_force,
            });
            if let (Some(yaml), Some(tried)) = (yaml, tried.as_object_mut()) {
                tried.insert("yaml".into(), json!(yaml));
            }
            return Some(json_answer(&tried));
        }
        if !weighed.needs_force || self.query.force {
            return None;
        }
        let detail = format!(
            "`{name}` would meet {:.1} % of the normal traffic of the last {:.0} s; add `force=true`              (`--force`) if that is meant",
            100.0 * preview.share_of_normal,
            preview.seconds,
        );
        Some(problem_with(409, &detail, "preview", json!(preview)))
    }

    async fn revoke_detected(&self) -> Answer {
        if self.query.origin.as_deref() != Some("detected") {
            return problem(
                400,
                "only detected rules can be revoked all at once",
                "write `?origin=detected`",
            );
        }
        let change = self.begin("revoke_all_detected", "");
        let why = self.said();
        let (count, kept) = self.admin.control.borrow_mut().revoke_detected(&why);
        let (_, persisted) = self.finish(change, [kept]).await;
        json_answer(&json!({ "revoked": count, "persisted": persisted }))
    }

    async fn done(&self, change: Change, made: Result<Option<Done>, Refused>) -> Answer {
        let name = change.rule.clone();
        match made {
            Ok(kept) => {
                let (rule, persisted) = self.finish(change, [kept]).await;
                json_answer(&json!({ "name": name, "rule": rule, "persisted": persisted }))
            }
            Err(refused) => refusal(&refused),
        }
    }

    /// Who does it and why, for the incident.
    fn said(&self) -> String {
        match self.query.why() {
            "" => format!("by {}", self.who),
            why => format!("by {}: {why}", self.who),
        }
    }
}

impl Change {
    /// Returns the line of the audit trail.
    fn line(&self, after: &Value, at: SystemTime) -> String {
        json!({
            "time": humantime::format_rfc3339_millis(at).to_string(),
            "who": self.who,
            "peer": self.peer.to_string(),
            "what": self.what,
            "rule": self.rule,
            "why": self.why,
            "forced": self.forced,
            "before": self.before,
            "after": after,
        })
        .to_string()
    }
}

fn refusal(refused: &Refused) -> Answer {
    let status = match refused {
        Refused::Wrong(_) | Refused::NotExact(..) => 422,
        Refused::Unknown(_) => 404,
        Refused::Taken(_)
        | Refused::InAFile(_)
        | Refused::NotDetected(..)
        | Refused::Promoting(..)
        | Refused::Idle(..)
        | Refused::Full
        | Refused::TooMuch => 409,
    };
    let problems: Vec<Value> = match refused {
        Refused::Wrong(problems) => problems
            .iter()
            .map(|problem| json!({ "code": "wrong", "message": problem.to_string() }))
            .collect(),
        _ => Vec::new(),
    };
    problem_with(status, &refused.to_string(), "errors", json!(problems))
}

/// Says that a promoted rule did not become a file, and gives what it would say.
fn not_written(what: &str, yaml: &str) -> Answer {
    problem_with(507, what, "yaml", json!(yaml))
}

/// Answers a problem that has something more to it.
fn problem_with(status: u16, detail: &str, key: &str, value: Value) -> Answer {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::CONFLICT);
    let mut said = json!({
        "type": "about:blank", "title": status.canonical_reason(), "status": status.as_u16(),
        "detail": detail,
    });
    if let Some(said) = said.as_object_mut() {
        said.insert(key.to_owned(), value);
    }
    let mut answer = json_with(status, &said);
    let kind = HeaderValue::from_static("application/problem+json");
    answer.headers_mut().insert(CONTENT_TYPE, kind);
    answer
}

/// Reads the body of a change.
async fn text_of(headers: &HeaderMap, body: Incoming) -> Result<String, Answer> {
    let kind = headers
        .get(CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok())
        .and_then(|kind| kind.split(';').next())
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase();
    if !BODY_KINDS.contains(&kind.as_str()) {
        return Err(problem(
            415,
            "the body has no Content-Type that is read here",
            "send `application/json` or `application/yaml`",
        ));
    }
    let read = Limited::new(body, RULE_BYTES_MAX).collect();
    let body: Bytes = match tokio::time::timeout(BODY_TIMEOUT, read).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) => {
            let what = format!("the body cannot be read: {error}");
            let way_out = format!("send at most {RULE_BYTES_MAX} bytes");
            return Err(problem(413, &what, &way_out));
        }
        Err(_elapsed) => return Err(problem(408, "the body took too long", "send it at once")),
    };
    String::from_utf8(body.to_vec())
        .map_err(|error| problem(400, &format!("the body is no UTF-8: {error}"), "save it so"))
}

/// Returns who the operator says they are.
fn operator(headers: &HeaderMap) -> String {
    let said = headers
        .get(OPERATOR_HEADER)
        .map(|name| String::from_utf8_lossy(name.as_bytes()).into_owned());
    match said {
        Some(name) if !name.trim().is_empty() => shortened(name.trim(), WHO_CHARACTERS_MAX),
        _ => "unknown".to_owned(),
    }
}
