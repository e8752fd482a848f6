//! What the admin API changes. Each change is in the audit trail: who, what, when, why, before, after.
//!
//! A change is in force before it is kept: in an emergency a full disk must stop nobody. Whether it is
//! kept is in the answer, as `persisted`.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use serde_json::{Value, json};
use tidegate_engine::rules::Mode;

use super::explain::explain;
use super::query::{Query, WHY_CHARACTERS_MAX, shortened};
use super::{Admin, Answer, api, json_answer, json_with, problem};
use crate::control::changes::Refused;
use crate::control::operator::RULE_BYTES_MAX;
use crate::state::Done;

/// How long the body of a change may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an answer waits for the disk.
const DISK_TIMEOUT: Duration = Duration::from_secs(2);

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
    let query = match Query::read(request.uri().query().unwrap_or_default()) {
        Ok(query) => query,
        Err(what) => {
            let known = "dry_run, force, name, origin and reason are";
            return problem(400, &what, known);
        }
    };
    let (head, body) = request.into_parts();
    let path = head.uri.path().to_owned();
    let who = operator(&head.headers);
    if path == "/api/v1/explain" {
        return match text_of(&head.headers, body).await {
            Ok(text) => explain(&admin, &text),
            Err(refusal) => refusal,
        };
    }
    let changing = Changing {
        admin,
        query,
        who,
        peer,
    };
    let Some(rest) = path.strip_prefix("/api/v1/rules/") else {
        return if head.method == Method::DELETE {
            changing.revoke_detected().await
        } else {
            match text_of(&head.headers, body).await {
                Ok(text) => changing.add(&text).await,
                Err(refusal) => refusal,
            }
        };
    };
    let (name, action) = rest.split_once('/').unwrap_or((rest, ""));
    match action {
        "" => changing.revoke(name).await,
        "approve" => changing.approve(name).await,
        "promote" => changing.promote(name).await,
        "enforce" => changing.set_mode(name, Mode::Enforce).await,
        _ => changing.set_mode(name, Mode::Shadow).await,
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
            before: api::rule(&self.admin.control.borrow(), rule),
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
            let after = api::rule(&control, &change.rule);
            let audited = control.audit(change.line(&after, control.clock().wall()));
            (after, audited)
        };
        let mut persisted = true;
        for done in written.into_iter().chain([audited]) {
            persisted &= match done {
                Some(done) => {
                    let done = tokio::time::timeout(DISK_TIMEOUT, done).await;
                    matches!(done, Ok(Ok(true)))
                }
                None => false,
            };
        }
        (after, persisted)
    }

    async fn add(&self, text: &str) -> Answer {
        let tried = self.admin.control.borrow().try_rule(text);
        let tried = match tried {
            Ok(tried) => tried,
            Err(refused) => return refusal(&refused),
        };
        let needs_force = tried.preview.needs_force(&tried.rule.rule);
        let preview = json!(tried.preview);
        let name = tried.rule.rule.name.as_str().to_owned();
        if self.query.dry_run {
            return json_answer(&json!({
                "name": name, "preview": preview, "needs_force": needs_force,
            }));
        }
        if needs_force && !self.query.force {
            let detail = format!(
                "`{name}` would meet {:.1} % of the normal traffic of the last {:.0} s; add `force=true` \
                 (`--force`) if that is meant",
                100.0 * tried.preview.share_of_normal,
                tried.preview.seconds,
            );
            let status = StatusCode::CONFLICT;
            return json_with(
                status,
                &json!({
                    "type": "about:blank", "title": status.canonical_reason(), "status": status.as_u16(),
                    "detail": detail, "preview": preview,
                }),
            );
        }
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
        let change = self.begin("revoke", name);
        let why = self.said();
        let revoked = self.admin.control.borrow_mut().revoke_rule(name, &why);
        self.done(change, revoked).await
    }

    async fn approve(&self, name: &str) -> Answer {
        let change = self.begin("approve", name);
        let why = self.said();
        let approved = self.admin.control.borrow_mut().approve_rule(name, &why);
        self.done(change, approved).await
    }

    async fn set_mode(&self, name: &str, mode: Mode) -> Answer {
        let what = match mode {
            Mode::Enforce => "enforce",
            Mode::Shadow => "shadow",
        };
        let change = self.begin(what, name);
        let why = self.said();
        let set = {
            let mut control = self.admin.control.borrow_mut();
            control.set_rule_mode(name, mode, &why)
        };
        self.done(change, set).await
    }

    async fn promote(&self, name: &str) -> Answer {
        let change = self.begin("promote", name);
        let new_name = self.query.name.as_deref();
        let promoted = {
            let mut control = self.admin.control.borrow_mut();
            control.promote_rule(name, new_name, &self.who)
        };
        match promoted {
            Ok(promoted) => {
                let change = Change {
                    rule: promoted.name.as_str().to_owned(),
                    ..change
                };
                // The file itself is written already.
                let (_, persisted) = self.finish(change, []).await;
                json_with(
                    StatusCode::CREATED,
                    &json!({
                        "name": promoted.name, "path": promoted.path.display().to_string(),
                        "yaml": promoted.text, "persisted": persisted,
                    }),
                )
            }
            Err(refused) => refusal(&refused),
        }
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
        Refused::Wrong(_) => 422,
        Refused::Unknown(_) => 404,
        Refused::NotWritten(..) => 507,
        Refused::Taken(_) | Refused::InAFile(_) | Refused::NotDetected(..) | Refused::Full => 409,
    };
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::CONFLICT);
    let problems: Vec<Value> = match refused {
        Refused::Wrong(problems) => problems
            .iter()
            .map(|problem| json!({ "code": "wrong", "message": problem.to_string() }))
            .collect(),
        _ => Vec::new(),
    };
    let mut answer = json_with(
        status,
        &json!({
            "type": "about:blank", "title": status.canonical_reason(), "status": status.as_u16(),
            "detail": refused.to_string(), "errors": problems,
        }),
    );
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
