//! Opens the port, takes connections up to a number, and ends them in order. It
//! decides when; what a connection does is its own affair.

use super::connection::Connections;
use super::drain::Phase;
use super::router::router;
use super::tls::{Protocols, Tls, TlsError};
use super::{ServerConfig, Shared};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::task::AbortOnDropHandle;

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
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
    /// It cannot stand in a header, or `*` stands beside others.
    #[error("{origin:?} is no origin that can be allowed")]
    Origin {
        /// As configured.
        origin: String,
    },
}

/// How the end went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Generations that were cut off: time was up, or nobody wanted to wait.
    pub num_cut: usize,
}

/// A port that is open. Nothing is answered until it runs.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    config: Arc<ServerConfig>,
    shared: Shared,
    connections: Connections,
    tls: Option<Arc<Tls>>,
}

/// What a client may speak over TLS.
const PROTOCOLS: Protocols = &[b"h2", b"http/1.1"];

/// After an error of the system, which has run out of something.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// For what is written already but not sent, once generations are over.
const MIN_FLUSH: Duration = Duration::from_secs(1);

impl Server {
    /// Opens the port and reads the certificates.
    ///
    /// # Errors
    ///
    /// [`ServeError`] says what of the configuration does not work.
    pub async fn bind(config: ServerConfig, shared: Shared) -> Result<Self, ServeError> {
        let config = Arc::new(config);
        let router = router(&config, &shared)?;
        let tls = config.tls.clone().map(|files| Tls::load(files, PROTOCOLS)).transpose()?.map(Arc::new);
        let address = SocketAddr::new(config.host, config.port);
        let unbound = |source| ServeError::Bind { address, source };
        let listener = TcpListener::bind(address).await.map_err(unbound)?;
        let address = listener.local_addr().map_err(unbound)?;
        let connections = Connections::new(config.clone(), shared.clone(), router, tls.clone());
        Ok(Self { listener, address, config, shared, connections, tls })
    }

    /// Where it listens; the port is the real one.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where a client on this machine finds it.
    pub fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let mut address = self.address;
        if address.ip().is_unspecified() {
            address.set_ip(match address {
                SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
            });
        }
        format!("{scheme}://{address}")
    }

    /// Answers until the shutdown of [`Shared`] has gone its way. New
    /// generations are refused from its beginning, running ones may end within
    /// `drain_timeout`, and the port stays open for probes in the meantime.
    pub async fn run(self) -> Drained {
        let metrics = self.shared.metrics().clone();
        let _follower = AbortOnDropHandle::new(tokio::spawn(async move { metrics.follow_engine().await }));
        let _reloader = self
            .tls
            .clone()
            .map(|tls| AbortOnDropHandle::new(tokio::spawn(async move { tls.reload().await })));
        let mut tasks = JoinSet::new();
        let deadline = tokio::select! {
            never = self.accept(&mut tasks) => match never {},
            deadline = self.drained() => deadline,
        };
        let num_cut = self.shared.requests().num_active();
        self.close(tasks, deadline).await;
        Drained { num_cut }
    }

    async fn accept(&self, tasks: &mut JoinSet<()>) -> std::convert::Infallible {
        let places = Arc::new(Semaphore::new(self.config.max_connections));
        loop {
            let (stream, place) = tokio::select! {
                accepted = self.next(&places) => accepted,
                // As many as there are places; panics have been reported.
                Some(_) = tasks.join_next() => continue,
            };
            let connections = self.connections.clone();
            tasks.spawn(async move {
                connections.serve(stream).await;
                drop(place);
            });
        }
    }

    async fn next(&self, places: &Arc<Semaphore>) -> (TcpStream, OwnedSemaphorePermit) {
        loop {
            // Nobody closes the semaphore.
            let Ok(place) = places.clone().acquire_owned().await else { std::future::pending().await };
            match self.listener.accept().await {
                Ok((stream, _)) => return (stream, place),
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Waits for the end, and for running generations; gives the time at which
    /// patience ends.
    async fn drained(&self) -> Instant {
        let shutdown = self.shared.shutdown();
        shutdown.reached(Phase::Draining).await;
        let deadline = Instant::now() + self.config.drain_timeout;
        let num_active = self.shared.requests().num_active();
        tracing::info!(num_active, "draining");
        tokio::select! {
            () = self.shared.requests().idle() => {}
            () = shutdown.reached(Phase::Now) => {}
            () = tokio::time::sleep_until(deadline) => {}
        }
        deadline
    }

    /// Closes the port, lets connections end politely, and cuts off the rest.
    async fn close(self, mut tasks: JoinSet<()>, deadline: Instant) {
        let Self { listener, shared, connections, .. } = self;
        drop(listener);
        connections.closing.cancel();
        let deadline = match shared.requests().num_active() {
            0 => deadline.max(Instant::now() + MIN_FLUSH),
            // They had their time.
            _ => Instant::now(),
        };
        let all = async { while tasks.join_next().await.is_some() {} };
        tokio::select! {
            _ = timeout_at(deadline, all) => {}
            () = shared.shutdown().reached(Phase::Now) => {}
        }
        tasks.shutdown().await;
    }
}
