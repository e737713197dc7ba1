//! The geometry of a model of gpt-oss's kind, random weights for it, and how
//! much of it is measured.

use crate::noise;
use crate::reference::Random;
use bytes::Bytes;
use chorale_device::{DenseDtype, KvDtype, KvShape, RopeParams};
use chorale_model::checkpoint::{Checkpoint, CheckpointError};
use chorale_model::config::ModelConfig;
use serde_json::json;

/// What the layers are like.
#[derive(Clone, Copy, Debug)]
pub struct Geometry {
    /// Width of the residual stream, and inside an expert.
    pub hidden: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Experts of a layer.
    pub experts: usize,
    /// Experts of a row.
    pub top_k: usize,
    /// Entries of the vocabulary.
    pub vocab: usize,
    /// Keys that sliding layers see.
    pub window: u32,
    /// Layers of the whole model.
    pub layers: usize,
}

/// How much is measured.
#[derive(Clone, Debug)]
pub struct Extent {
    /// Sequences of a step that each compute one token.
    pub decodes: Vec<usize>,
    /// Rows of a step that computes a prompt, each operation alone.
    pub operation_prefills: Vec<usize>,
    /// The same, of whole steps.
    pub step_prefills: Vec<usize>,
    /// Positions of decoding sequences, if they fit.
    pub context: usize,
    /// Rows of a step that brings sequences there.
    pub fill_rows: usize,
    /// Decoding steps of a measurement.
    pub steps: usize,
    /// Layers of the whole model at most.
    pub layers: usize,
    /// Shares of the experts that lie on the GPU where others lie with the host.
    pub offload_percents: Vec<usize>,
    /// Layers of that model: what lies with the host is pinned.
    pub offload_layers: usize,
    /// What rotates is larger than any cache.
    pub rotated_bytes: usize,
    /// Rows, columns and outputs of the product that is the limit.
    pub product: usize,
    /// Counts of each time, of which the middle one is taken.
    pub rounds: usize,
    /// What stays free of the memory, for buffers of a step.
    pub spare_bytes: usize,
    /// Only what has this in its name.
    pub only: String,
    /// Where random numbers begin.
    pub seed: u64,
}

impl Extent {
    /// For a GPU of data centers.
    pub fn full() -> Self {
        Self {
            decodes: vec![1, 8, 32, 64, 256],
            operation_prefills: vec![2048, 8192],
            step_prefills: vec![2048, 4096, 8192],
            context: 2048,
            fill_rows: 4096,
            steps: 24,
            layers: usize::MAX,
            offload_percents: vec![50, 90],
            offload_layers: 4,
            rotated_bytes: 512 << 20,
            product: 8192,
            rounds: 9,
            spare_bytes: 3 << 30,
            only: String::new(),
            seed: 0,
        }
    }

    /// The least that is worth a look.
    pub fn quick() -> Self {
        Self {
            decodes: vec![1, 8],
            operation_prefills: vec![2048],
            step_prefills: vec![2048],
            layers: 2,
            offload_percents: vec![50],
            offload_layers: 2,
            ..Self::full()
        }
    }

    pub(crate) fn wants(&self, what: &str) -> bool {
        what.contains(&self.only)
    }
}

pub(crate) const HEAD_DIM: usize = 64;
pub(crate) const BLOCK_SIZE: usize = 64;

impl Geometry {
    /// gpt-oss-120b.
    pub const GPT_OSS_120B: Self = Self {
        hidden: 2880,
        heads: 64,
        kv_heads: 8,
        experts: 128,
        top_k: 4,
        vocab: 201_088,
        window: 128,
        layers: 36,
    };

    /// Columns of the queries.
    pub(crate) fn queries(&self) -> usize {
        self.heads * HEAD_DIM
    }

    /// Rows of the projection to queries, keys and values.
    pub(crate) fn qkv(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * HEAD_DIM
    }

    /// Bytes of one expert: 17 for each 32 weights of its three matrices.
    pub(crate) fn expert_bytes(&self) -> usize {
        3 * self.hidden * self.hidden * 17 / 32
    }

    /// Operations of one row through one expert.
    pub(crate) fn expert_flop(&self) -> usize {
        6 * self.hidden * self.hidden
    }

    /// Bytes of a layer's dense matrices; the router stays as it is.
    pub(crate) fn dense_bytes(&self, dtype: DenseDtype) -> usize {
        self.qkv() * dtype.row_bytes(self.hidden)
            + self.hidden * dtype.row_bytes(self.queries())
            + 2 * self.hidden * self.experts
    }

