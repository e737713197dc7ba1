//! How a rank on a GPU joins worlds: by NCCL where all its ranks can, else by
//! frames, through the host.

use crate::agreement::{KeptAreas, LEAST_BYTES, SMALL_BYTES, SmallExchanges, agree};
use crate::bring_up::{Beginning, bring_up};
use crate::circles::Circles;
use crate::library::Library;
use crate::link::NcclLink;
use chorale_cuda::Cuda;
use chorale_link::{Fault, JoinError, Joining, Member, Meshes, Place, PlaceError, Transport};
use chorale_plan::{Carrier, Placement};
use std::sync::Arc;
use std::time::Duration;

/// Joins worlds by what their coordinator chose.
pub struct NcclLinks {
    library: Arc<Library>,
    small: SmallExchanges,
    kept: KeptAreas,
}

impl NcclLinks {
    /// With a library whose version the rank offers.
    pub fn new(library: Arc<Library>) -> Self {
        Self { library, small: SmallExchanges::default(), kept: KeptAreas::default() }
    }

    /// Whether what is small goes from GPU to GPU by kernels of our own, where all
    /// ranks of a world or a group allow it and their GPUs reach each other.
    #[must_use]
    pub fn with_small_exchanges(mut self, are_on: bool) -> Self {
        self.small.are_on = are_on;
        self
    }

    /// What is small: at most so many bytes come to a GPU at a time. The same for all
    /// ranks of a world.
    #[must_use]
    pub fn with_small_bytes(mut self, max_bytes: usize) -> Self {
        self.small.max_bytes = max_bytes.clamp(LEAST_BYTES, SMALL_BYTES);
        self
    }

    /// Exchanges after which memory is cleared of the numbers that mark them.
    #[must_use]
    pub fn with_renewal_after(mut self, exchanges: u32) -> Self {
        self.small.renewal = exchanges;
        self
    }
}

impl NcclLinks {
    /// Agrees with all ranks of a place on what goes by kernels: they come here at
    /// about the same time.
    ///
    /// # Errors
    ///
    /// [`Fault`] where another rank does not come, or says what cannot be. That GPUs
    /// do not reach each other is none: NCCL then carries everything.
    pub fn circles(
        &mut self,
        device: &mut Cuda,
        transport: &mut dyn Transport,
        place: &Place,
    ) -> Result<Circles, Fault> {
        agree(device, transport, place, (self.small, &mut self.kept))
    }
}

impl Joining<Cuda> for NcclLinks {
    fn join(
        &mut self,
        device: &mut Cuda,
        mut transport: Box<dyn Transport>,
        place: Place,
        placement: Placement,
    ) -> Result<Box<dyn Member<Cuda>>, JoinError> {
        let (epoch, num_ranks) = (place.epoch.0, place.shape.num_ranks);
        let version = self.library.version();
        if place.carrier == Carrier::Frames {
            if num_ranks > 1 {
                tracing::info!(
                    epoch,
                    num_ranks,
                    nccl = %version,
                    "rows are exchanged through the host, over gRPC: not all ranks exchange by this NCCL"
                );
            }
            return Meshes.join(device, transport, place, placement);
        }
        let unable = |reason: String| JoinError { rank: None, reason, carrier_failed: false };
        let timeout = Duration::from_millis(place.exchange.timeout_ms.into());
        let Place { epoch: membership, shape, rank, .. } = place;
        let beginning = Beginning { epoch: membership, shape, rank, timeout };
        let bind = device.binder();
        let comms = device
            .enqueue(|_| bring_up(&mut *transport, &self.library, beginning, &bind))
            .map_err(|error| unable(error.to_string()))?
            .map_err(|error| JoinError {
                rank: error.rank(),
                reason: error.to_string(),
                carrier_failed: error.is_of_nccl(),
            })?;
        tracing::info!(epoch, num_ranks, nccl = %version, "rows are exchanged from GPU to GPU");
        let circles = self.circles(device, &mut *transport, &place);
        let circles = circles.map_err(|fault| JoinError {
            rank: fault.rank(),
            reason: format!("no agreement on small exchanges: {fault}"),
            carrier_failed: matches!(fault, Fault::Unknown { .. }),
        })?;
        let link = NcclLink::new(device, comms, transport, place, placement);
        let link = link.map(|link| link.with_circles(circles));
        Ok(Box::new(link.map_err(|error| JoinError {
            carrier_failed: matches!(error, PlaceError::Unfit { .. }),
            ..unable(error.to_string())
        })?))
    }
}
