//! What all kernels are made of, a block at a time and against plain
//! arithmetic: copies to shared memory, fragments, products of tensor cores,
//! and Hopper's boxes and warpgroups. What the emulator takes for granted of
//! them is confirmed here on a GPU.

#![expect(unsafe_code, reason = "hands addresses to kernels")]

mod fp8;
mod gathered;
mod hopper;
mod origins;
mod warps;

use crate::failure::{Failure, Outcome, ensure};
use bytemuck::{Pod, Zeroable};
use chorale_cuda::{Gpu, Kernel, Launches};
use origins::differences;
use std::cell::RefCell;
use std::sync::Arc;

/// One check, by its name.
pub struct Primitive {
    /// What must hold.
    pub name: &'static str,
    /// Whether only Hopper has it.
    pub is_hopper_only: bool,
    run: fn(&Bench<'_>) -> Outcome,
}

impl Primitive {
    /// Runs it. Sums of up to 600 products of small numbers may be off by `tolerance`.
    pub fn run(&self, gpu: &Arc<dyn Gpu>, tolerance: f32) -> Outcome {
        let bench = Bench { gpu, tolerance, held: RefCell::default() };
        let found = (self.run)(&bench);
        let given_back = bench.give_back();
        // The first error names its kernel.
        found.and(given_back)
    }
}

/// What the ring of boxes makes of two matrices with one of the bugs that only an
/// emulated GPU has, and what it should make.
pub fn ring_with_bug(gpu: &Arc<dyn Gpu>, bug: u32) -> Result<(Vec<f32>, Vec<f32>), Failure> {
    let bench = Bench { gpu, tolerance: 0.0, held: RefCell::default() };
    let found = hopper::ring_of(&bench, bug);
    bench.give_back()?;
    found
}

/// How far a GPU's sums may be off: it adds in an order of its own.
pub const GPU_TOLERANCE: f32 = 2e-3;

/// All of them, the simplest first.
pub const PRIMITIVES: [Primitive; 18] = [
    primitive("numbers are converted", false, numbers),
    primitive("copies arrive in shared memory, and zeros where they are not valid", false, copies),
    primitive("single words arrive, and zeros where they are not valid", false, fp8::words),
    primitive("numbers become FP8 and come back", false, fp8::codes),
    primitive("fragments are loaded", false, fragments),
    primitive("quotients", false, warps::quotients),
    primitive("lanes of a warp tell each other", false, warps::warps),
    primitive("every thread of a grid runs once", false, warps::grid),
    primitive("a warp multiplies 16 × 8 × 16", false, mma),
    primitive("a warp multiplies and begins with nothing", false, warps::mma_from_zero),
    primitive("a kernel sees what the one before it wrote", false, chain),
    primitive("before it waits, a kernel sees what the one before that one wrote", false, warps::early),
    primitive("boxes are swizzled and end where the matrix does", true, hopper::boxes),
    primitive("a warpgroup multiplies at every width", true, hopper::wgmma),
    primitive("a warpgroup adds alike at every width", true, hopper::widths),
    primitive("a ring of boxes feeds warpgroups", true, hopper::ring),
    primitive("rows that threads gather feed warpgroups", true, gathered::rows),
    primitive("a box holds what the kernel before it wrote", true, gathered::results),
];

const fn primitive(name: &'static str, is_hopper_only: bool, run: fn(&Bench<'_>) -> Outcome) -> Primitive {
    Primitive { name, is_hopper_only, run }
}

/// Arguments of the kernels in `selftest.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Words {
    input: u64,
    output: u64,
    count: u32,
    pad: u32,
}

/// A GPU, and the memory that a check took.
struct Bench<'a> {
    gpu: &'a Arc<dyn Gpu>,
    tolerance: f32,
    held: RefCell<Vec<(u64, usize)>>,
}

