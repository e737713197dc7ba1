//! The rank's side of its connections: a plain thread sends and receives, and
//! waits as long as an exchange may take.

use super::lane::Lane;
use super::port::Registry;
use super::world::{Peer, World};
use crate::transport::{Fault, Frame, Transport};
use chorale_plan::Rank;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A rank's connections in one epoch. Dropping it closes them, after what was
/// sent.
#[derive(Debug)]
pub struct GrpcTransport {
    pub(super) world: Arc<World>,
    pub(super) registry: Arc<Registry>,
    pub(super) max_frame_bytes: usize,
}

/// Ends a transport from elsewhere; clones are the same.
#[derive(Clone, Debug)]
pub struct EndHandle {
    pub(super) world: Arc<World>,
    pub(super) registry: Arc<Registry>,
}

impl EndHandle {
    /// Ends the epoch for this rank: whoever waits stops waiting, with
    /// [`Fault::Over`], and the other ranks find the connections broken.
    pub fn end(&self) {
        self.registry.forget(&self.world);
        self.world.end();
    }
}

impl GrpcTransport {
    fn peer(&self, rank: Rank) -> Result<&Peer, Fault> {
        let no_rank = || Fault::Broken { rank, reason: "there is no such rank".to_owned() };
        self.world.peer(rank).ok_or_else(no_rank)
    }

    fn wait<T>(
        &self,
        rank: Rank,
        lane: &Lane,
        wait: impl FnOnce(&Lane, Instant) -> Result<Option<T>, Fault>,
    ) -> Result<T, Fault> {
        let waited: Duration = self.world.membership.exchange_timeout;
        wait(lane, Instant::now() + waited)?.ok_or(Fault::Timeout { rank, waited })
    }
}

impl Transport for GrpcTransport {
    fn send(&mut self, to: Rank, frame: Frame) -> Result<(), Fault> {
        let num_bytes = frame.payload.len();
        if num_bytes > self.max_frame_bytes {
            let reason = format!("a frame of {num_bytes} bytes, above {}", self.max_frame_bytes);
            return Err(Fault::Malformed { rank: self.world.membership.rank, reason });
        }
        let lane = &self.peer(to)?.outgoing;
        self.wait(to, lane, |lane, deadline| Ok(lane.push_blocking(frame, deadline)?.then_some(())))
    }

    fn receive(&mut self, from: Rank) -> Result<Frame, Fault> {
        let lane = &self.peer(from)?.incoming;
        self.wait(from, lane, Lane::pop_blocking)
    }

    fn broken(&self) -> Option<Fault> {
        let fault = |(_, peer): (Rank, &Peer)| peer.incoming.fault().or_else(|| peer.outgoing.fault());
        match self.world.ended.is_cancelled() {
            true => Some(Fault::Over),
            false => self.world.others().find_map(fault),
        }
    }

    fn at_end(&mut self, then: Box<dyn FnOnce() + Send>) {
        self.world.endings.add(then);
    }
}

impl Drop for GrpcTransport {
    fn drop(&mut self) {
        self.registry.forget(&self.world);
        self.world.close();
    }
}
