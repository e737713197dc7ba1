//! What the tensors of the two published layouts are called, and which type
//! and shape each must have. This table is the only place that tells the
//! layouts apart; everything after it asks for "the keys' rows".

use crate::config::ModelConfig;
use chorale_device::{BLOCK, BLOCK_BYTES};
use safetensors::Dtype;

/// Which of the published layouts a checkpoint has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// The one that transformers reads: q, k and v apart.
    HuggingFace,
    /// The folder `original/`: q, k and v in one tensor, in that order.
    Original,
}

/// A tensor that the model needs.
pub(super) struct Expected {
    pub(super) name: String,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
}

/// The tensors of one layer.
pub(super) struct LayerNames {
    pub(super) input_norm: String,
    pub(super) query: DenseNames,
    pub(super) key: DenseNames,
    pub(super) value: DenseNames,
    pub(super) sinks: String,
    pub(super) output: DenseNames,
    pub(super) post_norm: String,
    pub(super) router: DenseNames,
    pub(super) gate_up: Mxfp4Names,
    pub(super) down: Mxfp4Names,
}

/// A matrix with its bias, or a run of rows of both.
pub(super) struct DenseNames {
    pub(super) weight: String,
    pub(super) bias: String,
    /// Where the matrix starts in its tensors.
    pub(super) first_row: usize,
}

/// The MXFP4 matrices of all experts.
pub(super) struct Mxfp4Names {
    pub(super) blocks: String,
    pub(super) scales: String,
    pub(super) bias: String,
}

impl Layout {
    /// By a tensor's name; the two have none in common.
    pub(super) fn of_tensor(name: &str) -> Option<Self> {
        if name.starts_with("block.")
            || ["embedding.", "unembedding.", "norm."].iter().any(|p| name.starts_with(p))
        {
            Some(Self::Original)
        } else if name.starts_with("model.") || name.starts_with("lm_head.") {
            Some(Self::HuggingFace)
        } else {
            None
        }
    }

    pub(super) fn embedding(self) -> &'static str {
        match self {
            Self::HuggingFace => "model.embed_tokens.weight",
            Self::Original => "embedding.weight",
        }
    }

    pub(super) fn final_norm(self) -> &'static str {
        match self {
            Self::HuggingFace => "model.norm.weight",
            Self::Original => "norm.scale",
        }
    }

    pub(super) fn head(self) -> &'static str {
        match self {
            Self::HuggingFace => "lm_head.weight",
            Self::Original => "unembedding.weight",
        }
    }

    pub(super) fn layer(self, layer: usize, config: &ModelConfig) -> LayerNames {
        match self {
            Self::HuggingFace => hugging_face_layer(layer),
            Self::Original => original_layer(layer, config),
        }
    }

    /// Every tensor of the model. The head is not among them where the
    /// embedding is tied, nor biases where there are none.
    pub(super) fn expected(self, config: &ModelConfig) -> Vec<Expected> {
        let hidden = config.hidden_size;
        let mut expected =
            vec![bf16(self.embedding(), &[config.vocab_size, hidden]), bf16(self.final_norm(), &[hidden])];
        if !config.tie_word_embeddings {
            expected.push(bf16(self.head(), &[config.vocab_size, hidden]));
        }
        for layer in 0..config.num_layers() {
            self.expect_layer(layer, config, &mut expected);
        }
        expected
    }

    fn expect_layer(self, layer: usize, config: &ModelConfig, expected: &mut Vec<Expected>) {
        let names = self.layer(layer, config);
        let hidden = config.hidden_size;
        let query = config.query_size();
        let key_value = config.key_value_size();
        let projections = match self {
            Self::HuggingFace => {
                vec![(&names.query, query), (&names.key, key_value), (&names.value, key_value)]
            }
            Self::Original => vec![(&names.query, query + 2 * key_value)],
        };
        for (matrix, rows) in projections {
            expect_attention(matrix, &[rows, hidden], config, expected);
        }
        expect_attention(&names.output, &[hidden, query], config, expected);
        expected.push(bf16(&names.input_norm, &[hidden]));
        expected.push(bf16(&names.sinks, &[config.num_attention_heads]));
        expected.push(bf16(&names.post_norm, &[hidden]));
        expected.push(bf16(&names.router.weight, &[config.num_experts, hidden]));
        expected.push(bf16(&names.router.bias, &[config.num_experts]));
        expect_experts(&names.gate_up, 2 * config.intermediate_size, hidden, config, expected);
        expect_experts(&names.down, hidden, config.intermediate_size, config, expected);
    }
}

