//! Draws tokens from logits. The kernels are in kernels/sample.cu and
//! kernels/sample_pick.cu; the portable device says what they compute.

mod draws;

use crate::batch::Step;
use crate::gpu::GpuError;
use crate::launch::Kernel;
use crate::matrix::Matrix;
use crate::memory::Memory;
use crate::stream::Stream;
use bytemuck::{Pod, Zeroable};
use chorale_device::{Drawn, Fetched, Needs};
use std::sync::Arc;

pub(crate) use draws::Draws;

/// Slices of a row, a thread of a block for each.
const MAX_SLICES: usize = 256;
/// Tokens that a block sorts: the kernels' `LISTED`.
const LISTED: usize = 2048;
/// Bytes of the kernels' structs.
const PART_BYTES: usize = 16;
const BINS_BYTES: usize = 1024 * (8 + 4) + 16;
/// Reported tokens of each row that there is room for from the start.
const ROOM_PER_ROW: usize = 20;

const SCAN: Kernel = Kernel { name: "sample_scan", threads: 256 };
const WEIGH: Kernel = Kernel { name: "sample_weigh", threads: 256 };
const LIST: Kernel = Kernel { name: "sample_list", threads: 256 };
const PICK: Kernel = Kernel { name: "sample_pick", threads: 256 };

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct SampleArgs {
    step: u64,
    jobs: u64,
    logits: u64,
    parts: u64,
    bins: u64,
    listed: u64,
    tokens: u64,
    logprobs: u64,
    reported: u64,
    cols: u32,
    stride: u32,
    slices: u32,
    pad: u32,
}

/// Drawn tokens.
pub struct Samples {
    /// u32 `[rows]`; if scores are asked for, f32 `[rows]` and what is reported.
    memory: Option<Memory>,
    max_rows: usize,
    rows: usize,
    /// The vocabulary that they were drawn from.
    cols: usize,
    asked: Arc<[Option<u32>]>,
}

/// Buffers that keep their capacity between calls.
#[derive(Default)]
pub(crate) struct Scratch {
    parts: Option<Memory>,
    bins: Option<Memory>,
    listed: Option<Memory>,
}

impl Scratch {
    /// Room for draws that report what they may.
    pub(crate) fn reserve(&mut self, stream: &Stream, needs: &Needs<'_>) -> Result<(), GpuError> {
        // A draw, and its scores.
        let num_jobs = 2 * needs.limits.max_logit_rows;
        let num_slices = needs.vocab_size.div_ceil(draws::SLICE);
        stream.reserve(&mut self.parts, num_jobs * num_slices * PART_BYTES)?;
        stream.reserve(&mut self.bins, num_jobs * BINS_BYTES)?;
        stream.reserve(&mut self.listed, num_jobs * LISTED * size_of::<u64>())
    }
}

impl Samples {
    pub(crate) fn new(stream: &Stream, max_rows: usize) -> Result<Self, GpuError> {
        let mut memory = None;
        stream.grow(&mut memory, max_rows * (2 + 2 * ROOM_PER_ROW) * size_of::<u32>())?;
        Ok(Self { memory, max_rows, rows: 0, cols: 0, asked: Arc::default() })
    }

    /// Where the tokens are.
    pub(crate) fn tokens(&self) -> u64 {
        self.memory.as_ref().map_or(0, Memory::address)
    }

