//! What is in force of the settings: everything that a request meets, made anew when they change.
//!
//! A setup is immutable and handed to the workers whole, as a policy is. A request keeps the one that it
//! began with, so nothing that is under way notices a change. What has a memory (the places and counts of
//! a service, the traffic counters, the sample of recent requests, the access log) goes on from one setup
//! to the next where it is still the same thing.

use std::io;
use std::sync::Arc;

use tidegate_engine::attribute::Schema;
use tidegate_engine::recent::Recent;
use tidegate_engine::request::HashKey;
use tidegate_engine::service::ServiceSpec;
use tidegate_engine::traffic::Traffic;

use crate::access_log::{AccessLogSender, AccessLogs};
use crate::clock::Clock;
use crate::handover::PolicyReader;
use crate::metrics::{Metrics, NO_SERVICE};
use crate::overload::Overload;
use crate::request::identify::Identify;
use crate::service::SharedService;
use crate::settings::{Service, Settings, Upstream};
use crate::upstream::{Endpoints, TlsError};

/// What the setups of one process have in common.
#[derive(Debug)]
pub struct Ground {
    /// Workers that are running.
    pub workers: usize,
    /// Decides what is sampled, nothing else.
    pub seed: u64,
    /// The key of all hashes.
    pub key: HashKey,
    /// All series.
    pub metrics: Arc<Metrics>,
    /// Opens access logs.
    pub access_logs: AccessLogs,
    /// What the services have in common.
    pub overload: Arc<Overload>,
    /// The clock of the process.
    pub clock: Clock,
}

/// What is in force of the settings.
#[derive(Debug)]
pub struct Setup {
    /// The settings.
    pub settings: Arc<Settings>,
    /// All attributes.
    pub schema: Arc<Schema>,
    /// The policy in force under these settings.
    pub policy: PolicyReader,
    /// Who is who.
    pub identify: Arc<Identify>,
    /// What all workers count.
    pub traffic: Arc<Traffic>,
    /// The recent requests.
    pub recent: Arc<Recent>,
    /// The services in their order.
    pub services: Vec<Arc<SharedService>>,
    /// For requests that belong to none of them.
    pub no_service: Arc<SharedService>,
    /// What they have in common.
    pub overload: Arc<Overload>,
    /// The upstreams in their order, as all workers see them.
    pub upstreams: Vec<Arc<Endpoints>>,
    /// Where log lines go.
    pub access_log: AccessLogSender,
}

/// A service and where its requests go.
#[derive(Debug)]
pub(crate) struct Destined<'s> {
    pub(crate) service: &'s Service,
    pub(crate) shared: &'s Arc<SharedService>,
    pub(crate) upstream: Upstream,
    pub(crate) endpoints: &'s Arc<Endpoints>,
}

/// Why something could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The access log.
    #[error("`access_log` cannot be opened; name a file in a folder that can be written")]
    AccessLog(#[from] io::Error),
    /// What is needed to speak TLS to an upstream.
    #[error("upstream `{0}`: `tls` cannot be used")]
    Tls(Arc<str>, #[source] TlsError),
}

/// What may fail to open of what a setup needs.
#[derive(Debug)]
pub struct Opened {
    access_log: AccessLogSender,
    upstreams: Vec<Arc<Endpoints>>,
}

impl Setup {
    /// Returns each service with its upstream, which has the service's timeouts where it has any.
    pub(crate) fn destinations(&self) -> impl Iterator<Item = Destined<'_>> {
        let services = self.settings.services.iter().zip(&self.services);
        services.filter_map(move |(service, shared)| {
            // The settings name only upstreams that there are.
            let named = |endpoints: &&Arc<Endpoints>| endpoints.spec.name == service.upstream;
            let endpoints = self.upstreams.iter().find(named)?;
            let mut upstream = endpoints.spec.clone();
            if let Some(timeout) = service.response_timeout {
                upstream.response_timeout = timeout;
            }
            if let Some(timeout) = service.idle_timeout {
                upstream.idle_timeout = timeout;
            }
            Some(Destined {
                service,
                shared,
                upstream,
                endpoints,
            })
        })
    }
}

