//! Whether two workers opened the same checkpoint, as far as a few kilobytes
//! can tell: configuration and headers, not weights. Two fine-tunes of one
//! model have the same fingerprint.

use super::names::Layout;
use super::table::TensorTable;
use crate::config::ModelConfig;
use sha2::{Digest, Sha256};
use std::fmt;

/// SHA-256 over the configuration and all tensors' names, types, shapes and sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Everything that changes the computation goes in, so shards of checkpoints
/// with equal fingerprints fit together; the tokens that end a completion do not.
pub(super) fn fingerprint(config: &ModelConfig, layout: Layout, table: &TensorTable) -> Fingerprint {
    let mut hash = Sha256::new();
    let config = ModelConfig { eos_token_ids: Vec::new(), ..config.clone() };
    hash.update(format!("checkpoint 1\n{layout:?}\n{config:?}\n"));
    for (name, tensor) in table.iter() {
        // Lengths first, so that no name can pass for the end of another.
        hash.update(format!(
            "{} {name} {} {:?} {}\n",
            name.len(),
            tensor.dtype,
            tensor.shape,
            tensor.num_bytes()
        ));
    }
    Fingerprint(hash.finalize().into())
}
