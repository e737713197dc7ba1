//! A rank as a process: it dials the coordinator, offers what it has, takes the
//! places that it is given, and runs the steps that come.
//!
//! The network is async and the rank is a thread: pulses tell how the rank is
//! whatever it does. A coordinator that goes away takes the worker's place with
//! it, and nothing else: the weights stay on the device for the next epoch.

mod backoff;
mod dial;
mod place;
mod speed;
mod stay;

use crate::{Rank, RankError};
use backoff::Backoff;
use chorale_link::grpc::{LinkPort, PortConfig, PortError};
use chorale_model::checkpoint::Checkpoint;
use chorale_plan::{ExpertResidency, KvFormat};
use chorale_wire::tls::{Tls, TlsError};
use speed::Speed;
use stay::End;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

pub use speed::{MemoryRate, Reading};

/// What a worker is and where it goes.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// Where the coordinator is, `HOST:PORT`.
    pub coordinator: String,
    /// Where other workers' frames come in; port 0 takes any.
    pub listen: SocketAddr,
    /// Where other workers reach this one, `HOST:PORT`; if `None`, the address
    /// that it has on its way to the coordinator.
    pub advertise: Option<String>,
    /// Who this is and whom it trusts; plaintext if `None`.
    pub tls: Option<Tls>,
    /// The device, for people.
    pub device: String,
    /// Memory that weights and KV cache may take.
    pub memory_bytes: u64,
    /// How fast the device reads its memory.
    pub memory_rate: MemoryRate,
    /// It takes experts, but no attention.
    pub experts_only: bool,
    /// The version of NCCL, as its number, by which the rank's device can exchange
    /// with others; `None` if it cannot.
    pub nccl: Option<u32>,
    /// How the rank's device can keep keys and values, its own choice first.
    pub kv_dtypes: Vec<KvFormat>,
    /// Memory of the host for experts, beside `memory_bytes`.
    pub host_expert_bytes: u64,
    /// Tells where experts lie that do not all fit the device.
    pub residency: Option<Reading<ExpertResidency>>,
    /// The largest frame that another rank may send.
    pub max_frame_bytes: usize,
    /// Deadlines.
    pub patience: Patience,
}

/// A worker's deadlines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// The coordinator may take so long to answer, at each try.
    pub dial: Duration,
    /// A coordinator that says nothing for so long is gone; a multiple of the
    /// pulse, which it sends, too.
    pub silence: Duration,
    /// The ranks of an epoch may take so long to find each other.
    pub connect: Duration,
    /// Between two tries to reach the coordinator, at first and at most.
    pub first_pause: Duration,
    /// See `first_pause`.
    pub last_pause: Duration,
    /// Others may take so long to take over when this worker leaves.
    pub leave: Duration,
    /// How often it says what came to its experts.
    pub loads: Duration,
    /// At the start it measures the memory's rate for so long at most.
    pub measuring: Duration,
    /// How long after that it measures again, at first and at most.
    pub first_measure: Duration,
    /// See `first_measure`.
    pub last_measure: Duration,
    /// A rank that had no step for so long may measure.
    pub quiet: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            dial: Duration::from_secs(5),
            silence: Duration::from_secs(5),
            connect: Duration::from_secs(5),
            first_pause: Duration::from_millis(100),
            last_pause: Duration::from_secs(5),
            leave: Duration::from_secs(30),
            loads: Duration::from_secs(2),
            measuring: Duration::from_secs(2),
            first_measure: Duration::from_secs(10),
            last_measure: Duration::from_secs(600),
            quiet: Duration::from_secs(30),
        }
    }
}

/// Why a worker is of no use any more.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// Other workers cannot reach it.
    #[error(transparent)]
    Port(#[from] PortError),
    /// The coordinator's address or the certificates are wrong.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The coordinator will never take it.
    #[error("the coordinator turned this worker away: {reason}")]
    Turned {
        /// Why, and what would help.
        reason: String,
    },
    /// The rank's thread has ended: its device is lost, or there is a bug. Only a new
    /// process helps.
    #[error("the rank has stopped: its device is lost, and only a new process has another")]
    Stopped,
}

/// For a rank that is told to give its place up at the end.
const FREEING: Duration = Duration::from_secs(2);

/// How a worker's work ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Others have taken over.
    HandedOver,
    /// There was no coordinator to tell, or it did not answer in time.
    Unheard,
}

/// A worker whose port is open.
#[derive(Debug)]
pub struct Worker {
    config: WorkerConfig,
    rank: Rank,
    checkpoint: Arc<Checkpoint>,
    port: LinkPort,
    speed: Arc<Speed>,
    /// Drawn at random; the coordinator knows it again by this.
    session: u64,
}

impl Worker {
    /// Opens the port for other workers, and measures what is to be measured. Needs
    /// a runtime with time.
    ///
    /// # Errors
    ///
    /// [`WorkerError`] says what of the configuration does not work.
    pub async fn bind(
        config: WorkerConfig,
        rank: Rank,
        checkpoint: Arc<Checkpoint>,
    ) -> Result<Self, WorkerError> {
        dial::endpoint(&config)?;
        let port = LinkPort::bind(PortConfig {
            address: config.listen,
            tls: config.tls.clone(),
            max_frame_bytes: config.max_frame_bytes,
        });
        // The standard library's hash keys are from the system's randomness.
        let session = RandomState::new().build_hasher().finish();
        let port = port.await?;
        let speed = Arc::new(Speed::new(&config.memory_rate, &config.patience).await);
        Ok(Self { port, config, rank, checkpoint, speed, session })
    }

    /// Where other workers' frames come in; the port is the real one.
    pub fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// Works until it may leave, or can never be of use. After `leaving`, it
    /// stays until others have taken over, but not for ever.
    ///
    /// # Errors
    ///
    /// [`WorkerError`], when another try would end alike.
    pub async fn run(&self, leaving: CancellationToken) -> Result<Left, WorkerError> {
        let mut backoff = Backoff::new(self.session, &self.config.patience);
        let outcome = loop {
            let end = self.stay(&leaving, &mut backoff).await;
            // Whatever the epoch was, its coordinator is gone.
            drop(self.rank.leave());
            match end {
                End::Farewell => break Ok(Left::HandedOver),
                End::Impatient => break Ok(Left::Unheard),
                End::Stopped => break Err(WorkerError::Stopped),
                End::Turned { reason, may_retry: false } => break Err(WorkerError::Turned { reason }),
                End::Turned { reason, may_retry: true } => {
                    tracing::warn!(reason, "the coordinator has no use for this worker now");
                }
                End::Broken { reason } => {
                    tracing::warn!(
                        reason,
                        coordinator = self.config.coordinator,
                        "there is no coordinator; trying again"
                    );
                }
            }
            if self.rank.has_ended() {
                break Err(WorkerError::Stopped);
            }
            if leaving.run_until_cancelled(sleep(backoff.next_pause())).await.is_none() {
                break Ok(Left::Unheard);
            }
        };
        // Connections and room go before anybody is told that this is the end, if
        // the device lets them.
        match timeout(FREEING, self.rank.leave()).await {
            Ok(Err(RankError::Stopped)) if outcome.is_ok() => Err(WorkerError::Stopped),
            _ => outcome,
        }
    }
}
