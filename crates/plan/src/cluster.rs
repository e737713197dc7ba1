//! What the coordinator and a worker say to each other. One stream each way for
//! as long as they know each other; within an epoch, steps travel on it, too.

use crate::{Epoch, Placement, Rank, Shape, StepOutput, StepPlan};

/// The revision of this contract. Workers of another are refused by name. A field
/// that whoever does not know it may leave unread is none.
pub const PROTOCOL: u32 = 3;

/// What a worker has to offer; the first thing it says.
#[derive(Clone, Debug, PartialEq)]
pub struct Offer {
    /// Drawn at random when the process starts: a worker that comes back under
    /// the same one still has what it had loaded.
    pub session: u64,
    /// Its release, for people.
    pub version: String,
    /// Its [`PROTOCOL`].
    pub protocol: u32,
    /// A digest of the checkpoint that it sees, configuration and weights.
    pub checkpoint: String,
    /// Where other workers reach it, `HOST:PORT`.
    pub address: String,
    /// The device, for people: `cpu, 16 threads`.
    pub device: String,
    /// Memory that weights and KV cache may take.
    pub memory_bytes: u64,
    /// How fast the device reads its memory: the speed of decoding. Whoever measures
    /// it anew says so with its pulse.
    pub memory_bytes_per_s: u64,
    /// It takes experts, but no attention.
    pub experts_only: bool,
    /// The version of NCCL, as its number, by which its GPU can exchange with
    /// others; `None` if it has no GPU or no NCCL.
    pub nccl: Option<u32>,
    /// How it can keep keys and values; the first is its own choice. Never empty.
    pub kv_dtypes: Vec<KvFormat>,
    /// Memory of its host for experts that the device's own has no room for,
    /// beside `memory_bytes`.
    pub host_expert_bytes: u64,
}

/// A worker's place in a world.
#[derive(Clone, Debug, PartialEq)]
pub struct Assignment {
    /// The membership that this is part of.
    pub epoch: Epoch,
    /// How the ranks are grouped.
    pub shape: Shape,
    /// The worker's own rank.
    pub rank: Rank,
    /// The address of every rank, by rank; its own among them.
    pub addresses: Vec<String>,
    /// Which experts are where.
    pub placement: Placement,
    /// The rank's room for steps and for keys and values.
    pub room: Room,
    /// How ranks exchange rows.
    pub exchange: ExchangeOptions,
    /// By what; the same for all ranks.
    pub carrier: Carrier,
    /// How dense weights are kept; the same for all ranks.
    pub dense_dtype: DenseFormat,
}

/// How dense weights are kept: those of the attention and of the output matrix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum DenseFormat {
    /// As in the checkpoint.
    #[default]
    Bf16,
    /// 8-bit integers with a scale for each row.
    Int8,
}

/// How keys and values are kept, the narrowest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KvFormat {
    /// FP8 with an exponent for each head's key or value.
    Fp8,
    /// Rounded to bf16.
    Bf16,
    /// As they are computed.
    #[default]
    F32,
}

impl DenseFormat {
    /// Its word in settings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        }
    }
}

impl KvFormat {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Fp8, Self::Bf16, Self::F32];

    /// Its word in settings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp8 => "fp8",
            Self::Bf16 => "bf16",
            Self::F32 => "f32",
        }
    }
}

/// By what ranks exchange rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Carrier {
    /// Frames from host to host.
    #[default]
    Frames,
    /// NCCL, from GPU to GPU.
    Nccl,
}

/// A rank's room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// Rows of one home in a step. Rows of all homes may come to an expert.
    pub max_step_tokens: u32,
    /// Sequences of one home in a step.
    pub max_step_slices: u32,
    /// Positions of a KV page.
    pub block_size_tokens: u32,
    /// Pages of the full-attention layers.
    pub num_full_blocks: u32,
    /// Pages of the sliding layers.
    pub num_sliding_blocks: u32,
    /// What the pages hold keys and values as; one for all ranks of a group.
    pub kv_dtype: KvFormat,
}

/// How ranks exchange rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExchangeOptions {
    /// A rank waits so long for another's frame before it gives the step up.
    pub timeout_ms: u32,
    /// How rows travel to experts.
    pub dispatch: RowFormat,
    /// Each rank adds up its own experts' outputs before they travel home: less
    /// traffic, but sums then depend on the placement in their last bits.
    pub fast_combine: bool,
    /// Steps in which a group has at least so many rows are computed in two
    /// halves, one while the other's rows travel; `None` for none. The answer is
    /// the same, in its last bits, too, unless `fast_combine` gives those up. Ranks
    /// keep buffers for the second half.
    pub overlap_min_rows: Option<u32>,
}

impl ExchangeOptions {
    /// Rows travel as they are, and answers depend on no placement: what all other
    /// options are measured against.
    pub const fn exact(timeout_ms: u32) -> Self {
        Self { timeout_ms, dispatch: RowFormat::F32, fast_combine: false, overlap_min_rows: None }
    }
}

/// How a row of activations travels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RowFormat {
    /// As it is.
    #[default]
    F32,
    /// 8-bit integers with a scale for each row: a quarter of the bytes, and
    /// answers that differ in the last digits.
    Int8,
}

