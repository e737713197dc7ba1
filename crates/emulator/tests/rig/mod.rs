//! Runs one kernel at a time: words in, words out.

#![expect(unsafe_code, reason = "hands addresses to kernels")]
#![allow(dead_code, reason = "each test uses what it needs")]
#![expect(clippy::unwrap_used, reason = "a test stops at its first surprise")]

use bytemuck::{Pod, Zeroable};
use chorale_cuda::{Gpu, GpuError, Kernel, Launches, TensorMap};
use chorale_emulator::{Emulator, Options};
use std::sync::Arc;

/// Arguments of the kernels in `selftest.cu` and `planted.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Words {
    pub(crate) input: u64,
    pub(crate) output: u64,
    pub(crate) count: u32,
    pub(crate) flag: u32,
}

pub(crate) struct Rig {
    pub(crate) gpu: Arc<Emulator>,
}

impl Rig {
    pub(crate) fn new(seed: u64) -> Self {
        Self { gpu: Emulator::new(Options { seed, ..Options::default() }).unwrap() }
    }

    pub(crate) fn hopper(seed: u64) -> Self {
        Self { gpu: Emulator::new(Options { seed, capability: (9, 0), ..Options::default() }).unwrap() }
    }

    /// Memory that holds this.
    pub(crate) fn put<T: Pod>(&self, values: &[T]) -> u64 {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let address = self.gpu.alloc(bytes.len()).unwrap();
        // SAFETY: it was just allocated.
        unsafe { self.gpu.upload(bytes, address).unwrap() }
        address
    }

    /// Memory for so many words, that holds nothing yet.
    pub(crate) fn room(&self, words: usize) -> u64 {
        self.gpu.alloc(words * 4).unwrap()
    }

    pub(crate) fn get<T: Pod>(&self, address: u64, count: usize) -> Vec<T> {
        let mut values = vec![T::zeroed(); count];
        // SAFETY: the emulator checks the range.
        unsafe { self.gpu.download(address, bytemuck::cast_slice_mut(&mut values)).unwrap() }
        values
    }

    pub(crate) fn map(&self, map: &TensorMap) -> [u64; 16] {
        self.gpu.tensor_map(map).unwrap()
    }

    pub(crate) fn run(&self, launches: &Launches) -> Result<(), GpuError> {
        // SAFETY: the tests' arguments are such as the kernels take.
        unsafe { self.gpu.run(launches) }
    }

    pub(crate) fn launch<A: Pod>(
        &self,
        name: &'static str,
        threads: u32,
        grid: [u32; 3],
        shared_bytes: u32,
        args: &A,
    ) {
        let mut launches = Launches::default();
        launches.push(Kernel { name, threads }, grid, shared_bytes, args);
        self.run(&launches).unwrap();
    }

    /// What a kernel of one block, with [`Words`], makes of words.
    pub(crate) fn words(
        &self,
        name: &'static str,
        threads: u32,
        shared_bytes: u32,
        input: &[u32],
        count: usize,
    ) -> Vec<u32> {
        let args = Words { input: self.put(input), output: self.room(count), count: count as u32, flag: 0 };
        self.launch(name, threads, [1, 1, 1], shared_bytes, &args);
        self.get(args.output, count)
    }
}

/// Numbers that look random and are not.
pub(crate) fn noise(seed: u32) -> impl FnMut() -> u32 {
    let mut state = seed;
    move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state ^ state >> 15).wrapping_mul(0x85EB_CA6B) ^ state >> 3
    }
}

pub(crate) fn to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() { 0x7FFF } else { ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16) as u16 }
}

pub(crate) fn from_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Small numbers, exact as bf16.
pub(crate) fn matrix(seed: u32, rows: usize, cols: usize) -> Vec<u16> {
    let mut next = noise(seed);
    (0..rows * cols).map(|_| to_bf16((next() % 255) as f32 / 64.0 - 2.0)).collect()
}

/// Words of two halves each, the lower one first.
pub(crate) fn pairs(halves: &[u16]) -> Vec<u32> {
    halves.chunks_exact(2).map(|pair| u32::from(pair[0]) | u32::from(pair[1]) << 16).collect()
}

/// `left` times the transpose of `right`, whose rows are `depth` long each.
pub(crate) fn product(left: &[u16], right: &[u16], depth: usize) -> Vec<f32> {
    let mut results = Vec::new();
    for row in left.chunks_exact(depth) {
        for column in right.chunks_exact(depth) {
            let pairs = row.iter().zip(column);
            results
                .push(pairs.map(|(&a, &b)| f64::from(from_bf16(a)) * f64::from(from_bf16(b))).sum::<f64>()
                    as f32);
        }
    }
    results
}

/// The farthest that two lists are apart; a NaN is far.
pub(crate) fn distance(results: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(results.len(), expected.len());
    let apart = |(a, b): (&f32, &f32)| if a.is_nan() { f32::INFINITY } else { (a - b).abs() };
    results.iter().zip(expected).map(apart).fold(0.0, f32::max)
}
