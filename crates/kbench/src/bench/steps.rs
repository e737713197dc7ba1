//! Whole steps of a model of gpt-oss-120b's geometry, through the same layer
//! loop that serves, with random weights of which no two layers are alike: as
//! they are served, with kernels launched one by one, and batch-invariant.

use super::geometry::{BLOCK_SIZE, Extent, Geometry};
use super::limits::Limits;
use super::machine::Machine;
use super::report::{Measurement, Report};
use crate::failure::{Failure, ensure};
use crate::reference::Random;
use chorale_cuda::{Cuda, CudaOptions};
use chorale_device::KvDtype;
use chorale_link::Solo;
use chorale_model::checkpoint::Checkpoint;
use chorale_model::offline::{OfflineLimits, OfflineSequence};
use chorale_model::shard::ShardSpec;
use chorale_model::{GptOss, Seat, Weights};
use chorale_plan::{SamplingParams, SequenceSlice, SliceTokens, StepPlan, TokenId};
use std::ops::ControlFlow;
use std::time::Instant;

/// Decoding steps before those that are timed.
const WARMUPS: usize = 6;

type Engine = GptOss<Cuda, Solo<Cuda>>;

/// The model, between two measurements.
struct Model<'a> {
    machine: &'a Machine,
    geometry: &'a Geometry,
    extent: &'a Extent,
    limits: Limits,
    checkpoint: Checkpoint,
    spec: ShardSpec,
    /// None while an engine has them.
    parts: Option<(Cuda, Weights<Cuda>)>,
}

pub(crate) fn run(
    machine: &Machine,
    (geometry, extent): (&Geometry, &Extent),
    limits: Limits,
    report: &mut Report,
) -> Result<(), Failure> {
    if !extent.wants("whole steps") {
        return Ok(());
    }
    let free = machine.gpu().free_bytes()?;
    let fitting =
        free.saturating_sub(2 * geometry.table_bytes() + extent.spare_bytes) / geometry.layer_bytes();
    let num_layers = geometry.layers.min(extent.layers).min(fitting);
    ensure(num_layers > 0, || format!("no layer of the model fits into {} MiB", free >> 20))?;
    let mut model = Model::load(machine, (geometry, extent), num_layers, report)?;
    model.limits = limits;
    for &num_sequences in &extent.decodes {
        if let Err(failure) = model.decode(num_sequences, report) {
            report.fail(&format!("decoding {num_sequences}"), failure.to_string());
        }
    }
    for &rows in &extent.step_prefills {
        if let Err(failure) = model.prefill(rows, report) {
            report.fail(&format!("a prompt of {rows}"), failure.to_string());
        }
    }
    Ok(())
}

impl<'a> Model<'a> {
    fn load(
        machine: &'a Machine,
        (geometry, extent): (&'a Geometry, &'a Extent),
        num_layers: usize,
        report: &mut Report,
    ) -> Result<Self, Failure> {
        let checkpoint = geometry.checkpoint(num_layers, extent.seed)?;
        let spec = ShardSpec::whole(checkpoint.config());
        let mut device = machine.device();
        let mut weights = Weights::default();
        let started = Instant::now();
        let mut num_bytes = 0;
        weights.load(&mut device, &checkpoint, &spec, &mut |progress| {
            num_bytes = progress.bytes;
            ControlFlow::Continue(())
        })?;
        device.wait()?;
        let seconds = started.elapsed().as_secs_f64();
        report.measured(Measurement {
            what: "load".to_owned(),
            of: format!("{num_layers} layers from the host's memory"),
            microseconds: seconds * 1e6,
            gb_per_s: Some(num_bytes as f64 / seconds / 1e9),
            note: format!("{:.1} GB", num_bytes as f64 / 1e9),
            ..Measurement::default()
        });
        let limits = Limits { bytes_per_s: f64::INFINITY, flop_per_s: f64::INFINITY };
        let parts = Some((device, weights));
        Ok(Self { machine, geometry, extent, limits, checkpoint, spec, parts })
    }

    /// Runs something with the engine that has room as told.
    fn with<R>(
        &mut self,
        limits: OfflineLimits,
        run: impl FnOnce(&mut Engine) -> Result<R, Failure>,
    ) -> Result<R, Failure> {
        let (mut device, weights) = self
            .parts
            .take()
            .ok_or_else(|| Failure("the model was lost to an earlier failure".to_owned()))?;
        let config = self.checkpoint.config();
        let made = Solo::new(&mut device, config.num_experts as u32).and_then(|link| {
            Ok((link, Seat::new(&mut device, config, &self.spec, &limits.room(config, KvDtype::Bf16))?))
        });
        let (link, seat) = match made {
            Ok(made) => made,
            Err(error) => {
                self.parts = Some((device, weights));
                return Err(error.into());
            }
        };
        let mut engine = GptOss::new(device, link, weights, seat);
        let ran = run(&mut engine);
        self.parts = Some(engine.take_apart());
        ran
    }

