//! A rank's room on its device: pages for keys and values, and the buffers of
//! one step. Made anew for each place in a world; weights are not part of it.

use crate::batch::{self, Bounds, PlanError, Sampled};
use crate::config::ModelConfig;
use crate::shard::{ShardSpec, Split};
use chorale_device::Precision::{Full, Half};
use chorale_device::{BatchLimits, Columns, Device, KvDtype, KvShape, Needs};
use chorale_plan::{SequenceId, SequenceSlice, StepPlan};
use std::collections::HashMap;

/// The room that a rank keeps for steps and for keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// The largest step of one home.
    pub limits: BatchLimits,
    /// Homes of the world: the rows of all may come to this rank's experts.
    pub num_homes: usize,
    /// Positions of a KV page.
    pub block_size: usize,
    /// Pages of the layers without a window.
    pub num_full_blocks: usize,
    /// Pages of the sliding layers.
    pub num_sliding_blocks: usize,
    /// What keys and values are kept in.
    pub kv_dtype: KvDtype,
    /// Room for a second half beside the first: for steps that are computed in two.
    pub has_halves: bool,
}

/// What a rank computes in.
pub struct Seat<D: Device> {
    config: ModelConfig,
    spec: ShardSpec,
    bounds: Bounds,
    /// `None` for a rank with experts only.
    pub(crate) attention: Option<AttentionRoom<D>>,
    /// One for each half of a step that is computed at a time.
    pub(crate) workspaces: Vec<Workspace<D>>,
    /// What this rank's experts answer.
    pub(crate) outputs: D::Matrix,
}

/// What a rank with attention has whatever is computed.
pub(crate) struct AttentionRoom<D: Device> {
    /// How the group's matrices are split.
    pub(crate) cols: Cols,
    pub(crate) cache: D::KvCache,
    /// This rank's part of the vocabulary, then all of it.
    pub(crate) logits_part: D::Matrix,
    pub(crate) logits: D::Matrix,
    pub(crate) samples: D::Samples,
}

/// Buffers of the rows of the rank's own group, of one half. A rank with
/// experts only has no rows in them.
pub(crate) struct Workspace<D: Device> {
    pub(crate) batch: D::Batch,
    pub(crate) hidden: D::Matrix,
    pub(crate) queries: D::Matrix,
    /// This rank's heads, then all of the group's.
    pub(crate) context: D::Matrix,
    pub(crate) heads: D::Matrix,
    /// This rank's rows of the output projection, then all of them.
    pub(crate) projected: D::Matrix,
    pub(crate) attended: D::Matrix,
    pub(crate) normed: D::Matrix,
    pub(crate) routing: D::Routing,
    /// What all experts answer.
    pub(crate) answers: D::Matrix,
}

/// Columns of each rank's part of what is gathered.
pub(crate) struct Cols {
    pub(crate) context: Vec<usize>,
    pub(crate) projected: Vec<usize>,
    pub(crate) logits: Vec<usize>,
}

impl<D: Device> Seat<D> {
    /// Makes room for a shard.
    pub fn new(
        device: &mut D,
        config: &ModelConfig,
        spec: &ShardSpec,
        room: &Room,
    ) -> Result<Self, D::Error> {
        let kv = KvShape {
            windows: config.windows.clone(),
            num_query_heads: spec.query_rows(config).len() / config.head_dim,
            num_kv_heads: spec.key_value_heads(config).len(),
            head_dim: config.head_dim,
            dtype: room.kv_dtype,
            block_size: room.block_size,
            num_full_blocks: room.num_full_blocks,
            num_sliding_blocks: room.num_sliding_blocks,
        };
        let no_rows = BatchLimits { max_rows: 0, max_slices: 0, max_logit_rows: 0 };
        let limits = if spec.attention { room.limits } else { no_rows };
        // Alone, outputs and answers change places.
        let slots = room.limits.max_rows * room.num_homes * config.experts_per_token;
        let outputs = device.matrix(slots, config.hidden_size, Half)?;
        let mut workspaces = vec![Workspace::new(device, config, spec, (limits, slots), &kv)?];
        if room.has_halves {
            let limits = BatchLimits { max_rows: limits.max_rows.div_ceil(2), ..limits };
            workspaces.push(Workspace::new(device, config, spec, (limits, slots), &kv)?);
        }
        let attention = match spec.attention {
            true => Some(AttentionRoom::new(device, config, spec, (limits, &kv))?),
            false => None,
        };
        device.reserve(&Needs {
            limits,
            kv: &kv,
            hidden_size: config.hidden_size,
            intermediate_size: config.intermediate_size,
            num_experts: config.num_experts,
            num_choices: slots,
            vocab_size: config.vocab_size,
        })?;
        let bounds = Bounds {
            limits,
            kv,
            window: config.window(),
            vocab_size: config.vocab_size,
            context: config.max_position_embeddings,
        };
        Ok(Self { config: config.clone(), spec: spec.clone(), bounds, attention, workspaces, outputs })
    }

