//! What a decision may look at: the facts of one request, borrowed from it.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ahash::RandomState;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::attribute::{ATTRIBUTES_MAX, AttributeId};

/// The longest attribute value, in bytes; a longer one is replaced by its hash (never skipped, or a
/// client could shed its identity by padding it).
pub const VALUE_BYTES_MAX: usize = 256;

/// The key under which attribute values are hashed, made once per process.
///
/// Random, so that nobody outside can find values that collide.
#[derive(Clone, Debug)]
pub struct HashKey(RandomState);

impl HashKey {
    /// Makes a key from a seed. The proxy draws the seed at random, a simulation gives its own.
    pub fn from_seed(seed: u64) -> Self {
        let mix = |salt: u64| {
            (seed ^ salt)
                .wrapping_mul(0x9E37_79B9_7F4A_7C15)
                .rotate_left(29)
        };
        Self(RandomState::with_seeds(mix(1), mix(2), mix(3), mix(4)))
    }

    /// Makes a key from 32 secret bytes.
    pub fn from_key(bytes: &[u8; 32]) -> Self {
        let word = |at: usize| {
            let eight = bytes.iter().skip(at * 8).take(8);
            eight.fold(0_u64, |word, byte| (word << 8) | u64::from(*byte))
        };
        Self(RandomState::with_seeds(word(0), word(1), word(2), word(3)))
    }

    /// Hashes a value; never 0, which stands for an absent one.
    pub fn hash(&self, value: &[u8]) -> u64 {
        self.0.hash_one(value).max(1)
    }

    /// Hashes a value for [`RequestFacts::set_prehashed`]. One above [`VALUE_BYTES_MAX`] is cut there.
    pub fn prehash(&self, value: &str) -> Prehashed {
        let end = value.floor_char_boundary(VALUE_BYTES_MAX);
        let text = value.get(..end).unwrap_or_default();
        Prehashed {
            text: text.into(),
            hash: self.hash(text.as_bytes()),
        }
    }

    /// Hashes an address as it counts: IPv4 whole, IPv6 as its /64.
    pub fn hash_address(&self, address: IpAddr) -> u64 {
        self.0.hash_one(counted_address(address)).max(1)
    }
}

/// A value that was hashed once, for whoever makes many requests of few values.
#[derive(Clone, Debug)]
pub struct Prehashed {
    text: Box<str>,
    hash: u64,
}

impl Prehashed {
    /// Returns the text.
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// The facts of one request: its attributes, borrowed from the request where possible.
///
/// Values are hashed when they are set: limits, sketches and instance memory use the hashes,
/// conditions the texts.
#[derive(Debug)]
pub struct RequestFacts<'a> {
    key: &'a HashKey,
    address: IpAddr,
    from_trusted_proxy: bool,
    values: [Option<Cow<'a, str>>; ATTRIBUTES_MAX],
    hashes: [u64; ATTRIBUTES_MAX],
    /// The whole of the values that were too long to keep; hardly any request has one.
    long: Vec<(AttributeId, Cow<'a, str>)>,
}

impl<'a> RequestFacts<'a> {
    /// Begins with the client's address alone. IPv4-mapped IPv6 addresses become IPv4.
    pub fn new(key: &'a HashKey, address: IpAddr) -> Self {
        let address = address.to_canonical();
        let mut hashes = [0; ATTRIBUTES_MAX];
        // The address and its network are the first two attributes.
        let [of_address, of_network, ..] = &mut hashes;
        *of_address = key.hash_address(address);
        *of_network = key.0.hash_one(network_of(address)).max(1);
        Self {
            key,
            address,
            from_trusted_proxy: false,
            values: [const { None }; ATTRIBUTES_MAX],
            hashes,
            long: Vec::new(),
        }
    }

    /// Marks the client as one of the operator's own proxies, which detected rules never touch.
    pub fn mark_trusted_proxy(&mut self) {
        self.from_trusted_proxy = true;
    }

    /// Returns whether the client is one of the operator's own proxies.
    pub fn is_trusted_proxy(&self) -> bool {
        self.from_trusted_proxy
    }

    /// Sets an attribute's value. Values above [`VALUE_BYTES_MAX`] become `hash:` and 16 hex digits.
    /// The address and its network cannot be set.
    pub fn set(&mut self, id: AttributeId, value: Cow<'a, str>) {
        if id.is_address() {
            return;
        }
        let hash = self.key.hash(value.as_bytes());
        let value = if value.len() > VALUE_BYTES_MAX {
            // Unkeyed on purpose: an operator writes the text that the log shows, and it must
            // still match after a restart.
            let short = format!("hash:{:016x}", stable_hash(value.as_bytes()));
            self.long.push((id, value));
            Cow::Owned(short)
        } else {
            value
        };
        if let (Some(slot), Some(place)) = (
            self.values.get_mut(id.index()),
            self.hashes.get_mut(id.index()),
        ) {
            *slot = Some(value);
            *place = hash;
        }
    }

    /// Sets an attribute to a value that was hashed with this request's key before.
    pub fn set_prehashed(&mut self, id: AttributeId, value: &'a Prehashed) {
        if let (false, Some(slot), Some(place)) = (
            id.is_address(),
            self.values.get_mut(id.index()),
            self.hashes.get_mut(id.index()),
        ) {
            *slot = Some(Cow::Borrowed(&value.text));
            *place = value.hash;
        }
    }

    /// Takes an attribute's value away, so that the facts can be used for another request.
    pub fn unset(&mut self, id: AttributeId) {
        if let (false, Some(slot), Some(place)) = (
            id.is_address(),
            self.values.get_mut(id.index()),
            self.hashes.get_mut(id.index()),
        ) {
            *slot = None;
            *place = 0;
        }
    }

    /// Changes the client's address, so that the facts can be used for another request.
    pub fn come_from(&mut self, address: IpAddr) {
        self.address = address.to_canonical();
        let [of_address, of_network, ..] = &mut self.hashes;
        *of_address = self.key.hash_address(self.address);
        *of_network = self.key.0.hash_one(network_of(self.address)).max(1);
    }

    /// Sets an attribute whose value must never be shown: only its hash is kept, so it can tell
    /// clients apart and be tested for presence, and no text of it exists to leak.
    pub fn set_secret(&mut self, id: AttributeId, value: &[u8]) {
        if id.is_address() {
            return;
        }
        if let Some(place) = self.hashes.get_mut(id.index()) {
            *place = self.key.hash(value);
        }
    }

    /// Returns whether an attribute has a value, shown or secret.
    pub fn is_present(&self, id: AttributeId) -> bool {
        self.hash(id) != 0
    }

    /// Returns the client's address, canonical and whole.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Returns an attribute's text: for the address as it counts (IPv6 as its /64).
    pub fn text(&self, id: AttributeId) -> Option<Cow<'_, str>> {
        match id {
            AttributeId::IP => Some(Cow::Owned(match counted_address(self.address) {
                IpAddr::V4(address) => address.to_string(),
                IpAddr::V6(address) => format!("{address}/64"),
            })),
            AttributeId::NETWORK => Some(Cow::Owned(network_of(self.address).to_string())),
            _ => self.value(id).map(Cow::Borrowed),
        }
    }

    /// Returns an attribute's text without making one: `None` also for the address and its network.
    pub fn value(&self, id: AttributeId) -> Option<&str> {
        self.values.get(id.index())?.as_deref()
    }

    /// Returns an attribute's text as it was given, however long: what a regex or a prefix is held
    /// against, or padding would hide a client from it. `None` also for the address and its network.
    pub fn whole_value(&self, id: AttributeId) -> Option<&str> {
        let long = self.long.iter().find(|(long, _)| *long == id);
        long.map(|(_, value)| &**value).or_else(|| self.value(id))
    }

    /// Returns the hash of an attribute's value; 0 when absent.
    pub fn hash(&self, id: AttributeId) -> u64 {
        self.hashes.get(id.index()).copied().unwrap_or(0)
    }

    /// Returns what tells this device from others: the instance, or the address where there is none.
    pub fn instance(&self) -> u64 {
        match self.hash(AttributeId::INSTANCE) {
            0 => self.hash(AttributeId::IP),
            hash => hash,
        }
    }
}

/// Returns the address as it counts: IPv4 whole, IPv6 as its /64 (one household has a whole /64).
pub fn counted_address(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)))
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// Returns the /24 of an IPv4 address or the /48 of an IPv6 address.
pub fn network_of(address: IpAddr) -> IpNet {
    match address.to_canonical() {
        IpAddr::V4(address) => {
            let network = Ipv4Addr::from_bits(address.to_bits() & 0xffff_ff00);
            IpNet::V4(Ipv4Net::new_assert(network, 24))
        }
        IpAddr::V6(address) => {
            let network = Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 80));
            IpNet::V6(Ipv6Net::new_assert(network, 48))
        }
    }
}

