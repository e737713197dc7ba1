//! The way to the coordinator: one call, on which both talk.

use super::{Worker, WorkerConfig};
use chorale_plan::{FromWorker, Offer, PROTOCOL};
use chorale_wire::cluster::v1::cluster_client::ClusterClient;
use chorale_wire::cluster::v1::{CoordinatorMessage, WorkerMessage};
use chorale_wire::tls::{self, TlsError, reason_of};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::net::{UdpSocket, lookup_host};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::Streaming;
use tonic::transport::Endpoint;

/// What is said and not sent yet. A coordinator that takes nothing until this
/// is full is gone.
const MAX_UNSENT: usize = 256;
/// The largest thing that a coordinator says: a plan with long tables, masks
/// and histories for every sequence.
const MAX_MESSAGE_BYTES: usize = 256 << 20;
/// A plan comes without waiting for permission.
const WINDOW_BYTES: u32 = 8 << 20;
/// A connection whose other end is silent for both together is closed.
const PING_INTERVAL: Duration = Duration::from_secs(5);
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// Both directions of a call that has begun; the offer is on its way.
pub(super) struct Call {
    pub(super) said: mpsc::Sender<FromWorker>,
    pub(super) told: Streaming<CoordinatorMessage>,
}

pub(super) fn endpoint(config: &WorkerConfig) -> Result<Endpoint, TlsError> {
    let endpoint = tls::endpoint(&config.coordinator, config.tls.as_ref())?;
    Ok(endpoint
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true))
}

impl Worker {
    /// One try; the error says what was in the way.
    pub(super) async fn dial(&self) -> Result<Call, String> {
        let patience = self.config.patience.dial;
        match timeout(patience, self.try_dial()).await {
            Ok(dialled) => dialled,
            Err(_) => Err(format!("it did not answer within {patience:?}")),
        }
    }

    async fn try_dial(&self) -> Result<Call, String> {
        let endpoint = endpoint(&self.config).map_err(|error| error.to_string())?;
        let offer = self.offer().await?;
        let channel = endpoint.connect().await.map_err(|error| reason_of(&error))?;
        let (said, unsent) = mpsc::channel(MAX_UNSENT);
        // The queue is empty.
        let _ = said.try_send(FromWorker::Offer(offer));
        let messages = futures_util::stream::unfold(unsent, |mut unsent| async move {
            let message: FromWorker = unsent.recv().await?;
            Some((WorkerMessage::from(message), unsent))
        });
        let mut client = ClusterClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let told = client.join(messages).await.map_err(|status| said_by(&status))?;
        Ok(Call { said, told: told.into_inner() })
    }

    async fn offer(&self) -> Result<Offer, String> {
        let config = &self.config;
        let address = match &config.advertise {
            Some(address) => address.clone(),
            None => own_address(self.port.address(), &config.coordinator)
                .await
                .map_err(|error| format!("no way to {}: {error}", config.coordinator))?
                .to_string(),
        };
        Ok(Offer {
            session: self.session,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            protocol: PROTOCOL,
            checkpoint: self.checkpoint.fingerprint().to_string(),
            address,
            device: config.device.clone(),
            memory_bytes: config.memory_bytes,
            memory_bytes_per_s: self.speed.bytes_per_s(),
            experts_only: config.experts_only,
            nccl: config.nccl,
            kv_dtypes: config.kv_dtypes.clone(),
            host_expert_bytes: config.host_expert_bytes,
        })
    }
}

/// A status in words. Without a message, its cause says more than its code.
pub(super) fn said_by(status: &tonic::Status) -> String {
    if status.message().is_empty() { reason_of(status) } else { status.message().to_owned() }
}

/// The address that this machine has on its way to the coordinator. Nothing is
/// sent: a connected datagram socket only looks up the route.
async fn own_address(listen: SocketAddr, coordinator: &str) -> std::io::Result<SocketAddr> {
    if !listen.ip().is_unspecified() {
        return Ok(listen);
    }
    let mut last_error = std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address");
    for coordinator in lookup_host(coordinator).await? {
        let any: SocketAddr = match coordinator {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = UdpSocket::bind(any).await?;
        match socket.connect(coordinator).await {
            Ok(()) => return Ok(SocketAddr::new(socket.local_addr()?.ip(), listen.port())),
            Err(error) => last_error = error,
        }
    }
    Err(last_error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_worker_is_where_its_way_to_the_coordinator_begins() {
        let any = "0.0.0.0:7".parse().unwrap();
        assert_eq!(own_address(any, "127.0.0.1:9").await.unwrap(), "127.0.0.1:7".parse().unwrap());
        let named = "127.0.0.5:7".parse().unwrap();
        assert_eq!(own_address(named, "127.0.0.1:9").await.unwrap(), named);
    }
}
