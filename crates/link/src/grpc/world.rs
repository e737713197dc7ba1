//! One epoch's connections as their tasks and the rank's thread see them: two
//! lanes for each other rank, and how far each pair has come.

use super::lane::Lane;
use crate::endings::Endings;
use crate::transport::Fault;
use chorale_plan::{Epoch, Rank};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// A rank's part in an epoch.
#[derive(Clone, Debug)]
pub struct Membership {
    /// Which.
    pub epoch: Epoch,
    /// The rank's own number.
    pub rank: Rank,
    /// Where the ranks are, by rank; its own among them.
    pub addresses: Vec<String>,
    /// How long a send or a receive may take.
    pub exchange_timeout: Duration,
    /// How long the ranks may take to find each other.
    pub connect_timeout: Duration,
}

/// Why the ranks are not all connected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct ConnectError {
    /// The rank that was waited for; `None` if the epoch ended before.
    pub rank: Option<Rank>,
    /// What is known of the reason.
    pub reason: String,
}

/// All connections of a rank in an epoch.
#[derive(Debug)]
pub(super) struct World {
    pub(super) membership: Membership,
    /// By rank; the own place is never used.
    peers: Vec<Peer>,
    /// Told whenever a pair has come further.
    changed: watch::Sender<()>,
    /// The rank is gone or the epoch is over: no new frame will come or go.
    pub(super) ended: CancellationToken,
    dialling: Mutex<JoinSet<()>>,
    pub(super) endings: Endings,
}

/// Another rank.
#[derive(Debug, Default)]
pub(super) struct Peer {
    /// From here to there.
    pub(super) outgoing: Lane,
    /// From there to here.
    pub(super) incoming: Lane,
    pair: Mutex<Pair>,
}

/// How far two ranks have come with each other.
#[derive(Debug, Default)]
struct Pair {
    /// It takes our frames.
    is_reached: bool,
    /// It has dialled us.
    has_arrived: bool,
    /// Why it was not reached so far.
    obstacle: Option<String>,
}

impl World {
    pub(super) fn new(membership: Membership) -> Self {
        let peers = membership.addresses.iter().map(|_| Peer::default()).collect();
        let ended = CancellationToken::new();
        let changed = watch::Sender::new(());
        Self { membership, peers, changed, ended, dialling: Mutex::default(), endings: Endings::default() }
    }

    /// Another rank of this world.
    pub(super) fn peer(&self, rank: Rank) -> Option<&Peer> {
        self.peers.get(rank.0 as usize).filter(|_| rank != self.membership.rank)
    }

    /// The ranks but this one.
    pub(super) fn others(&self) -> impl Iterator<Item = (Rank, &Peer)> {
        (0..).map(Rank).zip(&self.peers).filter(|(rank, _)| *rank != self.membership.rank)
    }

    pub(super) fn set_reached(&self, peer: &Peer) {
        lock(&peer.pair).is_reached = true;
        self.changed.send_replace(());
    }

    pub(super) fn set_obstacle(&self, peer: &Peer, obstacle: String) {
        lock(&peer.pair).obstacle = Some(obstacle);
    }

    /// False if it had arrived before.
    pub(super) fn set_arrived(&self, peer: &Peer) -> bool {
        let is_new = !std::mem::replace(&mut lock(&peer.pair).has_arrived, true);
        self.changed.send_replace(());
        is_new
    }

    /// One direction of a pair will carry nothing more.
    pub(super) fn end_lane(&self, lane: &Lane, fault: Fault) {
        lane.end(fault);
        self.changed.send_replace(());
    }

    /// Runs until its lane is through, or the epoch is over.
    pub(super) fn spawn(&self, dialling: impl Future<Output = ()> + Send + 'static) {
        lock(&self.dialling).spawn(dialling);
    }

    /// Nothing more will be sent or received, from now on.
    pub(super) fn end(&self) {
        for (_, peer) in self.others() {
            peer.outgoing.end(Fault::Over);
            peer.incoming.end(Fault::Over);
        }
        self.ended.cancel();
        lock(&self.dialling).abort_all();
        self.changed.send_replace(());
        self.endings.end();
    }

    /// The rank is gone; what it has sent may still arrive.
    pub(super) fn close(&self) {
        for (_, peer) in self.others() {
            peer.outgoing.close();
            peer.incoming.end(Fault::Over);
        }
        self.ended.cancel();
        self.changed.send_replace(());
        self.endings.forget();
    }

    /// Whether all pairs are connected; an error if one will never be.
    fn is_connected(&self) -> Result<bool, ConnectError> {
        let mut is_connected = true;
        for (rank, peer) in self.others() {
            match peer.outgoing.fault().or_else(|| peer.incoming.fault()) {
                Some(fault @ Fault::Over) => {
                    return Err(ConnectError { rank: None, reason: fault.to_string() });
                }
                Some(fault) => return Err(ConnectError { rank: Some(rank), reason: fault.to_string() }),
                None => {}
            }
            let pair = lock(&peer.pair);
            is_connected &= pair.is_reached && pair.has_arrived;
        }
        Ok(is_connected)
    }

    /// Who is missing, those that cannot be reached before those that only wait
    /// for others.
    fn missing(&self) -> ConnectError {
        let timeout = self.membership.connect_timeout;
        let unreached = self.others().find(|(_, peer)| !lock(&peer.pair).is_reached);
        let (rank, reason) = match unreached {
            Some((rank, peer)) => {
                let obstacle = lock(&peer.pair).obstacle.clone();
                let obstacle = obstacle.unwrap_or_else(|| "it did not answer".to_owned());
                let address = &self.membership.addresses[rank.0 as usize];
                let reason = format!(
                    "rank {} at {address} could not be reached within {timeout:?}: {obstacle}",
                    rank.0
                );
                (Some(rank), reason)
            }
            None => {
                let absent = self.others().find(|(_, peer)| !lock(&peer.pair).has_arrived);
                let rank = absent.map(|(rank, _)| rank);
                let number = rank.map_or(0, |rank| rank.0);
                (rank, format!("rank {number} did not connect within {timeout:?}"))
            }
        };
        ConnectError { rank, reason }
    }
}

/// Knows when all ranks are connected, in both directions.
#[derive(Debug)]
pub struct Connecting {
    pub(super) world: Arc<World>,
    pub(super) deadline: Instant,
}

impl Connecting {
    /// Waits until all ranks are connected, but not longer than the membership
    /// says.
    ///
    /// # Errors
    ///
    /// [`ConnectError`] names the rank that was waited for.
    pub async fn wait(self) -> Result<(), ConnectError> {
        let Self { world, deadline } = self;
        let mut changes = world.changed.subscribe();
        loop {
            changes.borrow_and_update();
            if world.is_connected()? {
                return Ok(());
            }
            match tokio::time::timeout_at(deadline, changes.changed()).await {
                Ok(_) => {}
                Err(_) => return Err(world.missing()),
            }
        }
    }
}

fn lock<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
}