impl Bench<'_> {
    fn alloc(&self, len: usize) -> Result<u64, Failure> {
        let address = self.gpu.alloc(len)?;
        self.held.borrow_mut().push((address, len));
        Ok(address)
    }

    /// Memory that holds this.
    fn put<T: Pod>(&self, values: &[T]) -> Result<u64, Failure> {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let address = self.alloc(bytes.len())?;
        // SAFETY: it was just allocated.
        unsafe { self.gpu.upload(bytes, address) }?;
        Ok(address)
    }

    /// Other values, as many as at most were put there.
    fn replace<T: Pod>(&self, address: u64, values: &[T]) -> Outcome {
        // SAFETY: callers replace what they made room for.
        Ok(unsafe { self.gpu.upload(bytemuck::cast_slice(values), address) }?)
    }

    /// Memory for so many words, all of them ones.
    fn room(&self, words: usize) -> Result<u64, Failure> {
        self.put(&vec![u32::MAX; words])
    }

    fn get<T: Pod>(&self, address: u64, count: usize) -> Result<Vec<T>, Failure> {
        let mut values = vec![T::zeroed(); count];
        // SAFETY: callers ask for what they made room for.
        unsafe { self.gpu.download(address, bytemuck::cast_slice_mut(&mut values)) }?;
        Ok(values)
    }

    fn run(&self, launches: &Launches) -> Outcome {
        // SAFETY: arguments are such as the kernels take, and memory is large enough.
        Ok(unsafe { self.gpu.run(launches) }?)
    }

    fn launch<A: Pod>(&self, kernel: Kernel, grid: [u32; 3], shared_bytes: usize, args: &A) -> Outcome {
        let mut launches = Launches::default();
        launches.push(kernel, grid, shared_bytes as u32, args);
        self.run(&launches)
    }

    /// What a kernel of one warp makes of words.
    fn words(
        &self,
        name: &'static str,
        shared_bytes: usize,
        input: &[u32],
        count: usize,
    ) -> Result<Vec<u32>, Failure> {
        let args = Words { input: self.put(input)?, output: self.room(count)?, count: count as u32, pad: 0 };
        self.launch(Kernel { name, threads: 32 }, [1, 1, 1], shared_bytes, &args)?;
        self.get(args.output, count)
    }

    /// Whether a matrix of sums of products is what it should be.
    fn near(&self, found: &[f32], expected: &[f32], cols: usize, what: &str) -> Outcome {
        match differences(found, expected, cols, self.tolerance) {
            None => Ok(()),
            Some(text) => Err(Failure(format!("{what}: {text}"))),
        }
    }

    fn give_back(&self) -> Outcome {
        self.gpu.wait()?;
        for (address, len) in self.held.take() {
            // SAFETY: it was allocated with this length, and nothing runs any more.
            unsafe { self.gpu.free(address, len) };
        }
        Ok(())
    }
}

