//! Identifies the client: reads the operator's attributes from a request.
//!
//! A client must not be able to change who it is by the way it writes its headers. A field given
//! twice with different values could be one client to us and another to the upstream, so it is
//! refused; an over-long value is hashed, never skipped; names with an underscore never count.

mod places;

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use http::header::{HeaderName, USER_AGENT};
use http::{HeaderMap, Uri};
use regex::Regex;
use tidegate_engine::attribute::{AttributeId, Schema};
use tidegate_engine::request::{HashKey, RequestFacts};

use self::places::{header, names, read_from};
use super::target::Invalid;
use crate::settings::{AttributeSource, ValueFrom};

/// Reads attributes from requests.
#[derive(Debug)]
pub struct Identify {
    schema: Arc<Schema>,
    key: HashKey,
    readers: Vec<AttributeReader>,
}

/// How one attribute is read.
#[derive(Debug)]
struct AttributeReader {
    id: AttributeId,
    from: ValueFrom,
    extract: Extract,
    /// Whether the value may only be hashed, never kept as text.
    is_secret: bool,
}

/// The parts of a request that attributes are read from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Readable<'a> {
    pub(crate) headers: &'a HeaderMap,
    pub(crate) uri: &'a Uri,
    pub(crate) method: &'a str,
    pub(crate) host: &'a str,
    pub(crate) path: &'a str,
}

impl Identify {
    /// Reads these attributes; those that are not in the schema are left out.
    pub fn new(schema: Arc<Schema>, key: HashKey, sources: &[AttributeSource]) -> Self {
        let reader = |source: &AttributeSource| {
            Some(AttributeReader {
                id: schema.id(&source.spec.name)?,
                from: source.from.clone(),
                extract: Extract::new(source.pattern.as_ref()),
                is_secret: source.spec.secret,
            })
        };
        let readers = sources.iter().filter_map(reader).collect();
        Self {
            schema,
            key,
            readers,
        }
    }

    /// Returns all attributes there are.
    pub fn schema(&self) -> &Arc<Schema> {
        &self.schema
    }

    /// Refuses a request whose `Connection` names a header that identifies the client: it would end
    /// here, and the upstream would see another client than we judge.
    pub(crate) fn check_connection(&self, headers: &HeaderMap) -> Result<(), Invalid> {
        let identifies = |name: &HeaderName| {
            *name == USER_AGENT || self.readers.iter().any(|reader| names(&reader.from, name))
        };
        if super::headers::connection_names(headers).any(|name| identifies(&name)) {
            return Err(Invalid {
                status: 400,
                detail: "Connection names a field that identifies the client",
            });
        }
        Ok(())
    }

    /// Begins the facts of a request with the client's address.
    pub(crate) fn begin(&self, address: IpAddr) -> RequestFacts<'_> {
        RequestFacts::new(&self.key, address)
    }

    /// Reads a request's attributes, except service and route, which are found later. Facts are 0.8 KiB
    /// and stay where they are.
    pub(crate) fn read<'a>(
        &'a self,
        facts: &mut RequestFacts<'a>,
        request: Readable<'a>,
    ) -> Result<(), Invalid> {
        facts.set(AttributeId::METHOD, Cow::Borrowed(request.method));
        if !request.host.is_empty() {
            facts.set(AttributeId::HOST, Cow::Borrowed(request.host));
        }
        if let Some(agent) = header(request.headers, &USER_AGENT)? {
            facts.set(AttributeId::USER_AGENT, agent);
        }
        for reader in &self.readers {
            let Some(value) = reader.read(&request)? else {
                continue;
            };
            if reader.is_secret {
                facts.set_secret(reader.id, value.as_bytes());
            } else {
                facts.set(reader.id, value);
            }
        }
        Ok(())
    }
}

impl AttributeReader {
    fn read<'a>(&self, request: &Readable<'a>) -> Result<Option<Cow<'a, str>>, Invalid> {
        let places = match &self.from {
            ValueFrom::FirstOf(places) => places.as_slice(),
            place => std::slice::from_ref(place),
        };
        for place in places {
            let Some(value) = read_from(place, request)? else {
                continue;
            };
            let value = self.extract.of(value);
            if value.as_ref().is_some_and(|value| !value.is_empty()) {
                return Ok(value);
            }
        }
        Ok(None)
    }
}

