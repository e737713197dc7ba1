//! Writes tiny checkpoints of any geometry in both layouts, with the same
//! weights in each. Weights are noise that is the same in every run.

use chorale_model::checkpoint::Checkpoint;
use serde_json::{Map, Value, json};
use std::fs;
use std::path::Path;
use tempfile::TempDir;

/// The numbers that decide every shape.
#[derive(Clone, Debug)]
pub(crate) struct Geometry {
    pub(crate) hidden: usize,
    pub(crate) intermediate: usize,
    pub(crate) kv_heads: usize,
    pub(crate) heads_each: usize,
    pub(crate) head_dim: usize,
    pub(crate) experts: usize,
    pub(crate) top_k: usize,
    pub(crate) vocab: usize,
    pub(crate) layers: usize,
    pub(crate) window: usize,
    /// Files to spread the tensors over; 1 writes no index.
    pub(crate) files: usize,
}

impl Geometry {
    pub(crate) const SMALL: Self = Self {
        hidden: 32,
        intermediate: 64,
        kv_heads: 3,
        heads_each: 2,
        head_dim: 6,
        experts: 5,
        top_k: 2,
        vocab: 17,
        layers: 2,
        window: 3,
        files: 1,
    };

    /// Writes and opens the Hugging Face layout.
    pub(crate) fn hugging_face(&self) -> (TempDir, Checkpoint) {
        let dir = tempfile::tempdir().unwrap();
        self.write_hugging_face(dir.path());
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        (dir, checkpoint)
    }

    /// Writes and opens OpenAI's layout.
    pub(crate) fn original(&self) -> (TempDir, Checkpoint) {
        let dir = tempfile::tempdir().unwrap();
        self.write_original(dir.path());
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        (dir, checkpoint)
    }

    pub(crate) fn write_hugging_face(&self, dir: &Path) {
        fs::write(dir.join("config.json"), self.config().to_string()).unwrap();
        let mut tensors = vec![
            self.bf16("model.embed_tokens.weight", "embedding", &[self.vocab, self.hidden]),
            self.bf16("model.norm.weight", "norm", &[self.hidden]),
            self.bf16("lm_head.weight", "head", &[self.vocab, self.hidden]),
        ];
        for layer in 0..self.layers {
            let mut add = |name: &str, role: &str, shape: &[usize]| {
                tensors.push(self.bf16(
                    &format!("model.layers.{layer}.{name}"),
                    &format!("{layer}.{role}"),
                    shape,
                ));
            };
            self.each_shared(|role, shape| add(hugging_face_name(role), role, shape));
            for (role, rows) in [("q", self.query()), ("k", self.key_value()), ("v", self.key_value())] {
                add(
                    &format!("self_attn.{role}_proj.weight"),
                    &format!("{role}.weight"),
                    &[rows, self.hidden],
                );
                add(&format!("self_attn.{role}_proj.bias"), &format!("{role}.bias"), &[rows]);
            }
            for (role, rows, cols) in self.expert_matrices() {
                let prefix = format!("model.layers.{layer}.mlp.experts.{role}_proj");
                tensors.extend(self.mxfp4(
                    [format!("{prefix}_blocks"), format!("{prefix}_scales"), format!("{prefix}_bias")],
                    &format!("{layer}.{role}"),
                    rows,
                    cols,
                ));
            }
        }
        self.write(dir, tensors);
    }

    pub(crate) fn write_original(&self, dir: &Path) {
        fs::write(dir.join("config.json"), self.original_config().to_string()).unwrap();
        let mut tensors = vec![
            self.bf16("embedding.weight", "embedding", &[self.vocab, self.hidden]),
            self.bf16("norm.scale", "norm", &[self.hidden]),
            self.bf16("unembedding.weight", "head", &[self.vocab, self.hidden]),
        ];
        for layer in 0..self.layers {
            self.each_shared(|role, shape| {
                let name = format!("block.{layer}.{}", original_name(role));
                tensors.push(self.bf16(&name, &format!("{layer}.{role}"), shape));
            });
            let rows = [("q", self.query()), ("k", self.key_value()), ("v", self.key_value())];
            let total = self.query() + 2 * self.key_value();
            for (kind, shape) in [("weight", vec![total, self.hidden]), ("bias", vec![total])] {
                let data = rows.iter().flat_map(|(role, rows)| {
                    let part = [&[*rows], &shape[1..]].concat();
                    self.bf16("", &format!("{layer}.{role}.{kind}"), &part).data
                });
                let name = format!("block.{layer}.attn.qkv.{kind}");
                tensors.push(Tensor { name, dtype: "BF16", data: data.collect(), shape });
            }
            for (role, rows, cols) in self.expert_matrices() {
                let name = if role == "gate_up" { "mlp1" } else { "mlp2" };
                let prefix = format!("block.{layer}.mlp.{name}");
                tensors.extend(self.mxfp4(
                    [
                        format!("{prefix}_weight.blocks"),
                        format!("{prefix}_weight.scales"),
                        format!("{prefix}_bias"),
                    ],
                    &format!("{layer}.{role}"),
                    rows,
                    cols,
                ));
            }
        }
        self.write(dir, tensors);
    }

    /// The tensors of a layer that both layouts keep alike.
    fn each_shared(&self, mut add: impl FnMut(&str, &[usize])) {
        add("input_norm", &[self.hidden]);
        add("post_norm", &[self.hidden]);
        add("sinks", &[self.kv_heads * self.heads_each]);
        add("output.weight", &[self.hidden, self.query()]);
        add("output.bias", &[self.hidden]);
        add("router.weight", &[self.experts, self.hidden]);
        add("router.bias", &[self.experts]);
    }

