//! The worker's port for other ranks: one for as long as it lives, whatever the
//! epoch. Ranks that come before this one knows of their epoch wait a little.

use super::dial::{dial_all, said};
use super::pieces::Pieces;
use super::transport::{EndHandle, GrpcTransport};
use super::world::{Connecting, Membership, World};
use crate::transport::Fault;
use chorale_plan::Rank;
use chorale_wire::cluster::MAX_RANKS;
use chorale_wire::link::v1::carry_request::Part;
use chorale_wire::link::v1::link_server::{Link, LinkServer};
use chorale_wire::link::v1::{CarryReply, CarryRequest};
use chorale_wire::link::{Carried, Introduction, MAX_PIECE_BYTES};
use chorale_wire::listener::accept;
use chorale_wire::tls::{self, Tls};
use futures_util::{Stream, StreamExt, stream};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::Server;
use tonic::{Code, Request, Response, Status, Streaming};

/// Connections at a time: old and new ones of the largest world.
const MAX_CONNECTIONS: usize = 2 * MAX_RANKS as usize;
/// Calls on one connection: there is one, and perhaps one that was given up.
const MAX_CALLS: u32 = 4;
/// A call that does not say whose it is, is nobody's.
const INTRODUCTION_TIMEOUT: Duration = Duration::from_secs(5);
/// Assignments reach the ranks of an epoch within this.
const HOLD_TIMEOUT: Duration = Duration::from_secs(10);
/// Calls that are held at a time.
const MAX_HELD: usize = MAX_RANKS as usize;

/// What may be on its way to a rank that computes. Large frames go without
/// waiting for permission on links of up to about 100 Gb/s and 1 ms.
const WINDOW_BYTES: u32 = 16 << 20;
/// Of a frame of HTTP/2: the largest would make small messages wait.
const HTTP_FRAME_BYTES: u32 = 256 << 10;
/// A connection whose other end is silent for both together is closed, at either
/// end: two ranks that lost each other are told apart from one that computes.
pub(super) const PING_INTERVAL: Duration = Duration::from_secs(2);
pub(super) const PING_TIMEOUT: Duration = Duration::from_secs(3);
/// What a request holds beside the payload, at most.
const OVERHEAD_BYTES: usize = 64;

/// Where a worker listens for other ranks.
#[derive(Clone, Debug)]
pub struct PortConfig {
    /// Where; port 0 takes any.
    pub address: SocketAddr,
    /// Who this is and whom it trusts; plaintext if `None`.
    pub tls: Option<Tls>,
    /// The largest payload of a frame that a step may need.
    pub max_frame_bytes: usize,
}

/// Why there is no port.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
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

/// An open port. Dropping it closes it; transports that it gave stop receiving.
#[derive(Debug)]
pub struct LinkPort {
    address: SocketAddr,
    config: PortConfig,
    registry: Arc<Registry>,
    _server: AbortOnDropHandle<()>,
}

/// The epoch that this worker is in, if any.
#[derive(Debug)]
pub(super) struct Registry {
    current: Mutex<Option<Arc<World>>>,
    changed: watch::Sender<()>,
    held: Semaphore,
}

impl LinkPort {
    /// Opens the port and answers at once. Needs a runtime.
    ///
    /// # Errors
    ///
    /// [`PortError`] says what of the configuration does not work.
    pub async fn bind(config: PortConfig) -> Result<Self, PortError> {
        let unbound = |source| PortError::Bind { address: config.address, source };
        let listener = TcpListener::bind(config.address).await.map_err(unbound)?;
        let address = listener.local_addr().map_err(unbound)?;
        let registry = Arc::new(Registry {
            current: Mutex::default(),
            changed: watch::Sender::new(()),
            held: Semaphore::new(MAX_HELD),
        });
        let server = Server::builder()
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .max_frame_size(HTTP_FRAME_BYTES)
            .max_concurrent_streams(MAX_CALLS)
            .http2_keepalive_interval(Some(PING_INTERVAL))
            .http2_keepalive_timeout(Some(PING_TIMEOUT));
        let door = Door { registry: registry.clone(), max_frame_bytes: config.max_frame_bytes };
        let door = LinkServer::new(door).max_decoding_message_size(MAX_PIECE_BYTES + OVERHEAD_BYTES);
        let router = tls::serve(server, config.tls.as_ref())?.add_service(door);
        let serving = router.serve_with_incoming(accept(listener, MAX_CONNECTIONS));
        let serving = tokio::spawn(async move {
            if let Err(error) = serving.await {
                tracing::error!(error = tls::reason_of(&error), "the port for other ranks failed");
            }
        });
        Ok(Self { address, config, registry, _server: AbortOnDropHandle::new(serving) })
    }

