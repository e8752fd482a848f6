//! Which flow a request is of: those who call themselves alike share one. Knows nothing of queues.

use crate::attribute::{AttributeId, Schema};
use crate::request::RequestFacts;

/// Which attributes make a flow: the operator's own of clients that may be shown.
///
/// Neither the address nor the instance is one, or a loop on ten thousand devices would be ten thousand
/// flows; nor what any client can invent without the operator having asked for it: user agent and TLS
/// fingerprint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flows(Vec<AttributeId>);

impl Flows {
    /// Picks the attributes of a schema.
    pub fn of(schema: &Schema) -> Self {
        Self(schema.own_who().collect())
    }

    /// Returns the number of a request's flow: of its attributes' values, or of its network (/24, /48)
    /// where it has none of them. Asked for each request, before anybody knows whether it has to wait: a
    /// multiplication per attribute is less than to keep the facts until then.
    ///
    /// # Accuracy
    ///
    /// The values' hashes are keyed at random, so nobody can aim for another's flow. Two of 256 flows
    /// share a number by chance once in 2⁴⁹ processes.
    pub fn flow_of(&self, facts: &RequestFacts<'_>) -> u64 {
        let mut flow = 0_u64;
        let mut factor = 0x9E37_79B9_7F4A_7C15_u64;
        for attribute in &self.0 {
            // Odd factors, each another: the same text in two attributes is not the same flow. The sum
            // keeps the multiplications apart from each other, so they overlap.
            flow = flow.wrapping_add(facts.hash(*attribute).wrapping_mul(factor));
            factor = factor.wrapping_add(0x3C6E_F372_FE94_F82A);
        }
        if flow == 0 {
            flow = facts.hash(AttributeId::NETWORK);
        }
        let flow = (flow ^ (flow >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
        flow ^ (flow >> 32)
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;
    use std::sync::Arc;

    use super::*;
    use crate::attribute::{AttributeKind, AttributeSpec, Side};
    use crate::request::HashKey;

    fn schema() -> Schema {
        let mut schema = Schema::built_in();
        for (name, side, secret) in [
            ("sdk", Side::Who, false),
            ("app", Side::Who, false),
            ("token", Side::Who, true),
            ("size", Side::What, false),
            ("instance", Side::Who, false),
        ] {
            let spec = AttributeSpec {
                name: Arc::from(name),
                kind: AttributeKind::Text,
                side,
                secret,
            };
            schema.add(spec).unwrap();
        }
        schema
    }

    fn flow(address: &str, values: &[(&str, &str)]) -> u64 {
        let (schema, key) = (schema(), HashKey::from_seed(1));
        let mut facts = RequestFacts::new(&key, address.parse().unwrap());
        for (name, value) in values {
            facts.set(schema.id(name).unwrap(), Cow::Borrowed(value));
        }
        Flows::of(&schema).flow_of(&facts)
    }

    #[test]
    fn those_who_call_themselves_alike_share_a_flow_wherever_they_are() {
        let one = flow("192.0.2.1", &[("sdk", "android"), ("app", "chat")]);
        let other = flow("2001:db8::1", &[("sdk", "android"), ("app", "chat")]);
        assert_eq!(one, other);
        for others in [
            [("sdk", "ios"), ("app", "chat")],
            [("sdk", "android"), ("app", "mail")],
            [("sdk", "chat"), ("app", "android")],
        ] {
            assert_ne!(one, flow("192.0.2.1", &others), "{others:?}");
        }
        assert_ne!(one, flow("192.0.2.1", &[("sdk", "android")]));
        let alike = [("sdk", "a"), ("app", "a")];
        assert_ne!(flow("192.0.2.1", &alike), flow("192.0.2.1", &[]));
    }

    #[test]
    fn what_a_client_can_invent_or_nobody_may_see_makes_no_flow() {
        let plain = flow("192.0.2.1", &[("sdk", "android")]);
        for (name, value) in [
            ("token", "t"),
            ("size", "9"),
            ("instance", "i"),
            ("user_agent", "u"),
            ("ja4", "j"),
        ] {
            let with = [("sdk", "android"), (name, value)];
            assert_eq!(flow("192.0.2.1", &with), plain, "{name}");
        }
    }

    #[test]
    fn those_without_a_name_are_told_apart_by_their_network() {
        assert_eq!(flow("192.0.2.1", &[]), flow("192.0.2.254", &[]));
        assert_ne!(flow("192.0.2.1", &[]), flow("192.0.3.1", &[]));
        assert_eq!(flow("2001:db8:1::1", &[]), flow("2001:db8:1:9::1", &[]));
        assert_ne!(flow("2001:db8:1::1", &[]), flow("2001:db8:2::1", &[]));
    }
}