    fn expert_matrices(&self) -> [(&'static str, usize, usize); 2] {
        [("gate_up", 2 * self.intermediate, self.hidden), ("down", self.hidden, self.intermediate)]
    }

    fn query(&self) -> usize {
        self.kv_heads * self.heads_each * self.head_dim
    }

    fn key_value(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    fn bf16(&self, name: &str, role: &str, shape: &[usize]) -> Tensor {
        let mut noise = Noise::of(role);
        let num_elements: usize = shape.iter().product();
        // Exponents around 1: finite, and of either sign.
        let data = (0..num_elements).flat_map(|_| ((noise.next() & 0x807f) | 0x3f80).to_le_bytes()).collect();
        Tensor { name: name.to_owned(), dtype: "BF16", shape: shape.to_vec(), data }
    }

    fn mxfp4(
        &self,
        [blocks, scales, bias]: [String; 3],
        role: &str,
        rows: usize,
        cols: usize,
    ) -> [Tensor; 3] {
        let mut noise = Noise::of(role);
        let num_blocks = self.experts * rows * cols / 32;
        let block_data = (0..num_blocks * 16).map(|_| noise.next() as u8).collect();
        let scale_data = (0..num_blocks).map(|_| (noise.next() % 255) as u8).collect();
        [
            Tensor {
                name: blocks,
                dtype: "U8",
                shape: vec![self.experts, rows, cols / 32, 16],
                data: block_data,
            },
            Tensor {
                name: scales,
                dtype: "U8",
                shape: vec![self.experts, rows, cols / 32],
                data: scale_data,
            },
            self.bf16(&bias, &format!("{role}.bias"), &[self.experts, rows]),
        ]
    }

    fn config(&self) -> Value {
        json!({
            "architectures": ["GptOssForCausalLM"],
            "model_type": "gpt_oss",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_attention_heads": self.kv_heads * self.heads_each,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "num_local_experts": self.experts,
            "num_experts_per_tok": self.top_k,
            "vocab_size": self.vocab,
            "num_hidden_layers": self.layers,
            "sliding_window": self.window,
            "max_position_embeddings": 131072,
            "rope_parameters": {
                "rope_type": "yarn", "rope_theta": 150000.0, "factor": 32.0, "beta_fast": 32.0,
                "beta_slow": 1.0, "original_max_position_embeddings": 4096, "truncate": false,
            },
            "quantization_config": {"quant_method": "mxfp4"},
        })
    }

    fn original_config(&self) -> Value {
        json!({
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_attention_heads": self.kv_heads * self.heads_each,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "num_experts": self.experts,
            "experts_per_token": self.top_k,
            "vocab_size": self.vocab,
            "num_hidden_layers": self.layers,
            "sliding_window": self.window,
            "initial_context_length": 4096,
            "rope_theta": 150000,
            "rope_scaling_factor": 32.0,
            "rope_ntk_alpha": 1,
            "rope_ntk_beta": 32,
        })
    }

    /// Deals the tensors out to the files, so that a layer's are scattered.
    fn write(&self, dir: &Path, tensors: Vec<Tensor>) {
        if self.files == 1 {
            fs::write(dir.join("model.safetensors"), safetensors(&tensors)).unwrap();
            return;
        }
        let mut weight_map = Map::new();
        let mut dealt: Vec<Vec<Tensor>> = (0..self.files).map(|_| Vec::new()).collect();
        for (i, tensor) in tensors.into_iter().enumerate() {
            weight_map.insert(tensor.name.clone(), json!(shard_name(i % self.files)));
            dealt[i % self.files].push(tensor);
        }
        for (i, tensors) in dealt.iter().enumerate() {
            fs::write(dir.join(shard_name(i)), safetensors(tensors)).unwrap();
        }
        let index = json!({"metadata": {"total_size": 0}, "weight_map": weight_map});
        fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
    }
}

/// Misnumbered on purpose: only the index counts.
fn shard_name(i: usize) -> String {
    format!("part-{i:05}-of-00001.safetensors")
}

fn hugging_face_name(role: &str) -> &'static str {
    match role {
        "input_norm" => "input_layernorm.weight",
        "post_norm" => "post_attention_layernorm.weight",
        "sinks" => "self_attn.sinks",
        "output.weight" => "self_attn.o_proj.weight",
        "output.bias" => "self_attn.o_proj.bias",
        "router.weight" => "mlp.router.weight",
        "router.bias" => "mlp.router.bias",
        _ => unreachable!("{role}"),
    }
}

fn original_name(role: &str) -> &'static str {
    match role {
        "input_norm" => "attn.norm.scale",
        "post_norm" => "mlp.norm.scale",
        "sinks" => "attn.sinks",
        "output.weight" => "attn.out.weight",
        "output.bias" => "attn.out.bias",
        "router.weight" => "mlp.gate.weight",
        "router.bias" => "mlp.gate.bias",
        _ => unreachable!("{role}"),
    }
}

struct Tensor {
    name: String,
    dtype: &'static str,
    shape: Vec<usize>,
    data: Vec<u8>,
}

fn safetensors(tensors: &[Tensor]) -> Vec<u8> {
    let mut header = Map::new();
    let mut end = 0;
    for tensor in tensors {
        let start = end;
        end += tensor.data.len();
        let entry = json!({"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, end]});
        header.insert(tensor.name.clone(), entry);
    }
    let header = Value::Object(header).to_string();
    let mut content = (header.len() as u64).to_le_bytes().to_vec();
    content.extend(header.as_bytes());
    tensors.iter().for_each(|tensor| content.extend(&tensor.data));
    content
}

/// SplitMix64, seeded by what the numbers are for.
struct Noise(u64);

impl Noise {
    fn of(role: &str) -> Self {
        Self(role.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        }))
    }

    fn next(&mut self) -> u16 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed >> 40) as u16
    }
}
