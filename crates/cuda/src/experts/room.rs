//! How many experts have room where: pure arithmetic.

use crate::gpu::GpuError;

/// Experts that change places at a time, at most: in the steps of a round a GPU
/// reads many times as much over the bus.
pub(super) const CHANGES_MAX: usize = 16;
/// Of the experts' places on the GPU, one in so many is kept free for changes.
const SPARE_SHARE: usize = 16;
/// Of the experts that fit the GPU, one in so many is room for a half of what is
/// streamed, at most.
const RING_SHARE: usize = 16;

/// The room on the GPU for experts of all layers; others lie with the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertRoom {
    /// Experts that may be on the GPU, those that are kept free for changes included.
    pub gpu_experts: usize,
    /// Experts of one layer that are brought to the GPU while the layer before it
    /// computes, in steps of many rows. Twice as many places are taken; none
    /// leaves it to the kernels to read them where they are.
    pub ring_experts: usize,
    /// Layers that share the room.
    pub num_layers: usize,
}

impl ExpertRoom {
    /// Experts that a layer has on the GPU at first, in a rank whose layers have
    /// `count` each.
    pub fn each_layer(&self, count: usize) -> usize {
        let stay = self.gpu_experts - self.spares();
        (stay / self.num_layers.max(1)).min(count)
    }

    /// Places that are kept free, on the GPU and with the host, so that experts
    /// can change them.
    pub fn spares(&self) -> usize {
        match self.gpu_experts {
            0 | 1 => 0,
            many => (many / SPARE_SHARE).clamp(1, CHANGES_MAX),
        }
    }

    /// Experts that the layer of a number has on the GPU at first, if it has as many.
    pub(super) fn share_of(&self, order: usize) -> usize {
        let (stay, layers) = (self.gpu_experts - self.spares(), self.num_layers.max(1));
        stay / layers + usize::from(order < stay % layers)
    }
}

/// What experts may take of memories that are known when the first are loaded:
/// on the GPU all that is left, and no more of the host than is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertFill {
    /// Layers of the model, which have equally many experts.
    pub num_layers: usize,
    /// The most that may be taken of the host.
    pub host_bytes: u64,
    /// What is left free of the GPU's memory.
    pub reserve_bytes: u64,
}

impl ExpertFill {
    /// The room for layers of `count` experts of so many bytes; `None` if all fit
    /// the GPU, where `free_bytes` are free.
    pub(super) fn room(
        &self,
        count: usize,
        bytes: usize,
        free_bytes: usize,
    ) -> Result<Option<ExpertRoom>, GpuError> {
        let free_bytes = (free_bytes as u64).saturating_sub(self.reserve_bytes);
        let fit = usize::try_from(free_bytes / bytes as u64).unwrap_or(usize::MAX);
        let all = count * self.num_layers;
        if fit >= all {
            return Ok(None);
        }
        let ring_experts = (fit / RING_SHARE).min(count);
        let room =
            ExpertRoom { gpu_experts: fit - 2 * ring_experts, ring_experts, num_layers: self.num_layers };
        // Places on the GPU that are kept free are places that others need.
        let host = all + 2 * room.spares() - room.gpu_experts;
        let needed = host * bytes;
        if needed as u64 > self.host_bytes {
            return Err(GpuError::OutOfHostMemory { bytes: needed });
        }
        Ok(Some(room))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_share_what_is_not_kept_free() {
        let room = ExpertRoom { gpu_experts: 100, ring_experts: 0, num_layers: 7 };
        assert_eq!(room.spares(), 6);
        let shares: Vec<usize> = (0..7).map(|order| room.share_of(order)).collect();
        assert_eq!(shares, [14, 14, 14, 13, 13, 13, 13]);
        assert_eq!(room.each_layer(128), 13);
        assert_eq!(room.each_layer(5), 5);
    }

    #[test]
    fn what_is_left_is_filled() {
        let fill = |host_bytes| ExpertFill { num_layers: 10, host_bytes, reserve_bytes: 500 };
        // Ten layers of eight experts of 10 bytes: 800 in all.
        assert_eq!(fill(0).room(8, 10, 1300), Ok(None));
        let room = ExpertRoom { gpu_experts: 70, ring_experts: 4, num_layers: 10 };
        assert_eq!(fill(1000).room(8, 10, 1299), Ok(Some(ExpertRoom { gpu_experts: 71, ..room })));
        // 32 fit: two halves of 2, 28 with one kept free, and 53 with the host, one more.
        let room = ExpertRoom { gpu_experts: 28, ring_experts: 2, num_layers: 10 };
        assert_eq!(fill(540).room(8, 10, 820), Ok(Some(room)));
        assert_eq!(fill(539).room(8, 10, 820), Err(GpuError::OutOfHostMemory { bytes: 540 }));
        let nothing = ExpertRoom { gpu_experts: 0, ring_experts: 0, num_layers: 10 };
        assert_eq!(fill(800).room(8, 10, 400), Ok(Some(nothing)));
    }

    #[test]
    fn some_are_kept_free_as_soon_as_there_is_one_beside() {
        let spares = |gpu_experts| ExpertRoom { gpu_experts, ring_experts: 0, num_layers: 1 }.spares();
        assert_eq!([0, 1, 2, 16, 33, 256, 4608].map(spares), [0, 0, 1, 1, 2, 16, 16]);
    }
}