/// Returns the services of the settings in their order, as policies take them.
pub fn service_specs(settings: &Settings) -> Arc<[ServiceSpec]> {
    let services = settings.services.iter();
    services.map(|service| service.spec.clone()).collect()
}

impl Ground {
    /// Opens what these settings need to be opened; what is open already stays so.
    ///
    /// # Errors
    ///
    /// What cannot be opened, and the way out.
    pub fn open(&self, settings: &Settings, before: Option<&Setup>) -> Result<Opened, OpenError> {
        let access_log = match before {
            Some(before) if before.settings.access_log == settings.access_log => {
                before.access_log.clone()
            }
            _ => self.access_logs.open(&settings.access_log)?,
        };
        let known = || before.into_iter().flat_map(|before| &before.upstreams);
        let upstreams = settings.upstreams.iter().map(|spec| {
            let known = known().find(|known| known.spec.name == spec.name);
            match known {
                Some(same) if same.spec == *spec => Ok(Arc::clone(same)),
                _ => {
                    let known = known.map(|known| &**known);
                    let opened = Endpoints::open(spec.clone(), known, &self.metrics, self.clock);
                    opened.map_err(|error| OpenError::Tls(Arc::clone(&spec.name), error))
                }
            }
        });
        Ok(Opened {
            access_log,
            upstreams: upstreams.collect::<Result<_, _>>()?,
        })
    }

    /// Makes a setup, the first or that which follows `before`. `policy` is one of these settings.
    pub fn setup(
        &self,
        settings: Settings,
        policy: PolicyReader,
        opened: Opened,
        before: Option<&Setup>,
    ) -> Setup {
        let same_schema = before.filter(|before| *before.schema == settings.schema);
        let schema = match same_schema {
            Some(before) => Arc::clone(&before.schema),
            None => Arc::new(settings.schema.clone()),
        };
        let (traffic, recent) = match same_schema {
            Some(before) => (Arc::clone(&before.traffic), Arc::clone(&before.recent)),
            None => self.counters(&schema),
        };
        let no_service = match before {
            Some(before) => Arc::clone(&before.no_service),
            None => SharedService::nobodys(&Arc::from(NO_SERVICE), self.workers),
        };
        let priorities = settings.services.iter();
        let priorities: Vec<_> = priorities.map(|service| service.spec.priority).collect();
        let upstreams = settings.upstreams.len();
        self.overload
            .change_to(&settings.overload, &priorities, upstreams);
        let key = self.key.clone();
        Setup {
            policy,
            identify: Arc::new(Identify::new(Arc::clone(&schema), key, &settings.identity)),
            schema,
            traffic,
            recent,
            services: self.services(&settings, before),
            no_service,
            overload: Arc::clone(&self.overload),
            upstreams: opened.upstreams,
            access_log: opened.access_log,
            settings: Arc::new(settings),
        }
    }

    fn counters(&self, schema: &Schema) -> (Arc<Traffic>, Arc<Recent>) {
        let traffic = Traffic::new(schema, self.workers, self.seed);
        let left_out = traffic.columns().left_out(schema);
        if !left_out.is_empty() {
            tracing::warn!(
                attributes = left_out.join(", "),
                "these attributes take no part in detection, for there is room for nine of your own; \
                 name what tells sources apart first in `identity.attributes`"
            );
        }
        let recent = Recent::new(self.workers, self.seed);
        (Arc::new(traffic), Arc::new(recent))
    }

    fn services(&self, settings: &Settings, before: Option<&Setup>) -> Vec<Arc<SharedService>> {
        let known = |name: &Arc<str>| {
            let services = before.into_iter().flat_map(|before| &before.services);
            services.into_iter().find(|service| service.name == *name)
        };
        let services = settings.services.iter();
        let shared = services.map(|service| match known(&service.spec.name) {
            Some(shared) => {
                shared.change_to(service, self.clock.now());
                Arc::clone(shared)
            }
            None => SharedService::new(service, self.workers),
        });
        shared.collect()
    }
}
