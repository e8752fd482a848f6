//! The `tests:` of a rules file. They are run elsewhere; here they are read.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use super::Reading;
use super::when::as_compared;
use crate::attribute::AttributeId;
use crate::rules::RuleTest;
use crate::verdict::Name;
use crate::yaml::Node;

/// The client of a test that names none; an address of documentation, RFC 5737.
const ADDRESS_DEFAULT: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

const VERDICTS: &[(&str, &str)] = &[
    ("forward", "forward"),
    ("limit", "limit"),
    ("throttle", "throttle"),
    ("block", "block"),
    ("tarpit", "tarpit"),
    ("drop", "drop"),
];

/// The request of a test.
struct Given {
    address: IpAddr,
    values: Vec<(AttributeId, Arc<str>)>,
}

impl Reading<'_, '_> {
    pub(super) fn test(&mut self, node: &Node) -> Option<RuleTest> {
        let fields = self.reader.fields("a test", node, &["given", "expect"])?;
        let given = fields
            .required(&mut self.reader, "given", "{ app: acme, ip: 192.0.2.7 }")
            .and_then(|node| self.given(node));
        let expect = fields
            .required(
                &mut self.reader,
                "expect",
                "{ verdict: block, rule: acme-loop }",
            )
            .and_then(|node| self.expect(node));
        let given = given?;
        let (verdict, rule) = expect?;
        Some(RuleTest {
            place: node.mark.in_file(self.reader.path()),
            address: given.address,
            given: given.values,
            verdict,
            rule,
        })
    }

    fn given(&mut self, node: &Node) -> Option<Given> {
        let entries = self.reader.entries("given", node)?;
        let mut address = Some(ADDRESS_DEFAULT);
        let mut values = Vec::with_capacity(entries.len());
        let mut fine = true;
        for entry in entries {
            let Some(id) = self.attribute(entry.mark, &entry.key) else {
                fine = false;
                continue;
            };
            if id == AttributeId::IP {
                address = self
                    .reader
                    .parsed("ip", &entry.value, "`192.0.2.7`", |text| {
                        text.parse().map_err(|_reason: std::net::AddrParseError| {
                            format!("`{text}` is not an address; write it like `192.0.2.7`")
                        })
                    });
            } else if id == AttributeId::NETWORK {
                self.reader.problem(
                    entry.mark,
                    "`network` follows from the address; write `ip: 192.0.2.7` instead",
                );
                fine = false;
            } else if let Some(text) = self.reader.text(&entry.key, &entry.value, "`acme`") {
                fine &= id != AttributeId::SERVICE || self.service(entry.value.mark, text);
                values.push((id, as_compared(id, text)));
            } else {
                fine = false;
            }
        }
        Some(Given {
            address: address?,
            values,
        })
        .filter(|_| fine)
    }

    fn expect(&mut self, node: &Node) -> Option<(Arc<str>, Option<Name>)> {
        let fields = self.reader.fields("expect", node, &["verdict", "rule"])?;
        let verdict = fields
            .required(&mut self.reader, "verdict", "block")
            .and_then(|node| self.reader.word("verdict", node, VERDICTS));
        let rule = match fields.get("rule") {
            Some(node) => {
                let name = self.reader.name("rule", node).map(Name::new)?;
                if verdict == Some("forward") {
                    self.reader.problem(
                        node.mark,
                        "no rule decides that a request is forwarded; leave `rule` out",
                    );
                }
                let place = node.mark.in_file(self.reader.path());
                self.file.expected.push((name.clone(), place));
                Some(name)
            }
            None => None,
        };
        Some((Arc::from(verdict?), rule))
    }
}