/// FNV-1a with a final mix: the same in every process.
fn stable_hash(bytes: &[u8]) -> u64 {
    let fnv = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    (fnv ^ (fnv >> 32)).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_address_is_the_ipv4_address() {
        let key = HashKey::from_seed(1);
        let mapped = RequestFacts::new(&key, "::ffff:192.0.2.7".parse().unwrap());
        let plain = RequestFacts::new(&key, "192.0.2.7".parse().unwrap());
        assert_eq!(mapped.address(), plain.address());
        assert_eq!(mapped.instance(), plain.instance());
    }

    #[test]
    fn addresses_of_one_64_count_as_one() {
        let key = HashKey::from_seed(1);
        let facts = |text: &str| RequestFacts::new(&key, text.parse().unwrap()).instance();
        assert_eq!(facts("2001:db8::1"), facts("2001:db8::ffff"));
        assert_ne!(facts("2001:db8::1"), facts("2001:db8:0:1::1"));
    }

    #[test]
    fn facts_that_are_used_again_are_those_of_the_new_request() {
        let key = HashKey::from_seed(1);
        let mut fresh = RequestFacts::new(&key, "198.51.100.7".parse().unwrap());
        fresh.set(AttributeId::METHOD, Cow::Borrowed("GET"));
        let value = key.prehash("GET");
        let mut used = RequestFacts::new(&key, "192.0.2.7".parse().unwrap());
        used.set(AttributeId::HOST, Cow::Borrowed("a.example"));
        used.unset(AttributeId::HOST);
        used.set_prehashed(AttributeId::METHOD, &value);
        used.come_from("198.51.100.7".parse().unwrap());
        assert_eq!(used.hashes, fresh.hashes);
        assert_eq!(used.values, fresh.values);
        assert_eq!(used.address(), fresh.address());
    }

    #[test]
    fn an_over_long_value_is_hashed_and_not_skipped() {
        let key = HashKey::from_seed(1);
        let mut facts = RequestFacts::new(&key, "192.0.2.7".parse().unwrap());
        facts.set(
            AttributeId::USER_AGENT,
            Cow::Owned("x".repeat(VALUE_BYTES_MAX + 1)),
        );
        let text = facts.value(AttributeId::USER_AGENT).unwrap();
        assert!(text.starts_with("hash:") && text.len() == 21, "{text}");
        assert_ne!(facts.hash(AttributeId::USER_AGENT), 0);
    }
}
