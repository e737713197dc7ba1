//! Causal attention over paged keys and values, with windows and sinks.
//!
//! Two kernels share the work: one for slices of so few rows that reading keys
//! and values is what takes the time, one for slices of many, which has a twin
//! for Hopper.

mod plan;

use crate::batch::Step;
use crate::gpu::{Facts, GpuError};
use crate::kv_cache::{HEAD_DIM, KvCache};
use crate::launch::Kernel;
use crate::matrix::Matrix;
use crate::memory::Memory;
use crate::stream::Stream;
use bytemuck::{Pod, Zeroable};
use bytes::Bytes;
use chorale_device::{KvDtype, Needs};
use plan::{DECODE_ROWS, Round, SPLITS_MAX, Shape, decode_split};
pub(crate) use plan::{Plan, ROOM, work_words_max};

const BF16: Kernels = Kernels {
    decode: Kernel { name: "attention_decode", threads: 128 },
    prefill: Kernel { name: "attention_prefill", threads: 128 },
    prefill_hopper: Kernel { name: "attention_prefill_sm90", threads: 128 },
    decode_shared_bytes: 4 * 3 * 4096,
};
const FP8: Kernels = Kernels {
    decode: Kernel { name: "attention_decode_fp8", threads: 128 },
    prefill: Kernel { name: "attention_prefill_fp8", threads: 128 },
    prefill_hopper: Kernel { name: "attention_prefill_sm90_fp8", threads: 128 },
    decode_shared_bytes: 4 * 3 * (4096 + 128),
};

/// Blocks of it that an SM's registers are for.
const DECODE_BLOCKS_MAX: u32 = 4;
/// Shared memory of a block of the prefill kernel: three tiles of bf16.
const PREFILL_SHARED_BYTES: u32 = 3 * 16384;
const PREFILL_BLOCKS_MAX: u32 = 2;
/// What a block takes beside what is asked for, and what an SM has beside what a
/// block may take.
const SHARED_BYTES_BESIDE: u32 = 2048;
const SM_BYTES_BESIDE: u32 = 1024;

/// The kernels for what keys and values are kept in.
struct Kernels {
    decode: Kernel,
    prefill: Kernel,
    prefill_hopper: Kernel,
    /// Of a block of the first: four rings of three stages.
    decode_shared_bytes: u32,
}

/// One f32 logit for each query head.
pub struct Sinks {
    memory: Memory,
    num_heads: usize,
}

impl Sinks {
    pub(crate) fn new(stream: &mut Stream, logits: &Bytes) -> Result<Self, GpuError> {
        let (values, []) = logits.as_chunks::<2>() else { panic!("{} bytes of bf16", logits.len()) };
        let values: Vec<u32> =
            values.iter().map(|bytes| u32::from(u16::from_le_bytes(*bytes)) << 16).collect();
        let memory = stream.alloc(size_of_val(&values[..]))?;
        stream.upload(bytemuck::cast_slice(&values), &memory, 0)?;
        Ok(Self { memory, num_heads: values.len() })
    }
}

/// Buffers that keep their capacity between calls.
#[derive(Default)]
pub(crate) struct Scratch {
    outputs: Option<Memory>,
    sums: Option<Memory>,
    /// 0 between launches.
    counters: Option<Memory>,
}

/// One layer's attention.
pub(crate) struct Attention<'a> {
    pub(crate) sinks: &'a Sinks,
    pub(crate) step: &'a Step,
    pub(crate) cache: &'a KvCache,
    pub(crate) layer: usize,
    pub(crate) scratch: &'a mut Scratch,
}

/// Word for word `AttentionArgs`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Args {
    step: u64,
    work: u64,
    queries: u64,
    pages: u64,
    exponents: u64,
    sinks: u64,
    context: u64,
    partial_outputs: u64,
    partial_sums: u64,
    counters: u64,
    query_stride: u32,
    context_stride: u32,
    num_kv_heads: u32,
    group: u32,
    block_shift: u32,
    page_bytes: u32,
    window: u32,
    pad: u32,
}

