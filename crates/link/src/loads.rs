//! How many rows came to each expert of a rank: what placement is decided by.

use std::sync::atomic::{AtomicU64, Ordering};

/// Rows that were run here since the epoch began, by layer and expert. Written
/// by the rank's thread, read by any.
#[derive(Debug)]
pub struct Loads {
    layers: Vec<Vec<AtomicU64>>,
}

impl Loads {
    /// Nothing has run yet.
    pub fn new(num_layers: usize, num_experts: usize) -> Self {
        let layer = || (0..num_experts).map(|_| AtomicU64::new(0)).collect();
        Self { layers: (0..num_layers).map(|_| layer()).collect() }
    }

    pub(crate) fn count(&self, layer: usize, experts: impl Iterator<Item = u32>) {
        for expert in experts {
            self.layers[layer][expert as usize].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Sets what has run of a layer, by expert, where it is counted elsewhere.
    pub fn set(&self, layer: usize, rows: impl Iterator<Item = u64>) {
        for (count, rows) in self.layers[layer].iter().zip(rows) {
            count.store(rows, Ordering::Relaxed);
        }
    }

    /// For each layer, for each expert of the model.
    pub fn rows(&self) -> Vec<Vec<u64>> {
        let layer =
            |experts: &Vec<AtomicU64>| experts.iter().map(|rows| rows.load(Ordering::Relaxed)).collect();
        self.layers.iter().map(layer).collect()
    }
}
