//! What an accelerator can do for a mixture-of-experts transformer: a dozen
//! fused, whole-kernel operations, not a tensor algebra.
//!
//! [`Device`] is the contract, [`Cpu`] the portable implementation: the
//! readable reference, and the oracle that every faster one is tested against.
//! Deliberately absent: models, sequences, ranks and the network.
//!
//! Invariant: an operation reads its inputs, writes its output and keeps
//! nothing. What one row gets does not depend on the rows beside it. All
//! implementations agree within the tolerance named at the operation.

mod columns;
mod cpu;
mod device;
mod dtype;
mod fp8;
mod int8;
mod mxfp4;
mod philox;
mod rope;
mod weights;

pub use columns::{Columns, Draw, Feed, PenaltyTerms, SliceColumns, Table};
pub use cpu::{Cpu, CpuError};
pub use device::{
    BatchLimits, Choice, Device, Drawn, ExpertOrigin, Fetched, KvShape, Needs, Precision, Routed,
};
pub use dtype::{DenseDtype, KvDtype};
pub use fp8::{decode_fp8_row, encode_fp8_row};
pub use int8::quantize_row;
pub use mxfp4::{BLOCK, BLOCK_BYTES, NAN_SCALE, decode_block};
pub use rope::{RopeParams, YarnParams};
pub use weights::{DensePart, DenseSource, ExpertsSource, Mxfp4Part, Mxfp4Source};
