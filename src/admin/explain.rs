//! What a request would meet, or what one met that was refused. Changes nothing and spends nothing.

use std::time::SystemTime;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Admin, Answer, api, json_answer, problem, rules};
use crate::request;

/// A request to be explained.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    request_id: Option<String>,
    method: Option<String>,
    url: Option<String>,
    #[serde(default)]
    headers: serde_json::Map<String, Value>,
    ip: Option<std::net::IpAddr>,
}

/// Says what a request would meet, or what one met that was refused.
pub(super) fn explain(admin: &Admin, text: &str) -> Answer {
    let way_out = "write `{\"method\": \"GET\", \"url\": \"http://host/path\", \"headers\": {}, \"ip\": \
                   \"192.0.2.1\"}` or `{\"request_id\": \"…\"}`";
    let asked: Asked = match serde_json::from_str(text) {
        Ok(asked) => asked,
        Err(error) => {
            return problem(
                400,
                &format!("the body is not what is read: {error}"),
                way_out,
            );
        }
    };
    let control = admin.control.borrow();
    if let Some(id) = &asked.request_id {
        return match control.recent().refusal(id.as_bytes()) {
            Some(refusal) => {
                let clock = control.clock();
                let ago = clock.now().since(refusal.at);
                let at = clock
                    .wall()
                    .checked_sub(ago)
                    .unwrap_or(SystemTime::UNIX_EPOCH);
                json_answer(&json!({
                    "request_id": id,
                    "verdict": refusal.verdict,
                    "rule": refusal.by,
                    "at": humantime::format_rfc3339_millis(at).to_string(),
                    "in_force": rules::one(&control, refusal.by.as_str()),
                    "incident": api::incident_of_rule(&control, refusal.by.as_str()),
                }))
            }
            None => problem(
                404,
                "no request of this id was refused lately",
                "it was forwarded, is longer ago, or one of very many of its rule; the access log has all",
            ),
        };
    }
    let read = || -> Result<(Method, Uri, HeaderMap), String> {
        let method = asked.method.as_deref().unwrap_or("GET");
        let method = method
            .parse()
            .map_err(|error| format!("`{method}` is no method: {error}"))?;
        let url = asked.url.as_deref().ok_or("`url` is missing")?;
        let uri: Uri = url
            .parse()
            .map_err(|error| format!("`{url}` is no URL: {error}"))?;
        let mut headers = HeaderMap::new();
        for (name, value) in &asked.headers {
            let value = value
                .as_str()
                .ok_or_else(|| format!("`{name}`: a header is a text"))?;
            let name: HeaderName = name
                .parse()
                .map_err(|error| format!("`{name}` is no header name: {error}"))?;
            let value: HeaderValue = value
                .parse()
                .map_err(|error| format!("`{value}` is no header value: {error}"))?;
            headers
                .try_append(name, value)
                .map_err(|error| error.to_string())?;
        }
        Ok((method, uri, headers))
    };
    let (method, uri, headers) = match read() {
        Ok(read) => read,
        Err(what) => return problem(400, &what, way_out),
    };
    let address = asked
        .ip
        .unwrap_or(std::net::IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)));
    let explained = request::explain(
        &control.setup().identify,
        &control.policy(),
        address,
        (&method, &uri, &headers),
        control.clock().now(),
    );
    match explained {
        Ok(explanation) => json_answer(&json!(explanation)),
        Err((status, detail)) => json_answer(&json!({
            "verdict": "invalid", "status": status, "detail": detail,
        })),
    }
}