    /// The pages of the rank's cache.
    pub fn kv(&self) -> &KvShape {
        &self.bounds.kv
    }

    pub(crate) fn config(&self) -> &ModelConfig {
        &self.config
    }

    pub(crate) fn spec(&self) -> &ShardSpec {
        &self.spec
    }

    /// The shard has other experts now.
    pub(crate) fn set_experts(&mut self, experts: Vec<Vec<u32>>) {
        self.spec.experts = experts;
    }

    pub(crate) fn max_logit_rows(&self) -> usize {
        self.bounds.limits.max_logit_rows.max(1)
    }

    /// A plan's slices as columns, if there is room for them.
    pub(crate) fn columns(
        &self,
        slices: &[SequenceSlice],
        sampled_before: &HashMap<SequenceId, Sampled>,
    ) -> Result<Columns, PlanError> {
        batch::columns(slices, sampled_before, &self.bounds)
    }

    /// A plan's parts, as they are computed: the whole, or two halves.
    pub(crate) fn parts(
        &self,
        plan: &StepPlan,
        sampled_before: &HashMap<SequenceId, Sampled>,
    ) -> Result<Vec<Columns>, PlanError> {
        let columns = self.columns(&plan.slices, sampled_before)?;
        match (plan.in_halves, self.workspaces.len()) {
            (false, _) => Ok(vec![columns]),
            (true, 2) => Ok(batch::halves(columns).into()),
            (true, _) => Err(PlanError::NoHalves),
        }
    }
}

impl<D: Device> AttentionRoom<D> {
    fn new(
        device: &mut D,
        config: &ModelConfig,
        spec: &ShardSpec,
        (limits, kv): (BatchLimits, &KvShape),
    ) -> Result<Self, D::Error> {
        let max_logit_rows = limits.max_logit_rows;
        let members = (0..spec.group.count).map(|index| ShardSpec {
            group: Split { index, ..spec.group },
            experts: Vec::new(),
            ..spec.clone()
        });
        let cols = |part: fn(&ShardSpec, &ModelConfig) -> std::ops::Range<usize>| {
            members.clone().map(|member| part(&member, config).len()).collect()
        };
        let cols = Cols {
            context: cols(ShardSpec::query_rows),
            projected: cols(ShardSpec::output_rows),
            logits: cols(ShardSpec::vocab_rows),
        };
        Ok(Self {
            cols,
            cache: device.kv_cache(kv)?,
            logits_part: device.matrix(max_logit_rows, spec.vocab_rows(config).len(), Full)?,
            logits: device.matrix(max_logit_rows, config.vocab_size, Full)?,
            samples: device.samples(max_logit_rows)?,
        })
    }
}

impl<D: Device> Workspace<D> {
    fn new(
        device: &mut D,
        config: &ModelConfig,
        spec: &ShardSpec,
        (limits, slots): (BatchLimits, usize),
        kv: &KvShape,
    ) -> Result<Self, D::Error> {
        let max_rows = limits.max_rows;
        let local_width = spec.query_rows(config).len();
        let width = config.num_attention_heads * config.head_dim;
        let hidden = config.hidden_size;
        Ok(Self {
            batch: device.batch(limits, &config.rope, kv)?,
            hidden: device.matrix(max_rows, hidden, Full)?,
            queries: device.matrix(max_rows, local_width, Half)?,
            context: device.matrix(max_rows, local_width, Half)?,
            heads: device.matrix(max_rows, width, Half)?,
            projected: device.matrix(max_rows, spec.output_rows(config).len(), Half)?,
            attended: device.matrix(max_rows, hidden, Half)?,
            normed: device.matrix(max_rows, hidden, Half)?,
            routing: device.routing(max_rows, config.experts_per_token)?,
            answers: device.matrix(slots, hidden, Half)?,
        })
    }
}
