//! Looks a name up, again and again, on the control side.

use std::io;
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
    let ask = async |name: &str| Ok(lookup_host(name).await?.collect());
    keep_with(endpoints, name, ask).await;
}

/// The same with whoever knows names.
async fn keep_with(
    endpoints: Arc<Endpoints>,
    name: Arc<str>,
    ask: impl AsyncFn(&str) -> io::Result<Vec<SocketAddr>>,
) {
    let every = endpoints.spec.resolve_every;
    let mut is_known = false;
    let mut is_failing = false;
    loop {
        let fault = match look_up(&endpoints, &name, ask(&name)).await {
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

async fn look_up(
    endpoints: &Endpoints,
    name: &str,
    lookup: impl Future<Output = io::Result<Vec<SocketAddr>>>,
) -> io::Result<Vec<SocketAddr>> {
    let mut lookup = std::pin::pin!(lookup);
    if let Ok(found) = timeout(PATIENCE, lookup.as_mut()).await {
        return found;
    }
    let upstream = &endpoints.spec.name;
    tracing::warn!(%upstream, name, "the name server has not answered for {PATIENCE:?}");
    lookup.await
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::clock::Clock;
    use crate::metrics::Metrics;
    use crate::settings::Settings;

    #[tokio::test]
    async fn a_name_is_looked_up_again_and_keeps_its_last_addresses_while_nobody_knows_it() {
        let text = "services: [{ name: a, match: [{ path: / }], upstream: a }]
upstreams: [{ name: a, endpoints: [\"chat.internal:80\"], resolve_every: 100ms }]";
        let settings = Settings::parse("tidegate.yaml", text).unwrap_or_else(|why| panic!("{why}"));
        let spec = settings.upstreams[0].clone();
        let endpoints = Endpoints::open(spec, None, &Metrics::new(), Clock::start()).unwrap();
        let name = endpoints.names().next().unwrap().clone();
        // Nobody knows it, then it is at one address, at nobody's again, and at another one.
        let (asked, seen) = (Cell::new(0), Cell::new(Vec::new()));
        let ask = async |asked_for: &str| {
            assert_eq!(asked_for, "chat.internal:80");
            let known: Vec<_> = endpoints.list().iter().map(|one| one.address).collect();
            let mut all = seen.take();
            all.push(known);
            seen.set(all);
            asked.set(asked.get() + 1);
            match asked.get() {
                1 => Err(io::ErrorKind::NotFound.into()),
                2 => Ok(vec!["10.0.0.1:80".parse().unwrap()]),
                3 => Ok(Vec::new()),
                4 => Ok(vec!["10.0.0.2:80".parse().unwrap()]),
                _ => std::future::pending().await,
            }
        };
        let keeping = keep_with(Arc::clone(&endpoints), name, ask);
        let enough = async {
            while asked.get() < 5 {
                sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::select! {
            () = keeping => panic!("it ends"),
            () = enough => {}
        }
        let [first, second]: [Vec<SocketAddr>; 2] =
            ["10.0.0.1:80", "10.0.0.2:80"].map(|address| vec![address.parse().unwrap()]);
        let expected = [Vec::new(), Vec::new(), first.clone(), first, second];
        assert_eq!(seen.take(), expected);
    }
}
