//! What every device is held to: checks of each operation against plain loops
//! and against the portable device, generic over `Device`.
//!
//! Tests run them on the portable device and on the emulated GPU, the binary
//! `kbench` on a real one; so what they find wrong is a value, not a panic.

pub mod bench;
pub mod checks;
pub mod circle;
pub mod command;
mod demands;
mod failure;
pub mod goldens;
pub mod noise;
pub mod primitives;
pub mod reference;
pub mod report;
mod watched;

pub use demands::{Demands, Kind};
pub use failure::{Failure, Outcome};
pub use watched::{Ledger, Watched};
