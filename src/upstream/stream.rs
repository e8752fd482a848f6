//! An endpoint's stream, as it is given to hyper: read in pieces, and with an eye on what is written.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf, Take};

use crate::outlet::Outlet;

/// The most that is read at a time, in bytes. Just under 16 KiB: hyper asks for twice as much as soon as
/// it gets all that it asked for, and holds that much for a client that reads nothing.
const PIECE_BYTES_MAX: u64 = 16 * 1024 - 1;

/// A stream that says on its [`Outlet`] whether the endpoint takes what it is sent.
#[derive(Debug)]
pub(super) struct EndpointStream<S> {
    stream: Take<S>,
    outlet: Rc<Outlet>,
}

impl<S: AsyncRead> EndpointStream<S> {
    pub(super) fn new(stream: S, outlet: Rc<Outlet>) -> Self {
        Self {
            stream: stream.take(PIECE_BYTES_MAX),
            outlet,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for EndpointStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.stream.set_limit(PIECE_BYTES_MAX);
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for EndpointStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(self.stream.get_mut()).poll_write(cx, bytes);
        self.outlet.wrote(result.is_ready());
        result
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.stream.get_mut()).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.stream.get_mut()).poll_shutdown(cx)
    }
}
