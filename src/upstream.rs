//! Upstreams: connections to the services behind, per worker, capped and reused, to the endpoint that
//! has the least to do of those that are well.
//!
//! Each worker has its own connections ([`pool`], [`seats`], [`link`]), so taking one costs no lock. How
//! the endpoints are, all workers share ([`endpoints`]); what takes time is done on the control side
//! ([`care`]). Knows how to get a connection and what went wrong; which request goes where is
//! [`crate::request`]'s business.

mod balance;
mod breaker;
pub mod care;
mod check;
mod connect;
mod endpoint;
mod endpoints;
mod health;
mod lease;
mod link;
mod pool;
mod resolve;
mod retry_budget;
mod seat;
mod seats;
mod series;
mod stream;
mod tls;
mod window;

use std::io;
use std::time::Duration;

use crate::metrics::Side;
use crate::request::BodyFault;

use connect::is_for_want_of_resources;
pub use endpoints::Endpoints;
pub(crate) use lease::Lease;
pub(crate) use pool::Upstream;
pub use tls::TlsError;
pub(crate) use tls::read_authorities;

/// Why an upstream gave no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpstreamError {
    /// Connecting failed.
    #[error("connecting failed")]
    Connect(#[source] io::Error),
    /// Connecting took too long.
    #[error("connecting took longer than {0:?}")]
    ConnectTimeout(Duration),
    /// TLS could not be spoken, or not with the right one.
    #[error("TLS failed")]
    Tls(#[source] io::Error),
    /// No endpoint can be reached at present, and nobody tries.
    #[error("no endpoint can be reached at present")]
    Unavailable,
    /// No name of an endpoint could be resolved yet.
    #[error("no name of an endpoint could be resolved")]
    Unresolved,
    /// All descriptors that this upstream may have are in use.
    #[error("no descriptor is left for another connection to it")]
    NoDescriptor,
    /// The connection was closed before the response head was complete.
    #[error("the connection was closed before the answer")]
    Terminated(#[source] hyper::Error),
    /// The answer is not HTTP.
    #[error("the answer is not valid HTTP")]
    Protocol(#[source] hyper::Error),
    /// The upstream changed to another protocol.
    #[error("the upstream switched protocols, which nobody had asked for")]
    Switched,
    /// The response head took too long.
    #[error("no answer within {0:?}")]
    ResponseTimeout(Duration),
    /// The client broke off or stalled while its request body was being sent.
    #[error("the client did not finish its request")]
    ClientBody(BodyFault),
}

impl UpstreamError {
    /// Returns the word for it in metrics and logs (RFC 9209, 2.3).
    pub(crate) fn word(&self) -> &'static str {
        self.proxy_status().rsplit('=').next().unwrap_or_default()
    }

    /// Returns what `Proxy-Status` says.
    pub(crate) fn proxy_status(&self) -> &'static str {
        match self {
            Self::Connect(error) if is_for_want_of_resources(error) => {
                "tidegate; error=connection_limit_reached"
            }
            Self::NoDescriptor => "tidegate; error=connection_limit_reached",
            Self::Connect(_) => "tidegate; error=connection_refused",
            Self::ConnectTimeout(_) => "tidegate; error=connection_timeout",
            Self::Tls(error) if tls::is_about_the_certificate(error) => {
                "tidegate; error=tls_certificate_error"
            }
            Self::Tls(_) => "tidegate; error=tls_protocol_error",
            Self::Unavailable => "tidegate; error=destination_unavailable",
            Self::Unresolved => "tidegate; error=dns_error",
            Self::Terminated(_) => "tidegate; error=connection_terminated",
            Self::Protocol(_) | Self::Switched => "tidegate; error=http_protocol_error",
            Self::ResponseTimeout(_) => "tidegate; error=http_response_timeout",
            Self::ClientBody(_) => "tidegate; error=http_request_error",
        }
    }

    /// Returns who let nothing move, where that was it.
    pub(crate) fn stalled(&self) -> Option<Side> {
        match self {
            Self::ResponseTimeout(_) => Some(Side::Upstream),
            Self::ClientBody(fault) => fault.is_stall().then_some(Side::Client),
            _ => None,
        }
    }

    /// Returns the status that the client gets.
    pub(crate) fn status(&self) -> u16 {
        match self {
            Self::Connect(error) if is_for_want_of_resources(error) => 503,
            Self::Connect(_)
            | Self::Tls(_)
            | Self::Unresolved
            | Self::Terminated(_)
            | Self::Protocol(_)
            | Self::Switched => 502,
            Self::NoDescriptor | Self::Unavailable => 503,
            Self::ConnectTimeout(_) | Self::ResponseTimeout(_) => 504,
            Self::ClientBody(fault) => fault.status(),
        }
    }

    /// Returns whether it failed for want of something on our side. The endpoint has nothing to do with
    /// that.
    pub(crate) fn is_our_own_fault(&self) -> bool {
        match self {
            Self::Connect(error) => is_for_want_of_resources(error),
            Self::NoDescriptor => true,
            _ => false,
        }
    }

    /// Returns whether a request on an open connection got no answer by the endpoint's fault.
    pub(crate) fn blames_the_endpoint(&self) -> bool {
        matches!(
            self,
            Self::Terminated(_) | Self::Protocol(_) | Self::ResponseTimeout(_)
        )
    }
}

/// Writes an error with all its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text = format!("{text}: {source}");
        next = source.source();
    }
    text
}
