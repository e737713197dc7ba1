//! What a step launches, found on paper: no GPU is needed, and nothing is computed.
//! Of each launch it says how much memory it has to read, which says how long it
//! takes at the least.

#![expect(clippy::print_stdout, reason = "the table is the purpose")]

use super::geometry::{BLOCK_SIZE, Geometry};
use crate::failure::Failure;
use bytes::Bytes;
use chorale_cuda::{Cuda, Facts, Gpu, Launches, Paper};
use chorale_device::KvDtype;
use chorale_link::Solo;
use chorale_model::checkpoint::Checkpoint;
use chorale_model::offline::{OfflineLimits, OfflineSequence};
use chorale_model::shard::ShardSpec;
use chorale_model::{GptOss, Seat, Weights};
use chorale_plan::{SamplingParams, StepPlan};
use std::ops::ControlFlow;
use std::sync::Arc;

/// Warps and blocks that a processor holds, and its shared memory beside what one
/// block may have, and what the driver takes of each block.
const SM_THREADS: u32 = 2048;
const SM_BLOCKS: u32 = 32;
const SM_BYTES_BESIDE: u32 = 1024;
const BLOCK_BYTES_BESIDE: u32 = 1024;

/// A step whose launches are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// One token of each of some sequences.
    Decode {
        /// How many.
        sequences: usize,
        /// Keys that each has.
        context: usize,
    },
    /// A prompt of so many tokens, from its beginning.
    Prompt {
        /// How many.
        rows: usize,
    },
}

/// Launches of a step that are alike.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// The kernel.
    pub name: &'static str,
    /// How many of them.
    pub count: usize,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Shared memory of a block that the launch asks for.
    pub shared_bytes: u32,
    /// What each has to read from the GPU's memory; 0 where that is not what counts.
    pub bytes: f64,
}

impl Line {
    /// Blocks that a processor holds as far as threads and shared memory go.
    pub fn blocks_per_sm(&self, facts: &Facts) -> u32 {
        let shared = (facts.shared_bytes_max + SM_BYTES_BESIDE) / (self.shared_bytes + BLOCK_BYTES_BESIDE);
        shared.min(SM_THREADS / self.threads).min(SM_BLOCKS)
    }

    /// How often all processors are filled, the last time perhaps in part.
    pub fn waves(&self, facts: &Facts) -> f64 {
        let blocks: u32 = self.grid.iter().product();
        f64::from(blocks) / f64::from(self.blocks_per_sm(facts) * facts.num_sms)
    }
}

/// The launches of a step of the whole model, in the order in which each kind comes
/// first.
pub fn lines(geometry: &Geometry, wanted: Wanted) -> Result<Vec<Line>, Failure> {
    let launches = launches(geometry, wanted)?;
    let mut lines: Vec<Line> = Vec::new();
    let mut before = Before::default();
    for (call, _) in launches.iter().flat_map(Launches::iter) {
        let name = call.kernel.name;
        let bytes = geometry.read_bytes(name, wanted, &mut before);
        let line = Line {
            name,
            count: 1,
            grid: call.grid,
            threads: call.kernel.threads,
            shared_bytes: call.shared_bytes,
            bytes,
        };
        match lines.iter_mut().find(|held| Line { count: 1, ..(*held).clone() } == line) {
            Some(held) => held.count += 1,
            None => lines.push(line),
        }
    }
    Ok(lines)
}

/// Prints the launches of steps of a few sizes.
pub fn print(geometry: &Geometry) -> Result<(), Failure> {
    let context = 2048;
    let decodes = [1, 8, 64, 256].map(|sequences| Wanted::Decode { sequences, context });
    let prompts = [2048, 8192].map(|rows| Wanted::Prompt { rows });
    for wanted in decodes.into_iter().chain(prompts) {
        let facts = Paper::hopper().facts().clone();
        let lines = lines(geometry, wanted)?;
        let count: usize = lines.iter().map(|line| line.count).sum();
        let bytes: f64 = lines.iter().map(|line| line.count as f64 * line.bytes).sum();
        let microseconds = |bytes: f64| bytes / facts.memory_bytes_per_s as f64 * 1e6;
        println!(
            "\n{wanted:?}: {count} launches, {:.3} GB to read, {:.0} µs at the memory's {:.2} TB/s",
            bytes / 1e9,
            microseconds(bytes),
            facts.memory_bytes_per_s as f64 / 1e12,
        );
        println!(
            "{:>5}  {:<28}{:>14}{:>9}{:>11}{:>11}{:>7}{:>10}{:>9}",
            "count", "kernel", "grid", "threads", "shared KB", "blocks/SM", "waves", "MB each", "µs each"
        );
        for line in lines {
            let [x, y, _] = line.grid;
            println!(
                "{:>5}  {:<28}{:>14}{:>9}{:>11.1}{:>11}{:>7.2}{:>10.2}{:>9.1}",
                line.count,
                line.name,
                format!("{x} x {y}"),
                line.threads,
                f64::from(line.shared_bytes) / 1024.0,
                line.blocks_per_sm(&facts),
                line.waves(&facts),
                line.bytes / 1e6,
                microseconds(line.bytes),
            );
        }
    }
    Ok(())
}

