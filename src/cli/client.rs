//! Talks to the admin API of a proxy that runs.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use clap::Args;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use super::plain::PlainLines;

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The most bytes of an answer that are read: 10,000 rules.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Where the admin API is.
#[derive(Clone, Debug, Args)]
pub(super) struct Client {
    /// The admin address of the proxy.
    #[arg(
        long,
        value_name = "URL",
        default_value = "http://127.0.0.1:9900",
        global = true
    )]
    admin: Uri,
    /// The file with the bearer token, where the address is not loopback.
    #[arg(long, value_name = "FILE", global = true)]
    token_file: Option<PathBuf>,
}

/// An answer: its status and what it says.
#[derive(Clone, Debug)]
pub(super) struct Answered {
    pub(super) status: StatusCode,
    pub(super) body: Value,
}

impl Answered {
    /// Returns the answer, if it is one that was hoped for.
    pub(super) fn ok(self) -> anyhow::Result<Value> {
        if self.status.is_success() {
            return Ok(self.body);
        }
        let detail = self.body.get("detail").and_then(Value::as_str);
        // It may say what a client chose.
        let detail = PlainLines(detail.unwrap_or(self.status.as_str()));
        Err(anyhow!("{detail}"))
    }
}

impl Client {
    /// Asks for something.
    pub(super) fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.ask(Method::GET, path, None)?.ok()
    }

    /// Sends a request and waits for its answer.
    pub(super) fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<(&'static str, String)>,
    ) -> anyhow::Result<Answered> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let asked = self.exchange(method, path, body);
            tokio::time::timeout(TIMEOUT, asked)
                .await
                .map_err(|_elapsed| anyhow!("{} did not answer within {TIMEOUT:?}", self.admin))?
        })
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<(&'static str, String)>,
    ) -> anyhow::Result<Answered> {
        if self.admin.scheme_str() != Some("http") {
            bail!(
                "`--admin {}`: write it like `http://127.0.0.1:9900`",
                self.admin
            );
        }
        let authority = self
            .admin
            .authority()
            .ok_or_else(|| anyhow!("`--admin {}` has no host", self.admin))?;
        let host = authority.host();
        let name = host.trim_start_matches('[').trim_end_matches(']');
        let port = authority.port_u16().unwrap_or(80);
        let stream = TcpStream::connect((name, port)).await.with_context(|| {
            format!(
                "cannot connect to {}; does the proxy run, and is this its `admin.address`? name another \
                 with `--admin URL`",
                self.admin
            )
        })?;
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, authority.as_str())
            .header("x-tidegate-operator", operator());
        if let Some(file) = &self.token_file {
            let text = std::fs::read_to_string(file)
                .with_context(|| format!("`--token-file {}` cannot be read", file.display()))?;
            let token = text.lines().next().unwrap_or_default().trim().to_owned();
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        let body = match body {
            Some((kind, text)) => {
                request = request.header(CONTENT_TYPE, kind);
                Bytes::from(text)
            }
            None => Bytes::new(),
        };
        let request = request.body(Full::new(body))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let driven = tokio::spawn(connection);
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let read = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect();
        let bytes = read
            .await
            .map_err(|error| anyhow!("the answer cannot be read: {error}"))?
            .to_bytes();
        driven.abort();
        let body = serde_json::from_slice(&bytes)
            .with_context(|| format!("{} does not answer as a Tidegate does", self.admin))?;
        Ok(Answered { status, body })
    }
}

/// Returns who asks, as the audit trail shows it: the user and the machine.
fn operator() -> String {
    let user = std::env::var("USER").or_else(|_| std::env::var("LOGNAME"));
    let user = user.unwrap_or_else(|_| format!("uid-{}", rustix::process::getuid().as_raw()));
    let machine = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = format!("{user}@{}", machine.trim());
    name.chars()
        .map(|letter| {
            if letter.is_ascii_graphic() {
                letter
            } else {
                '?'
            }
        })
        .collect()
}

/// Writes text so that it can stand in a query.
pub(super) fn escaped(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}
