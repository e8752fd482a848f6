//! One end of a connection: sends bytes as they are given, reads messages, breaks off in all ways.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use socket2::SockRef;

use super::message::{Message, field};
use super::{OK, PATIENCE};

/// One end of a connection.
#[derive(Debug)]
pub(crate) struct Wire {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Wire {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).expect("the listener is there"))
    }

    pub(crate) fn over(stream: TcpStream) -> Self {
        stream.set_nodelay(true).expect("a TCP socket");
        let patience = Some(PATIENCE);
        stream.set_read_timeout(patience).expect("a TCP socket");
        stream.set_write_timeout(patience).expect("a TCP socket");
        Self {
            stream,
            buffer: Vec::new(),
        }
    }

    /// Sends bytes. That the other end has closed is for the reading side to find out.
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        drop(self.stream.write_all(bytes.as_ref()));
    }

    /// Sends bytes; returns whether the connection took them.
    pub(crate) fn is_taken(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// Sends until the other end takes no more for `quiet`; returns how much it took.
    pub(crate) fn send_until_stuck(&mut self, bytes: &[u8], quiet: Duration) -> usize {
        self.stream
            .set_write_timeout(Some(quiet))
            .expect("a TCP socket");
        let mut sent = 0;
        while sent < bytes.len() {
            match self.stream.write(bytes.get(sent..).unwrap_or_default()) {
                Ok(count) if count > 0 => sent += count,
                _ => break,
            }
        }
        self.stream
            .set_write_timeout(Some(PATIENCE))
            .expect("a TCP socket");
        sent
    }

    /// Makes the kernel hold little of what this end has not read; less than a few segments of
    /// loopback (64 KiB), and TCP itself would crawl.
    pub(crate) fn with_small_window(self) -> Self {
        SockRef::from(&self.stream)
            .set_recv_buffer_size(256 * 1024)
            .expect("a TCP socket");
        self
    }

    /// Reads what is there into the buffer; returns whether there was anything before the end.
    #[track_caller]
    fn fill(&mut self) -> bool {
        let mut piece = vec![0; 64 * 1024];
        loop {
            match self.stream.read(&mut piece) {
                Ok(0) => return false,
                Ok(count) => {
                    self.buffer
                        .extend_from_slice(piece.get(..count).unwrap_or_default());
                    return true;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    let seen = String::from_utf8_lossy(&self.buffer);
                    panic!("nothing came within {PATIENCE:?}; before that: {seen:?}")
                }
                // A reset: whoever sent it has closed.
                Err(_) => return false,
            }
        }
    }

    fn take(&mut self, count: usize) -> Vec<u8> {
        self.buffer.drain(..count).collect()
    }

    #[track_caller]
    fn line(&mut self) -> Option<String> {
        loop {
            let end = self.buffer.windows(2).position(|two| two == b"\r\n");
            if let Some(end) = end {
                let line = self.take(end + 2);
                return Some(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
            if !self.fill() {
                return None;
            }
        }
    }

    /// Reads a head; the body stays on the wire. Fails the test when the connection ends before.
    #[track_caller]
    pub(crate) fn head(&mut self) -> Message {
        match self.head_if_any() {
            Some(head) => head,
            None => panic!(
                "the connection ended before a head: {:?}",
                String::from_utf8_lossy(&self.buffer)
            ),
        }
    }

    /// Reads a head; `None` where the connection ends without one.
    #[track_caller]
    pub(crate) fn head_if_any(&mut self) -> Option<Message> {
        loop {
            let end = self.buffer.windows(4).position(|four| four == b"\r\n\r\n");
            if let Some(end) = end {
                let head = self.take(end + 4);
                return Some(Message::read_head(&head));
            }
            if !self.fill() {
                return None;
            }
        }
    }

    /// Reads a whole request.
    #[track_caller]
    pub(crate) fn request(&mut self) -> Message {
        let mut message = self.head();
        self.body_of(&mut message, false);
        message
    }

    /// Reads a whole request; `None` where the connection ends without one.
    #[track_caller]
    pub(crate) fn request_if_any(&mut self) -> Option<Message> {
        let mut message = self.head_if_any()?;
        self.body_of(&mut message, false);
        Some(message)
    }

    /// Reads a whole answer to anything but HEAD.
    #[track_caller]
    pub(crate) fn response(&mut self) -> Message {
        let mut message = self.head();
        let has_body = !matches!(message.status(), 100..=199 | 204 | 304);
        if has_body {
            self.body_of(&mut message, true);
        } else {
            message.is_complete = true;
        }
        message
    }

    /// Reads a whole answer; `None` where the connection ends without one.
    #[track_caller]
    pub(crate) fn response_if_any(&mut self) -> Option<Message> {
        let mut message = self.head_if_any()?;
        if matches!(message.status(), 100..=199 | 204 | 304) {
            message.is_complete = true;
        } else {
            self.body_of(&mut message, true);
        }
        Some(message)
    }

    /// Reads the body of an answer whose head was read.
    #[track_caller]
    pub(crate) fn finish(&mut self, answer: &mut Message) {
        self.body_of(answer, true);
    }

    #[track_caller]
    fn body_of(&mut self, message: &mut Message, ends_with_connection: bool) {
        if message.is_chunked() {
            self.chunks(message);
        } else if let Some(length) = message.content_length() {
            while self.buffer.len() < length && self.fill() {}
            message.is_complete = self.buffer.len() >= length;
            message.body = self.take(length.min(self.buffer.len()));
        } else {
            if ends_with_connection {
                while self.fill() {}
                message.body = self.take(self.buffer.len());
            }
            message.is_complete = true;
        }
    }

    #[track_caller]
    fn chunks(&mut self, message: &mut Message) {
        loop {
            let Some(size) = self.line() else { return };
            let digits = size.split(';').next().unwrap_or_default();
            let size = usize::from_str_radix(digits, 16)
                .unwrap_or_else(|_| panic!("no chunk size: {size:?}"));
            if size == 0 {
                break;
            }
            while self.buffer.len() < size + 2 && self.fill() {}
            if self.buffer.len() < size + 2 {
                let rest = self.take(self.buffer.len().min(size));
                message.body.extend(rest);
                return;
            }
            let data = self.take(size);
            message.body.extend(data);
            let end = self.take(2);
            assert_eq!(end, b"\r\n", "a chunk ends with its line");
        }
        while let Some(line) = self.line() {
            if line.is_empty() {
                message.is_complete = true;
                return;
            }
            message.trailers.push(field(&line));
        }
    }

    /// Reads exactly so many bytes.
    #[track_caller]
    pub(crate) fn exactly(&mut self, count: usize) -> Vec<u8> {
        while self.buffer.len() < count {
            assert!(self.fill(), "the connection ended before {count} bytes");
        }
        self.take(count)
    }

    /// Reads until these bytes have come; returns everything up to them.
    #[track_caller]
    pub(crate) fn read_until(&mut self, end: &[u8]) -> String {
        loop {
            let found = self.buffer.windows(end.len()).position(|some| some == end);
            if let Some(at) = found {
                let text = self.take(at + end.len());
                return String::from_utf8_lossy(&text).into_owned();
            }
            assert!(self.fill(), "the connection ended before {end:?}");
        }
    }

    /// Reads until the other end closes; returns everything.
    #[track_caller]
    pub(crate) fn rest(&mut self) -> Vec<u8> {
        while self.fill() {}
        self.take(self.buffer.len())
    }

    /// Waits until the other end closes; fails the test when it sends anything before.
    #[track_caller]
    pub(crate) fn expect_closed(&mut self) {
        let rest = self.rest();
        assert!(
            rest.is_empty(),
            "bytes before the end: {:?}",
            String::from_utf8_lossy(&rest)
        );
    }

    /// Waits for the end of the connection; returns whether it was closed and not reset.
    pub(crate) fn ends_cleanly(&mut self) -> bool {
        matches!(self.stream.read(&mut [0; 1024]), Ok(0))
    }

    /// Fails the test when anything, or the end, comes within `quiet`.
    #[track_caller]
    pub(crate) fn expect_silence(&mut self, quiet: Duration) {
        assert!(self.buffer.is_empty(), "there were bytes before");
        self.stream
            .set_read_timeout(Some(quiet))
            .expect("a TCP socket");
        let mut piece = [0; 1024];
        let read = self.stream.read(&mut piece);
        self.stream
            .set_read_timeout(Some(PATIENCE))
            .expect("a TCP socket");
        match read {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            other => panic!("expected nothing for {quiet:?}, got {other:?}"),
        }
    }

    /// Sends a request and reads its answer.
    #[track_caller]
    pub(crate) fn exchange(&mut self, request: impl AsRef<[u8]>) -> Message {
        self.send(request);
        self.response()
    }

    /// Reads a request and answers it plainly.
    #[track_caller]
    pub(crate) fn answer_ok(&mut self) -> Message {
        let request = self.request();
        self.send(OK);
        request
    }

    /// Reads without a deadline: for the far ends of connections that tests leave open.
    pub(crate) fn wait_for_ever(&self) {
        self.stream.set_read_timeout(None).expect("a TCP socket");
    }

    /// Returns a second handle on this connection, to send while this one reads.
    pub(crate) fn twin(&self) -> Self {
        Self::over(self.stream.try_clone().expect("a descriptor is left"))
    }

    /// Ends the sending direction only.
    pub(crate) fn half_close(&mut self) {
        drop(self.stream.shutdown(Shutdown::Write));
    }

    /// Closes with a reset.
    pub(crate) fn reset(self) {
        SockRef::from(&self.stream)
            .set_linger(Some(Duration::ZERO))
            .expect("a TCP socket");
    }

    /// Returns how long the other end takes to close.
    #[track_caller]
    pub(crate) fn time_to_close(&mut self, limit: Duration) -> (Duration, Vec<u8>) {
        let began = Instant::now();
        self.stream
            .set_read_timeout(Some(limit))
            .expect("a TCP socket");
        let rest = self.rest();
        (began.elapsed(), rest)
    }
}
