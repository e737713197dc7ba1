//! Worlds of ranks over the local transport, and sequences that run in them.

use chorale_device::Cpu;
use chorale_link::{LocalAbort, Transport, local};
use chorale_model::LoadProgress;
use chorale_model::checkpoint::Checkpoint;
use chorale_model::offline::{OfflineLimits, OfflineSequence};
use chorale_plan::{
    Assignment, Carrier, DenseFormat, Epoch, ExchangeOptions, KvFormat, Placement, Rank as RankId, Room,
    Sample, SamplingParams, SequenceId, SequenceSlice, Shape, SliceTokens, StepJoin, StepOutput, StepPlan,
    TokenId,
};
use chorale_worker::{Rank, RankError};
use std::future::Future;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Sequences of each home, and how long they get.
pub(crate) const LIMITS: OfflineLimits =
    OfflineLimits { num_sequences: 4, max_tokens: 160, max_slice_tokens: 40, max_rows: 64, block_size: 16 };

/// Tokens after each prompt.
const NUM_TOKENS: usize = 8;

pub(crate) const fn shape(tensor_parallel_size: u32, data_parallel_size: u32, num_ranks: u32) -> Shape {
    Shape { tensor_parallel_size, data_parallel_size, num_ranks }
}

pub(crate) fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

pub(crate) fn open(model: &str) -> Arc<Checkpoint> {
    let models = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/models"));
    Arc::new(Checkpoint::open(&models.join(model)).unwrap())
}

/// Uneven, and every third expert on several ranks.
pub(crate) fn uneven(checkpoint: &Checkpoint, num_ranks: u32, version: u32) -> Placement {
    let config = checkpoint.config();
    let expert = |layer: usize, expert: usize| {
        let number = (layer * 7 + expert * 5 + expert / 3 + version as usize) as u32;
        let mut ranks = vec![RankId(number * number % num_ranks)];
        if expert.is_multiple_of(3) {
            ranks.extend((0..num_ranks).filter(|rank| (rank + number).is_multiple_of(2)).map(RankId));
        }
        ranks.sort();
        ranks.dedup();
        ranks
    };
    let layer = |layer| (0..config.num_experts).map(|number| expert(layer, number)).collect();
    Placement { version, layers: (0..config.num_layers()).map(layer).collect() }
}

/// Ranks with places in an epoch.
pub(crate) struct World {
    pub(crate) checkpoint: Arc<Checkpoint>,
    pub(crate) shape: Shape,
    pub(crate) ranks: Vec<Rank>,
    pub(crate) abort: LocalAbort,
    /// What each rank told of its loading, first and last.
    pub(crate) loaded: Vec<Vec<LoadProgress>>,
    /// Whether steps are computed in halves, by their number.
    pub(crate) in_halves: fn(u64) -> bool,
}

pub(crate) fn start_ranks(count: u32) -> Vec<Rank> {
    (0..count).map(|_| Rank::start(Cpu::new(NonZeroUsize::new(1)).unwrap()).unwrap()).collect()
}

pub(crate) fn assignment(
    checkpoint: &Checkpoint,
    epoch: u64,
    shape: Shape,
    rank: RankId,
    placement: Placement,
) -> Assignment {
    let room = LIMITS.room(checkpoint.config(), chorale_device::KvDtype::F32);
    Assignment {
        epoch: Epoch(epoch),
        shape,
        rank,
        addresses: Vec::new(),
        placement,
        room: Room {
            max_step_tokens: room.limits.max_rows as u32,
            max_step_slices: room.limits.max_slices as u32,
            block_size_tokens: room.block_size as u32,
            num_full_blocks: room.num_full_blocks as u32,
            num_sliding_blocks: room.num_sliding_blocks as u32,
            kv_dtype: KvFormat::F32,
        },
        exchange: ExchangeOptions { overlap_min_rows: Some(2), ..ExchangeOptions::exact(10_000) },
        carrier: Carrier::Frames,
        dense_dtype: DenseFormat::Bf16,
    }
}

impl World {
    /// New ranks.
    pub(crate) fn new(checkpoint: &Arc<Checkpoint>, shape: Shape) -> Self {
        let placement = uneven(checkpoint, shape.num_ranks, 0);
        Self::of(start_ranks(shape.num_ranks), checkpoint, 1, shape, placement)
    }

    /// Ranks that may have had other places before.
    pub(crate) fn of(
        ranks: Vec<Rank>,
        checkpoint: &Arc<Checkpoint>,
        epoch: u64,
        shape: Shape,
        placement: Placement,
    ) -> Self {
        Self::changed(ranks, checkpoint, (epoch, shape), placement, &|_| ())
    }

