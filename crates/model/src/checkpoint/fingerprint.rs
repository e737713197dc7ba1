//! Whether two workers opened the same checkpoint, as far as a few kilobytes of
//! each tensor can tell: configuration, headers, and samples of the weights.
//! Fine-tunes of one model differ in them.

use super::names::Layout;
use super::table::TensorTable;
use crate::config::ModelConfig;
use sha2::{Digest, Sha256};
use std::fmt;

/// Bytes of a tensor's beginning, middle and end that go in.
const SAMPLE: usize = 4 << 10;

/// SHA-256 over the configuration, all tensors' names, types, shapes and sizes,
/// and the first, middle and last 4 KiB of each.
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
    hash.update(format!("checkpoint 2\n{layout:?}\n{config:?}\n"));
    for (name, tensor) in table.iter() {
        // Lengths first, so that no name can pass for the end of another.
        hash.update(format!(
            "{} {name} {} {:?} {}\n",
            name.len(),
            tensor.dtype,
            tensor.shape,
            tensor.num_bytes()
        ));
        for sample in samples(tensor.bytes()) {
            hash.update(sample);
        }
    }
    Fingerprint(hash.finalize().into())
}

/// All of a small tensor, else its beginning, middle and end.
fn samples(bytes: &[u8]) -> Vec<&[u8]> {
    if bytes.len() <= 3 * SAMPLE {
        return vec![bytes];
    }
    [0, (bytes.len() - SAMPLE) / 2, bytes.len() - SAMPLE].map(|start| &bytes[start..][..SAMPLE]).into()
}