    /// Where it listens; the port is the real one.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes part in an epoch; an older one ends. The transport can be used at
    /// once: its calls wait for connections as for anything else.
    pub fn join(&self, membership: Membership) -> (GrpcTransport, EndHandle, Connecting) {
        let deadline = Instant::now() + membership.connect_timeout;
        let world = Arc::new(World::new(membership));
        if let Some(older) = self.registry.replace(world.clone()) {
            older.end();
        }
        dial_all(&world, self.config.tls.as_ref(), deadline);
        let registry = self.registry.clone();
        let transport = GrpcTransport {
            world: world.clone(),
            registry: registry.clone(),
            max_frame_bytes: self.config.max_frame_bytes,
        };
        (transport, EndHandle { world: world.clone(), registry }, Connecting { world, deadline })
    }
}

impl Registry {
    fn replace(&self, world: Arc<World>) -> Option<Arc<World>> {
        let older = self.lock().replace(world);
        self.changed.send_replace(());
        older
    }

    /// The epoch is over, unless there is another one already.
    pub(super) fn forget(&self, world: &Arc<World>) {
        let mut current = self.lock();
        if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, world)) {
            *current = None;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Arc<World>>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The world that somebody belongs to; waits for one that is about to be.
    async fn find(&self, introduction: &Introduction) -> Result<Arc<World>, Status> {
        let mut changes = self.changed.subscribe();
        let deadline = Instant::now() + HOLD_TIMEOUT;
        let held = self.held.try_acquire();
        loop {
            changes.borrow_and_update();
            let current = self.lock().clone();
            let epoch = introduction.epoch;
            match current {
                Some(world) if world.membership.epoch == epoch => return Ok(world),
                Some(world) if world.membership.epoch > epoch => {
                    let newer = world.membership.epoch.0;
                    return Err(Status::failed_precondition(format!(
                        "epoch {} is over, {newer} is on",
                        epoch.0
                    )));
                }
                Some(_) | None => {}
            }
            if held.is_err() {
                return Err(Status::resource_exhausted("too many ranks wait for their epochs"));
            }
            if timeout_at(deadline, changes.changed()).await.is_err() {
                let reason = format!("this worker has no place in epoch {}", epoch.0);
                return Err(Status::failed_precondition(reason));
            }
        }
    }
}

/// The service.
struct Door {
    registry: Arc<Registry>,
    max_frame_bytes: usize,
}

type Replies = Pin<Box<dyn Stream<Item = Result<CarryReply, Status>> + Send>>;

#[tonic::async_trait]
impl Link for Door {
    type CarryStream = Replies;

    async fn carry(&self, request: Request<Streaming<CarryRequest>>) -> Result<Response<Replies>, Status> {
        let mut requests = request.into_inner();
        let introduced = timeout(INTRODUCTION_TIMEOUT, introduction(&mut requests)).await;
        let introduction = introduced.map_err(|_| Status::invalid_argument("nobody was introduced"))??;
        let world = self.registry.find(&introduction).await?;
        let arrival = Arrival::new(world, &introduction, self.max_frame_bytes)?;
        let taken_in = stream::once(async { Ok(CarryReply {}) });
        let end = stream::once(async move { Err(arrival.receive(requests).await) });
        Ok(Response::new(Box::pin(taken_in.chain(end))))
    }
}

