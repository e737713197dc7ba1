//! Bytes of cached keys and values. Layers without a window grow with the
//! sequence, layers with one keep a fixed number of tokens.

use crate::config::ModelConfig;
use chorale_device::KvDtype;
use serde::Serialize;

/// Keys and values of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct KvBudget {
    /// The type they are kept in.
    #[serde(serialize_with = "kv_name")]
    pub dtype: KvDtype,
    /// Growing: layers without a window.
    pub full_layer_bytes_per_token: u64,
    /// Fixed: layers with a window, once the sequence has filled it.
    pub sliding_layer_bytes_per_sequence: u64,
}

impl KvBudget {
    /// The budget of `num_kv_heads` heads of every layer.
    pub(super) fn new(config: &ModelConfig, dtype: KvDtype, num_kv_heads: usize) -> Self {
        let layer = layer_bytes_per_token(config, dtype, num_kv_heads);
        let num_full = config.windows.iter().filter(|window| window.is_none()).count();
        let kept: u64 = config.windows.iter().flatten().map(|window| u64::from(*window)).sum();
        Self {
            dtype,
            full_layer_bytes_per_token: layer.saturating_mul(num_full as u64),
            sliding_layer_bytes_per_sequence: layer.saturating_mul(kept),
        }
    }
}

/// Bytes of one head's key or value. A geometry that no memory holds stays as large.
fn row_bytes(config: &ModelConfig, dtype: KvDtype) -> u64 {
    match config.head_dim.checked_mul(size_of::<f32>()) {
        Some(_) => dtype.row_bytes(config.head_dim) as u64,
        None => u64::MAX,
    }
}

/// A type by its word in settings.
fn kv_name<S: serde::Serializer>(dtype: &KvDtype, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(dtype.name())
}

/// Bytes of the keys and values of a token in one layer.
pub(super) fn layer_bytes_per_token(config: &ModelConfig, dtype: KvDtype, num_kv_heads: usize) -> u64 {
    2_u64.saturating_mul(num_kv_heads as u64).saturating_mul(row_bytes(config, dtype))
}

/// Bytes that a decode step reads for one sequence with `context` cached tokens.
pub(super) fn read_bytes(config: &ModelConfig, dtype: KvDtype, num_kv_heads: usize, context: usize) -> u64 {
    let tokens = config.windows.iter().map(|window| match window {
        Some(window) => (*window as usize).min(context) as u64,
        None => context as u64,
    });
    layer_bytes_per_token(config, dtype, num_kv_heads).saturating_mul(tokens.sum())
}
