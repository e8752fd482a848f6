//! A message as it stood on the wire: start line, fields in their order, body, trailers.

/// A request or an answer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Message {
    /// The first line.
    pub(crate) start: String,
    /// Fields in their order; names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    /// What the framing says is the body, without the framing.
    pub(crate) body: Vec<u8>,
    /// Fields after a chunked body.
    pub(crate) trailers: Vec<(String, String)>,
    /// Whether the framing was satisfied; `false` when the connection ended before.
    pub(crate) is_complete: bool,
}

impl Message {
    /// Reads a head, without the empty line that ends it.
    pub(crate) fn read_head(head: &[u8]) -> Self {
        let text = String::from_utf8_lossy(head).into_owned();
        let mut lines = text.split("\r\n");
        Self {
            start: lines.next().unwrap_or_default().to_owned(),
            headers: lines.filter(|line| !line.is_empty()).map(field).collect(),
            ..Self::default()
        }
    }

    /// Returns the first value of a field.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut named = self.headers.iter().filter(|(own, _)| own == name);
        named.next().map(|(_, value)| value.as_str())
    }

    /// Returns all values of a field.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let named = self.headers.iter().filter(move |(own, _)| own == name);
        named.map(|(_, value)| value.as_str())
    }

    /// Returns a trailer.
    pub(crate) fn trailer(&self, name: &str) -> Option<&str> {
        let mut named = self.trailers.iter().filter(|(own, _)| own == name);
        named.next().map(|(_, value)| value.as_str())
    }

    /// Returns the status of an answer.
    #[track_caller]
    pub(crate) fn status(&self) -> u16 {
        let word = self.start.split(' ').nth(1);
        word.and_then(|word| word.parse().ok())
            .unwrap_or_else(|| panic!("no status line: {self:?}"))
    }

    /// Returns the target of a request.
    pub(crate) fn target(&self) -> &str {
        self.start.split(' ').nth(1).unwrap_or_default()
    }

    /// Returns the body as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Returns the body as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Fails the test unless this is a problem document with this status and code.
    #[track_caller]
    pub(crate) fn expect_problem(&self, status: u16, code: &str) {
        assert_eq!(self.status(), status, "{self:?}");
        let kind = self.header("content-type");
        assert_eq!(kind, Some("application/problem+json"));
        let problem = self.json();
        let at = |pointer: &str| problem.pointer(pointer).cloned().unwrap_or_default();
        assert_eq!(at("/status"), status);
        assert_eq!(at("/errors/0/code"), code);
        assert_eq!(at("/instance").as_str(), self.header("x-request-id"));
        for member in ["/type", "/title", "/detail"] {
            assert!(at(member).is_string(), "{member}: {problem}");
        }
    }

    pub(super) fn is_chunked(&self) -> bool {
        self.header("transfer-encoding") == Some("chunked")
    }

    pub(super) fn content_length(&self) -> Option<usize> {
        self.header("content-length")?.parse().ok()
    }
}

/// Splits a field line; the name in lower case.
pub(super) fn field(line: &str) -> (String, String) {
    let (name, value) = line.split_once(':').unwrap_or((line, ""));
    (name.to_ascii_lowercase(), value.trim().to_owned())
}