fn numbers(bench: &Bench<'_>) -> Outcome {
    let floats: [f32; 12] =
        [0.0, -0.0, 1.0, -1.5, 1.003_906_3, 1.011_718_8, 3.0e38, 1e-3, f32::INFINITY, f32::NAN, 20.0, -40.0];
    let mut next = noise(1);
    let mut words: Vec<u32> = floats.iter().flat_map(|x| [x.to_bits(), (x * 0.7).to_bits()]).collect();
    // Finite ones, of all sizes.
    words.extend(std::iter::repeat_with(&mut next).filter(|word| word >> 23 & 0xff != 0xff).take(200));
    words.extend(weights_to_be());
    let count = words.len() / 2;
    let args =
        Words { input: bench.put(&words)?, output: bench.room(count * 16)?, count: count as u32, pad: 0 };
    bench.launch(Kernel { name: "selftest_numbers", threads: 64 }, [2, 1, 1], 0, &args)?;
    let found: Vec<u32> = bench.get(args.output, count * 16)?;
    for (pair, out) in words.chunks_exact(2).zip(found.chunks_exact(16)) {
        let (a, b) = (pair[0], pair[1]);
        let (x, y) = (f32::from_bits(a), f32::from_bits(b));
        let flushed = |x: f32| if x.abs() < f32::MIN_POSITIVE { 0.0 } else { x };
        let close = |bits: u32, expected: f32| {
            let value = f32::from_bits(bits);
            let is_near = (value / expected - 1.0).abs() < 2e-6;
            value == expected || (value.is_nan() && expected.is_nan()) || is_near
        };
        let both = |x: f32, y: f32| u32::from(to_bf16(x)) | u32::from(to_bf16(y)) << 16;
        let what = |which: &str| format!("{which} of {x:e} and {y:e} ({a:08x} {b:08x}): {out:08x?}");
        ensure(out[0] == u32::from(to_bf16(x)) && out[2] == both(x, y), || what("rounding to bf16"))?;
        ensure(out[1] == from_bf16(b as u16).to_bits(), || what("widening from bf16"))?;
        let halves = [from_bf16(a as u16), from_bf16((a >> 16) as u16)];
        ensure(out[3..5] == halves.map(f32::to_bits), || what("unpacking"))?;
        let products = [halves[0] * from_bf16(b as u16), halves[1] * from_bf16((b >> 16) as u16)];
        let is_finite = products.iter().all(|product| product.is_finite());
        ensure(!is_finite || out[5] == both(products[0], products[1]), || what("products in bf16"))?;
        ensure(close(out[7], flushed(x.exp2())), || what("2 to the power"))?;
        ensure(close(out[8], flushed((x * std::f32::consts::LOG2_E).exp2())), || what("exponential"))?;
        let is_normal = x >= f32::MIN_POSITIVE && x.is_finite();
        ensure(!is_normal || close(out[9], 1.0 / x.sqrt()), || what("reciprocal root"))?;
        let first_set = if a == 0 { 0 } else { a.trailing_zeros() + 1 };
        ensure(out[10..13] == [a.count_ones(), a.leading_zeros(), first_set], || what("bits"))?;
        // What a choice's fourth bit means is nobody's business here.
        ensure(a >> 16 & 0x8888 != 0 || out[6] == permuted(a, b), || what("a choice of bytes"))?;
        let high = ((u64::from(a) * u64::from(b)) >> 32) as u32;
        ensure(out[13..15] == [high, a.min(b)], || what("products and minima of integers"))?;
        ensure(close(out[15], x.max(y)), || what("the larger one"))?;
    }
    Ok(())
}

/// Codes of MXFP4, of FP8 and of 8-bit integers where kernels put them in a bf16,
/// mostly below its normal numbers, each beside what makes a weight of it.
fn weights_to_be() -> Vec<u32> {
    let both = |positive: u32| positive | (positive | 0x8000) << 16;
    let twice = |exponent: u32| exponent << 7 | exponent << 23;
    let mxfp4 = (0..8).flat_map(|code| [1, 64, 126, 253, 254].map(|exponent| (code << 6, exponent)));
    let fp8 = (0..128).map(|code| (code << 4, 247));
    let int8 = (1..128).map(|magnitude| (magnitude, 254));
    mxfp4.chain(fp8).chain(int8).flat_map(|(bits, exponent)| [both(bits), twice(exponent)]).collect()
}

/// The bytes of two words that the first one's upper half chooses.
fn permuted(a: u32, b: u32) -> u32 {
    let bytes: Vec<u8> = a.to_le_bytes().into_iter().chain(b.to_le_bytes()).collect();
    u32::from_le_bytes(std::array::from_fn(|i| bytes[(a >> 16 >> (4 * i) & 7) as usize]))
}

fn copies(bench: &Bench<'_>) -> Outcome {
    let words: Vec<u32> = (0..96 * 4).map(|i| i + 1).collect();
    let out = bench.words("selftest_copies", 96 * 16, &words, 128 * 4)?;
    for i in 0..128 {
        let (group, lane) = (i / 32, i % 32);
        let from = if group < 3 { group * 32 + (lane + 1) % 32 } else { lane };
        let is_zero = group < 3 && from % 3 == 2;
        let expected: Vec<u32> = (0..4).map(|w| if is_zero { 0 } else { words[from * 4 + w] }).collect();
        ensure(out[i * 4..][..4] == expected, || {
            let first = |&word: &u32| if word == u32::MAX { "-".to_owned() } else { word.to_string() };
            let firsts = out.iter().step_by(4).map(first).collect::<Vec<_>>().join(" ");
            format!(
                "copy {i} is {:?}, not {expected:?}; the first words of all: {firsts}",
                &out[i * 4..][..4]
            )
        })?;
    }
    Ok(())
}

