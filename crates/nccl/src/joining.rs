//! How a rank on a GPU joins worlds: by NCCL where all its ranks can, else by
//! frames, through the host.

use crate::bring_up::{Beginning, bring_up};
use crate::library::Library;
use crate::link::NcclLink;
use chorale_cuda::Cuda;
use chorale_link::{JoinError, Joining, Member, Meshes, Place, Transport};
use chorale_plan::{Carrier, Placement};
use std::sync::Arc;
use std::time::Duration;

/// Joins worlds by what their coordinator chose.
#[derive(Debug)]
pub struct NcclLinks {
    library: Arc<Library>,
}

impl NcclLinks {
    /// With a library whose version the rank offers.
    pub fn new(library: Arc<Library>) -> Self {
        Self { library }
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
        let unable = |reason: String| JoinError { rank: None, reason };
        let timeout = Duration::from_millis(place.exchange.timeout_ms.into());
        let Place { epoch: membership, shape, rank, .. } = place;
        let beginning = Beginning { epoch: membership, shape, rank, timeout };
        let comms = device
            .enqueue(|_| bring_up(&mut *transport, &self.library, beginning))
            .map_err(|error| unable(error.to_string()))?
            .map_err(|error| JoinError { rank: error.rank(), reason: error.to_string() })?;
        tracing::info!(epoch, num_ranks, nccl = %version, "rows are exchanged from GPU to GPU");
        let link = NcclLink::new(device, comms, transport, place, placement);
        Ok(Box::new(link.map_err(|error| unable(error.to_string()))?))
    }
}
