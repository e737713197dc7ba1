//! Weights that are asked for early: while a layer chooses its experts, memory has
//! nothing to do, and what comes after the experts is known, for it came there in
//! the step before: the next layer's projection, or the head.

use crate::linear::Linear;
use crate::memory::Memory;
use std::collections::HashMap;
use std::sync::Weak;

/// A line of the L2 cache.
const LINE_BYTES: usize = 128;

/// What follows which norm.
#[derive(Default)]
pub(crate) struct Ahead {
    /// The norm after which nothing dense has come yet, by its gain's address.
    open: Option<u64>,
    /// By the norm. Weights that are gone are not asked for.
    following: HashMap<u64, Weak<Memory>>,
}

/// Lines of memory that are asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lines {
    pub(crate) address: u64,
    pub(crate) count: u32,
}

impl Ahead {
    /// A layer is about to choose its experts: the lines to ask for, of at most so
    /// many bytes, if it is known which.
    pub(crate) fn lines(&mut self, norm: u64, bytes_max: usize) -> Lines {
        if bytes_max == 0 {
            return Lines::default();
        }
        self.open = Some(norm);
        let weights = self.following.get(&norm).and_then(Weak::upgrade);
        weights.map_or(Lines::default(), |weights| Lines {
            address: weights.address(),
            count: (weights.len().min(bytes_max) / LINE_BYTES) as u32,
        })
    }

    /// Dense weights are multiplied with what the experts gave.
    pub(crate) fn multiplied(&mut self, weights: &Linear) {
        if let Some(norm) = self.open.take() {
            self.following.insert(norm, weights.memory());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Cuda, Paper};
    use bytes::Bytes;
    use chorale_device::{DenseDtype, DensePart, DenseSource, Device};

    #[test]
    fn weights_are_asked_for_from_the_second_time_on_and_as_long_as_they_are_there() {
        let mut device = Cuda::new(Paper::hopper());
        let mut linear = || {
            let weight = Bytes::from(vec![0; 64 * 64 * 2]);
            let source = DenseSource { cols: 64, parts: vec![DensePart { rows: 64, weight, bias: None }] };
            device.linear(source, DenseDtype::Bf16).unwrap()
        };
        let (first, second) = (linear(), linear());
        let mut ahead = Ahead::default();
        for weights in [&first, &second] {
            assert_eq!(ahead.lines(weights.memory().upgrade().unwrap().address(), 0), Lines::default());
            ahead.multiplied(weights);
        }
        for (norm, weights) in [(1, &first), (2, &second)] {
            assert_eq!(ahead.lines(norm, 1000), Lines::default());
            ahead.multiplied(weights);
            // What comes later comes after other norms.
            ahead.multiplied(&second);
        }
        let address = first.memory().upgrade().unwrap().address();
        assert_eq!(ahead.lines(1, 1000), Lines { address, count: 7 });
        assert_eq!(ahead.lines(1, usize::MAX), Lines { address, count: 64 });
        drop(first);
        assert_eq!(ahead.lines(1, 1000), Lines::default());
        assert_eq!(ahead.lines(2, 128).count, 1);
    }
}