fn fragments(bench: &Bench<'_>) -> Outcome {
    let halves: Vec<u16> = (0..256).collect();
    let out = bench.words("selftest_fragments", 0, &pairs(&halves), 12 * 32)?;
    // Of matrix `m`, the element in this row and column.
    let at = |m: usize, row: usize, column: usize| u32::from(halves[(m * 8 + row) * 8 + column]);
    let loads = [(0..4, false), (0..4, true), (0..2, false), (0..2, true)];
    let registers = loads.into_iter().flat_map(|(matrices, is_turned)| matrices.map(move |m| (m, is_turned)));
    for (register, (m, is_turned)) in registers.enumerate() {
        for lane in 0..32 {
            let (row, column) = (lane / 4, lane % 4 * 2);
            let expected = if is_turned {
                at(m, column, row) | at(m, column + 1, row) << 16
            } else {
                at(m, row, column) | at(m, row, column + 1) << 16
            };
            let found = out[register * 32 + lane];
            ensure(found == expected, || {
                let all = |register: usize| {
                    let lanes = out[register * 32..][..32].iter().map(|word| format!("{word:08x}"));
                    format!("\n{register}: {}", lanes.collect::<Vec<_>>().join(" "))
                };
                format!(
                    "register {register} of lane {lane} is {found:08x}, not {expected:08x}; halves are numbers \
                     of elements, 8 a row; all lanes of each register:{}",
                    (0..12).map(all).collect::<String>()
                )
            })?;
        }
    }
    Ok(())
}

fn mma(bench: &Bench<'_>) -> Outcome {
    warps::mma(bench, "selftest_mma", 1.0)
}

/// Kernels that may begin while the one before still runs, in one list.
fn chain(bench: &Bench<'_>) -> Outcome {
    const COUNT: u32 = 100_000;
    const LINKS: usize = 12;
    let first: Vec<u32> = (0..COUNT).collect();
    let mut input = bench.put(&first)?;
    let mut launches = Launches::default();
    for _ in 0..LINKS {
        let output = bench.room(COUNT as usize)?;
        let args = Words { input, output, count: COUNT, pad: 0 };
        let kernel = Kernel { name: "selftest_chain", threads: 64 };
        launches.push(kernel, [COUNT.div_ceil(64), 1, 1], 0, &args);
        input = output;
    }
    // Launched one by one, then made a graph, then replayed.
    for round in 0..4 {
        bench.run(&launches)?;
        let found: Vec<u32> = bench.get(input, COUNT as usize)?;
        for (start, found) in first.iter().zip(found) {
            let expected = (0..LINKS).fold(*start, |value, _| value.wrapping_mul(3).wrapping_add(1));
            ensure(found == expected, || format!("round {round}: {start} became {found}, not {expected}"))?;
        }
    }
    Ok(())
}

/// Numbers that look random and are not.
fn noise(seed: u32) -> impl FnMut() -> u32 {
    let mut state = seed;
    move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state ^ state >> 15).wrapping_mul(0x85EB_CA6B) ^ state >> 3
    }
}

fn to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() { 0x7FFF } else { ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16) as u16 }
}

fn from_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Small numbers, exact as bf16.
fn matrix(seed: u32, rows: usize, cols: usize) -> Vec<u16> {
    let mut next = noise(seed);
    (0..rows * cols).map(|_| to_bf16((next() % 255) as f32 / 64.0 - 2.0)).collect()
}

/// Words of two halves each, the lower one first.
fn pairs(halves: &[u16]) -> Vec<u32> {
    halves.chunks_exact(2).map(|pair| u32::from(pair[0]) | u32::from(pair[1]) << 16).collect()
}

/// `left` times the transpose of `right`, whose rows are `depth` long each.
fn product(left: &[u16], right: &[u16], depth: usize) -> Vec<f32> {
    let sum = |row: &[u16], column: &[u16]| {
        let terms = row.iter().zip(column);
        terms.map(|(&a, &b)| f64::from(from_bf16(a)) * f64::from(from_bf16(b))).sum::<f64>() as f32
    };
    let rows = left.chunks_exact(depth);
    rows.flat_map(|row| right.chunks_exact(depth).map(move |column| sum(row, column))).collect()
}