    /// As long a context as the memory has room for.
    fn context(&self, num_sequences: usize) -> Result<usize, Failure> {
        let layers = self.checkpoint.config().num_layers();
        let free = self.machine.gpu().free_bytes()?.saturating_sub(self.extent.spare_bytes);
        let each = free / num_sequences / (self.geometry.kv_bytes(KvDtype::Bf16) * layers);
        // Half of the layers keep a window and a slice only.
        let slice = self.extent.fill_rows / num_sequences;
        let sliding = self.geometry.window as usize + slice + 2 * BLOCK_SIZE;
        let full = (2 * each).saturating_sub(sliding) / BLOCK_SIZE * BLOCK_SIZE;
        ensure(full > 3 * BLOCK_SIZE, || format!("no memory for the pages of {num_sequences} sequences"))?;
        Ok((full - 2 * BLOCK_SIZE).min(self.extent.context))
    }

    fn decode(&mut self, num_sequences: usize, report: &mut Report) -> Result<(), Failure> {
        let (machine, geometry, extent) = (self.machine, self.geometry, self.extent);
        let context = self.context(num_sequences)?;
        let room = OfflineLimits {
            num_sequences,
            max_tokens: context + Way::ALL.len() * (extent.steps + WARMUPS) + 8,
            max_slice_tokens: (extent.fill_rows / num_sequences).clamp(1, context),
            max_rows: extent.fill_rows.max(num_sequences),
            block_size: BLOCK_SIZE,
        };
        let config = self.checkpoint.config().clone();
        let timed = self.with(room, |engine| {
            let random = &mut Random(num_sequences as u64);
            let mut sequences: Vec<OfflineSequence> = (0..num_sequences)
                .map(|index| {
                    OfflineSequence::new(index, prompt(random, context, geometry.vocab), room, &config)
                })
                .collect();
            let mut step = 0;
            while sequences[0].num_pending() > 0 {
                step += 1;
                let slices = sequences.iter_mut().map(|s| s.take_slice(room.max_slice_tokens, &greedy()));
                engine.step(&plan(step, slices.collect()))?;
            }
            Way::ALL
                .map(|way| {
                    way.begin(machine, engine.device_mut());
                    let timed = Timed::run(machine, engine, &mut sequences, (&mut step, extent.steps));
                    Way::Served.begin(machine, engine.device_mut());
                    timed
                })
                .into_iter()
                .collect::<Result<Vec<Timed>, Failure>>()
        })?;
        let layers = config.num_layers();
        let seen = context + context.min(geometry.window as usize);
        // Half of the layers see the window only.
        let pages = num_sequences * seen * geometry.kv_bytes(KvDtype::Bf16) / 2;
        let experts = geometry.experts_met(num_sequences) * geometry.expert_bytes() as f64;
        let bytes = layers as f64 * (experts + (geometry.dense_bytes() + pages) as f64)
            + geometry.table_bytes() as f64;
        let served = timed[0].step;
        for (way, timed) in Way::ALL.into_iter().zip(timed) {
            report.measured(Measurement {
                what: way.title("decode step"),
                of: format!("{num_sequences} sequences, context {context}, {layers} layers"),
                microseconds: timed.step * 1e6,
                gb_per_s: Some(bytes / timed.step / 1e9),
                share: Some(bytes / self.limits.bytes_per_s / timed.step),
                tokens_per_s: Some(num_sequences as f64 / timed.step),
                gap_microseconds: Some(timed.gap * 1e6),
                host_microseconds: Some(timed.host * 1e6),
                ratio: (way != Way::Served).then_some(timed.step / served),
                note: format!("{} replayed, {} eager launches", timed.replayed, timed.eager),
                ..Measurement::default()
            });
        }
        Ok(())
    }