    /// The same with other places than usual.
    pub(crate) fn changed(
        ranks: Vec<Rank>,
        checkpoint: &Arc<Checkpoint>,
        (epoch, shape): (u64, Shape),
        placement: Placement,
        change: &dyn Fn(&mut Assignment),
    ) -> Self {
        let transports = local(shape.num_ranks, Duration::from_secs(10));
        let abort = transports[0].abort_handle();
        let mut loaded = Vec::new();
        let mut taken = Vec::new();
        for ((rank, id), transport) in ranks.iter().zip(shape.ranks()).zip(transports) {
            let told = Arc::new(Mutex::new(Vec::new()));
            let telling = Arc::clone(&told);
            let on_progress = Box::new(move |progress| telling.lock().unwrap().push(progress));
            let mut assignment = assignment(checkpoint, epoch, shape, id, placement.clone());
            change(&mut assignment);
            let transport: Box<dyn Transport> = Box::new(transport);
            taken.push(rank.take(assignment, Arc::clone(checkpoint), transport, on_progress));
            loaded.push(told);
        }
        taken.into_iter().for_each(|taken| wait(taken).unwrap());
        let loaded = loaded.into_iter().map(|told| told.lock().unwrap().clone()).collect();
        Self { checkpoint: Arc::clone(checkpoint), shape, ranks, abort, loaded, in_halves: |_| false }
    }

    /// Runs a plan on all ranks and joins what they sampled.
    pub(crate) fn step(&self, placement: u32, plan: &StepPlan) -> Result<StepOutput, Vec<RankError>> {
        let running: Vec<_> = self
            .ranks
            .iter()
            .zip(self.shape.ranks())
            .map(|(rank, id)| rank.step(placement, plan.part_of(self.shape, id)))
            .collect();
        let mut join = StepJoin::new(self.shape, plan).unwrap();
        let (mut joined, mut errors) = (None, Vec::new());
        for (id, step) in self.shape.ranks().zip(running) {
            match wait(step) {
                Ok((output, report)) => {
                    assert!(report.waited_us <= report.total_us);
                    let is_home = self.shape.homes().any(|home| home == id);
                    assert!(is_home || output.samples.is_empty(), "{id:?} has nothing to tell");
                    joined = join.done(id, output).unwrap();
                }
                Err(error) => errors.push(error),
            }
        }
        if errors.is_empty() { Ok(joined.unwrap()) } else { Err(errors) }
    }

    /// Sequences that are dealt to the homes.
    pub(crate) fn sequences(&self, count: usize) -> Vec<Sequence> {
        let vocab_size = self.checkpoint.config().vocab_size;
        let homes: Vec<RankId> = self.shape.homes().collect();
        let sequence = |number: usize| {
            let prompt = (0..[33, 1, 90, 17, 60][number % 5])
                .map(|index| ((number * 131 + index * 17 + 7) % vocab_size) as TokenId)
                .collect();
            let params = SamplingParams {
                temperature: (number % 2) as f32,
                seed: number as u64,
                num_logprobs: Some(10),
                ..SamplingParams::greedy()
            };
            Sequence {
                id: SequenceId(number as u64),
                home: homes[number % homes.len()],
                inner: OfflineSequence::new(number / homes.len(), prompt, LIMITS, self.checkpoint.config()),
                params,
                samples: Vec::new(),
            }
        };
        (0..count).map(sequence).collect()
    }

    /// Computes sequences together, from `step` on; `placement` says which each step uses.
    pub(crate) fn generate(
        &self,
        count: usize,
        step: u64,
        mut placement: impl FnMut(u64) -> u32,
    ) -> Vec<Vec<Sample>> {
        let mut sequences = self.sequences(count);
        for step in step.. {
            let unfinished = sequences.iter_mut().filter(|sequence| sequence.samples.len() < NUM_TOKENS);
            let slices: Vec<SequenceSlice> = unfinished.map(Sequence::take_slice).collect();
            if slices.is_empty() {
                break;
            }
            let output = self
                .step(
                    placement(step),
                    &StepPlan { step, in_halves: (self.in_halves)(step), home_rows: Vec::new(), slices },
                )
                .unwrap();
            for sample in output.samples {
                let sequence = &mut sequences[sample.sequence.0 as usize];
                sequence.inner.push(sample.token);
                sequence.samples.push(sample);
            }
        }
        sequences.into_iter().map(|sequence| sequence.samples).collect()
    }
}

/// One sequence at its home.
pub(crate) struct Sequence {
    id: SequenceId,
    home: RankId,
    inner: OfflineSequence,
    params: SamplingParams,
    samples: Vec<Sample>,
}

impl Sequence {
    pub(crate) fn take_slice(&mut self) -> SequenceSlice {
        // Four of them fill a step of 64 rows.
        let mut slice = self.inner.take_slice(16, &self.params);
        if !self.samples.is_empty() {
            slice.tokens = SliceTokens::SampledBefore;
        }
        SequenceSlice { sequence: self.id, home: self.home, ..slice }
    }
}

/// What one rank alone says.
pub(crate) fn alone(checkpoint: &Arc<Checkpoint>, count: usize) -> Vec<Vec<Sample>> {
    World::new(checkpoint, Shape::SOLO).generate(count, 1, |_| 0)
}
