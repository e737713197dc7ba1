//! The geometry and constants of a gpt-oss model, as `config.json` states them.
//! Geometry is never assumed: what the file leaves out and the computation
//! needs is refused, and so is what it says and this crate does not compute.

mod document;
mod fields;
mod geometry;
mod hugging_face;
mod original;
mod rope;
mod tokens;

use crate::checkpoint::CheckpointError;
use chorale_device::RopeParams;
use fields::Fields;
use std::path::Path;

/// The reference code's default, and the value of every release.
const DEFAULT_SWIGLU_LIMIT: f32 = 7.0;
/// The reference code's default, and the value of every release.
const DEFAULT_RMS_NORM_EPS: f32 = 1e-5;

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

impl ModelConfig {
    /// Reads `config.json` and `generation_config.json` as transformers writes them.
    pub fn from_hugging_face(
        config_json: &str,
        generation_config_json: Option<&str>,
    ) -> Result<Self, CheckpointError> {
        let generation = generation_config_json.map(|text| (Path::new("generation_config.json"), text));
        Self::read(hugging_face::read, (Path::new("config.json"), config_json), generation)
    }

    /// Reads `config.json` of OpenAI's own layout. It names no tokens: those
    /// that end a completion come from the `generation_config.json` beside
    /// the other layout, if there is one.
    pub fn from_original(
        config_json: &str,
        generation_config_json: Option<&str>,
    ) -> Result<Self, CheckpointError> {
        let generation = generation_config_json.map(|text| (Path::new("generation_config.json"), text));
        Self::read(original::read, (Path::new("config.json"), config_json), generation)
    }

    /// Reads `config.json` of either layout, told apart by what it says: whoever
    /// has no weights to tell them apart by reads it so.
    pub fn from_either_layout(
        config_json: &str,
        generation_config_json: Option<&str>,
    ) -> Result<Self, CheckpointError> {
        let generation = generation_config_json.map(|text| (Path::new("generation_config.json"), text));
        Self::from_files((Path::new("config.json"), config_json), generation)
    }

    /// Reads either kind, told apart by the fields that only transformers writes.
    pub(crate) fn from_files(
        config: (&Path, &str),
        generation: Option<(&Path, &str)>,
    ) -> Result<Self, CheckpointError> {
        Self::read(
            |fields, generation| {
                let by_transformers =
                    ["model_type", "architectures"].iter().any(|key| fields.get(key).is_some());
                if by_transformers || fields.get("num_experts").is_none() {
                    hugging_face::read(fields, generation)
                } else {
                    original::read(fields, generation)
                }
            },
            config,
            generation,
        )
    }

    fn read(
        reader: impl Fn(&Fields<'_>, Option<&Fields<'_>>) -> Result<Self, CheckpointError>,
        (file, text): (&Path, &str),
        generation: Option<(&Path, &str)>,
    ) -> Result<Self, CheckpointError> {
        let map = document::parse(file, text)?;
        let config = Fields::new(file, &map);
        let Some((file, text)) = generation else {
            return reader(&config, None);
        };
        let map = document::parse(file, text)?;
        reader(&config, Some(&Fields::new(file, &map)))
    }

    /// Layers of the model.
    pub fn num_layers(&self) -> usize {
        self.windows.len()
    }

    /// The window of the sliding layers: one for all of them. `None` where no layer slides.
    pub fn window(&self) -> Option<u32> {
        self.windows.iter().copied().flatten().next()
    }

    /// Rows of the query projection.
    pub fn query_size(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Rows of the key projection, and of the value projection.
    pub fn key_value_size(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }
}
