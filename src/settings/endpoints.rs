//! One place where requests go: a host, a port, a weight.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tidegate_engine::yaml::{Node, Value};

use super::Reading;

const ENDPOINT_LIKE: &str = "`[\"127.0.0.1:9001\"]`";
/// The largest weight. A hundred times what another gets is as good as all.
const WEIGHT_MAX: u32 = 100;

/// One place where requests go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Host and port; the host is an address or a name in small letters.
    pub address: Arc<str>,
    /// How much it gets compared with the others, from 1.
    pub weight: u32,
}

impl Reading<'_> {
    pub(super) fn endpoints(&mut self, node: &Node) -> Option<Vec<Endpoint>> {
        let items = self.reader.items("endpoints", node, ENDPOINT_LIKE)?;
        let mut endpoints: Vec<Endpoint> = Vec::with_capacity(items.len());
        for item in items {
            let Some(endpoint) = self.endpoint(item) else {
                continue;
            };
            let address = &endpoint.address;
            if endpoints.iter().any(|other| other.address == *address) {
                self.reader.problem(
                    item.mark,
                    format!("the endpoint `{address}` is given twice; keep one"),
                );
            }
            endpoints.push(endpoint);
        }
        (endpoints.len() == items.len()).then_some(endpoints)
    }

    fn endpoint(&mut self, node: &Node) -> Option<Endpoint> {
        if !matches!(node.value, Value::Map(_)) {
            let address = self
                .reader
                .parsed("endpoints", node, ENDPOINT_LIKE, parse_endpoint);
            return Some(Endpoint {
                address: address?,
                weight: 1,
            });
        }
        let fields = self
            .reader
            .fields("an endpoint", node, &["address", "weight"])?;
        let address = fields
            .required(&mut self.reader, "address", "10.0.0.1:80")
            .and_then(|node| {
                self.reader
                    .parsed("address", node, "`10.0.0.1:80`", parse_endpoint)
            });
        let weight = match fields.get("weight") {
            Some(node) => self.reader.whole("weight", node, 1..=WEIGHT_MAX),
            None => Some(1),
        };
        Some(Endpoint {
            address: address?,
            weight: weight?,
        })
    }
}

/// Reads a host and a port; the host is an address or a name.
fn parse_endpoint(text: &str) -> Result<Arc<str>, String> {
    let wrong = || {
        format!("`{text}` is not a host and a port; write it like `127.0.0.1:9001` or `chat:80`")
    };
    if text.contains("://") {
        return Err(format!(
            "`{text}` is a URL; write host and port alone, like `127.0.0.1:9001`"
        ));
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return if address.port() == 0 {
            Err(wrong())
        } else {
            Ok(Arc::from(address.to_string()))
        };
    }
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let port_is_fine = port.parse::<u16>().is_ok_and(|port| port != 0) && !port.starts_with('+');
    let host_is_fine = super::services::is_host(host);
    // `10.0.0:80` and `1.2.3.4.5:80` are slips of the hand, not names.
    let is_name = host.bytes().any(|byte| byte.is_ascii_alphabetic());
    if port_is_fine && host_is_fine && is_name {
        Ok(Arc::from(text.to_ascii_lowercase()))
    } else {
        Err(wrong())
    }
}

/// Reads the name of a server as it stands in a certificate: a host name or an address.
pub(super) fn parse_server_name(text: &str) -> Result<Arc<str>, String> {
    if text.parse::<IpAddr>().is_ok() || super::services::is_host(text) {
        Ok(Arc::from(text.to_ascii_lowercase()))
    } else {
        Err(format!(
            "`{text}` is not the name of a server; write it without scheme and port, like \
             `chat.internal`"
        ))
    }
}
