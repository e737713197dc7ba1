//! TLS with certificates that may be replaced while the server runs: their
//! authors renew them, and nobody restarts a server for that. New connections
//! get the new ones; a replacement that does not work is logged and ignored.

use super::TlsConfig;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use tokio_rustls::TlsAcceptor;

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {path}: {source}", path = path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A file does not hold what it should.
    #[error("{path}: {reason}", path = path.display())]
    Content {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// What is spoken within TLS, by the names that ALPN has for it; the best first.
pub(crate) type Protocols = &'static [&'static [u8]];

/// Files as they were read.
#[derive(PartialEq, Eq)]
struct Files {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

/// The certificates in use at one door.
pub(crate) struct Tls {
    config: TlsConfig,
    protocols: Protocols,
    current: RwLock<Current>,
}

struct Current {
    files: Files,
    acceptor: TlsAcceptor,
}

impl Tls {
    /// Reads the files for the first time.
    pub(crate) fn load(config: TlsConfig, protocols: Protocols) -> Result<Self, TlsError> {
        let files = Files::read(&config)?;
        let acceptor = files.acceptor(&config, protocols)?;
        Ok(Self { current: RwLock::new(Current { files, acceptor }), config, protocols })
    }

    /// For the next connection.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        self.current.read().unwrap_or_else(PoisonError::into_inner).acceptor.clone()
    }

    /// Looks again and again whether the files have changed.
    pub(crate) async fn reload(self: Arc<Self>) {
        let mut last_error = String::new();
        loop {
            tokio::time::sleep(self.config.reload_interval).await;
            let tls = self.clone();
            // Reading blocks; a panic in there is a bug and has been reported.
            let Ok(outcome) = tokio::task::spawn_blocking(move || tls.reload_once()).await else { continue };
            let error = match outcome {
                Ok(false) => String::new(),
                Ok(true) => {
                    tracing::info!("certificates were replaced");
                    String::new()
                }
                Err(error) => error.to_string(),
            };
            // Once for each mistake, not once for each look.
            if !error.is_empty() && error != last_error {
                tracing::error!(error, "certificates cannot be replaced; the old ones stay in use");
            }
            last_error = error;
        }
    }

    /// Whether there was anything new.
    fn reload_once(&self) -> Result<bool, TlsError> {
        let files = Files::read(&self.config)?;
        if files == self.current.read().unwrap_or_else(PoisonError::into_inner).files {
            return Ok(false);
        }
        let acceptor = files.acceptor(&self.config, self.protocols)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Current { files, acceptor };
        Ok(true)
    }
}

impl Files {
    fn read(config: &TlsConfig) -> Result<Self, TlsError> {
        let read = |path: &Path| {
            std::fs::read(path).map_err(|source| TlsError::Read { path: path.to_owned(), source })
        };
        Ok(Self {
            certificate: read(&config.certificate)?,
            key: read(&config.key)?,
            client_ca: config.client_ca.as_deref().map(read).transpose()?,
        })
    }

    fn acceptor(&self, config: &TlsConfig, protocols: Protocols) -> Result<TlsAcceptor, TlsError> {
        let bad = |path: &Path, reason: &dyn std::fmt::Display| TlsError::Content {
            path: path.to_owned(),
            reason: reason.to_string(),
        };
        let chain = certificates(&self.certificate).map_err(|reason| bad(&config.certificate, &reason))?;
        let key = PrivateKeyDer::from_pem_slice(&self.key).map_err(|error| bad(&config.key, &error))?;

        // Named, so that no other crate's choice of a default matters.
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| bad(&config.certificate, &error))?;
        let builder = match (&self.client_ca, &config.client_ca) {
            (Some(pem), Some(path)) => {
                let mut roots = RootCertStore::empty();
                for root in certificates(pem).map_err(|reason| bad(path, &reason))? {
                    roots.add(root).map_err(|error| bad(path, &error))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                builder.with_client_cert_verifier(verifier.build().map_err(|error| bad(path, &error))?)
            }
            _ => builder.with_no_client_auth(),
        };
        let mut server =
            builder.with_single_cert(chain, key).map_err(|error| bad(&config.certificate, &error))?;
        server.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        Ok(TlsAcceptor::from(Arc::new(server)))
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let chain = chain.map_err(|error| error.to_string())?;
    if chain.is_empty() { Err("it holds no certificate".to_owned()) } else { Ok(chain) }
}
