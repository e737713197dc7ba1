//! Steps of a model of which some experts lie with the host, beside what the bus
//! allows. A few of its layers: what lies with the host is pinned, and no layer
//! owes another anything.

use super::geometry::{Extent, Geometry};
use super::limits::Limits;
use super::machine::Machine;
use super::steps::{Loading, Model, Way};
use crate::failure::{Failure, Outcome};
use crate::report::{Measurement, Report};
use chorale_cuda::{ExpertCounts, ExpertRoom};
use chorale_device::{DenseDtype, KvDtype};

/// Of decoding sequences: so short that no step there brings experts for one call.
const CONTEXT: usize = 4;

/// What was read where, from one time to another.
struct Reads {
    hits: f64,
    misses: f64,
    streamed: f64,
    moves: u64,
}

impl Reads {
    fn between(before: ExpertCounts, after: ExpertCounts) -> Self {
        Self {
            hits: (after.hits - before.hits) as f64,
            misses: (after.misses - before.misses) as f64,
            streamed: (after.streamed - before.streamed) as f64,
            moves: after.moves - before.moves,
        }
    }
}

pub(super) fn run(
    machine: &Machine,
    (geometry, extent): (&Geometry, &Extent),
    (limits, percent): (Limits, usize),
    report: &mut Report,
) -> Outcome {
    let num_layers = geometry.layers.min(extent.offload_layers);
    let gpu_experts = num_layers * geometry.experts * percent / 100;
    let hosted = num_layers * geometry.experts - gpu_experts;
    // Room to stream all of a layer that lie with the host.
    let ring_experts = hosted.div_ceil(num_layers);
    let room = ExpertRoom { gpu_experts, ring_experts, num_layers };
    let loading = Loading { num_layers, room: Some(room) };
    let mut model = Model::load(machine, (geometry, extent), limits, loading, report)?;
    let bench = Bench { geometry, limits, percent };
    for &num_sequences in extent.decodes.iter().filter(|&&sequences| sequences <= 8) {
        let before = counts(&model)?;
        let timed =
            model.decoded((num_sequences, CONTEXT.min(extent.context)), KvDtype::Bf16, &[Way::Served])?;
        let reads = Reads::between(before, counts(&model)?);
        let what = ("decode step, experts with the host", format!("{num_sequences} sequences"));
        report.measured(bench.measurement(what, &model, (num_sequences, timed[0].step), &reads));
    }
    if let Some(&rows) = extent.step_prefills.first() {
        let before = counts(&model)?;
        let seconds = model.prompted(rows, KvDtype::Bf16, Way::Served)?;
        let reads = Reads::between(before, counts(&model)?);
        let what = ("prompt, experts with the host", format!("{rows} tokens"));
        report.measured(bench.measurement(what, &model, (rows, seconds), &reads));
    }
    Ok(())
}

fn counts(model: &Model<'_>) -> Result<ExpertCounts, Failure> {
    let traffic = model.traffic().ok_or_else(|| Failure("no expert lies with the host".to_owned()))?;
    Ok(traffic.counts())
}

struct Bench<'a> {
    geometry: &'a Geometry,
    limits: Limits,
    percent: usize,
}

impl Bench<'_> {
    /// A step of so many rows, beside the larger of what its memory and the bus allow.
    fn measurement(
        &self,
        (what, of): (&str, String),
        model: &Model<'_>,
        (rows, seconds): (usize, f64),
        reads: &Reads,
    ) -> Measurement {
        let Self { geometry, limits, percent } = *self;
        let layers = model.num_layers() as f64;
        let met = layers * geometry.experts_met(rows) * geometry.expert_bytes() as f64;
        // Where most experts are met, those of the host are brought to the GPU for the call.
        let hosted = 1.0 - percent as f64 / 100.0;
        let read = reads.hits + reads.misses;
        let (missed, streamed) = match rows * geometry.top_k >= 2 * geometry.experts {
            true => (0.0, met * hosted),
            // Counts come late, and of steps before the timed ones, too: their share counts.
            false if read > 0.0 => (met * reads.misses / read, 0.0),
            false => (met * hosted, 0.0),
        };
        let dense = layers * geometry.dense_bytes(DenseDtype::Bf16) as f64
            + geometry.head_bytes(DenseDtype::Bf16) as f64;
        let bus = missed / limits.read_bytes_per_s + streamed / limits.copied_bytes_per_s;
        // What is streamed is written and read there.
        let memory = (met - missed + streamed + dense) / limits.bytes_per_s;
        let row = geometry.top_k * geometry.expert_flop() + geometry.dense_flop();
        let flop = layers * (rows * row) as f64;
        let floor = bus.max(memory).max(flop / limits.flop_per_s);
        let head = geometry.head_bytes(DenseDtype::Bf16) as f64 / limits.bytes_per_s;
        let whole = (seconds - head).max(0.0) * geometry.layers as f64 / layers + head;
        Measurement {
            what: what.to_owned(),
            of: format!("{of}, {percent} % on the GPU, {layers} layers"),
            microseconds: seconds * 1e6,
            gb_per_s: Some((missed + streamed) / seconds / 1e9),
            share_of_limit: (floor > 0.0).then_some(floor / seconds),
            tokens_per_s: Some(rows as f64 / seconds),
            note: format!(
                "GB/s over the bus, whose limit allows {:.3} ms; all {} layers would take {:.2} ms; experts \
                 counted meanwhile: {} read on the GPU, {} over the bus, {} streamed, {} moved",
                bus * 1e3,
                geometry.layers,
                whole * 1e3,
                reads.hits,
                reads.misses,
                reads.streamed,
                reads.moves,
            ),
            ..Measurement::default()
        }
    }
}
