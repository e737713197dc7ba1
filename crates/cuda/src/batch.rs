//! One step's columns on the GPU, in one block of memory that is copied at once.
//!
//! What is as long as the counts of rows, slices and logit rows say comes first,
//! so that steps of equal counts have it at equal addresses and their launches
//! are equal; what varies beside them comes last, found through the header.
//! The kernels' side is kernels/step.cuh.

use crate::attention;
use crate::gpu::GpuError;
use crate::launch::Kernel;
use crate::memory::Memory;
use crate::sample::{self, Samples};
use crate::stream::Stream;
use bytemuck::{Pod, Zeroable};
use chorale_device::{BatchLimits, Columns, KvShape, RopeParams, SliceColumns};

/// Set in a token that is still a number among the samples of the step before.
pub(crate) const FEED_BIT: u32 = 1 << 31;

/// The step's header, word for word `StepHeader`.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Header {
    num_rows: u32,
    num_slices: u32,
    num_logit_rows: u32,
    pub(crate) draw_lists: u32,
    spare: [u32; 12],
}

/// A slice, word for word `StepSlice`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct SliceRecord {
    pub(crate) first_row: u32,
    pub(crate) num_rows: u32,
    pub(crate) first_position: u32,
    pub(crate) full_first: u32,
    pub(crate) full_pages: u32,
    pub(crate) sliding_first: u32,
    pub(crate) sliding_pages: u32,
    pad: u32,
}

/// Where the parts of a step lie, as addresses on the GPU.
#[derive(Clone, Debug, Default)]
pub(crate) struct Step {
    pub(crate) num_rows: usize,
    pub(crate) num_slices: usize,
    /// The header.
    pub(crate) address: u64,
    /// `[rows]`: tokens, or with [`FEED_BIT`] places among `fed`.
    pub(crate) tokens: u64,
    /// `[rows]`.
    pub(crate) positions: u64,
    /// `[rows]`: which slice a row belongs to.
    pub(crate) row_slices: u64,
    /// `[slices]` of [`SliceRecord`].
    pub(crate) slices: u64,
    pub(crate) num_logit_rows: usize,
    /// `[logit rows]`.
    pub(crate) logit_rows: u64,
    /// The tokens that the step before sampled.
    pub(crate) fed: u64,
    /// Cosine and sine of each pair: `[rows, head_dim / 2]` of two f32.
    pub(crate) rotary: u64,
    pub(crate) attention: attention::Plan,
    pub(crate) draws: sample::Draws,
}

/// Room for one step's columns.
pub struct Batch {
    limits: BatchLimits,
    kv: KvShape,
    head_dim: usize,
    /// f64, radians per position.
    frequencies: Memory,
    factor: f32,
    rotary: Memory,
    descriptor: Option<Memory>,
    pub(crate) step: Step,
}

/// Words of a descriptor, filled on the host.
#[derive(Default)]
pub(crate) struct Descriptor {
    words: Vec<u32>,
}

impl Descriptor {
    /// Room for steps of this size, as long as no page is in two sequences and no
    /// draw brings lists along: those that do may need more.
    fn bytes_without_lists(limits: BatchLimits, kv: &KvShape) -> usize {
        let BatchLimits { max_rows, max_slices, max_logit_rows } = limits;
        if max_rows == 0 {
            return 0;
        }
        let columns = 3 * max_rows + max_logit_rows;
        let pages = kv.num_full_blocks + kv.num_sliding_blocks;
        let words = columns + pages + attention::work_words_max(limits, kv);
        let records = size_of::<Header>()
            + max_slices * size_of::<SliceRecord>()
            + max_logit_rows * sample::Draws::BYTES_EACH
            + size_of_val(&attention::ROOM);
        // What is pushed begins at multiples of 16 bytes.
        words * size_of::<u32>() + records + 16 * (16 + 2 * max_slices)
    }

    /// Appends values at a multiple of 16 bytes, and gives their place in words.
    pub(crate) fn push<T: Pod>(&mut self, values: &[T]) -> u32 {
        self.words.resize(self.words.len().next_multiple_of(4), 0);
        let start = self.words.len();
        self.words.extend_from_slice(bytemuck::cast_slice(values));
        start as u32
    }

    /// Writes values where others were pushed.
    pub(crate) fn set<T: Pod>(&mut self, start: u32, values: &[T]) {
        let words: &[u32] = bytemuck::cast_slice(values);
        self.words[start as usize..][..words.len()].copy_from_slice(words);
    }
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct RotaryArgs {
    positions: u64,
    frequencies: u64,
    out: u64,
    num_rows: u32,
    num_pairs: u32,
    factor: f32,
    pad: u32,
}

const ROTARY: Kernel = Kernel { name: "rotary", threads: 128 };

impl Batch {
    pub(crate) fn new(
        stream: &mut Stream,
        limits: BatchLimits,
        rope: &RopeParams,
        kv: &KvShape,
    ) -> Result<Self, GpuError> {
        let values = rope.frequencies();
        let frequencies = stream.alloc(size_of_val(&values[..]))?;
        stream.upload(bytemuck::cast_slice(&values), &frequencies, 0)?;
        let rotary = stream.alloc(limits.max_rows * rope.head_dim * size_of::<f32>())?;
        let mut descriptor = None;
        stream.reserve(&mut descriptor, Descriptor::bytes_without_lists(limits, kv))?;
        Ok(Self {
            limits,
            kv: kv.clone(),
            head_dim: rope.head_dim,
            frequencies,
            factor: rope.factor() as f32,
            rotary,
            descriptor,
            step: Step::default(),
        })
    }