    fn prefill(&mut self, rows: usize, report: &mut Report) -> Result<(), Failure> {
        const RUNS: usize = 4;
        let (machine, geometry) = (self.machine, self.geometry);
        let room = OfflineLimits {
            num_sequences: 1,
            max_tokens: rows + 1,
            max_slice_tokens: rows,
            max_rows: rows,
            block_size: BLOCK_SIZE,
        };
        let config = self.checkpoint.config().clone();
        let mut timed = |way: Way| {
            self.with(room, |engine| {
                way.begin(machine, engine.device_mut());
                let random = &mut Random(rows as u64);
                let mut times = Vec::with_capacity(RUNS);
                for step in 1..=RUNS as u64 {
                    let mut sequence =
                        OfflineSequence::new(0, prompt(random, rows, geometry.vocab), room, &config);
                    let slice = sequence.take_slice(rows, &greedy());
                    let start = machine.mark()?;
                    engine.step(&plan(step, vec![slice]))?;
                    let end = machine.mark()?;
                    times.push(machine.seconds(&start, &end)?);
                }
                // Not the first: scratch grows in it.
                times.remove(0);
                times.sort_by(f64::total_cmp);
                Way::Served.begin(machine, engine.device_mut());
                Ok(times[times.len() / 2])
            })
        };
        // Of a prompt's kernels each takes longer than its launch.
        let ways = [Way::Served, Way::Invariant];
        let seconds = [timed(ways[0])?, timed(ways[1])?];
        let layers = config.num_layers();
        let row = geometry.top_k * geometry.expert_flop() + geometry.dense_bytes();
        // Half of the layers see the window only.
        let keys = rows * (rows / 2 + (geometry.window as usize).min(rows / 2)) / 2;
        let flop = layers as f64 * (rows * row + keys * 4 * geometry.queries()) as f64;
        let served = seconds[0];
        for (way, seconds) in ways.into_iter().zip(seconds) {
            report.measured(Measurement {
                what: way.title("prompt"),
                of: format!("{rows} tokens in one step, {layers} layers"),
                microseconds: seconds * 1e6,
                tflop_per_s: Some(flop / seconds / 1e12),
                share: Some(flop / self.limits.flop_per_s / seconds),
                tokens_per_s: Some(rows as f64 / seconds),
                ratio: (way != Way::Served).then_some(seconds / served),
                ..Measurement::default()
            });
        }
        Ok(())
    }
}

/// How steps are computed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// As they are served: those that come again are replayed as graphs.
    Served,
    /// Kernels are launched one by one.
    Eager,
    /// Batch-invariant, and as they are served else.
    Invariant,
}

impl Way {
    const ALL: [Self; 3] = [Self::Served, Self::Eager, Self::Invariant];

    fn begin(self, machine: &Machine, device: &mut Cuda) {
        machine.use_graphs(self != Self::Eager);
        let batch_invariant = self == Self::Invariant;
        device.set_options(CudaOptions { batch_invariant, ..CudaOptions::default() });
    }

    fn title(self, what: &str) -> String {
        match self {
            Self::Served => what.to_owned(),
            Self::Eager => format!("{what}, launched one by one"),
            Self::Invariant => format!("{what}, batch-invariant"),
        }
    }
}

/// Seconds of decoding steps, in the mean.
struct Timed {
    /// From the end of one step to the end of the next.
    step: f64,
    /// In which the GPU had nothing to do.
    gap: f64,
    /// To plan and to hand over a step.
    host: f64,
    replayed: u64,
    eager: u64,
}

impl Timed {
    /// Each step begins before the host has seen the one before, as workers do it.
    fn run(
        machine: &Machine,
        engine: &mut Engine,
        sequences: &mut [OfflineSequence],
        (step, num_steps): (&mut u64, usize),
    ) -> Result<Self, Failure> {
        let mut marks = Vec::with_capacity(num_steps);
        let mut host = 0.0;
        let mut before = None;
        let mut counters = machine.counters();
        for index in 0..WARMUPS + num_steps {
            if index == WARMUPS {
                counters = machine.counters();
            }
            *step += 1;
            let slices = sequences.iter_mut().map(|sequence| {
                // What it was is not known yet, and does not matter.
                sequence.push(0);
                let mut slice = sequence.take_slice(1, &greedy());
                slice.tokens = SliceTokens::SampledBefore;
                slice
            });
            let plan = plan(*step, slices.collect());
            let started = Instant::now();
            let start = machine.mark()?;
            let submitted = engine.submit(&plan)?;
            let end = machine.mark()?;
            if index >= WARMUPS {
                host += started.elapsed().as_secs_f64();
                marks.push((start, end));
            }
            if let Some(before) = before.replace(submitted) {
                before.finish()?;
            }
        }
        before.map(|last| last.finish()).transpose()?;
        let after = machine.counters();
        let (first, last) = (&marks[0], &marks[num_steps - 1]);
        let mut gap = 0.0;
        for pair in marks.windows(2) {
            gap += machine.seconds(&pair[0].1, &pair[1].0)?;
        }
        let steps = (num_steps - 1) as f64;
        Ok(Self {
            step: machine.seconds(&first.1, &last.1)? / steps,
            gap: gap / steps,
            host: host / num_steps as f64,
            replayed: after.graphs_replayed - counters.graphs_replayed,
            eager: after.eager_launches - counters.eager_launches,
        })
    }
}

fn prompt(random: &mut Random, len: usize, vocab: usize) -> Vec<TokenId> {
    (0..len).map(|_| random.below(vocab) as TokenId).collect()
}

fn greedy() -> SamplingParams {
    SamplingParams::greedy()
}

fn plan(step: u64, slices: Vec<SequenceSlice>) -> StepPlan {
    StepPlan { step, in_halves: false, home_rows: Vec::new(), slices }
}