impl Attention<'_> {
    /// `[rows, heads * head_dim]` to the same shape.
    pub(crate) fn run(
        &mut self,
        stream: &mut Stream,
        queries: &Matrix,
        context: &mut Matrix,
    ) -> Result<(), GpuError> {
        let plan = &self.step.attention;
        let kv = self.cache.shape();
        let shape = Shape::of(kv);
        assert_eq!(plan.shape, shape, "attention: the cache that the batch was made for");
        assert_eq!(kv.head_dim, HEAD_DIM, "attention: the width of a head");
        assert_eq!(queries.cols(), kv.num_query_heads * HEAD_DIM, "attention: columns of queries");
        assert_eq!(self.sinks.num_heads, kv.num_query_heads, "attention: a sink for each query head");
        let kernels = if kv.dtype == KvDtype::Fp8 { &FP8 } else { &BF16 };
        let page_bytes = self.cache.page_bytes();
        assert!(u32::try_from(page_bytes).is_ok(), "attention: pages of {page_bytes} bytes");

        let window = kv.windows[self.layer];
        let rounds = if window.is_some() { &plan.sliding } else { &plan.full };
        if rounds.is_empty() {
            return Ok(());
        }
        let args = Args {
            step: self.step.address,
            work: 0,
            queries: queries.address(),
            pages: self.cache.layer(self.layer),
            exponents: self.cache.exponents(self.layer),
            sinks: self.sinks.memory.address(),
            context: context.address(),
            partial_outputs: self.scratch.outputs(stream, plan)?,
            partial_sums: self.scratch.sums(stream, plan)?,
            counters: self.scratch.counters(stream, plan)?,
            query_stride: queries.stride() as u32,
            context_stride: context.stride() as u32,
            num_kv_heads: shape.num_kv_heads,
            group: shape.group,
            block_shift: kv.block_size.trailing_zeros(),
            page_bytes: page_bytes as u32,
            window: window.unwrap_or(0),
            pad: 0,
        };
        let decode_blocks = resident_blocks(stream.facts(), kernels.decode_shared_bytes, DECODE_BLOCKS_MAX)
            .min(decode_units_max(self.step.num_slices, &shape, window));
        let prefill_blocks = resident_blocks(stream.facts(), PREFILL_SHARED_BYTES, PREFILL_BLOCKS_MAX);
        let prefill = if stream.facts().is_hopper() { kernels.prefill_hopper } else { kernels.prefill };
        for &Round { work, has_decode, has_prefill } in rounds {
            let args = Args { work, ..args };
            // The longer ones first; the others then fill what they leave.
            if has_prefill {
                stream.launch(prefill, [prefill_blocks, 1, 1], PREFILL_SHARED_BYTES, &args);
            }
            if has_decode {
                stream.launch(kernels.decode, [decode_blocks, 1, 1], kernels.decode_shared_bytes, &args);
            }
        }
        Ok(())
    }
}

/// Blocks that run at the same time. They take what there is to do in turns, so
/// that a grid does not depend on what is in a step.
fn resident_blocks(facts: &Facts, shared_bytes: u32, most: u32) -> u32 {
    let of_sm = (facts.shared_bytes_max + SM_BYTES_BESIDE) / (shared_bytes + SHARED_BYTES_BESIDE);
    facts.num_sms * of_sm.clamp(1, most)
}

/// For more blocks the step's slices cannot have work.
fn decode_units_max(num_slices: usize, shape: &Shape, window: Option<u32>) -> u32 {
    let splits_max = window.map_or(SPLITS_MAX, |window| {
        let keys_max = window.saturating_add(DECODE_ROWS - 1);
        keys_max.div_ceil(decode_split(keys_max)).min(SPLITS_MAX)
    });
    (num_slices as u32).saturating_mul(shape.num_kv_heads).saturating_mul(splits_max)
}

impl Scratch {
    /// Room for the partial results of any step.
    pub(crate) fn reserve(&mut self, stream: &mut Stream, needs: &Needs<'_>) -> Result<(), GpuError> {
        if needs.limits.max_rows == 0 {
            return Ok(());
        }
        // Where none are needed one is, for the kernels' arguments.
        let partials = plan::partials_max(needs.limits, needs.kv, stream.options()).max(2);
        stream.reserve(&mut self.outputs, partials * HEAD_DIM * size_of::<f32>())?;
        stream.reserve(&mut self.sums, partials * size_of::<[f32; 2]>())?;
        // Two rows are the fewest that a counter is for.
        let most = Plan { num_counters: (partials / 2) as u32, ..Plan::default() };
        self.counters(stream, &most)?;
        Ok(())
    }

    fn outputs(&mut self, stream: &Stream, plan: &Plan) -> Result<u64, GpuError> {
        stream.grow(&mut self.outputs, plan.num_partials as usize * HEAD_DIM * size_of::<f32>())
    }

    fn sums(&mut self, stream: &Stream, plan: &Plan) -> Result<u64, GpuError> {
        stream.grow(&mut self.sums, plan.num_partials as usize * size_of::<[f32; 2]>())
    }

    /// Counters that are new are 0; each launch leaves them so.
    fn counters(&mut self, stream: &mut Stream, plan: &Plan) -> Result<u64, GpuError> {
        let needed = plan.num_counters as usize * size_of::<u32>();
        let held = self.counters.take();
        let counters = match held {
            Some(held) if held.len() >= needed => held,
            _ => {
                let zeros = vec![0u8; needed.next_power_of_two()];
                let counters = stream.alloc(zeros.len())?;
                stream.upload(&zeros, &counters, 0)?;
                counters
            }
        };
        Ok(self.counters.insert(counters).address())
    }
}