    /// How many were drawn.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn draw(
        &mut self,
        stream: &mut Stream,
        scratch: &mut Scratch,
        logits: &Matrix,
        step: &Step,
    ) -> Result<(), GpuError> {
        let Draws { jobs, num_jobs, asked, tokens_end, is_weighed, is_sorted } = &step.draws;
        let (rows, cols) = (asked.len(), logits.cols());
        assert_eq!(rows, logits.rows(), "a draw for each row of logits");
        assert!(rows <= self.max_rows, "{rows} rows in samples for {}", self.max_rows);
        assert!(*tokens_end <= cols, "a draw names token {} of {cols}", tokens_end - 1);
        assert!(asked.iter().flatten().all(|&count| count as usize <= LISTED), "at most {LISTED} logprobs");
        let num_slices = cols.div_ceil(draws::SLICE);
        assert!(num_slices <= MAX_SLICES, "a vocabulary of {cols}, at most {}", MAX_SLICES * draws::SLICE);
        (self.rows, self.cols, self.asked) = (rows, cols, Arc::clone(asked));
        if rows == 0 {
            return Ok(());
        }
        assert!(*num_jobs <= u16::MAX as usize, "{num_jobs} jobs in a grid");

        let words = words(asked);
        let tokens = stream.grow(&mut self.memory, words * size_of::<u32>())?;
        let (mut bins, mut listed) = (0, 0);
        if *is_sorted {
            bins = stream.grow(&mut scratch.bins, num_jobs * BINS_BYTES)?;
            listed = stream.grow(&mut scratch.listed, num_jobs * LISTED * size_of::<u64>())?;
        }
        let row_bytes = (rows * size_of::<u32>()) as u64;
        let args = SampleArgs {
            step: step.address,
            jobs: *jobs,
            logits: logits.address(),
            parts: stream.grow(&mut scratch.parts, num_jobs * num_slices * PART_BYTES)?,
            bins,
            listed,
            tokens,
            logprobs: tokens + row_bytes,
            reported: tokens + 2 * row_bytes,
            cols: cols as u32,
            stride: logits.stride() as u32,
            slices: num_slices as u32,
            pad: 0,
        };
        let all_slices = [num_slices as u32, *num_jobs as u32, 1];
        stream.launch(SCAN, all_slices, 0, &args);
        if *is_weighed {
            stream.launch(WEIGH, all_slices, 0, &args);
        }
        if *is_sorted {
            stream.launch(LIST, all_slices, 0, &args);
        }
        stream.launch(PICK, [*num_jobs as u32, 1, 1], 0, &args);
        Ok(())
    }

    /// Begins to copy what was drawn to the host.
    pub(crate) fn fetch(&self, stream: &mut Stream) -> Result<Fetched<GpuError>, GpuError> {
        let Some(memory) = self.memory.as_ref().filter(|_| self.rows > 0) else {
            return Ok(Fetched::Here(Vec::new()));
        };
        let arriving = stream.begin_download(memory, 0, words(&self.asked) * size_of::<u32>())?;
        let (asked, cols) = (Arc::clone(&self.asked), self.cols);
        Ok(Fetched::Coming(Box::new(move || Ok(drawn(&arriving()?, &asked, cols)))))
    }
}

/// Words that the host reads.
fn words(asked: &[Option<u32>]) -> usize {
    if asked.iter().all(Option::is_none) {
        return asked.len();
    }
    2 * asked.len() + asked.iter().flatten().map(|&count| 2 * count as usize).sum::<usize>()
}

/// Reads what the kernels wrote.
fn drawn(bytes: &[u8], asked: &[Option<u32>], cols: usize) -> Vec<Drawn> {
    let word = |index: usize| {
        let bytes = bytes[index * size_of::<u32>()..].first_chunk();
        u32::from_le_bytes(*bytes.expect("a word of what was copied"))
    };
    let number = |index: usize| f32::from_bits(word(index));
    let rows = asked.len();
    let mut reported = 2 * rows;
    let mut drawn = Vec::with_capacity(rows);
    for (row, &count) in asked.iter().enumerate() {
        let count_asked = count.unwrap_or(0) as usize;
        let top = (0..count_asked.min(cols)).map(|place| reported + place);
        drawn.push(Drawn {
            token: word(row),
            logprob: count.map(|_| number(rows + row)),
            top_logprobs: top.map(|at| (word(at), number(at + count_asked))).collect(),
        });
        reported += 2 * count_asked;
    }
    drawn
}
