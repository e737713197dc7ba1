//! What the HTTP server is given once. Nothing here is a default: those are
//! written where configuration is read.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Where the server listens, and what it bears.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// The address to listen at.
    pub host: IpAddr,
    /// The port to listen at; 0 lets the system choose.
    pub port: u16,
    /// A request body may be this long; longer ones are answered with 413.
    pub max_body_bytes: usize,
    /// All headers of a request together; larger ones are answered with 431.
    pub max_header_bytes: usize,
    /// From the opening of a connection to the end of its first request's head,
    /// a TLS handshake included.
    pub header_timeout: Duration,
    /// From the end of a request's head to the end of its body.
    pub body_timeout: Duration,
    /// How long a connection may stay open without a request.
    pub idle_timeout: Duration,
    /// How long a client may leave a response unread before it is dropped.
    pub stalled_reader_timeout: Duration,
    /// Connections at a time; further ones wait in the system's backlog.
    pub max_connections: usize,
    /// Requests at a time on one HTTP/2 connection.
    pub max_streams_per_connection: u32,
    /// Origins whose pages may call this server from a browser, `*` for all;
    /// none turns CORS off.
    pub cors_origins: Vec<String>,
    /// TLS, where it is wanted.
    pub tls: Option<TlsConfig>,
    /// Whether `/metrics` needs a key as other routes do.
    pub metrics_need_key: bool,
    /// How long running requests may go on after the first signal.
    pub drain_timeout: Duration,
}

/// Certificates, in PEM files that may be replaced while the server runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsConfig {
    /// The server's certificate, followed by its issuers'.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Clients must have a certificate from one of these.
    pub client_ca: Option<PathBuf>,
    /// How often to look whether the files have changed.
    pub reload_interval: Duration,
}
