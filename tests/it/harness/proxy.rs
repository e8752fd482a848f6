//! A proxy in this process, with its settings and rules in a folder of its own.

use std::net::SocketAddr;
use std::time::SystemTime;

use tidegate::app::{self, Running, Start};
use tidegate::reload::ConfigFiles;

use super::{Folder, Message, Wire, eventually};

/// What a proxy is started with. One service for everything, one upstream, one worker; the tests say
/// what differs.
#[derive(Debug)]
pub(crate) struct Setup<'s> {
    pub(crate) endpoints: Vec<String>,
    pub(crate) trusted_proxies: &'s str,
    pub(crate) upstream: &'s str,
    pub(crate) services: &'s str,
    pub(crate) admin: &'s str,
    pub(crate) detection: &'s str,
    pub(crate) rules: &'s str,
    pub(crate) workers: usize,
}

const EVERYTHING: &str = "services: [{ name: chat, match: [{ path: / }], upstream: chat }]";

impl Setup<'_> {
    /// Everything goes to this upstream.
    pub(crate) fn to(endpoint: SocketAddr) -> Self {
        Self {
            endpoints: vec![endpoint.to_string()],
            trusted_proxies: "[]",
            upstream: "",
            services: EVERYTHING,
            admin: "",
            detection: "mode: off",
            rules: "",
            workers: 1,
        }
    }

    /// Writes the settings and the rules.
    pub(crate) fn write(&self, folder: &Folder) {
        let Self {
            endpoints,
            trusted_proxies,
            upstream,
            services,
            admin,
            detection,
            rules,
            workers,
        } = self;
        // An endpoint may be written as a mapping.
        let endpoints: Vec<String> = endpoints
            .iter()
            .map(|at| {
                if at.starts_with('{') {
                    at.clone()
                } else {
                    format!("{at:?}")
                }
            })
            .collect();
        let endpoints = endpoints.join(", ");
        let settings = format!(
            "listeners: [{{ address: \"127.0.0.1:0\", trusted_proxies: {trusted_proxies} }}]
admin: {{ address: \"127.0.0.1:0\" {admin} }}
workers: {workers}
identity:
  attributes:
    sdk: {{ header: x-sdk }}
    app: {{ first_of: [{{ header: x-app-id }}, {{ query: app }}, {{ cookie: app }}] }}
    instance: {{ header: x-device, secret: true }}
{services}
upstreams:
  - name: chat
    endpoints: [{endpoints}]
    {upstream}
detection: {{ {detection} }}
rules: rules/
state: state/
access_log: access.log
"
        );
        folder.write("tidegate.yaml", &settings);
        let rules = if rules.is_empty() {
            "rules: []\n"
        } else {
            rules
        };
        folder.write("rules/rules.yaml", rules);
    }

    /// Starts the proxy.
    #[track_caller]
    pub(crate) fn start(self) -> Proxy {
        let folder = Folder::new();
        self.write(&folder);
        let path = folder.path().join("tidegate.yaml");
        let (settings, rules, files) = ConfigFiles::open(&path, SystemTime::now())
            .unwrap_or_else(|problems| panic!("{problems}"));
        let detection = settings.detection_spec();
        let running = app::start(Start {
            settings,
            files: Some(files),
            rules,
            detection,
            listeners: Vec::new(),
        })
        .unwrap_or_else(|error| panic!("{error:#}"));
        Proxy { running, folder }
    }
}

/// A proxy that runs until it is dropped.
#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) running: Running,
    pub(crate) folder: Folder,
}

impl Proxy {
    /// Everything goes to this upstream.
    #[track_caller]
    pub(crate) fn to(endpoint: SocketAddr) -> Self {
        Setup::to(endpoint).start()
    }

    /// Opens a client's connection.
    pub(crate) fn client(&self) -> Wire {
        Wire::connect(self.address())
    }

    pub(crate) fn address(&self) -> SocketAddr {
        *self.running.addresses.first().expect("one listener")
    }

    /// Sends one request on a connection of its own.
    #[track_caller]
    pub(crate) fn ask(&self, request: impl AsRef<[u8]>) -> Message {
        self.client().exchange(request)
    }

    /// Asks the admin API.
    #[track_caller]
    pub(crate) fn admin(&self, path: &str) -> Message {
        let text = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        Wire::connect(self.running.admin_address).exchange(text)
    }

    /// Returns the value of one series that counts, 0 where there is none.
    #[track_caller]
    pub(crate) fn metric(&self, series: &str) -> u64 {
        value_of(&self.admin("/metrics").text(), series)
    }

    /// Waits until a series has at least this value.
    #[track_caller]
    pub(crate) fn metric_reaches(&self, series: &str, value: u64) {
        eventually(series, || self.metric(series) >= value);
    }

    /// Waits until the access log has so many lines, and reads them.
    #[track_caller]
    pub(crate) fn log(&self, lines: usize) -> Vec<serde_json::Value> {
        let mut text = String::new();
        eventually("the access log", || {
            text = self.folder.read("access.log");
            text.lines().count() >= lines && text.ends_with('\n')
        });
        let parse = |line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        text.lines().map(parse).collect()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // The threads end by themselves; nobody waits for connections that a test left open.
        self.running.drain();
    }
}

/// Returns the value of one series that counts in a text of metrics, 0 where there is none.
pub(super) fn value_of(text: &str, series: &str) -> u64 {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.map_or(0, |value| value.parse().expect("a whole number"))
}
