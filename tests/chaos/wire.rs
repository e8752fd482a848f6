//! A client's side of HTTP/1.1: asks, reads the answer, and tells the ways in which that ends.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::ReadHalf;
use tokio::net::{TcpSocket, TcpStream};

use crate::outcomes::End;

/// The longest answer that is looked into; of longer ones only the length is checked.
const LOOKED_INTO_BYTES: usize = 64 * 1024;

/// A connection to the proxy.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    bytes: Vec<u8>,
    keep: bool,
    has_read: bool,
}

/// The head of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Head {
    status: u16,
    bytes: usize,
    length: usize,
    keep: bool,
}

impl Connection {
    /// Connects from an address of one's own.
    pub(crate) async fn open(from: Ipv4Addr, to: SocketAddr) -> io::Result<Self> {
        let stream = if from.is_loopback() && from != Ipv4Addr::LOCALHOST {
            let socket = TcpSocket::new_v4()?;
            socket.bind(SocketAddr::from((from, 0)))?;
            socket.connect(to).await?
        } else {
            TcpStream::connect(to).await?
        };
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            bytes: Vec::with_capacity(1024),
            keep: false,
            has_read: false,
        })
    }

    /// Returns whether anything of an answer came in the last exchange.
    pub(crate) fn has_read(&self) -> bool {
        self.has_read
    }

    /// Returns whether the last exchange left the connection in good order.
    pub(crate) fn may_be_kept(&self) -> bool {
        self.keep
    }

    /// Sends a request and reads its answer to the end, even if that comes before all was sent.
    pub(crate) async fn ask(&mut self, request: &[u8]) -> End {
        let (answer, is_sent) = self.exchange(request).await;
        self.has_read = !self.bytes.is_empty();
        match answer {
            Ok(Some(head)) => {
                self.keep = head.keep && is_sent;
                let body = self.bytes.get(head.bytes..).unwrap_or_default();
                if head.status == 200 && !is_answer_to(request, body) {
                    return End::Foreign;
                }
                End::Status(head.status)
            }
            Ok(None) if self.has_read => End::Incomplete,
            Ok(None) | Err(_) => End::Broken,
        }
    }
}

impl Connection {
    /// Returns the answer, if there was a whole one, and whether all of the request was sent.
    async fn exchange(&mut self, request: &[u8]) -> (io::Result<Option<Head>>, bool) {
        self.keep = false;
        self.bytes.clear();
        let (mut reader, mut writer) = self.stream.split();
        let mut read = std::pin::pin!(read(&mut reader, &mut self.bytes));
        tokio::select! {
            biased;
            sent = writer.write_all(request) => (read.await, sent.is_ok()),
            answer = &mut read => (answer, false),
        }
    }
}

/// Reads an answer; `None` where the connection ends before.
async fn read(reader: &mut ReadHalf<'_>, bytes: &mut Vec<u8>) -> io::Result<Option<Head>> {
    let mut head: Option<Head> = None;
    let mut count = 0;
    loop {
        if let Some(head) = head
            && count >= head.bytes + head.length
        {
            return Ok(Some(head));
        }
        if bytes.len() > LOOKED_INTO_BYTES && head.is_some() {
            bytes.truncate(LOOKED_INTO_BYTES);
        }
        match reader.read_buf(bytes).await {
            Ok(0) | Err(_) => return Ok(None),
            Ok(read) => count += read,
        }
        if head.is_none() {
            head = parse(bytes)?;
        }
    }
}

/// Returns whether a body is what the upstream answers to this request, as far as it was kept. What
/// is asked to be larger than a target is only dots.
fn is_answer_to(request: &[u8], body: &[u8]) -> bool {
    let mut words = request.split(|byte| *byte == b' ');
    let target = words.nth(1).unwrap_or_default();
    body == target || (!body.is_empty() && body.iter().all(|byte| *byte == b'.'))
}

/// Returns the head of an answer, once it is complete.
fn parse(bytes: &[u8]) -> io::Result<Option<Head>> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
        return Ok(None);
    };
    let invalid = || io::Error::from(io::ErrorKind::InvalidData);
    let text = String::from_utf8_lossy(bytes.get(..end).unwrap_or_default());
    let mut lines = text.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1));
    let status = status
        .and_then(|status| status.parse().ok())
        .ok_or_else(invalid)?;
    let (mut length, mut keep) = (None, true);
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            length = value.parse::<usize>().ok();
        } else if name.eq_ignore_ascii_case("connection") {
            keep = !value.eq_ignore_ascii_case("close");
        }
    }
    let head = Head {
        status,
        bytes: end + 4,
        length: length.ok_or_else(invalid)?,
        keep,
    };
    Ok(Some(head))
}

#[test]
fn an_answer_is_understood_once_its_head_is_complete() {
    let text = b"HTTP/1.1 503 Busy\r\nContent-Length: 2\r\nconnection: close\r\n\r\n{}";
    let head = parse(text).expect("an answer");
    let expected = Head {
        status: 503,
        bytes: text.len() - 2,
        length: 2,
        keep: false,
    };
    assert_eq!(head, Some(expected));
    assert_eq!(parse(&text[..40]).expect("a beginning"), None);
    assert!(parse(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
}

#[test]
fn another_ones_answer_is_not_taken_for_ones_own() {
    let request = b"GET /c/v1/x?n=1 HTTP/1.1\r\n\r\n";
    assert!(is_answer_to(request, b"/c/v1/x?n=1"));
    assert!(is_answer_to(request, b"..."));
    for foreign in [&b"/c/v1/x?n=2"[..], b"evil", b""] {
        assert!(!is_answer_to(request, foreign));
    }
}
