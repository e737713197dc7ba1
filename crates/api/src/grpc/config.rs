//! What the gRPC server is given once. Nothing here is a default: those are
//! written where configuration is read.

use crate::server::TlsConfig;
use std::net::SocketAddr;

/// Where the gRPC server listens, and what it bears.
#[derive(Clone, Debug)]
pub struct GrpcConfig {
    /// The address to listen at; port 0 lets the system choose.
    pub address: SocketAddr,
    /// TLS, where it is wanted.
    pub tls: Option<TlsConfig>,
    /// A request message may be this long; longer ones are refused.
    pub max_message_bytes: usize,
    /// All metadata of a call together.
    pub max_metadata_bytes: u32,
    /// Connections at a time; further ones wait in the system's backlog.
    pub max_connections: usize,
    /// Calls at a time on one connection.
    pub max_streams_per_connection: u32,
    /// From the opening of a connection to the greeting of HTTP/2, a TLS
    /// handshake included.
    pub handshake_timeout_ms: u64,
    /// A connection that is silent for so long is asked whether it is alive.
    pub keepalive_interval_ms: u64,
    /// How long it may take to answer that before it is closed.
    pub keepalive_timeout_ms: u64,
    /// How long a client may leave events unread before its call is ended.
    pub stalled_reader_timeout_ms: u64,
    /// How long running calls may go on after the first signal.
    pub drain_timeout_ms: u64,
}
