//! Steps that compute a prompt.

use super::model::Model;
use super::{Way, greedy, named, plan, random_prompt};
use crate::bench::geometry::BLOCK_SIZE;
use crate::failure::{Failure, Outcome};
use crate::reference::Random;
use crate::report::{Measurement, Report};
use chorale_device::KvDtype;
use chorale_model::offline::{OfflineLimits, OfflineSequence};

/// Prompts of which the middle time is taken; the first is not counted.
const RUNS: usize = 4;

impl Model<'_> {
    /// A prompt of so many tokens: as served, batch-invariant, and with pages of FP8.
    pub(crate) fn prompt(&mut self, rows: usize, report: &mut Report) -> Outcome {
        let (geometry, layers) = (self.geometry, self.num_layers());
        let row = geometry.top_k * geometry.expert_flop() + geometry.dense_flop();
        // Half of the layers see the window only.
        let keys = rows * (rows / 2 + (geometry.window as usize).min(rows / 2)) / 2;
        let flop = layers as f64 * (rows * row + keys * 4 * geometry.queries()) as f64;
        let floor = flop / self.limits.flop_per_s;
        let mut served = None;
        // Of a prompt's kernels each takes longer than its launch, so none is without graphs.
        for (way, kv) in
            [(Way::Served, KvDtype::Bf16), (Way::Invariant, KvDtype::Bf16), (Way::Served, KvDtype::Fp8)]
        {
            let seconds = self.prompted(rows, kv, way)?;
            report.measured(Measurement {
                what: way.title(&named("prompt", self.dense_dtype(), kv)),
                of: format!("{rows} tokens in one step, {layers} layers"),
                microseconds: seconds * 1e6,
                tflop_per_s: Some(flop / seconds / 1e12),
                share_of_limit: (floor > 0.0).then_some(floor / seconds),
                tokens_per_s: Some(rows as f64 / seconds),
                ratio: served.map(|served| seconds / served),
                ..Measurement::default()
            });
            served.get_or_insert(seconds);
        }
        Ok(())
    }

    /// Seconds of a prompt in one step.
    pub(crate) fn prompted(&mut self, rows: usize, kv: KvDtype, way: Way) -> Result<f64, Failure> {
        let (machine, geometry) = (self.machine, self.geometry);
        let room = OfflineLimits {
            num_sequences: 1,
            max_tokens: rows + 1,
            max_slice_tokens: rows,
            max_rows: rows,
            block_size: BLOCK_SIZE,
        };
        let config = self.checkpoint.config().clone();
        self.with((room, kv), |engine| {
            way.begin(machine, engine.device_mut());
            let random = &mut Random(rows as u64);
            let mut times = Vec::with_capacity(RUNS);
            for step in 1..=RUNS as u64 {
                let tokens = random_prompt(random, rows, geometry.vocab);
                let mut sequence = OfflineSequence::new(0, tokens, room, &config);
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
    }
}
