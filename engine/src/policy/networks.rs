//! Long lists of networks, asked in one walk down a trie instead of one comparison each.

use std::net::IpAddr;

use ipnet::IpNet;
use prefix_trie::joint::JointPrefixSet;

/// A set of networks.
#[derive(Clone, Debug, Default)]
pub(super) struct Networks {
    trie: JointPrefixSet<IpNet>,
}

impl Networks {
    /// Returns whether one of the networks holds the address, which must be canonical.
    pub(super) fn contains(&self, address: IpAddr) -> bool {
        self.trie.is_covered(&IpNet::from(address))
    }
}

impl FromIterator<IpNet> for Networks {
    fn from_iter<I: IntoIterator<Item = IpNet>>(networks: I) -> Self {
        let mut trie = JointPrefixSet::new();
        for network in networks {
            trie.insert(network.trunc());
        }
        Self { trie }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    /// Few distinct bits, so that networks nest and addresses hit them.
    fn address() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            (0_u32..64).prop_map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits << 26 | bits))),
            (0_u128..64).prop_map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits << 122 | bits))),
        ]
    }

    fn network() -> impl Strategy<Value = IpNet> {
        (address(), 0_u8..=128).prop_map(|(address, length)| {
            let longest = if address.is_ipv4() { 32 } else { 128 };
            IpNet::new(address, length.min(longest)).expect("no longer than the address")
        })
    }

    proptest! {
        #[test]
        fn the_trie_answers_as_a_walk_over_the_list_does(
            networks in prop::collection::vec(network(), 0..40),
            addresses in prop::collection::vec(address(), 1..40)
        ) {
            let set: Networks = networks.iter().copied().collect();
            for address in addresses {
                let walked = networks.iter().any(|network| network.contains(&address));
                prop_assert_eq!(set.contains(address), walked, "{}", address);
            }
        }
    }
}
