//! TLS inside a cluster: one authority, a certificate at both ends of every
//! connection, and plaintext only where that was asked for at both ends.
//!
//! Every certificate is for the same name, [`SERVER_NAME`]: ranks move between
//! addresses, and what counts is that the other end belongs to the cluster.

mod certificates;

pub use certificates::{CertificatesError, make_certificates};

use std::path::{Path, PathBuf};
use std::time::Duration;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity, Server, ServerTlsConfig};

/// The name that every certificate of a cluster is for.
pub const SERVER_NAME: &str = "chorale.cluster";

/// The authority's certificate.
const CA_FILE: &str = "ca.pem";
/// This end's certificate, with those between it and the authority's.
const CERTIFICATE_FILE: &str = "cert.pem";
/// Its key.
const KEY_FILE: &str = "key.pem";

/// A handshake that takes longer is somebody who does not speak TLS.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

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
    /// The files do not make up an identity and an authority.
    #[error("the certificates in {folder} cannot be used: {reason}", folder = folder.display())]
    Unfit {
        /// Where they are.
        folder: PathBuf,
        /// What is wrong with them.
        reason: String,
    },
    /// Nothing can be dialled by that name.
    #[error("{address:?} is no address: {reason}")]
    Address {
        /// As it was given.
        address: String,
        /// Why not.
        reason: String,
    },
}

/// One end's identity, and whom it trusts.
#[derive(Clone)]
pub struct Tls {
    server: ServerTlsConfig,
    client: ClientTlsConfig,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads `ca.pem`, `cert.pem` and `key.pem` of a directory.
    ///
    /// # Errors
    ///
    /// [`TlsError`] names the file, or says what is wrong with them together.
    pub fn load(folder: &Path) -> Result<Self, TlsError> {
        let read = |file| {
            let path = folder.join(file);
            std::fs::read(&path).map_err(|source| TlsError::Read { path, source })
        };
        let authority = Certificate::from_pem(read(CA_FILE)?);
        let identity = Identity::from_pem(read(CERTIFICATE_FILE)?, read(KEY_FILE)?);
        let server = ServerTlsConfig::new()
            .identity(identity.clone())
            .client_ca_root(authority.clone())
            .timeout(HANDSHAKE_TIMEOUT);
        let client = ClientTlsConfig::new()
            .identity(identity)
            .ca_certificate(authority)
            .domain_name(SERVER_NAME)
            .timeout(HANDSHAKE_TIMEOUT);
        let tls = Self { server, client };
        // Both ends are set up once, so that files that do not fit say so now.
        let unfit = |error| TlsError::Unfit { folder: folder.to_owned(), reason: reason_of(&error) };
        tls.server(Server::builder()).map_err(unfit)?;
        Endpoint::from_static("https://localhost").tls_config(tls.client.clone()).map_err(unfit)?;
        Ok(tls)
    }

    fn server(&self, server: Server) -> Result<Server, tonic::transport::Error> {
        server.tls_config(self.server.clone())
    }
}

/// A server that asks everybody for a certificate of the cluster, or plaintext.
///
/// # Errors
///
/// None that [`Tls::load`] has not found before.
pub fn serve(server: Server, tls: Option<&Tls>) -> Result<Server, tonic::transport::Error> {
    match tls {
        Some(tls) => tls.server(server),
        None => Ok(server),
    }
}

/// The way to `HOST:PORT`. Small messages leave at once.
///
/// # Errors
///
/// [`TlsError::Address`] if there can be nobody.
pub fn endpoint(address: &str, tls: Option<&Tls>) -> Result<Endpoint, TlsError> {
    let scheme = if tls.is_some() { "https" } else { "http" };
    let no_address = |error: tonic::transport::Error| TlsError::Address {
        address: address.to_owned(),
        reason: reason_of(&error),
    };
    let endpoint = Endpoint::from_shared(format!("{scheme}://{address}")).map_err(no_address)?;
    let endpoint = endpoint.tcp_nodelay(true);
    match tls {
        Some(tls) => endpoint.tls_config(tls.client.clone()).map_err(no_address),
        None => Ok(endpoint),
    }
}

/// An error with all its causes: a transport's own text says hardly anything.
pub fn reason_of(error: &dyn std::error::Error) -> String {
    let mut reason = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        // Some say what their cause says.
        if !reason.ends_with(&text) {
            reason = format!("{reason}: {text}");
        }
        cause = error.source();
    }
    reason
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        make_certificates(&folder.path().join("set"), &["a", "b"]).unwrap();
        folder
    }

    #[test]
    fn what_was_made_can_be_loaded() {
        let folder = made();
        for name in ["a", "b"] {
            Tls::load(&folder.path().join("set").join(name)).unwrap();
        }
    }

    #[test]
    fn files_that_do_not_fit_are_found_when_they_are_loaded() {
        let folder = made();
        let place = folder.path().join("set/a");
        for (file, content) in [(KEY_FILE, "no key"), (CERTIFICATE_FILE, ""), (CA_FILE, "")] {
            let good = std::fs::read(place.join(file)).unwrap();
            std::fs::write(place.join(file), content).unwrap();
            assert!(matches!(Tls::load(&place), Err(TlsError::Unfit { .. })), "{file}");
            std::fs::write(place.join(file), good).unwrap();
        }
        // A key of another certificate.
        std::fs::copy(folder.path().join("set/b").join(KEY_FILE), place.join(KEY_FILE)).unwrap();
        assert!(matches!(Tls::load(&place), Err(TlsError::Unfit { .. })));
        std::fs::remove_file(place.join(CA_FILE)).unwrap();
        let error = Tls::load(&place).unwrap_err();
        assert!(error.to_string().contains("ca.pem"), "{error}");
    }

    #[test]
    fn addresses_that_cannot_be_dialled_are_refused() {
        assert!(endpoint("[::1]:80", None).is_ok());
        for address in ["", "a b:1"] {
            assert!(matches!(endpoint(address, None), Err(TlsError::Address { .. })), "{address}");
        }
    }
}
