//! How much of this machine's memory bandwidth the portable device's decode
//! operations reach, as a share of what plain reading reaches in the same run.
//! Prints one JSON line a measurement; takes about a minute.
//!
//!     cargo bench -p chorale-benches --bench kernels [-- THREADS]

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark prints, and stops when it cannot run"
)]

use bytes::Bytes;
use chorale_device::{
    Cpu, DenseDtype, DensePart, DenseSource, Device, ExpertsSource, Mxfp4Part, Mxfp4Source, Precision,
};
use rayon::prelude::*;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

/// gpt-oss's width.
const HIDDEN: usize = 2880;
const INTERMEDIATE: usize = 2880;
/// So many weights that no cache holds them.
const DENSE_ROWS: usize = 131_072;
const NUM_EXPERTS: usize = 32;
const TOP_K: usize = 4;
/// Each figure is the fastest of so many runs.
const RUNS: usize = 7;

fn main() {
    let threads = std::env::args().skip(1).find_map(|word| word.parse().ok());
    let mut device = Cpu::new(threads.and_then(NonZeroUsize::new)).unwrap();
    let threads = device.num_threads();
    let read = read_gb_per_s(threads);
    println!("{{\"bench\":\"read\",\"threads\":{threads},\"gb_per_s\":{read:.2}}}");
    for rows in [1, 4, 16] {
        let (bytes, time) = dense(&mut device, rows);
        report("bf16_project", rows, bytes, time, read, 2 * DENSE_ROWS * HIDDEN * rows);
    }
    for rows in [1, 4, 16] {
        let (bytes, time, num_routes) = experts(&mut device, rows);
        report("mxfp4_experts", rows, bytes, time, read, 6 * HIDDEN * INTERMEDIATE * num_routes);
    }
}

fn report(bench: &str, rows: usize, bytes: usize, time: Duration, read: f64, flop: usize) {
    let seconds = time.as_secs_f64();
    let speed = bytes as f64 / seconds / 1e9;
    println!(
        "{{\"bench\":\"{bench}\",\"rows\":{rows},\"ms\":{:.3},\"gb_per_s\":{speed:.2},\"share_of_read\":{:.3},\"gflop_per_s\":{:.1}}}",
        seconds * 1e3,
        speed / read,
        flop as f64 / seconds / 1e9,
    );
}

fn fastest(mut run: impl FnMut()) -> Duration {
    let time = |run: &mut dyn FnMut()| {
        let started = Instant::now();
        run();
        started.elapsed()
    };
    run();
    (0..RUNS).map(|_| time(&mut run)).min().unwrap()
}

/// The limit: summing words of a buffer larger than the caches.
fn read_gb_per_s(threads: usize) -> f64 {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let words = vec![1u64; 1 << 27];
    let time = fastest(|| {
        let sum = pool.install(|| {
            words.par_chunks(1 << 16).map(|words| words.iter().fold(0, |a, b| a ^ b)).sum::<u64>()
        });
        std::hint::black_box(sum);
    });
    (words.len() * 8) as f64 / time.as_secs_f64() / 1e9
}

/// Bytes that look random and are finite as bf16.
fn noise(len: usize) -> Bytes {
    let mut state = 1u32;
    let byte = |index: usize| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        if index % 2 == 1 { 0x3c | (state >> 24) as u8 & 0x80 } else { (state >> 24) as u8 }
    };
    (0..len).map(byte).collect::<Vec<u8>>().into()
}

fn dense_source(rows: usize, cols: usize) -> DenseSource {
    DenseSource { cols, parts: vec![DensePart { rows, weight: noise(rows * cols * 2), bias: None }] }
}

fn input(device: &mut Cpu, rows: usize) -> <Cpu as Device>::Matrix {
    let mut matrix = device.matrix(rows, HIDDEN, Precision::Half).unwrap();
    let bits = noise(rows * HIDDEN * 2);
    let value = |bits: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(*bits)) << 16);
    let values: Vec<f32> = bits.as_chunks::<2>().0.iter().map(value).collect();
    device.write(&values, &mut matrix).unwrap();
    matrix
}

fn dense(device: &mut Cpu, rows: usize) -> (usize, Duration) {
    let input = input(device, rows);
    let weights = device.linear(dense_source(DENSE_ROWS, HIDDEN), DenseDtype::Bf16).unwrap();
    let mut out = device.matrix(rows, DENSE_ROWS, Precision::Half).unwrap();
    let time = fastest(|| device.enter(|device| device.project(&input, &weights, &mut out)).unwrap());
    (DENSE_ROWS * HIDDEN * 2, time)
}

/// Bytes of the experts that the rows meet, the time, and the routes.
fn experts(device: &mut Cpu, rows: usize) -> (usize, Duration, usize) {
    let input = input(device, rows);
    let matrix = |rows: usize, cols: usize| {
        let part = || Mxfp4Part {
            blocks: noise(rows * cols / 2),
            scales: vec![118u8; rows * cols / 32].into(),
            bias: None,
        };
        Mxfp4Source { rows, cols, experts: (0..NUM_EXPERTS).map(|_| part()).collect() }
    };
    let source = ExpertsSource {
        gate_up: matrix(2 * INTERMEDIATE, HIDDEN),
        down: matrix(HIDDEN, INTERMEDIATE),
        swiglu_limit: 7.0,
    };
    let experts = device.experts(source).unwrap();
    let router = device.linear(dense_source(NUM_EXPERTS, HIDDEN), DenseDtype::Bf16).unwrap();
    let mut routing = device.routing(rows, TOP_K).unwrap();
    device.route(&input, &router, &mut routing).unwrap();
    let mut groups = device.groups(&(0..NUM_EXPERTS as u32).collect::<Vec<_>>()).unwrap();
    device.group(&routing, &mut groups).unwrap();
    let mut met: Vec<u32> =
        device.read_routing(&routing).unwrap().concat().iter().map(|c| c.expert).collect();
    met.sort_unstable();
    met.dedup();
    let mut outputs = device.matrix(rows * TOP_K, HIDDEN, Precision::Half).unwrap();
    let time = fastest(|| {
        device.enter(|device| device.run_experts(&input, &groups, &experts, &mut outputs)).unwrap();
    });
    let bytes_each = 3 * HIDDEN * INTERMEDIATE * 17 / 32;
    (met.len() * bytes_each, time, rows * TOP_K)
}
