//! Ranks on loopback, all in this process.

use bytes::Bytes;
use chorale_link::Frame;
use chorale_link::grpc::{ConnectError, EndHandle, GrpcTransport, LinkPort, Membership, PortConfig};
use chorale_plan::{Epoch, Rank};
use chorale_wire::tls::Tls;
use std::time::Duration;

/// For what does happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// Of a frame.
pub(crate) const MAX_BYTES: usize = 8 << 20;

pub(crate) struct World {
    pub(crate) ports: Vec<LinkPort>,
    pub(crate) transports: Vec<GrpcTransport>,
    pub(crate) ends: Vec<EndHandle>,
}

pub(crate) fn frame(exchange: u32, payload: Vec<u8>) -> Frame {
    Frame { epoch: Epoch(1), step: 7, exchange, payload: Bytes::from(payload) }
}

pub(crate) async fn port(tls: Option<Tls>) -> LinkPort {
    let address = "127.0.0.1:0".parse().unwrap();
    LinkPort::bind(PortConfig { address, tls, max_frame_bytes: MAX_BYTES }).await.unwrap()
}

/// A part for each of the addresses.
pub(crate) fn members(epoch: Epoch, addresses: &[String], exchange_timeout: Duration) -> Vec<Membership> {
    let member = |rank| Membership {
        epoch,
        rank: Rank(rank),
        addresses: addresses.to_vec(),
        exchange_timeout,
        connect_timeout: PATIENCE,
    };
    (0..addresses.len() as u32).map(member).collect()
}

impl World {
    pub(crate) async fn bind(num_ranks: usize, tls: Option<Tls>) -> Self {
        let mut ports = Vec::new();
        for _ in 0..num_ranks {
            ports.push(port(tls.clone()).await);
        }
        Self { ports, transports: Vec::new(), ends: Vec::new() }
    }

    pub(crate) async fn enter(&mut self, members: Vec<Membership>) {
        for entered in self.try_enter(members).await {
            entered.unwrap();
        }
    }

    /// All ranks at once; what came of it, by rank.
    pub(crate) async fn try_enter(&mut self, members: Vec<Membership>) -> Vec<Result<(), ConnectError>> {
        let mut all = Vec::new();
        self.ends.clear();
        for (port, member) in self.ports.iter().zip(members) {
            let (transport, end, connecting) = port.join(member);
            self.transports.push(transport);
            self.ends.push(end);
            all.push(connecting);
        }
        let mut outcomes = Vec::new();
        for connecting in all {
            outcomes.push(connecting.wait().await);
        }
        outcomes
    }
}

/// A world of that many ranks, connected.
pub(crate) async fn connect(num_ranks: usize, exchange_timeout: Duration) -> World {
    let mut world = World::bind(num_ranks, None).await;
    let addresses: Vec<String> = world.ports.iter().map(|port| port.address().to_string()).collect();
    world.enter(members(Epoch(1), &addresses, exchange_timeout)).await;
    world
}
