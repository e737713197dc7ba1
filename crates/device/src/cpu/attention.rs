//! Causal attention over paged keys and values, with a window and a sink for
//! each query head. A query's result depends on its position alone: keys are
//! taken in the order of their positions, whatever slice computed them.

use super::kv_cache::{KvCache, Place};
use super::lanes;
use crate::columns::{Columns, Table};
use rayon::prelude::*;

/// Attention of one layer.
pub(super) struct Attention<'a> {
    pub(super) columns: &'a Columns,
    pub(super) cache: &'a KvCache,
    pub(super) layer: usize,
    /// One logit for each query head.
    pub(super) sinks: &'a [f32],
}

/// Room that a thread keeps from query to query.
#[derive(Default)]
struct Scratch {
    /// `[query heads, keys]`.
    scores: Vec<f32>,
    /// Keys or values of a page.
    decoded: Vec<f32>,
}

/// The keys and values that one query sees.
struct View<'a> {
    cache: &'a KvCache,
    layer: usize,
    head: usize,
    table: &'a Table,
    /// Positions `oldest..=newest`.
    oldest: usize,
    newest: usize,
}

impl Attention<'_> {
    /// `[rows, heads * head_dim]` to the same shape.
    pub(super) fn run(&self, queries: &[f32], context: &mut [f32]) {
        let shape = &self.cache.shape;
        let heads_per_kv = self.sinks.len() / shape.num_kv_heads;
        let width = heads_per_kv * shape.head_dim;
        let slice_of_row = self.slice_of_row();
        // One task is one row and one KV head with all the query heads it serves.
        let tasks = context.par_chunks_mut(width).zip(queries.par_chunks(width)).enumerate();
        tasks.for_each_init(Scratch::default, |scratch, (task, (context, queries))| {
            let (row, head) = (task / shape.num_kv_heads, task % shape.num_kv_heads);
            let position = self.columns.positions[row] as usize;
            let window = shape.windows[self.layer];
            let oldest = window.map_or(0, |window| (position + 1).saturating_sub(window as usize));
            let table = self.cache.table(self.layer, &self.columns.slices[slice_of_row[row]]);
            let view = View { cache: self.cache, layer: self.layer, head, table, oldest, newest: position };
            let sinks = &self.sinks[head * heads_per_kv..][..heads_per_kv];
            attend(&view, queries, sinks, scratch, context);
        });
    }

    fn slice_of_row(&self) -> Vec<usize> {
        let mut slices = vec![0; self.columns.num_rows()];
        for (index, slice) in self.columns.slices.iter().enumerate() {
            slices[slice.rows.start as usize..slice.rows.end as usize].fill(index);
        }
        slices
    }
}

impl View<'_> {
    /// Runs of positions that lie in one page, oldest first: where a run begins
    /// and how long it is.
    #[inline(always)]
    fn runs(&self) -> impl Iterator<Item = (Place, usize)> {
        let block_size = self.cache.shape.block_size;
        let mut next = self.oldest;
        std::iter::from_fn(move || {
            let position = next;
            next = (self.newest + 1).min((position / block_size + 1) * block_size);
            let place = || self.cache.place(self.layer, self.head, self.table, position);
            (position < next).then(|| (place(), next - position))
        })
    }
}

/// Softmax in two passes over the scores of each query head; the sink is one
/// more score, without a value.
#[multiversion::multiversion(targets(
    "x86_64+avx+avx2+bmi1+bmi2+avx512f+avx512bw+avx512cd+avx512dq+avx512vl",
    "x86_64+avx+avx2+bmi1+bmi2",
))]
fn attend(view: &View<'_>, queries: &[f32], sinks: &[f32], scratch: &mut Scratch, context: &mut [f32]) {
    let Scratch { scores, decoded } = scratch;
    let head_dim = view.cache.shape.head_dim;
    let num_keys = view.newest + 1 - view.oldest;
    let scale = 1.0 / (head_dim as f32).sqrt();
    scores.clear();
    scores.resize(num_keys * sinks.len(), 0.0);
    let mut index = 0;
    for (place, count) in view.runs() {
        for key in view.cache.keys(place, count, decoded).chunks_exact(head_dim) {
            lanes::dot_each(queries, key, |head, product| scores[head * num_keys + index] = product * scale);
            index += 1;
        }
    }
    for (scores, &sink) in scores.chunks_exact_mut(num_keys).zip(sinks) {
        let largest = scores.iter().copied().fold(sink, f32::max);
        let mut sum = f64::from((sink - largest).exp());
        for score in scores.iter_mut() {
            *score = (*score - largest).exp();
            sum += f64::from(*score);
        }
        let inverse = (1.0 / sum) as f32;
        for score in scores.iter_mut() {
            *score *= inverse;
        }
    }
    context.fill(0.0);
    let mut index = 0;
    for (place, count) in view.runs() {
        for value in view.cache.values(place, count, decoded).chunks_exact(head_dim) {
            for (head, context) in context.chunks_exact_mut(head_dim).enumerate() {
                lanes::add_scaled(context, scores[head * num_keys + index], value);
            }
            index += 1;
        }
    }
}
