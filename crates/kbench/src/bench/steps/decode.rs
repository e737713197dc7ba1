//! Steps in which each sequence computes one token.

use super::model::{Engine, Model};
use super::{Way, greedy, named, plan, random_prompt};
use crate::bench::geometry::BLOCK_SIZE;
use crate::bench::machine::Machine;
use crate::failure::{Failure, Outcome};
use crate::reference::Random;
use crate::report::{Measurement, Report};
use chorale_device::{DenseDtype, KvDtype};
use chorale_model::offline::{OfflineLimits, OfflineSequence};
use chorale_plan::SliceTokens;
use std::time::Instant;

/// Decoding steps before those that are timed.
const WARMUPS: usize = 6;

impl Model<'_> {
    /// Steps of so many sequences: in all ways with bf16 throughout, else as served.
    pub(crate) fn decode(&mut self, num_sequences: usize, dense: DenseDtype, report: &mut Report) -> Outcome {
        self.keep_in(dense)?;
        let mut in_bf16 = None;
        for kv in [KvDtype::Bf16, KvDtype::Fp8] {
            let is_plain = dense == DenseDtype::Bf16 && kv == KvDtype::Bf16;
            let ways = if is_plain { Way::of_decoding(num_sequences) } else { &[Way::Served][..] };
            let context = self.context(num_sequences, KvDtype::Bf16)?;
            let timed = self.decoded((num_sequences, context), kv, ways)?;
            // Fewer bytes are compared at the same context.
            let usual = *in_bf16.get_or_insert(timed[0].step);
            for (&way, timed) in ways.iter().zip(&timed) {
                let is_usual = way == Way::Served && kv == KvDtype::Bf16;
                let measurement = self.measurement(timed, (num_sequences, context), kv);
                report.measured(Measurement {
                    what: way.title(&measurement.what),
                    ratio: (!is_usual).then_some(timed.step / usual),
                    ..measurement
                });
            }
        }
        Ok(())
    }

    /// What a step took, beside the least that it has to read.
    fn measurement(
        &self,
        timed: &Timed,
        (num_sequences, context): (usize, usize),
        kv: KvDtype,
    ) -> Measurement {
        let (geometry, layers, dense) = (self.geometry, self.num_layers(), self.dense_dtype());
        let seen = context + context.min(geometry.window as usize);
        // Half of the layers see the window only.
        let pages = num_sequences * seen * geometry.kv_bytes(kv) / 2;
        let experts = geometry.experts_met(num_sequences) * geometry.expert_bytes() as f64;
        let bytes = layers as f64 * (experts + (geometry.dense_bytes(dense) + pages) as f64)
            + geometry.head_bytes(dense) as f64;
        let floor = bytes / self.limits.bytes_per_s;
        Measurement {
            what: named("decode step", dense, kv),
            of: format!("{num_sequences} sequences, context {context}, {layers} layers"),
            microseconds: timed.step * 1e6,
            gb_per_s: Some(bytes / timed.step / 1e9),
            share_of_limit: (floor > 0.0).then_some(floor / timed.step),
            tokens_per_s: Some(num_sequences as f64 / timed.step),
            gap_microseconds: Some(timed.gap * 1e6),
            host_microseconds: Some(timed.host * 1e6),
            note: format!("{} replayed, {} eager launches", timed.replayed, timed.eager),
            ..Measurement::default()
        }
    }

    /// Steps of sequences at a context, in some ways.
    pub(crate) fn decoded(
        &mut self,
        (num_sequences, context): (usize, usize),
        kv: KvDtype,
        ways: &[Way],
    ) -> Result<Vec<Timed>, Failure> {
        let (machine, geometry, extent) = (self.machine, self.geometry, self.extent);
        let room = OfflineLimits {
            num_sequences,
            max_tokens: context + ways.len() * (extent.steps + WARMUPS) + 8,
            max_slice_tokens: (extent.fill_rows / num_sequences).clamp(1, context),
            max_rows: extent.fill_rows.max(num_sequences),
            block_size: BLOCK_SIZE,
        };
        let config = self.checkpoint.config().clone();
        self.with((room, kv), |engine| {
            let random = &mut Random(num_sequences as u64);
            let mut sequences: Vec<OfflineSequence> = (0..num_sequences)
                .map(|index| {
                    OfflineSequence::new(index, random_prompt(random, context, geometry.vocab), room, &config)
                })
                .collect();
            let mut step = 0;
            while sequences[0].num_pending() > 0 {
                step += 1;
                let slices = sequences.iter_mut().map(|s| s.take_slice(room.max_slice_tokens, &greedy()));
                engine.step(&plan(step, slices.collect()))?;
            }
            let timed = ways.iter().map(|way| {
                way.begin(machine, engine.device_mut());
                let timed = Timed::run(machine, engine, &mut sequences, (&mut step, extent.steps));
                Way::Served.begin(machine, engine.device_mut());
                timed
            });
            timed.collect()
        })
    }
}

/// Seconds of decoding steps, in the mean.
pub(crate) struct Timed {
    /// From the end of one step to the end of the next.
    pub(crate) step: f64,
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