fn expect_attention(
    matrix: &DenseNames,
    shape: &[usize; 2],
    config: &ModelConfig,
    expected: &mut Vec<Expected>,
) {
    expected.push(bf16(&matrix.weight, shape));
    if config.attention_bias {
        expected.push(bf16(&matrix.bias, &shape[..1]));
    }
}

fn expect_experts(
    matrix: &Mxfp4Names,
    rows: usize,
    cols: usize,
    config: &ModelConfig,
    expected: &mut Vec<Expected>,
) {
    let shape = [config.num_experts, rows, cols / BLOCK, BLOCK_BYTES];
    expected.push(Expected { name: matrix.blocks.clone(), dtype: Dtype::U8, shape: shape.to_vec() });
    expected.push(Expected { name: matrix.scales.clone(), dtype: Dtype::U8, shape: shape[..3].to_vec() });
    expected.push(bf16(&matrix.bias, &shape[..2]));
}

fn bf16(name: &str, shape: &[usize]) -> Expected {
    Expected { name: name.to_owned(), dtype: Dtype::BF16, shape: shape.to_vec() }
}

fn hugging_face_layer(layer: usize) -> LayerNames {
    let at = |name: &str| format!("model.layers.{layer}.{name}");
    let dense = |name: &str| DenseNames {
        weight: at(&format!("{name}.weight")),
        bias: at(&format!("{name}.bias")),
        first_row: 0,
    };
    let mxfp4 = |name: &str| Mxfp4Names {
        blocks: at(&format!("mlp.experts.{name}_blocks")),
        scales: at(&format!("mlp.experts.{name}_scales")),
        bias: at(&format!("mlp.experts.{name}_bias")),
    };
    LayerNames {
        input_norm: at("input_layernorm.weight"),
        query: dense("self_attn.q_proj"),
        key: dense("self_attn.k_proj"),
        value: dense("self_attn.v_proj"),
        sinks: at("self_attn.sinks"),
        output: dense("self_attn.o_proj"),
        post_norm: at("post_attention_layernorm.weight"),
        router: dense("mlp.router"),
        gate_up: mxfp4("gate_up_proj"),
        down: mxfp4("down_proj"),
    }
}

fn original_layer(layer: usize, config: &ModelConfig) -> LayerNames {
    let at = |name: &str| format!("block.{layer}.{name}");
    let dense = |name: &str, first_row| DenseNames {
        weight: at(&format!("{name}.weight")),
        bias: at(&format!("{name}.bias")),
        first_row,
    };
    let mxfp4 = |name: &str| Mxfp4Names {
        blocks: at(&format!("mlp.{name}_weight.blocks")),
        scales: at(&format!("mlp.{name}_weight.scales")),
        bias: at(&format!("mlp.{name}_bias")),
    };
    let key = config.query_size();
    LayerNames {
        input_norm: at("attn.norm.scale"),
        query: dense("attn.qkv", 0),
        key: dense("attn.qkv", key),
        value: dense("attn.qkv", key + config.key_value_size()),
        sinks: at("attn.sinks"),
        output: dense("attn.out", 0),
        post_norm: at("mlp.norm.scale"),
        router: dense("mlp.gate", 0),
        gate_up: mxfp4("mlp1"),
        down: mxfp4("mlp2"),
    }
}
