//! A client's side of HTTP/1.1: just enough to ask and to read how it was answered.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

/// The longest answer; the proxy's refusals have about 800 bytes.
const ANSWER_BYTES_MAX: usize = 16 * 1024;

/// A connection to the proxy.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    bytes: Vec<u8>,
}

/// How a request was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// The status code.
    pub(super) status: u16,
    /// Whether the connection can be used again.
    pub(super) keep: bool,
}

impl Connection {
    /// Connects from an address of one's own.
    ///
    /// # Errors
    ///
    /// As those of sockets.
    pub(super) async fn open(from: Ipv4Addr, to: SocketAddr) -> io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from((from, 0)))?;
        let stream = socket.connect(to).await?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            bytes: Vec::with_capacity(1024),
        })
    }

    /// Sends a request and reads its answer to the end.
    ///
    /// # Errors
    ///
    /// As those of sockets, and where the answer is not understood.
    pub(super) async fn ask(&mut self, request: &[u8]) -> io::Result<Answer> {
        self.stream.write_all(request).await?;
        self.bytes.clear();
        loop {
            if self.stream.read_buf(&mut self.bytes).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if let Some((answer, length)) = parse(&self.bytes)?
                && self.bytes.len() >= length
            {
                return Ok(answer);
            }
            if self.bytes.len() > ANSWER_BYTES_MAX {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
    }
}

/// Returns the answer and its length in bytes, once its head is complete.
fn parse(bytes: &[u8]) -> io::Result<Option<(Answer, usize)>> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
        return Ok(None);
    };
    let invalid = || io::Error::from(io::ErrorKind::InvalidData);
    let head = bytes.get(..end).ok_or_else(invalid)?;
    let head = std::str::from_utf8(head).map_err(|_not_text| invalid())?;
    let mut lines = head.split("\r\n");
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
    let length = length.ok_or_else(invalid)?;
    Ok(Some((Answer { status, keep }, end + 4 + length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_understood_once_its_head_is_complete() {
        let text = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\nconnection: close\r\n\r\n{}";
        let answer = Answer {
            status: 403,
            keep: false,
        };
        let parsed = parse(text).unwrap();
        assert_eq!(parsed, Some((answer, text.len())));
        assert_eq!(parse(&text[..40]).unwrap(), None);
    }

    #[test]
    fn an_answer_without_a_length_is_an_error() {
        assert!(parse(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }
}
