//! Random layers of experts, for worlds that exchange rows with them.

use chorale_device::{DensePart, DenseSource, ExpertsSource, Mxfp4Part, Mxfp4Source};
use chorale_plan::{Placement, Rank};

pub(crate) const HIDDEN: usize = 32;
pub(crate) const NUM_EXPERTS: usize = 7;
pub(crate) const TOP_K: usize = 3;

/// SplitMix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub(crate) fn values(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0).collect()
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }

    /// Each expert of each layer on one rank or some.
    pub(crate) fn placement(&mut self, num_ranks: u32, num_layers: usize) -> Placement {
        let mut expert = || {
            let mut ranks = vec![Rank(self.below(num_ranks as usize) as u32)];
            if self.below(3) == 0 {
                ranks.extend((0..num_ranks).filter(|_| self.below(2) == 0).map(Rank));
            }
            ranks.sort();
            ranks.dedup();
            ranks
        };
        let mut layer = || (0..NUM_EXPERTS).map(|_| expert()).collect();
        Placement { version: 0, layers: (0..num_layers).map(|_| layer()).collect() }
    }
}

/// Layers of experts with their routers, the same for every rank.
pub(crate) struct Model {
    pub(crate) routers: Vec<DenseSource>,
    experts: Vec<ExpertsSource>,
}

impl Model {
    pub(crate) fn random(seed: u64, num_layers: usize) -> Self {
        let random = &mut Random(seed);
        let matrix = |random: &mut Random, rows: usize| {
            let mut part = || Mxfp4Part {
                blocks: random.bytes(rows * HIDDEN / 2).into(),
                scales: vec![125; rows * HIDDEN / 32].into(),
                bias: None,
            };
            let experts = (0..NUM_EXPERTS).map(|_| part()).collect();
            Mxfp4Source { rows, cols: HIDDEN, experts }
        };
        let experts = (0..num_layers).map(|_| ExpertsSource {
            gate_up: matrix(random, 2 * HIDDEN),
            down: matrix(random, HIDDEN),
            swiglu_limit: 7.0,
        });
        let experts = experts.collect();
        let routers = (0..num_layers).map(|_| {
            let bf16 = |value: f32| ((value.to_bits() >> 16) as u16).to_le_bytes();
            let weight: Vec<u8> = random.values(NUM_EXPERTS * HIDDEN).into_iter().flat_map(bf16).collect();
            let part = DensePart { rows: NUM_EXPERTS, weight: weight.into(), bias: None };
            DenseSource { cols: HIDDEN, parts: vec![part] }
        });
        Self { routers: routers.collect(), experts }
    }

    pub(crate) fn num_layers(&self) -> usize {
        self.routers.len()
    }

    /// Some experts of a layer.
    pub(crate) fn pick(&self, layer: usize, experts: &[u32]) -> ExpertsSource {
        let pick = |source: &Mxfp4Source| Mxfp4Source {
            experts: experts.iter().map(|&expert| source.experts[expert as usize].clone()).collect(),
            ..source.clone()
        };
        let source = &self.experts[layer];
        ExpertsSource { gate_up: pick(&source.gate_up), down: pick(&source.down), ..source.clone() }
    }
}
