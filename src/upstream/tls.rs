//! TLS to endpoints: whom we believe, and what name must stand in their certificate.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject as _};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};

use crate::bounded_file;
use crate::settings::Tls;

/// The largest file of authorities; all those that browsers believe are about 0.2 MiB.
const AUTHORITIES_BYTES_MAX: u64 = 4 << 20;

/// Why TLS cannot be spoken at all.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The authorities cannot be read.
    #[error("{}: the certificates of the authorities cannot be read; `ca` names a file in PEM", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: pem::Error,
    },
    /// A certificate of an authority cannot be used.
    #[error("{}: a certificate of an authority cannot be used", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: rustls::Error,
    },
    /// Nobody is believed.
    #[error("{}: there is no certificate of an authority; name a file that has one with `ca`", path.display())]
    Nobody {
        /// The file, or `the system's certificates`.
        path: PathBuf,
    },
    /// No version of TLS can be spoken.
    #[error("TLS cannot be set up")]
    Setup(#[source] rustls::Error),
}

/// Speaks TLS to the endpoints of one upstream. Not to be told apart from another with the same
/// settings.
#[derive(Clone)]
pub(crate) struct TlsClient {
    connector: TlsConnector,
    /// What must stand in the certificate; `None`: the endpoint's host.
    server_name: Option<Arc<str>>,
}

impl std::fmt::Debug for TlsClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsClient")
            .field("server_name", &self.server_name)
            .finish_non_exhaustive()
    }
}

impl TlsClient {
    /// Reads whom to believe.
    pub(crate) fn new(settings: &Tls) -> Result<Self, TlsError> {
        let roots = match &settings.ca {
            Some(path) => roots_from(path)?,
            None => system_roots()?,
        };
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Setup)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut config = config;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            connector: TlsConnector::from(Arc::new(config)),
            server_name: settings.server_name.clone(),
        })
    }

    /// Shakes hands. `host` is the endpoint's.
    pub(crate) async fn connect(
        &self,
        host: &str,
        stream: TcpStream,
    ) -> io::Result<TlsStream<TcpStream>> {
        let name = self.server_name.as_deref().unwrap_or(host);
        let name = ServerName::try_from(name.to_owned())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        self.connector.connect(name, stream).await
    }
}

/// Returns whether the endpoint's certificate is why TLS failed.
pub(crate) fn is_about_the_certificate(error: &io::Error) -> bool {
    let cause = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(cause, Some(rustls::Error::InvalidCertificate(_)))
}

/// Reads a file of authorities.
pub(crate) fn read_authorities(path: &Path) -> io::Result<Vec<u8>> {
    bounded_file::read(path, AUTHORITIES_BYTES_MAX)
}

fn roots_from(path: &Path) -> Result<RootCertStore, TlsError> {
    let unreadable = |source| TlsError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let mut roots = RootCertStore::empty();
    let bytes = read_authorities(path).map_err(|error| unreadable(pem::Error::Io(error)))?;
    for certificate in CertificateDer::pem_slice_iter(&bytes) {
        roots
            .add(certificate.map_err(unreadable)?)
            .map_err(|source| TlsError::Unusable {
                path: path.to_owned(),
                source,
            })?;
    }
    if roots.is_empty() {
        return Err(TlsError::Nobody {
            path: path.to_owned(),
        });
    }
    Ok(roots)
}

/// Some of the system's certificates are always odd; that one is enough to speak TLS is all we ask.
fn system_roots() -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "a certificate of the system cannot be read");
    }
    let (_, ignored) = roots.add_parsable_certificates(found.certs);
    if ignored > 0 {
        tracing::debug!(ignored, "certificates of the system that cannot be used");
    }
    if roots.is_empty() {
        return Err(TlsError::Nobody {
            path: "the system's certificates".into(),
        });
    }
    Ok(roots)
}