async fn introduction(requests: &mut Streaming<CarryRequest>) -> Result<Introduction, Status> {
    match requests.message().await?.and_then(|request| request.part) {
        Some(Part::Introduction(introduction)) => Introduction::try_from(introduction)
            .map_err(|error| Status::invalid_argument(format!("introduction.{error}"))),
        Some(Part::Frame(_)) | None => Err(Status::invalid_argument("an introduction comes first")),
    }
}

/// Another rank's frames, until there are no more. Its end is the end of the
/// lane, also when the call is dropped with its connection.
struct Arrival {
    world: Arc<World>,
    from: Rank,
    fault: Fault,
    max_frame_bytes: usize,
}

impl Arrival {
    fn new(world: Arc<World>, introduction: &Introduction, max_frame_bytes: usize) -> Result<Self, Status> {
        let Introduction { from, to, .. } = *introduction;
        if to != world.membership.rank {
            let reason = format!("this is rank {}, not rank {}", world.membership.rank.0, to.0);
            return Err(Status::failed_precondition(reason));
        }
        let Some(peer) = world.peer(from) else {
            return Err(Status::failed_precondition(format!("the epoch has no rank {}", from.0)));
        };
        if !world.set_arrived(peer) {
            return Err(Status::already_exists(format!("rank {} carries already", from.0)));
        }
        let fault = Fault::Broken { rank: from, reason: "the connection was lost".to_owned() };
        Ok(Self { world, from, fault, max_frame_bytes })
    }

    /// Gives what the sender is told.
    async fn receive(mut self, mut requests: Streaming<CarryRequest>) -> Status {
        let rank = self.from;
        let ended = self.world.ended.clone();
        let received = ended.run_until_cancelled(self.receive_all(&mut requests)).await;
        let (fault, status) = match received.unwrap_or(Err(Stop::Over)) {
            Ok(()) => {
                let reason = "it closed the connection".to_owned();
                (Fault::Broken { rank, reason }, Status::aborted("the sender has ended"))
            }
            Err(Stop::Over) => (Fault::Over, Status::failed_precondition("the epoch is over")),
            Err(Stop::Damaged) => {
                (Fault::Damaged { rank }, Status::data_loss("a frame was damaged on its way"))
            }
            Err(Stop::Malformed(reason)) => {
                let status = Status::invalid_argument(reason.clone());
                (Fault::Malformed { rank, reason }, status)
            }
            Err(Stop::TooLarge(reason)) => {
                let status = Status::out_of_range(reason.clone());
                (Fault::Malformed { rank, reason }, status)
            }
            Err(Stop::Status(status)) if status.code() == Code::OutOfRange => {
                (Fault::Malformed { rank, reason: said(&status) }, status)
            }
            Err(Stop::Status(status)) => (Fault::Broken { rank, reason: said(&status) }, status),
        };
        self.fault = fault;
        status
    }

    async fn receive_all(&self, requests: &mut Streaming<CarryRequest>) -> Result<(), Stop> {
        let lane = &self.world.peer(self.from).ok_or(Stop::Over)?.incoming;
        let mut pieces = Pieces::new(self.max_frame_bytes);
        while let Some(request) = requests.message().await? {
            let Some(Part::Frame(frame)) = request.part else {
                return Err(Stop::Malformed("something that is no frame".to_owned()));
            };
            let carried = Carried::try_from(frame).map_err(|_| Stop::Damaged)?;
            if let Some(frame) = pieces.add(carried)?
                && !lane.push(frame).await
            {
                return Err(Stop::Over);
            }
        }
        Ok(())
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        if let Some(peer) = self.world.peer(self.from) {
            self.world.end_lane(&peer.incoming, self.fault.clone());
        }
    }
}

/// Why nothing more is received.
pub(super) enum Stop {
    Over,
    Damaged,
    Malformed(String),
    TooLarge(String),
    Status(Status),
}

impl From<Status> for Stop {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}