/// What of a value counts.
#[derive(Debug)]
enum Extract {
    /// All of it.
    Whole,
    /// What follows this text, at the first place where something follows it. It is what
    /// a pattern like `release-v(.+)` says, and takes a tenth of the time.
    After(Box<str>),
    /// The first group of the match, or the whole match where the pattern has no group.
    Match(Regex),
}

impl Extract {
    fn new(pattern: Option<&Regex>) -> Self {
        let Some(pattern) = pattern else {
            return Self::Whole;
        };
        // Characters that stand for themselves in every regex.
        let is_plain = |text: &str| {
            text.bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_/:=, ".contains(&byte))
        };
        match pattern.as_str().strip_suffix("(.+)") {
            Some(before) if !before.is_empty() && is_plain(before) => Self::After(before.into()),
            _ => Self::Match(pattern.clone()),
        }
    }

    /// Returns what counts of a value, or `None` where the value has no such part.
    fn of<'a>(&self, value: Cow<'a, str>) -> Option<Cow<'a, str>> {
        let range = match self {
            Self::Whole => return Some(value),
            Self::After(before) => {
                // `.` is no line feed: what counts ends there, and must not be empty.
                let mut from = 0;
                loop {
                    let rest = value.get(from..)?;
                    // It mostly stands at the beginning, and looking there takes no search.
                    let at = if rest.starts_with(&**before) {
                        0
                    } else {
                        rest.find(&**before)?
                    };
                    from += at + before.len();
                    let rest = value.get(from..)?;
                    let length = rest.find('\n').unwrap_or(rest.len());
                    if length > 0 {
                        break from..from + length;
                    }
                }
            }
            Self::Match(pattern) => {
                let captures = pattern.captures(&value)?;
                captures.get(1).or_else(|| captures.get(0))?.range()
            }
        };
        match value {
            Cow::Borrowed(text) => text.get(range).map(Cow::Borrowed),
            Cow::Owned(text) => text.get(range).map(|part| Cow::Owned(part.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_engine::attribute::{AttributeKind, AttributeSpec, Side};

    /// Reads attribute `app` from the given places of one request.
    fn read(
        from: &[ValueFrom],
        lines: &[(&str, &str)],
        uri: &str,
        host: &str,
    ) -> Result<Option<String>, u16> {
        let mut schema = Schema::built_in();
        let name = Arc::from("app");
        let spec = AttributeSpec {
            name,
            kind: AttributeKind::Text,
            side: Side::Who,
            secret: false,
        };
        let id = schema.add(spec).unwrap();
        let source = AttributeSource {
            spec: schema.spec(id).unwrap().clone(),
            from: ValueFrom::FirstOf(from.to_vec()),
            pattern: None,
        };
        let identify = Identify::new(Arc::new(schema), HashKey::from_seed(1), &[source]);
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                value.parse().unwrap(),
            );
        }
        let uri: Uri = uri.parse().unwrap();
        let request = Readable {
            headers: &headers,
            uri: &uri,
            method: "GET",
            host,
            path: uri.path(),
        };
        let mut facts = identify.begin("192.0.2.7".parse().unwrap());
        match identify.read(&mut facts, request) {
            Ok(()) => Ok(facts.value(id).map(str::to_owned)),
            Err(invalid) => Err(invalid.status),
        }
    }

    fn from_header() -> Vec<ValueFrom> {
        vec![ValueFrom::Header(HeaderName::from_static("x-app-id"))]
    }

    #[test]
    fn a_header_given_twice_is_one_value_or_refused() {
        let twice = |a, b| {
            read(
                &from_header(),
                &[("x-app-id", a), ("X-App-Id", b)],
                "/",
                "a",
            )
        };
        assert_eq!(twice("acme", "acme"), Ok(Some("acme".into())));
        assert_eq!(twice("acme", "other"), Err(400));
    }

    #[test]
    fn a_name_with_an_underscore_is_another_header() {
        assert_eq!(
            read(&from_header(), &[("x_app_id", "acme")], "/", "a"),
            Ok(None)
        );
    }

    #[test]
    fn white_space_around_a_value_does_not_count() {
        assert_eq!(
            read(&from_header(), &[("x-app-id", "  acme\t")], "/", "a"),
            Ok(Some("acme".into()))
        );
    }

    #[test]
    fn an_empty_value_is_no_value_and_the_next_place_is_asked() {
        let mut from = from_header();
        from.push(ValueFrom::Query("app".into()));
        assert_eq!(
            read(&from, &[("x-app-id", "")], "/?app=acme", "a"),
            Ok(Some("acme".into()))
        );
        assert_eq!(
            read(&from, &[("x-app-id", "b")], "/?app=acme", "a"),
            Ok(Some("b".into()))
        );
    }

    #[test]
    fn escapes_in_a_query_do_not_make_another_client() {
        let from = [ValueFrom::Query("app".into())];
        for uri in [
            "/?app=acme",
            "/?x=1&app=%61cme",
            "/?%61pp=acme",
            "/?app=acme&app=acme",
        ] {
            assert_eq!(read(&from, &[], uri, "a"), Ok(Some("acme".into())), "{uri}");
        }
        assert_eq!(read(&from, &[], "/?app=acme&%61pp=other", "a"), Err(400));
        assert_eq!(
            read(&from, &[], "/?app=a%2Bb+c%zz", "a"),
            Ok(Some("a+b c%zz".into()))
        );
    }

    #[test]
    fn a_cookie_given_twice_is_one_value_or_refused() {
        let from = [ValueFrom::Cookie("org".into())];
        let cookies = |line| read(&from, &[("cookie", line)], "/", "a");
        assert_eq!(cookies("a=1; org=acme; b=2"), Ok(Some("acme".into())));
        assert_eq!(cookies("org=acme; org=acme"), Ok(Some("acme".into())));
        assert_eq!(cookies("org=acme; org=other"), Err(400));
        assert_eq!(cookies("xorg=acme"), Ok(None));
    }

    #[test]
    fn an_address_has_no_host_labels() {
        let label = |host| read(&[ValueFrom::HostLabel(1)], &[], "/", host);
        assert_eq!(label("acme.api.example.com"), Ok(Some("acme".into())));
        assert_eq!(label("192.0.2.1"), Ok(None));
        assert_eq!(label("[2001:db8::1]"), Ok(None));
        assert_eq!(read(&[ValueFrom::HostLabel(5)], &[], "/", "a.b"), Ok(None));
    }

    #[test]
    fn a_claim_is_read_and_a_broken_token_has_none() {
        let from = [ValueFrom::JwtClaim("org".into())];
        // {"org":"acme","n":7}
        let claim = |token: &str| read(&from, &[("authorization", token)], "/", "a");
        assert_eq!(
            claim("Bearer e30.eyJvcmciOiJhY21lIiwibiI6N30.sig"),
            Ok(Some("acme".into()))
        );
        for broken in [
            "Bearer x",
            "Bearer a.b.c",
            "Bearer e30.e30.",
            "Bearer ..",
            "Bearer e30.!!.x",
        ] {
            assert_eq!(claim(broken), Ok(None), "{broken}");
        }
    }

    #[test]
    fn path_segments_count_from_one() {
        let segment = |number| read(&[ValueFrom::PathSegment(number)], &[], "/v1//acme/x", "a");
        assert_eq!(segment(1), Ok(Some("v1".into())));
        assert_eq!(segment(2), Ok(Some("acme".into())));
        assert_eq!(segment(9), Ok(None));
    }

    #[test]
    fn the_short_way_says_what_the_pattern_says() {
        for pattern in ["release-v(.+)", "v(.+)", "a-a(.+)"] {
            let pattern = Regex::new(pattern).unwrap();
            let short = Extract::new(Some(&pattern));
            assert!(matches!(short, Extract::After(_)));
            let slow = Extract::Match(pattern.clone());
            for value in [
                "release-v3.2",
                "release-v",
                "xx release-v1 release-v2",
                "v",
                "vv",
                "a-a-a",
                "a-a",
                "release-v\n",
                "v\nv1\nx",
                "",
                "\u{e9}v\u{e9}",
            ] {
                assert_eq!(
                    short.of(value.into()),
                    slow.of(value.into()),
                    "{pattern} on {value:?}"
                );
            }
        }
        for pattern in ["release-v(.*)", "rel.ase(.+)", "(.+)", "^v(.+)"] {
            let pattern = Regex::new(pattern).unwrap();
            assert!(
                matches!(Extract::new(Some(&pattern)), Extract::Match(_)),
                "{pattern}"
            );
        }
    }

    #[test]
    fn a_value_that_is_no_utf8_stays_distinct() {
        let mut headers = HeaderMap::new();
        headers.append("x-app-id", http::HeaderValue::from_bytes(b"a\xff").unwrap());
        let name = HeaderName::from_static("x-app-id");
        assert_eq!(header(&headers, &name).unwrap().unwrap(), "a\\xff");
    }
}
