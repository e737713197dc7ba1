//! What a step's draws are, as the kernels read it from the step's descriptor.

use crate::batch::{Descriptor, Header};
use bytemuck::{Pod, Zeroable};
use chorale_device::Draw;
use std::sync::Arc;

/// Tokens of a slice: the kernels' `SLICE`.
pub(super) const SLICE: usize = 4096;
/// No offset, or no job.
const NONE: u32 = u32::MAX;

/// What the step's draws are.
#[derive(Clone, Debug, Default)]
pub(crate) struct Draws {
    /// `[jobs]` of [`Job`]: a draw each, then the scores that some ask for.
    pub(super) jobs: u64,
    pub(super) num_jobs: usize,
    /// How many of the most probable tokens each draw reports.
    pub(super) asked: Arc<[Option<u32>]>,
    /// The end of the tokens that draws name.
    pub(super) tokens_end: usize,
    /// True if a draw is from some tokens only.
    pub(super) is_weighed: bool,
    /// True if these are found by their order.
    pub(super) is_sorted: bool,
}

/// How a job chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
enum Kind {
    Largest,
    ByToken,
    ByTokenFloored,
    ByWeight,
    Scores,
}

/// Field for field `SampleJob`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Job {
    uniform: f64,
    inverse_temperature: f64,
    min_p: f32,
    top_p: f32,
    kind: u32,
    row: u32,
    top_k: u32,
    lists: u32,
    scores: u32,
    top_at: u32,
}

/// Field for field `DrawLists`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Lists {
    allowed: u32,
    allowed_words: u32,
    bias_starts: u32,
    bias_entries: u32,
    bias_slices: u32,
    history_starts: u32,
    history_entries: u32,
    history_slices: u32,
    repetition: f32,
    presence: f32,
    frequency: f32,
    pad: u32,
}

/// A token, and a word that goes with it.
type Entry = [u32; 2];

fn kind(draw: &Draw) -> Kind {
    if draw.temperature == 0.0 {
        Kind::Largest
    } else if draw.top_k > 0 || draw.top_p < 1.0 {
        Kind::ByWeight
    } else if draw.min_p > 0.0 {
        Kind::ByTokenFloored
    } else {
        Kind::ByToken
    }
}

fn has_lists(draw: &Draw) -> bool {
    draw.allowed.is_some() || !draw.bias.is_empty() || draw.penalties.is_some()
}

impl Draws {
    /// Bytes of the descriptor for a draw and its scores.
    pub(crate) const BYTES_EACH: usize = 2 * size_of::<Job>();

    /// What each draw has, as long as there are draws.
    pub(crate) fn describe(draws: &[Draw], _header: &mut Header, descriptor: &mut Descriptor) -> Self {
        let mut jobs = Vec::with_capacity(draws.len() * 2);
        let mut scores = Vec::new();
        let mut num_lists = 0;
        let mut reported = 0;
        for (draw, row) in draws.iter().zip(0..) {
            let mut job = Job {
                uniform: draw.uniform(),
                inverse_temperature: 1.0 / f64::from(draw.temperature),
                min_p: draw.min_p,
                top_p: draw.top_p,
                kind: kind(draw) as u32,
                row,
                top_k: draw.top_k,
                lists: NONE,
                scores: NONE,
                top_at: 0,
            };
            if has_lists(draw) {
                job.lists = num_lists;
                num_lists += 1;
            }
            if let Some(count) = draw.num_logprobs {
                job.scores = (draws.len() + scores.len()) as u32;
                let kind = Kind::Scores as u32;
                let score = Job { kind, row, top_k: count, top_at: reported, lists: NONE, ..job };
                scores.push(score);
                reported += 2 * count;
            }
            jobs.push(job);
        }
        let is_reported = scores.iter().any(|score| score.top_k > 0);
        let is_sorted = is_reported || draws.iter().any(|draw| kind(draw) == Kind::ByWeight);
        let is_floored = draws.iter().any(|draw| kind(draw) == Kind::ByTokenFloored);
        jobs.append(&mut scores);
        Self {
            jobs: u64::from(descriptor.push(&jobs)),
            num_jobs: jobs.len(),
            asked: draws.iter().map(|draw| draw.num_logprobs).collect(),
            tokens_end: draws.iter().flat_map(named).max().map_or(0, |token| token as usize + 1),
            is_weighed: is_sorted || is_floored,
            is_sorted,
        }
    }

    /// What single draws bring along, of any length.
    pub(crate) fn describe_lists(draws: &[Draw], header: &mut Header, descriptor: &mut Descriptor) {
        let lists: Vec<Lists> =
            draws.iter().filter(|draw| has_lists(draw)).map(|draw| lists(draw, descriptor)).collect();
        header.draw_lists = descriptor.push(&lists);
    }

    /// The same with places as addresses.
    pub(crate) fn placed(self, at: impl Fn(u32) -> u64) -> Self {
        Self { jobs: at(self.jobs as u32), ..self }
    }
}

/// The tokens that a draw names.
fn named(draw: &Draw) -> impl Iterator<Item = u32> {
    let history = draw.penalties.iter().flat_map(|penalties| &penalties.history);
    draw.bias.iter().map(|&(token, _)| token).chain(history.map(|&(token, _)| token))
}

fn lists(draw: &Draw, descriptor: &mut Descriptor) -> Lists {
    let (allowed, allowed_words) = match &draw.allowed {
        Some(words) => (descriptor.push(words), words.len() as u32),
        None => (NONE, 0),
    };
    let mut bias: Vec<Entry> = draw.bias.iter().map(|&(token, bias)| [token, bias.to_bits()]).collect();
    // Stable: what falls on one token is added in the order of the list.
    bias.sort_by_key(|entry| entry[0]);
    let bias = BySlice::push(&bias, descriptor);
    let (repetition, presence, frequency, history) = match &draw.penalties {
        Some(penalties) => {
            let history: Vec<Entry> =
                penalties.history.iter().map(|&(token, count)| [token, count]).collect();
            let history = BySlice::push(&history, descriptor);
            (penalties.repetition, penalties.presence, penalties.frequency, history)
        }
        None => (1.0, 0.0, 0.0, BySlice::default()),
    };
    Lists {
        allowed,
        allowed_words,
        bias_starts: bias.starts,
        bias_entries: bias.entries,
        bias_slices: bias.num_slices,
        history_starts: history.starts,
        history_entries: history.entries,
        history_slices: history.num_slices,
        repetition,
        presence,
        frequency,
        pad: 0,
    }
}

/// Where entries are that are grouped by the slice of their token.
#[derive(Default)]
struct BySlice {
    starts: u32,
    entries: u32,
    num_slices: u32,
}

impl BySlice {
    /// Groups entries, which stay in order within a slice.
    fn push(entries: &[Entry], descriptor: &mut Descriptor) -> Self {
        let slice = |entry: &Entry| entry[0] as usize / SLICE;
        let Some(last) = entries.iter().map(slice).max() else { return Self::default() };
        let mut starts = vec![0u32; last + 2];
        for entry in entries {
            starts[slice(entry) + 1] += 1;
        }
        for index in 1..starts.len() {
            starts[index] += starts[index - 1];
        }
        let mut grouped = vec![Entry::default(); entries.len()];
        let mut next = starts.clone();
        for entry in entries {
            let place = &mut next[slice(entry)];
            grouped[*place as usize] = *entry;
            *place += 1;
        }
        Self {
            starts: descriptor.push(&starts),
            entries: descriptor.push(&grouped),
            num_slices: last as u32 + 1,
        }
    }
}
