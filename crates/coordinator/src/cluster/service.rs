//! The port that workers join at: each call becomes a [`Connection`], and what
//! is said there is read and written. What it means is the cluster's affair.

use super::driver::{Cluster, Connection};
use chorale_plan::{FromWorker, ToWorker};
use chorale_wire::cluster::v1::cluster_server::{Cluster as Service, ClusterServer};
use chorale_wire::cluster::v1::{CoordinatorMessage, WorkerMessage};
use chorale_wire::listener::accept;
use chorale_wire::tls::{self, Tls};
use futures_util::Stream;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

/// What a worker has said and the cluster has not heard.
const MAX_UNHEARD: usize = 64;
/// What a worker is to be told and has not taken.
const MAX_UNSENT: usize = 256;
/// Calls on one connection: a worker makes one.
const MAX_CALLS: u32 = 4;
/// The largest thing that a worker says: the samples of a step with all their
/// alternatives.
const MAX_MESSAGE_BYTES: usize = 32 << 20;
/// A connection whose other end is silent for both together is closed. Workers
/// that are known are missed much earlier.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// The hearing half of a call ends with the telling half: it only has to say how.
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// Where workers join.
#[derive(Clone, Debug)]
pub struct JoinPortConfig {
    /// Where; port 0 takes any.
    pub address: SocketAddr,
    /// Who this is and whom it trusts; plaintext if `None`.
    pub tls: Option<Tls>,
    /// Connections at a time; further ones wait.
    pub max_connections: usize,
}

/// Why there is no port for workers.
#[derive(Debug, thiserror::Error)]
pub enum JoinPortError {
    /// The address is taken, or not ours.
    #[error("cannot listen at {address}: {source}")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// The certificates do not work.
    #[error("the transport cannot be set up: {0}")]
    Transport(#[from] tonic::transport::Error),
}

/// An open port. Dropping it closes it, with every worker's stream.
#[derive(Debug)]
pub struct JoinPort {
    address: SocketAddr,
    _server: AbortOnDropHandle<()>,
}

impl JoinPort {
    /// Opens the port and lets workers in at once. Needs a runtime.
    ///
    /// # Errors
    ///
    /// [`JoinPortError`] says what of the configuration does not work.
    pub async fn bind(config: JoinPortConfig, cluster: Cluster) -> Result<Self, JoinPortError> {
        let unbound = |source| JoinPortError::Bind { address: config.address, source };
        let listener = TcpListener::bind(config.address).await.map_err(unbound)?;
        let address = listener.local_addr().map_err(unbound)?;
        let server = Server::builder()
            .max_concurrent_streams(MAX_CALLS)
            .http2_keepalive_interval(Some(PING_INTERVAL))
            .http2_keepalive_timeout(Some(PING_TIMEOUT));
        let door = ClusterServer::new(Door { cluster }).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let router = tls::serve(server, config.tls.as_ref())?.add_service(door);
        let serving = router.serve_with_incoming(accept(listener, config.max_connections));
        let serving = tokio::spawn(async move {
            if let Err(error) = serving.await {
                tracing::error!(error = tls::reason_of(&error), "the port for workers failed");
            }
        });
        Ok(Self { address, _server: AbortOnDropHandle::new(serving) })
    }

    /// Where it listens; the port is the real one.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// The service.
struct Door {
    cluster: Cluster,
}

type Said = Pin<Box<dyn Stream<Item = Result<CoordinatorMessage, Status>> + Send>>;

#[tonic::async_trait]
impl Service for Door {
    type JoinStream = Said;

    async fn join(&self, request: Request<Streaming<WorkerMessage>>) -> Result<Response<Said>, Status> {
        let peer =
            request.remote_addr().map_or_else(|| "somewhere".to_owned(), |address| address.to_string());
        let (heard, from) = mpsc::channel(MAX_UNHEARD);
        let (to, unsent) = mpsc::channel(MAX_UNSENT);
        if !self.cluster.connect(Connection { from, to, peer }).await {
            return Err(Status::unavailable("the coordinator ends"));
        }
        // A task of its own: a worker that takes nothing is heard all the same.
        let (tell_end, end) = oneshot::channel();
        let messages = request.into_inner();
        let hearing = tokio::spawn(async move {
            let status = hear(messages, heard).await;
            // A call that is over needs no status.
            let _ = tell_end.send(status);
        });
        let telling = Telling { unsent, end: Some(end), _hearing: AbortOnDropHandle::new(hearing) };
        Ok(Response::new(Box::pin(telling.stream())))
    }
}

/// Passes on what a worker says, until it ends or says what cannot be read.
async fn hear(mut messages: Streaming<WorkerMessage>, heard: mpsc::Sender<FromWorker>) -> Status {
    loop {
        let message = tokio::select! {
            message = messages.message() => message,
            () = heard.closed() => return Status::aborted("the coordinator let go of this worker"),
        };
        let message = match message {
            Ok(Some(message)) => message,
            Ok(None) => return Status::cancelled("the worker ended the call"),
            Err(status) => return status,
        };
        match FromWorker::try_from(message) {
            Ok(message) => {
                if heard.send(message).await.is_err() {
                    return Status::aborted("the coordinator let go of this worker");
                }
            }
            Err(error) => {
                tracing::warn!(%error, "a worker said what cannot be read");
                return Status::invalid_argument(error.to_string());
            }
        }
    }
}

/// What one worker is told, and what its call ends with.
struct Telling {
    unsent: mpsc::Receiver<ToWorker>,
    /// `None` once the call is over.
    end: Option<oneshot::Receiver<Status>>,
    _hearing: AbortOnDropHandle<()>,
}

impl Telling {
    fn stream(self) -> impl Stream<Item = Result<CoordinatorMessage, Status>> + Send {
        futures_util::stream::unfold(self, |mut telling| async move {
            let said = telling.next().await?;
            Some((said, telling))
        })
    }

    async fn next(&mut self) -> Option<Result<CoordinatorMessage, Status>> {
        let end = self.end.as_mut()?;
        let status = tokio::select! {
            // What the cluster has said goes first: why a worker is turned away.
            biased;
            message = self.unsent.recv() => match message {
                Some(message) => return Some(Ok(message.into())),
                // The cluster also lets go of whoever says nothing more: how that
                // came about is what the call ends with.
                None => timeout(END_TIMEOUT, end).await.ok(),
            },
            status = &mut *end => Some(status),
        };
        self.end = None;
        status?.ok().map(Err)
    }
}

#[cfg(test)]
mod tests;
