//! Where clients and operators connect.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use ipnet::IpNet;
use tidegate_engine::yaml::{Mark, Node};

use super::Reading;

/// Where clients connect, if the settings do not say.
const LISTENER_DEFAULT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 8080);
/// Where operators connect, if the settings do not say.
const ADMIN_DEFAULT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9900);

/// One address on which clients connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// The address.
    pub address: SocketAddr,
    /// Whose `x-forwarded-for` is believed.
    pub trusted_proxies: Vec<IpNet>,
}

impl Default for Listener {
    fn default() -> Self {
        Self {
            address: LISTENER_DEFAULT,
            trusted_proxies: Vec::new(),
        }
    }
}

/// The address on which operators connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// The address.
    pub address: SocketAddr,
    /// A file whose content a client must show as bearer token. Always there beyond loopback.
    pub token_file: Option<PathBuf>,
}

impl Default for Admin {
    fn default() -> Self {
        Self {
            address: ADMIN_DEFAULT,
            token_file: None,
        }
    }
}

impl Reading<'_> {
    pub(super) fn listeners(&mut self, node: Option<&Node>) -> Option<Vec<Listener>> {
        let Some(node) = node else {
            return Some(vec![Listener::default()]);
        };
        let items = self
            .reader
            .items("listeners", node, "`- address: 0.0.0.0:8080`")?;
        let mut listeners = Vec::with_capacity(items.len());
        let mut first = HashMap::new();
        for item in items {
            self.reader.about("a listener");
            let Some(listener) = self.listener(item) else {
                continue;
            };
            let address = listener.address;
            // Port 0 lets the system choose, so two of them differ.
            if address.port() != 0
                && let Some(line) = first.insert(address, item.mark.line)
            {
                self.reader.problem(
                    item.mark,
                    format!("`{address}` is given twice, first in line {line}; keep one"),
                );
            }
            listeners.push(listener);
        }
        (listeners.len() == items.len()).then_some(listeners)
    }

    fn listener(&mut self, node: &Node) -> Option<Listener> {
        const KEYS: &[&str] = &["address", "trusted_proxies", "proxy_protocol", "tls"];
        let fields = self.reader.fields("a listener", node, KEYS)?;
        let address = fields
            .required(&mut self.reader, "address", "0.0.0.0:8080")
            .and_then(|node| self.address(node, "`0.0.0.0:8080`"));
        let trusted_proxies = match fields.get("trusted_proxies") {
            Some(node) => self.networks(node),
            None => Some(Vec::new()),
        };
        if let Some(node) = fields.get("proxy_protocol")
            && self.reader.flag("proxy_protocol", node) == Some(true)
        {
            self.not_in_force("listeners: proxy_protocol");
        }
        if let Some(node) = fields.get("tls") {
            self.tls(node);
        }
        Some(Listener {
            address: address?,
            trusted_proxies: trusted_proxies?,
        })
    }

    fn tls(&mut self, node: &Node) {
        let Some(fields) = self.reader.fields("tls", node, &["certificate", "key"]) else {
            return;
        };
        for (key, like) in [("certificate", "tls/chain.pem"), ("key", "tls/key.pem")] {
            if let Some(node) = fields.required(&mut self.reader, key, like) {
                self.reader.text(key, node, &format!("`{like}`"));
            }
        }
        self.not_in_force("listeners: tls");
    }

    fn networks(&mut self, node: &Node) -> Option<Vec<IpNet>> {
        const LIKE: &str = "`[10.0.0.0/8]`";
        let items = self.reader.items_or_none("trusted_proxies", node, LIKE)?;
        let networks: Vec<_> = items
            .iter()
            .filter_map(|item| {
                self.reader
                    .parsed("trusted_proxies", item, LIKE, parse_network)
            })
            .collect();
        (networks.len() == items.len()).then_some(networks)
    }

    fn address(&mut self, node: &Node, like: &str) -> Option<SocketAddr> {
        self.reader.parsed("address", node, like, |text| {
            text.parse().map_err(|_reason: std::net::AddrParseError| {
                format!("`{text}` is not an address and a port; write it like {like}")
            })
        })
    }

    pub(super) fn admin(&mut self, node: Option<&Node>) -> Option<Admin> {
        let Some(node) = node else {
            return Some(Admin::default());
        };
        self.reader.about("admin");
        let fields = self
            .reader
            .fields("admin", node, &["address", "token_file"])?;
        let token_file = fields
            .get("token_file")
            .map(|node| self.path("token_file", node, "`admin.token`"));
        let address = match fields.get("address") {
            Some(node) => self.address(node, "`127.0.0.1:9900`")?,
            None => ADMIN_DEFAULT,
        };
        if token_file.is_none() && !address.ip().to_canonical().is_loopback() {
            let at = fields.get("address").map_or(node.mark, |node| node.mark);
            self.reader.problem(
                at,
                format!(
                    "`{address}` can be reached from other machines, and whoever reaches it can \
                     change rules; write `token_file: admin.token`, or `127.0.0.1:{}`",
                    address.port()
                ),
            );
        }
        Some(Admin {
            address,
            token_file: token_file.flatten(),
        })
    }

    /// Clients and operators cannot share an address.
    pub(super) fn addresses_differ(&mut self, listeners: &[Listener], admin: &Admin, at: Mark) {
        let clash = listeners.iter().find(|listener| {
            let ip = listener.address.ip();
            let same_ip = ip == admin.address.ip() || ip.is_unspecified();
            same_ip && admin.address.port() != 0 && listener.address.port() == admin.address.port()
        });
        if let Some(listener) = clash {
            self.reader.about("admin");
            self.reader.problem(
                at,
                format!(
                    "`{}` is already a listener's; write another port",
                    listener.address
                ),
            );
            self.reader.about("");
        }
    }
}

fn parse_network(text: &str) -> Result<IpNet, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(IpNet::from(address.to_canonical()));
    }
    text.parse::<IpNet>()
        .map(|network| network.trunc())
        .map_err(|_reason| {
            format!("`{text}` is not a network; write it like `10.0.0.0/8` or `2001:db8::/32`")
        })
}