    /// Operations of one row through them.
    pub(crate) fn dense_flop(&self) -> usize {
        2 * self.hidden * (self.qkv() + self.queries() + self.experts)
    }

    /// Bytes of a layer.
    pub(crate) fn layer_bytes(&self) -> usize {
        self.experts * self.expert_bytes() + self.dense_bytes(DenseDtype::Bf16)
    }

    /// Bytes of the embedding.
    pub(crate) fn table_bytes(&self) -> usize {
        2 * self.vocab * self.hidden
    }

    /// Bytes of the head.
    pub(crate) fn head_bytes(&self, dtype: DenseDtype) -> usize {
        self.vocab * dtype.row_bytes(self.hidden)
    }

    /// Bytes of a layer's keys and values of one position.
    pub(crate) fn kv_bytes(&self, dtype: KvDtype) -> usize {
        2 * self.kv_heads * dtype.row_bytes(HEAD_DIM)
    }

    /// Experts that so many rows meet in the mean, if all are as likely.
    pub(crate) fn experts_met(&self, rows: usize) -> f64 {
        let (experts, top_k) = (self.experts as f64, self.top_k as f64);
        experts * (1.0 - (1.0 - top_k / experts).powf(rows as f64))
    }

    pub(crate) fn kv_shape(&self, dtype: KvDtype, windows: Vec<Option<u32>>, num_blocks: usize) -> KvShape {
        KvShape {
            windows,
            num_query_heads: self.heads,
            num_kv_heads: self.kv_heads,
            head_dim: HEAD_DIM,
            dtype,
            block_size: BLOCK_SIZE,
            num_full_blocks: num_blocks,
            num_sliding_blocks: num_blocks,
        }
    }

    /// gpt-oss's, with a few layers.
    pub(crate) fn rope(&self) -> Result<RopeParams, CheckpointError> {
        Ok(self.config(1)?.rope)
    }

    /// The model with some of its layers.
    pub(crate) fn config(&self, num_layers: usize) -> Result<ModelConfig, CheckpointError> {
        let kinds = ["sliding_attention", "full_attention"];
        let layer_types: Vec<&str> = (0..num_layers).map(|layer| kinds[layer % 2]).collect();
        let config = json!({
            "architectures": ["GptOssForCausalLM"],
            "model_type": "gpt_oss",
            "attention_bias": true,
            "head_dim": HEAD_DIM,
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "intermediate_size": self.hidden,
            "layer_types": layer_types,
            "max_position_embeddings": 131_072,
            "num_attention_heads": self.heads,
            "num_experts_per_tok": self.top_k,
            "num_hidden_layers": num_layers,
            "num_key_value_heads": self.kv_heads,
            "num_local_experts": self.experts,
            "rms_norm_eps": 1e-5,
            "rope_theta": 150_000,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 32.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "truncate": false,
                "original_max_position_embeddings": 4096
            },
            "sliding_window": self.window,
            "swiglu_limit": 7.0,
            "tie_word_embeddings": false,
            "vocab_size": self.vocab,
            "eos_token_id": self.vocab - 1,
            "quantization_config": {"quant_method": "mxfp4"}
        });
        ModelConfig::from_hugging_face(&config.to_string(), None)
    }

    /// Random weights of the whole model: windows into pools, each elsewhere, so
    /// that no two layers are alike and the host keeps three gigabytes only.
    pub(crate) fn checkpoint(&self, num_layers: usize, seed: u64) -> Result<Checkpoint, CheckpointError> {
        const PLACES: usize = 1 << 22;
        let random = &mut Random(seed);
        let elements = self.experts * 2 * self.hidden * self.hidden;
        let blocks = noise::bits(random, elements / 2 + PLACES);
        let scales = noise::scales(random, elements / 32 + PLACES);
        let largest_dense =
            self.vocab.max(self.qkv()).max(self.queries()).max(2 * self.experts) * self.hidden;
        let halves = noise::bf16(random, largest_dense + PLACES);
        let ones: Bytes = [0x80u8, 0x3f].repeat(self.hidden).into();
        Ok(Checkpoint::made(self.config(num_layers)?, |name, len| {
            let pool = match name {
                name if name.contains("norm.weight") => return ones.clone(),
                name if name.ends_with("_blocks") => &blocks,
                name if name.ends_with("_scales") => &scales,
                _ => &halves,
            };
            // Whole groups of 16 bytes, as a file has them.
            let place = 16 * random.below((pool.len() - len) / 16 + 1);
            pool.slice(place..place + len)
        }))
    }
}
