//! The client's address: the peer's, or what the operator's own proxies say.

use std::net::IpAddr;

use http::HeaderMap;
use http::header::HeaderName;
use ipnet::IpNet;

/// `x-forwarded-for`.
pub(crate) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The most entries of `X-Forwarded-For` that are looked at, from the right. No operator has 64
/// proxies in a row; a client may send ten thousand entries.
const HOPS_MAX: usize = 64;

/// The addresses whose `X-Forwarded-For` is believed.
#[derive(Clone, Debug, Default)]
pub(crate) struct TrustedProxies {
    networks: Vec<IpNet>,
}

impl TrustedProxies {
    /// Trusts these networks.
    pub(crate) fn new(networks: Vec<IpNet>) -> Self {
        Self { networks }
    }

    /// Returns whether an address is one of the operator's own proxies.
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.networks
            .iter()
            .any(|network| network.contains(&address))
    }

    /// Walks `X-Forwarded-For` from the right, past trusted proxies, to the first address that is
    /// none of them. An entry that is no address ends the walk at the hop that reported it: what is
    /// left of it can have been written by anybody.
    pub(crate) fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut client = peer.to_canonical();
        if !self.contains(client) {
            return client;
        }
        let lines: Vec<&[u8]> = headers
            .get_all(X_FORWARDED_FOR)
            .iter()
            .map(http::HeaderValue::as_bytes)
            .collect();
        let entries = lines
            .iter()
            .rev()
            .flat_map(|line| line.rsplit(|byte| *byte == b','));
        for entry in entries.take(HOPS_MAX) {
            let entry = entry.trim_ascii();
            if entry.is_empty() {
                continue;
            }
            let Some(address) = read_address(entry) else {
                return client;
            };
            client = address;
            if !self.contains(client) {
                return client;
            }
        }
        client
    }
}

/// Reads `192.0.2.7`, `192.0.2.7:443`, `2001:db8::1` or `[2001:db8::1]:443`.
fn read_address(entry: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(entry).ok()?;
    let bare = match text.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?.0,
        None => match text.split_once(':') {
            Some((before, after)) if !after.contains(':') => before,
            _ => text,
        },
    };
    bare.parse()
        .ok()
        .map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn proxies() -> TrustedProxies {
        TrustedProxies::new(vec![
            "10.0.0.0/8".parse().unwrap(),
            "2001:db8:1::/48".parse().unwrap(),
        ])
    }

    fn client(peer: &str, lines: &[&str]) -> String {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(X_FORWARDED_FOR, line.parse().unwrap());
        }
        proxies()
            .client(peer.parse().unwrap(), &headers)
            .to_string()
    }

    #[test]
    fn a_stranger_is_not_believed() {
        assert_eq!(client("192.0.2.7", &["198.51.100.1"]), "192.0.2.7");
    }

    #[test]
    fn the_walk_goes_from_the_right_past_trusted_proxies_only() {
        assert_eq!(
            client("10.0.0.1", &["203.0.113.9, 198.51.100.1, 10.0.0.2"]),
            "198.51.100.1"
        );
        assert_eq!(
            client("10.0.0.1", &["203.0.113.9", "198.51.100.1,10.0.0.2"]),
            "198.51.100.1"
        );
        assert_eq!(
            client("::ffff:10.0.0.1", &["::ffff:198.51.100.1"]),
            "198.51.100.1"
        );
        assert_eq!(
            client("10.0.0.1", &["[2001:db8:2::1]:443"]),
            "2001:db8:2::1"
        );
        assert_eq!(client("10.0.0.1", &["198.51.100.1:1234,"]), "198.51.100.1");
    }

    #[test]
    fn what_is_no_address_ends_the_walk_at_the_hop_that_said_it() {
        assert_eq!(
            client("10.0.0.1", &["198.51.100.1, unknown, 10.0.0.2"]),
            "10.0.0.2"
        );
        assert_eq!(client("10.0.0.1", &["198.51.100.1, _hidden"]), "10.0.0.1");
    }

    #[test]
    fn a_very_long_list_is_looked_at_for_64_hops() {
        let line = format!("198.51.100.1{}", ", 10.0.0.2".repeat(10_000));
        assert_eq!(client("10.0.0.1", &[&line]), "10.0.0.2");
    }

    proptest! {
        /// Whatever a client writes, the address that its first trusted proxy appended is chosen.
        #[test]
        fn nothing_that_a_client_writes_changes_its_address(written in "[ -~]{0,80}") {
            let line = format!("{written}, 198.51.100.1");
            prop_assert_eq!(client("10.0.0.1", &[&line]), "198.51.100.1");
        }
    }
}