/// What a step hands over to a GPU that only counts.
fn launches(geometry: &Geometry, wanted: Wanted) -> Result<Vec<Launches>, Failure> {
    let config = geometry.config(geometry.layers)?;
    // Nobody reads them: all weights are one run of zeros.
    let mut zeros = Bytes::new();
    let checkpoint = Checkpoint::made(config.clone(), |_, len| {
        if zeros.len() < len {
            zeros = Bytes::from(vec![0; len]);
        }
        zeros.slice(..len)
    });
    let spec = ShardSpec::whole(&config);
    let paper = Paper::hopper();
    let mut device = Cuda::new(Arc::clone(&paper) as Arc<dyn Gpu>);
    let mut weights = Weights::default();
    weights.load(&mut device, &checkpoint, &spec, &mut |_| ControlFlow::Continue(()))?;
    let (sequences, before, rows) = match wanted {
        Wanted::Decode { sequences, context } => (sequences, context.saturating_sub(1), 1),
        Wanted::Prompt { rows } => (1, 0, rows),
    };
    let limits = OfflineLimits {
        num_sequences: sequences,
        max_tokens: before + rows,
        max_slice_tokens: before.max(rows),
        max_rows: sequences * rows,
        block_size: BLOCK_SIZE,
    };
    let link = Solo::new(&mut device, config.num_experts as u32)?;
    let seat = Seat::new(&mut device, &config, &spec, &limits.room(&config, KvDtype::Bf16))?;
    let mut engine = GptOss::new(device, link, weights, seat);
    let sampling = SamplingParams::greedy();
    let slices = (0..sequences).map(|index| {
        let mut sequence = OfflineSequence::new(index, vec![0; before + rows], limits, &config);
        if before > 0 {
            // Nobody misses the keys.
            sequence.take_slice(before, &sampling);
        }
        sequence.take_slice(rows, &sampling)
    });
    let slices = slices.collect();
    engine.device_mut().flush()?;
    paper.take_launches();
    engine.step(&StepPlan { step: 1, in_halves: false, home_rows: Vec::new(), slices })?;
    engine.device_mut().flush()?;
    Ok(paper.take_launches())
}

/// Kernels of a step that came before one.
#[derive(Default)]
struct Before {
    attentions: usize,
    routers: usize,
}

impl Geometry {
    /// What a kernel has to read. Weights are read once, experts' if all are as likely
    /// to be chosen; of prompts' keys, most come from the cache.
    fn read_bytes(&self, name: &str, wanted: Wanted, before: &mut Before) -> f64 {
        let rows = match wanted {
            Wanted::Decode { sequences, .. } => sequences,
            Wanted::Prompt { rows } => rows,
        };
        let matrix = |rows: usize, cols: usize| (2 * rows * cols) as f64;
        let experts = self.experts_met(rows) * self.expert_bytes() as f64;
        let kind = |prefix| name.starts_with(prefix);
        if kind("attention") {
            before.attentions += 1;
            return (self.keys(wanted, before.attentions - 1) * self.kv_bytes(KvDtype::Bf16)) as f64;
        }
        if kind("route_few") || kind("linear_full") {
            before.routers += 1;
            let is_head = before.routers > self.layers;
            return matrix(if is_head { self.vocab } else { self.experts }, self.hidden);
        }
        match name {
            "embed" => matrix(rows, self.hidden),
            _ if kind("qkv") => matrix(self.qkv(), self.hidden),
            _ if kind("linear_half") => matrix(self.hidden, self.queries()),
            // Gate and up are two of an expert's three matrices.
            _ if kind("experts") && name.contains("_up") => experts * 2.0 / 3.0,
            _ if kind("experts") => experts / 3.0,
            _ => 0.0,
        }
    }

    /// Keys that a layer's attention reads: every other layer's, from the first on, see
    /// the window only.
    fn keys(&self, wanted: Wanted, layer: usize) -> usize {
        match wanted {
            Wanted::Prompt { rows } => rows,
            Wanted::Decode { sequences, context } if layer.is_multiple_of(2) => {
                sequences * context.min(self.window as usize)
            }
            Wanted::Decode { sequences, context } => sequences * context,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_takes_eight_launches_a_layer_and_six_more() {
        let geometry = Geometry { layers: 2, ..Geometry::GPT_OSS_120B };
        let lines = lines(&geometry, Wanted::Decode { sequences: 1, context: 2048 }).unwrap();
        assert_eq!(lines.iter().map(|line| line.count).sum::<usize>(), 2 * 8 + 6);
        let bytes = |name: &str| -> Vec<f64> {
            lines.iter().filter(|line| line.name.starts_with(name)).map(|line| line.bytes).collect()
        };
        // A layer that sees the window, and one that sees all.
        assert_eq!(bytes("attention_decode"), [128.0 * 2048.0, 2048.0 * 2048.0]);
        assert_eq!(bytes("linear_full"), [2.0 * 201_088.0 * 2880.0]);
        let up = lines.iter().find(|line| line.name == "experts_few_up_spread").unwrap();
        assert_eq!((up.count, up.grid), (2, [90, 4, 1]));
        let four_experts = 4.0 * 2.0 * 2880.0 * 2880.0 * 17.0 / 32.0;
        assert!((up.bytes - four_experts).abs() < 1.0, "{} bytes", up.bytes);
    }
}