/// What a worker says.
#[derive(Clone, Debug, PartialEq)]
pub enum FromWorker {
    /// Who it is. Comes first and once.
    Offer(Offer),
    /// It is alive; comes at a fixed interval whatever the device does.
    Pulse(Pulse),
    /// How far loading its shard has come.
    Loading {
        /// For which membership.
        epoch: Epoch,
        /// Bytes so far.
        bytes: u64,
        /// All bytes of the shard.
        total_bytes: u64,
        /// Tensors so far.
        tensors: u32,
        /// All tensors of the shard.
        total_tensors: u32,
    },
    /// Its shard is loaded and all other ranks are connected.
    Ready {
        /// For which membership.
        epoch: Epoch,
    },
    /// It cannot take its place.
    Unable {
        /// In which membership.
        epoch: Epoch,
        /// The rank that could not be reached, if that is why.
        blamed: Option<Rank>,
        /// Why.
        reason: String,
    },
    /// The experts of a placement are there beside the old ones.
    Prepared {
        /// In which membership.
        epoch: Epoch,
        /// The placement's version.
        version: u32,
    },
    /// The experts of a placement cannot be had: the old ones stay in use.
    Unprepared {
        /// In which membership.
        epoch: Epoch,
        /// The placement's version.
        version: u32,
        /// Why.
        reason: String,
    },
    /// A step's end.
    Done {
        /// In which membership.
        epoch: Epoch,
        /// What was sampled. Ranks that are not the first of their group have nothing to tell.
        output: StepOutput,
        /// Where the time went.
        report: StepReport,
    },
    /// A plan that breaks the contract: nothing was computed.
    Refused {
        /// In which membership.
        epoch: Epoch,
        /// Which step.
        step: u64,
        /// Why.
        reason: String,
    },
    /// A step that was given up: its device or another rank failed.
    Lost {
        /// In which membership.
        epoch: Epoch,
        /// Which step.
        step: u64,
        /// The rank that it waited for, if that is why.
        blamed: Option<Rank>,
        /// Why.
        reason: String,
    },
    /// What carries rows between the ranks failed, when the place was taken or in a
    /// step: whoever says so is well, and as far as it knows so are the others.
    CarrierFailed {
        /// In which membership.
        epoch: Epoch,
        /// The step that was given up; `None` if none had begun.
        step: Option<u64>,
        /// Why.
        reason: String,
    },
    /// Rows that came to each expert since the epoch began, on this rank.
    Loads {
        /// In which membership.
        epoch: Epoch,
        /// For each layer, for each expert of the model.
        rows: Vec<Vec<u64>>,
        /// What else the rank says of itself.
        standing: Standing,
    },
    /// It was told to end, and stays until others have taken over.
    Leaving,
}

/// A sign of life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pulse {
    /// The step that is running, if any.
    pub step: Option<u64>,
    /// The rank that it waits for, if it does.
    pub waiting_for: Option<Rank>,
    /// How long it has computed, or waited, without anything new.
    pub stalled_ms: u32,
    /// Exchanges of the step that it has come to, and one more when its device has
    /// all of the step: where devices wait by themselves, nothing else tells who is
    /// behind.
    pub exchanges: u32,
    /// The best that was measured of its memory's rate by now; `None` if its offer
    /// holds.
    pub memory_bytes_per_s: Option<u64>,
}

/// How a rank stands in its place, for people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Where its experts lie; `None` while all lie on its device.
    pub experts: Option<ExpertResidency>,
    /// Which of its small exchanges take one launch.
    pub one_shot: OneShot,
}

/// Where experts lie that do not all fit their GPUs, and how often they were read,
/// since the process began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExpertResidency {
    /// Experts on GPUs.
    pub gpu_experts: u64,
    /// Experts in the host's memory.
    pub host_experts: u64,
    /// Reads of experts that were on their GPU.
    pub hits: u64,
    /// Reads over the bus.
    pub misses: u64,
    /// Reads of experts that were copied to the GPU for one call.
    pub streamed: u64,
    /// Changes of places.
    pub moves: u64,
}

impl std::ops::Add for ExpertResidency {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            gpu_experts: self.gpu_experts.saturating_add(other.gpu_experts),
            host_experts: self.host_experts.saturating_add(other.host_experts),
            hits: self.hits.saturating_add(other.hits),
            misses: self.misses.saturating_add(other.misses),
            streamed: self.streamed.saturating_add(other.streamed),
            moves: self.moves.saturating_add(other.moves),
        }
    }
}

/// Among whom what is small goes from GPU to GPU in one launch to send and one to
/// receive, beside the carrier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OneShot {
    /// All ranks of the world: rows to experts and home.
    pub world: bool,
    /// The ranks of the group: columns.
    pub group: bool,
}

/// Where a rank's time went in a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepReport {
    /// From the plan's arrival to the end.
    pub total_us: u64,
    /// Of it, waiting for other ranks.
    pub waited_us: u64,
}

/// What the coordinator says to a worker.
#[derive(Clone, Debug, PartialEq)]
pub enum ToWorker {
    /// It cannot be used; the stream ends.
    Turned {
        /// Why, and what would help.
        reason: String,
        /// True if coming back later may help.
        may_retry: bool,
    },
    /// It is known, and waits for a place.
    Welcome {
        /// The interval of its pulse.
        pulse_ms: u32,
    },
    /// Its place. Whatever it did for an older epoch ends.
    Assigned(Box<Assignment>),
    /// It has no place for now: the old epoch is over.
    Dismissed {
        /// Epochs up to this one are over.
        epoch: Epoch,
    },
    /// Load what a new placement asks for, beside the running steps.
    Prepare {
        /// In which membership.
        epoch: Epoch,
        /// The placement; steps name its version when they use it.
        placement: Placement,
    },
    /// Compute.
    Step {
        /// In which membership.
        epoch: Epoch,
        /// The placement's version.
        placement: u32,
        /// The slices of the rank's group, perhaps none.
        plan: StepPlan,
    },
    /// It may end now: others have taken over.
    Farewell,
    /// The coordinator is alive.
    Pulse,
}
