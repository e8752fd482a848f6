//! The copy of a request's head with which it can be sent again.
//!
//! Hardly any request is, so the copy is made as cheaply as can be: as text, into a buffer that stays
//! with the connection.

use http::{HeaderName, HeaderValue, Method, Request, Uri};

use super::body::RequestBody;

/// The largest buffer that is kept from one request to the next.
const KEPT_BYTES_MAX: usize = 4096;

/// The head of a request without a body.
#[derive(Debug, Default)]
pub(crate) struct HeadCopy {
    method: Method,
    /// The target, then each field as `name:value`; every part ends with a line feed, which can be in
    /// none of them.
    text: Vec<u8>,
}

impl HeadCopy {
    /// Copies a head.
    pub(crate) fn take(&mut self, request: &Request<RequestBody>) {
        self.text.clear();
        self.text.shrink_to(KEPT_BYTES_MAX);
        self.method.clone_from(request.method());
        let target = request.uri().path_and_query().map_or("/", |at| at.as_str());
        self.text.extend_from_slice(target.as_bytes());
        self.text.push(b'\n');
        for (name, value) in request.headers() {
            self.text.extend_from_slice(name.as_str().as_bytes());
            self.text.push(b':');
            self.text.extend_from_slice(value.as_bytes());
            self.text.push(b'\n');
        }
    }

    /// Makes the request again. `None` only for a head that was never one.
    pub(crate) fn request(&self) -> Option<Request<RequestBody>> {
        let mut lines = self.text.split(|byte| *byte == b'\n');
        let mut request = Request::new(RequestBody::Empty);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = Uri::try_from(lines.next()?).ok()?;
        for line in lines.filter(|line| !line.is_empty()) {
            let colon = line.iter().position(|byte| *byte == b':')?;
            let name = HeaderName::from_bytes(line.get(..colon)?).ok()?;
            let value = HeaderValue::from_bytes(line.get(colon + 1..)?).ok()?;
            request.headers_mut().append(name, value);
        }
        Some(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_request_made_again_is_the_same(
            method in prop_oneof![Just("GET"), Just("HEAD"), Just("PURGE")],
            target in prop_oneof![Just("*".to_owned()), "/[a-z:?&=%]{0,40}"],
            fields in proptest::collection::vec(("[a-z][a-z0-9-]{0,20}", proptest::collection::vec(prop_oneof![32..127_u8, 128..=255_u8], 0..80)), 0..20),
        ) {
            let mut request = Request::builder().method(method).uri(&target).body(RequestBody::Empty).unwrap();
            for (name, value) in &fields {
                let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
                request.headers_mut().append(name, HeaderValue::from_bytes(value).unwrap());
            }
            let mut copy = HeadCopy::default();
            copy.take(&request);
            let again = copy.request().unwrap();
            prop_assert_eq!(again.method(), request.method());
            prop_assert_eq!(again.uri(), request.uri());
            prop_assert_eq!(again.headers(), request.headers());
        }
    }
}
