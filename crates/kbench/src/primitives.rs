//! What all kernels are made of, a block at a time and against plain
//! arithmetic: copies to shared memory, fragments, products of tensor cores,
//! and Hopper's boxes and warpgroups. What the emulator takes for granted of
//! them is confirmed here on a GPU.

#![expect(unsafe_code, reason = "hands addresses to kernels")]

mod fp8;
mod hopper;
mod warps;

use crate::failure::{Failure, Outcome, ensure};
use bytemuck::{Pod, Zeroable};
use chorale_cuda::{Gpu, Kernel, Launches};
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
        bench.give_back()?;
        found
    }
}

/// How far a GPU's sums may be off: it adds in an order of its own.
pub const GPU_TOLERANCE: f32 = 2e-3;

/// All of them, the simplest first.
pub const PRIMITIVES: [Primitive; 15] = [
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
    primitive("boxes are swizzled and end where the matrix does", true, hopper::boxes),
    primitive("a warpgroup multiplies at every width", true, hopper::wgmma),
    primitive("a warpgroup adds alike at every width", true, hopper::widths),
    primitive("a ring of boxes feeds warpgroups", true, hopper::ring),
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

    /// Whether sums of products are what they should be.
    fn near(&self, found: &[f32], expected: &[f32], what: &str) -> Outcome {
        let apart = |(found, expected): (&f32, &f32)| {
            let error = (found - expected).abs();
            if error.is_nan() { f32::INFINITY } else { error }
        };
        let worst = found.iter().zip(expected).map(apart).enumerate().max_by(|a, b| a.1.total_cmp(&b.1));
        match worst {
            Some((place, error)) if error > self.tolerance => {
                Err(Failure(format!("{what}: value {place} is {}, not {}", found[place], expected[place])))
            }
            _ => Ok(()),
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
    let floats: [f32; 10] = [0.0, -0.0, 1.0, -1.5, 1.003_906_3, 1.011_718_8, 3.0e38, 1e-3, 20.0, -40.0];
    let mut next = noise(1);
    let mut words: Vec<u32> = floats.iter().flat_map(|x| [x.to_bits(), (x * 0.7).to_bits()]).collect();
    // Finite ones, of all sizes.
    words.extend(std::iter::repeat_with(&mut next).filter(|word| word >> 23 & 0xff != 0xff).take(200));
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
            value == expected || (value / expected - 1.0).abs() < 2e-6
        };
        let both = |x: f32, y: f32| u32::from(to_bf16(x)) | u32::from(to_bf16(y)) << 16;
        let what = |which: &str| format!("{which} of {x:e} and {y:e} ({a:08x} {b:08x}): {out:08x?}");
        ensure(out[0] == u32::from(to_bf16(x)) && out[2] == both(x, y), || what("rounding to bf16"))?;
        let halves = [from_bf16(a as u16), from_bf16((a >> 16) as u16)];
        ensure(out[3..5] == halves.map(f32::to_bits), || what("unpacking"))?;
        let products = [halves[0] * from_bf16(b as u16), halves[1] * from_bf16((b >> 16) as u16)];
        let is_finite = products.iter().all(|product| product.is_finite());
        ensure(!is_finite || out[5] == both(products[0], products[1]), || what("products in bf16"))?;
        ensure(close(out[7], flushed(x.exp2())), || what("2 to the power"))?;
        ensure(close(out[8], flushed((x * std::f32::consts::LOG2_E).exp2())), || what("exponential"))?;
        let is_normal = x >= f32::MIN_POSITIVE;
        ensure(!is_normal || close(out[9], 1.0 / x.sqrt()), || what("reciprocal root"))?;
        ensure(out[10] == a.count_ones() && out[11] == a.leading_zeros(), || what("bits"))?;
    }
    Ok(())
}

fn copies(bench: &Bench<'_>) -> Outcome {
    let words: Vec<u32> = (0..96 * 4).map(|i| i + 1).collect();
    let out = bench.words("selftest_copies", 96 * 16, &words, 128 * 4)?;
    for i in 0..128 {
        let (group, lane) = (i / 32, i % 32);
        let from = if group < 3 { group * 32 + (lane + 1) % 32 } else { lane };
        let is_zero = group < 3 && from % 3 == 2;
        let expected: Vec<u32> = (0..4).map(|w| if is_zero { 0 } else { words[from * 4 + w] }).collect();
        ensure(out[i * 4..][..4] == expected, || format!("copy {i} is {:?}", &out[i * 4..][..4]))?;
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
                format!("register {register} of lane {lane} is {found:08x}, not {expected:08x}")
            })?;
        }
    }
    Ok(())
}

fn mma(bench: &Bench<'_>) -> Outcome {
    let (left, right) = (matrix(1, 16, 16), matrix(2, 8, 16));
    let halves: Vec<u16> = left.iter().chain(&right).copied().collect();
    let out = bench.words("selftest_mma", 0, &pairs(&halves), 128)?;
    let found: Vec<f32> = out.into_iter().map(f32::from_bits).collect();
    let expected: Vec<f32> = product(&left, &right, 16).iter().map(|sum| sum + 1.0).collect();
    bench.near(&found, &expected, "the product")
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
    ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16) as u16
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
