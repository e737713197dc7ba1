//! Whole steps of a model of gpt-oss-120b's geometry, through the same layer
//! loop that serves, with random weights of which no two layers are alike: as
//! they are served, with kernels launched one by one, batch-invariant, and with
//! weights, keys and values in eight bits.

mod decode;
mod model;
mod prompt;

pub(crate) use model::{Loading, Model};

use super::machine::Machine;
use chorale_cuda::{Cuda, CudaOptions};
use chorale_device::{DenseDtype, KvDtype};
use chorale_plan::{SamplingParams, SequenceSlice, StepPlan, TokenId};

/// How steps are computed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// As they are served: those that come again are replayed as graphs.
    Served,
    /// Kernels are launched one by one.
    Eager,
    /// Batch-invariant, and as they are served else.
    Invariant,
    /// Weights are asked for before the kernels that read them begin.
    Ahead,
}

/// Weights that are asked for early: what a cache can hold beside what is read.
const AHEAD_BYTES: usize = 12 << 20;

impl Way {
    /// Of steps of few rows all, of others those that matter there.
    fn of_decoding(num_sequences: usize) -> &'static [Self] {
        const ALL: [Way; 4] = [Way::Served, Way::Eager, Way::Invariant, Way::Ahead];
        if num_sequences <= 8 { &ALL } else { &ALL[..3] }
    }

    fn begin(self, machine: &Machine, device: &mut Cuda) {
        machine.use_graphs(self != Self::Eager);
        let batch_invariant = self == Self::Invariant;
        let default = CudaOptions::default();
        let ahead_bytes = if self == Self::Ahead { AHEAD_BYTES } else { default.ahead_bytes };
        device.set_options(CudaOptions { batch_invariant, ahead_bytes, ..default });
    }

    fn title(self, what: &str) -> String {
        match self {
            Self::Served => what.to_owned(),
            Self::Eager => format!("{what}, launched one by one"),
            Self::Invariant => format!("{what}, batch-invariant"),
            Self::Ahead => format!("{what}, next weights asked for early"),
        }
    }
}

/// What a step is called, with what is not kept in bf16.
fn named(what: &str, dense: DenseDtype, kv: KvDtype) -> String {
    let dense = match dense {
        DenseDtype::Bf16 => "",
        DenseDtype::Int8 => ", int8 weights",
    };
    let kv = match kv {
        KvDtype::Bf16 => String::new(),
        KvDtype::Fp8 | KvDtype::F32 => format!(", {} pages", kv.name()),
    };
    format!("{what}{dense}{kv}")
}

fn greedy() -> SamplingParams {
    SamplingParams::greedy()
}

fn random_prompt(random: &mut crate::reference::Random, len: usize, vocab: usize) -> Vec<TokenId> {
    (0..len).map(|_| random.below(vocab) as TokenId).collect()
}

fn plan(step: u64, slices: Vec<SequenceSlice>) -> StepPlan {
    StepPlan { step, in_halves: false, home_rows: Vec::new(), slices }
}
