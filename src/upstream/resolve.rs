//! Looks a name up, again and again, on the control side.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::time::{sleep, timeout};

use super::Endpoints;

/// Whoever waits longer for a name server is told of it.
const PATIENCE: Duration = Duration::from_secs(5);
/// A name that was never resolved is asked for more often.
const RETRY_FIRST: Duration = Duration::from_secs(1);

/// Keeps the addresses of a name up to date, for ever. One lookup at a time: a name server that hangs
/// holds one thread and no more.
pub(super) async fn keep(endpoints: Arc<Endpoints>, name: Arc<str>) {
    let every = endpoints.spec.resolve_every;
    let mut is_known = false;
    let mut is_failing = false;
    loop {
        let fault = match look_up(&endpoints, &name).await {
            Ok(addresses) if addresses.is_empty() => Some("it has no address".to_owned()),
            Ok(addresses) => {
                endpoints.resolved(&name, addresses, endpoints.clock.now());
                is_known = true;
                None
            }
            Err(error) => Some(error.to_string()),
        };
        if let Some(fault) = &fault
            && !is_failing
        {
            let upstream = &endpoints.spec.name;
            tracing::warn!(%upstream, %name, fault, "the name cannot be resolved; its last addresses stay, and it is tried again");
        }
        is_failing = fault.is_some();
        sleep(if is_known {
            every
        } else {
            every.min(RETRY_FIRST)
        })
        .await;
    }
}

async fn look_up(endpoints: &Endpoints, name: &str) -> std::io::Result<Vec<SocketAddr>> {
    let mut lookup = std::pin::pin!(lookup_host(name));
    let found = match timeout(PATIENCE, lookup.as_mut()).await {
        Ok(found) => found?,
        Err(_elapsed) => {
            let upstream = &endpoints.spec.name;
            tracing::warn!(%upstream, name, "the name server has not answered for {PATIENCE:?}");
            lookup.await?
        }
    };
    Ok(found.collect())
}
