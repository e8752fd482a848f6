//! Connects to an endpoint, so that a peer that is gone is noticed within seconds.

use std::io;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::endpoint::Endpoint;
use super::tls::TlsClient;
use super::{Endpoints, UpstreamError};
use crate::outlet::bound_unsent;

/// A peer that acknowledges nothing for so long is gone. It also must take something within that time:
/// to the kernel, a window that stays shut is the same.
#[cfg(target_os = "linux")]
const USER_TIMEOUT: Duration = Duration::from_secs(10);
/// After so much silence the kernel asks whether the peer is there.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(5);
/// Between two such questions.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
/// So many without an answer are enough.
const KEEPALIVE_PROBES: u32 = 2;

/// An open connection.
#[derive(Debug)]
pub(crate) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Connects to an endpoint and shakes hands where TLS is spoken.
pub(crate) async fn connect(
    endpoints: &Endpoints,
    endpoint: &Endpoint,
) -> Result<Stream, UpstreamError> {
    let stream = TcpStream::connect(endpoint.address)
        .await
        .map_err(UpstreamError::Connect)?;
    if let Err(error) = watch(&stream) {
        tracing::debug!(%error, "a connection could not be set up as it should be");
    }
    match &endpoints.tls {
        None => Ok(Stream::Plain(stream)),
        Some(tls) => shake_hands(tls, endpoint, stream).await,
    }
}

async fn shake_hands(
    tls: &TlsClient,
    endpoint: &Endpoint,
    stream: TcpStream,
) -> Result<Stream, UpstreamError> {
    let stream = tls.connect(endpoint.host(), stream).await;
    Ok(Stream::Tls(Box::new(stream.map_err(UpstreamError::Tls)?)))
}

/// Has small pieces sent at once, and the kernel look whether the peer is still there.
fn watch(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    bound_unsent(stream)
}

/// Returns whether a connection failed for want of something on our side: descriptors, ports, memory.
pub(super) fn is_for_want_of_resources(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let ours = [
        Errno::MFILE,
        Errno::NFILE,
        Errno::NOBUFS,
        Errno::NOMEM,
        Errno::ADDRNOTAVAIL,
        Errno::ADDRINUSE,
    ];
    error
        .raw_os_error()
        .is_some_and(|code| ours.iter().any(|errno| errno.raw_os_error() == code))
}
