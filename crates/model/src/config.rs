//! The geometry and constants of a gpt-oss model, as `config.json` states them.

use chorale_device::RopeParams;

/// Everything of `config.json` that changes the computation.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside an expert.
    pub intermediate_size: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; each serves `num_attention_heads / num_key_value_heads` query heads.
    pub num_key_value_heads: usize,
    /// Width of a head, even.
    pub head_dim: usize,
    /// Experts of each layer.
    pub num_experts: usize,
    /// Experts that each token is sent to.
    pub experts_per_token: usize,
    /// Entries of the vocabulary.
    pub vocab_size: usize,
    /// For each layer how many keys a query sees, its own included; `None` sees all.
    pub windows: Vec<Option<u32>>,
    /// Rotary position embedding.
    pub rope: RopeParams,
    /// Bound of the experts' activations.
    pub swiglu_limit: f32,
    /// Epsilon of every RMSNorm.
    pub rms_norm_eps: f32,
    /// Whether q, k, v and o have biases.
    pub attention_bias: bool,
    /// Whether the embedding table is the output matrix, too.
    pub tie_word_embeddings: bool,
    /// Positions that the model may be used at.
    pub max_position_embeddings: usize,
    /// Tokens that end a completion, from `generation_config.json` if it is there, else `config.json`.
    pub eos_token_ids: Vec<u32>,
}
