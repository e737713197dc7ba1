//! The gRPC port: opened, served with health and reflection beside the service,
//! and closed in order. What a call does is its own affair.

use super::GrpcConfig;
use super::access_log::log_calls;
use super::connection::accept;
use super::health;
use super::response::Ending;
use super::service::Door;
use crate::server::{Drained, Phase, Protocols, Shared, Tls, TlsError, identify};
use axum::middleware::from_fn;
use chorale_wire::inference::FILE_DESCRIPTOR_SET;
use chorale_wire::inference::v1::inference_server::InferenceServer;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tonic::service::Routes;
use tonic::transport::server::{Router, Server};
use tonic_health::server::HealthReporter;

/// Why there is no gRPC server.
#[derive(Debug, thiserror::Error)]
pub enum GrpcServeError {
    /// The address is taken, or not ours.
    #[error("cannot listen at {address}: {source}")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// The certificate, its key, or the clients' authorities.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The transport gave up.
    #[error("the transport failed: {0}")]
    Transport(#[from] tonic::transport::Error),
    /// The descriptors that were compiled in cannot be read.
    #[error("reflection cannot be set up: {reason}")]
    Reflection {
        /// Why not.
        reason: String,
    },
}

/// A gRPC port that is open. Nothing is answered until it runs.
pub struct GrpcServer {
    listener: TcpListener,
    address: SocketAddr,
    config: GrpcConfig,
    shared: Shared,
    health: HealthReporter,
    ending: Ending,
    router: Router,
    tls: Option<Arc<Tls>>,
}

/// What is spoken over TLS.
const PROTOCOLS: Protocols = &[b"h2"];

/// For what is written already but not sent, once generations are over.
const FLUSH: Duration = Duration::from_secs(1);

/// Opens the port and serves until the shutdown of [`Shared`] has gone its way.
///
/// # Errors
///
/// [`GrpcServeError`] says what of the configuration does not work.
pub async fn serve_grpc(config: GrpcConfig, shared: Shared) -> Result<Drained, GrpcServeError> {
    GrpcServer::bind(config, shared).await?.run().await
}

impl GrpcServer {
    /// Opens the port and reads the certificates.
    ///
    /// # Errors
    ///
    /// [`GrpcServeError`] says what of the configuration does not work.
    pub async fn bind(config: GrpcConfig, shared: Shared) -> Result<Self, GrpcServeError> {
        let health = HealthReporter::new();
        let ending = Ending {
            cut: CancellationToken::new(),
            stalled_reader_timeout: Duration::from_millis(config.stalled_reader_timeout_ms),
            responses: TaskTracker::new(),
        };
        let routes = routes(&config, &shared, &ending, &health)?;
        let router = transport(&config).add_routes(routes);
        let tls = config.tls.clone().map(|files| Tls::load(files, PROTOCOLS)).transpose()?.map(Arc::new);
        let address = config.address;
        let unbound = |source| GrpcServeError::Bind { address, source };
        let listener = TcpListener::bind(address).await.map_err(unbound)?;
        let address = listener.local_addr().map_err(unbound)?;
        // Nobody may be told that an empty server serves.
        health::report(&shared, &health).await;
        Ok(Self { listener, address, config, shared, health, ending, router, tls })
    }

    /// Where it listens; the port is the real one.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until the shutdown of [`Shared`] has gone its way. From its
    /// beginning new generations are refused and health says so; running ones
    /// may end within `drain_timeout_ms`.
    ///
    /// # Errors
    ///
    /// The transport failed.
    pub async fn run(self) -> Result<Drained, GrpcServeError> {
        let Self { listener, config, shared, health, ending, router, tls, .. } = self;
        let following = health::follow(shared.clone(), health.clone());
        let _follower = AbortOnDropHandle::new(tokio::spawn(following));
        let _reloader =
            tls.clone().map(|tls| AbortOnDropHandle::new(tokio::spawn(async move { tls.reload().await })));
        let GrpcConfig { max_connections, handshake_timeout_ms, drain_timeout_ms, .. } = config;
        let handshake_timeout = Duration::from_millis(handshake_timeout_ms);
        let incoming = accept(listener, tls, max_connections, handshake_timeout);

        let closing = CancellationToken::new();
        let served = router.serve_with_incoming_shutdown(incoming, closing.clone().cancelled_owned());
        let drained = async {
            drained(&shared, &health, Duration::from_millis(drain_timeout_ms)).await;
            let num_cut = ending.responses.len();
            ending.cut.cancel();
            closing.cancel();
            Drained { num_cut }
        };
        let mut served = pin!(served);
        let drained = tokio::select! {
            // It ends by itself only when it fails.
            served = served.as_mut() => return served.map(|()| Drained { num_cut: 0 }).map_err(Into::into),
            drained = drained => drained,
        };
        // Clients that only watch would keep it open for ever.
        match tokio::time::timeout(FLUSH, served).await {
            Ok(served) => served?,
            Err(_) => tracing::debug!("connections were open to the end"),
        }
        Ok(drained)
    }
}

/// Waits for the end, and then for running generations as long as they may take.
async fn drained(shared: &Shared, health: &HealthReporter, drain_timeout: Duration) {
    shared.shutdown().reached(Phase::Draining).await;
    health::report(shared, health).await;
    tokio::select! {
        () = shared.requests().idle() => {}
        () = shared.shutdown().reached(Phase::Now) => {}
        () = tokio::time::sleep(drain_timeout) => {}
    }
}

/// The service, and what tells clients about it.
fn routes(
    config: &GrpcConfig,
    shared: &Shared,
    ending: &Ending,
    health: &HealthReporter,
) -> Result<Routes, GrpcServeError> {
    let unreadable =
        |error: tonic_reflection::server::Error| GrpcServeError::Reflection { reason: error.to_string() };
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            // Each version lists both.
            .register_encoded_file_descriptor_set(tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET)
            .include_reflection_service(false)
    };
    let health = tonic_health::server::HealthService::from_health_reporter(health.clone());
    let inference = InferenceServer::new(Door::new(shared.clone(), ending.clone()))
        .max_decoding_message_size(config.max_message_bytes);
    let routes = Routes::new(inference)
        .add_service(tonic_health::pb::health_server::HealthServer::new(health))
        .add_service(reflection().build_v1().map_err(unreadable)?)
        // What grpcurl and older clients ask for.
        .add_service(reflection().build_v1alpha().map_err(unreadable)?);
    // Listed from the inside out.
    Ok(routes.into_axum_router().layer(from_fn(log_calls)).layer(from_fn(identify)).into())
}

fn transport(config: &GrpcConfig) -> Server {
    Server::builder()
        .max_concurrent_streams(config.max_streams_per_connection)
        .http2_max_header_list_size(config.max_metadata_bytes)
        .http2_keepalive_interval(Some(Duration::from_millis(config.keepalive_interval_ms)))
        .http2_keepalive_timeout(Some(Duration::from_millis(config.keepalive_timeout_ms)))
}
