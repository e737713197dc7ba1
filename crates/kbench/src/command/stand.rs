//! Where GPUs are, and what they are held to.

use crate::bench::{Extent, Geometry, Machine};
use crate::demands::Demands;
use crate::primitives::GPU_TOLERANCE;
use chorale_cuda::{Facts, GpuError};

/// Where GPUs are, and what they are held to.
pub trait Stand {
    /// The GPUs, each with a line that says which it is. Opens none.
    fn list(&self) -> Result<Vec<(Facts, String)>, GpuError>;
    /// Opens one of them; kernels run one by one where that is asked for.
    fn open(&self, ordinal: usize, one_by_one: bool) -> Result<Machine, GpuError>;

    /// How far sums of products may be off.
    fn tolerance(&self) -> f32 {
        GPU_TOLERANCE
    }
    /// What operations are held to, on small shapes alone if asked for.
    fn demands(&self, is_quick: bool) -> Demands {
        let num_cases = if is_quick { 8 } else { Demands::CUDA.num_cases };
        Demands { is_full_size: !is_quick, num_cases, ..Demands::CUDA }
    }
    /// The model that is measured.
    fn geometry(&self) -> Geometry {
        Geometry::GPT_OSS_120B
    }
    /// How much is measured.
    fn extent(&self, is_quick: bool) -> Extent {
        if is_quick { Extent::quick() } else { Extent::full() }
    }
}