    pub(crate) fn begin(
        &mut self,
        stream: &mut Stream,
        columns: &Columns,
        before: &Samples,
    ) -> Result<(), GpuError> {
        let BatchLimits { max_rows, max_slices, max_logit_rows } = self.limits;
        assert!(columns.num_rows() <= max_rows && columns.slices.len() <= max_slices);
        assert!(columns.logit_rows.len() <= max_logit_rows);
        assert_eq!(columns.positions.len(), columns.num_rows(), "a position for each row");
        let is_row = |&row: &u32| (row as usize) < columns.num_rows();
        assert!(columns.logit_rows.iter().all(is_row), "logits of rows of the step");

        let mut descriptor = Descriptor::default();
        let mut header = Header {
            num_rows: columns.num_rows() as u32,
            num_slices: columns.slices.len() as u32,
            num_logit_rows: columns.logit_rows.len() as u32,
            ..Header::default()
        };
        descriptor.push(&[header]);
        let tokens = descriptor.push(&tokens(columns, before));
        let positions = descriptor.push(&columns.positions);
        let row_slices = descriptor.push(&row_slices(columns));
        let logit_rows = descriptor.push(&columns.logit_rows);
        let slices = descriptor.push(&vec![SliceRecord::zeroed(); columns.slices.len()]);
        let draws = sample::Draws::describe(&columns.draws, &mut header, &mut descriptor);
        let attention_room = descriptor.push(&attention::ROOM);
        // From here on the lengths vary between steps of equal counts.
        let record = |slice: &SliceColumns| SliceRecord {
            first_row: slice.rows.start,
            num_rows: slice.rows.len() as u32,
            first_position: columns.positions[slice.rows.start as usize],
            full_first: slice.full.first,
            full_pages: descriptor.push(&slice.full.pages),
            sliding_first: slice.sliding.first,
            sliding_pages: descriptor.push(&slice.sliding.pages),
            pad: 0,
        };
        let records: Vec<SliceRecord> = columns.slices.iter().map(record).collect();
        let made_for = (&self.kv, stream.options());
        let attention = attention::Plan::new(columns, &records, made_for, attention_room, &mut descriptor);
        sample::Draws::describe_lists(&columns.draws, &mut header, &mut descriptor);
        descriptor.set(slices, &records);
        descriptor.set(0, &[header]);

        let bytes: &[u8] = bytemuck::cast_slice(&descriptor.words);
        let base = stream.grow(&mut self.descriptor, bytes.len())?;
        if let Some(memory) = &self.descriptor {
            stream.upload(bytes, memory, 0)?;
        }
        let at = |word: u32| base + u64::from(word) * size_of::<u32>() as u64;
        self.step = Step {
            num_rows: columns.num_rows(),
            num_slices: columns.slices.len(),
            address: base,
            tokens: at(tokens),
            positions: at(positions),
            row_slices: at(row_slices),
            slices: at(slices),
            num_logit_rows: columns.logit_rows.len(),
            logit_rows: at(logit_rows),
            fed: before.tokens(),
            rotary: self.rotary.address(),
            attention: attention.placed(at),
            draws: draws.placed(at),
        };
        self.rotate(stream);
        Ok(())
    }

    /// Cosines and sines of the step's positions.
    fn rotate(&self, stream: &mut Stream) {
        let num_pairs = self.head_dim / 2;
        if self.step.num_rows == 0 {
            return;
        }
        let args = RotaryArgs {
            positions: self.step.positions,
            frequencies: self.frequencies.address(),
            out: self.rotary.address(),
            num_rows: self.step.num_rows as u32,
            num_pairs: num_pairs as u32,
            factor: self.factor,
            pad: 0,
        };
        let blocks = (self.step.num_rows * num_pairs).div_ceil(ROTARY.threads as usize);
        stream.launch(ROTARY, [blocks as u32, 1, 1], 0, &args);
    }
}

/// Tokens, and where those come from that are not known yet.
fn tokens(columns: &Columns, before: &Samples) -> Vec<u32> {
    let mut tokens = columns.tokens.clone();
    for feed in &columns.feeds {
        assert!((feed.sample as usize) < before.rows(), "the step before sampled it");
        tokens[feed.row as usize] = FEED_BIT | feed.sample;
    }
    tokens
}

fn row_slices(columns: &Columns) -> Vec<u32> {
    let mut slices = vec![0; columns.num_rows()];
    for (index, slice) in columns.slices.iter().enumerate() {
        slices[slice.rows.start as usize..slice.rows.end as usize].fill(index as u32);
    }
    slices
}
