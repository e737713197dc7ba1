//! A checkpoint on disk: which tensors it has, and views of them by the part
//! that a rank holds. Nothing is copied and nothing written; both published
//! layouts give the same views.

mod entries;
mod error;
mod files;
mod fingerprint;
mod header;
mod index;
mod names;
mod reader;
mod schema;
mod source;
mod table;

pub use error::CheckpointError;
pub use fingerprint::Fingerprint;
pub use header::{Header, HeaderTensor};
pub use index::Index;
pub use names::Layout;
pub use source::{LayerSource, dense_views, expert_views, num_bytes};

use crate::config::ModelConfig;
use crate::shard::{self, ShardSpec};
use bytes::Bytes;
use chorale_device::{DensePart, DenseSource, ExpertsSource};
use names::LayerNames;
use reader::Reader;
use std::path::Path;
use std::sync::OnceLock;
use table::TensorTable;

/// An open checkpoint. Cheap to open: headers are read, weights only mapped.
#[derive(Debug)]
pub struct Checkpoint {
    config: ModelConfig,
    layout: Layout,
    table: TensorTable,
    /// It lies in no file, and whoever made it answers for its values.
    is_made: bool,
    fingerprint: OnceLock<Fingerprint>,
}

/// What a rank has to load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShardSize {
    /// Bytes of all views.
    pub num_bytes: u64,
    /// Views: a tensor counts once for each run of rows or expert of it.
    pub num_views: usize,
}

impl Checkpoint {
    /// Opens the checkpoint in a directory: of the Hugging Face layout, of
    /// OpenAI's, or with the latter in a folder `original/`. Everything that
    /// headers can tell is checked here; values are checked when they are asked for.
    ///
    /// The files must not change while the checkpoint or a view of it lives:
    /// they are mapped, and a file that shrinks ends the process.
    pub fn open(dir: &Path) -> Result<Self, CheckpointError> {
        let located = files::locate(dir)?;
        let config_text = files::read_text(&located.config)?;
        let generation_text = located.generation_config.as_deref().map(files::read_text).transpose()?;
        let generation = located.generation_config.as_deref().zip(generation_text.as_deref());
        let config = ModelConfig::from_files((&located.config, &config_text), generation)?;
        let table = TensorTable::read(&located.weights)?;
        let layout = schema::detect(&table);
        schema::check(&table, layout, &config)?;
        Ok(Self { config, layout, table, is_made: false, fingerprint: OnceLock::new() })
    }

    /// A checkpoint that lies in no file: `make` gives the bytes of each tensor,
    /// by its name and their number. For measuring with weights that nobody has.
    pub fn made(config: ModelConfig, mut make: impl FnMut(&str, usize) -> Bytes) -> Self {
        let layout = Layout::HuggingFace;
        let tensors = layout.expected(&config).into_iter().map(|tensor| {
            let len = tensor.shape.iter().product::<usize>() * tensor.dtype.bitsize() / 8;
            let bytes = make(&tensor.name, len);
            assert_eq!(bytes.len(), len, "bytes of {}", tensor.name);
            (tensor, bytes)
        });
        let table = TensorTable::made(tensors);
        Self { config, layout, table, is_made: true, fingerprint: OnceLock::new() }
    }

    /// The model's geometry and constants.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Which of the published layouts this is.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Whether two workers opened the same checkpoint, as far as headers and
    /// samples of the weights tell. Read once.
    pub fn fingerprint(&self) -> Fingerprint {
        *self.fingerprint.get_or_init(|| fingerprint::fingerprint(&self.config, self.layout, &self.table))
    }

    /// The embedding table, whole.
    pub fn embedding(&self) -> Result<DenseSource, CheckpointError> {
        self.read_embedding(self.reader(true))
    }

    /// Gain of the norm after the last layer.
    pub fn final_norm(&self) -> Result<Bytes, CheckpointError> {
        self.reader(true).finite(self.layout.final_norm())
    }

    /// The rank's rows of the output matrix. Where `tie_word_embeddings` is set
    /// these are the embedding's, whatever else the files hold, as in transformers.
    pub fn head(&self, spec: &ShardSpec) -> Result<DenseSource, CheckpointError> {
        spec.check(&self.config)?;
        self.read_head(self.reader(true), spec)
    }

    /// The rank's part of a layer. A rank without attention asks for [`Self::experts`].
    pub fn layer(&self, layer: usize, spec: &ShardSpec) -> Result<LayerSource, CheckpointError> {
        let names = self.layer_names(layer, spec)?;
        if !spec.attention {
            return Err(CheckpointError::Shard {
                reason: "a rank without attention holds experts only, not whole layers".to_owned(),
            });
        }
        self.read_layer(self.reader(true), &names, (spec, layer))
    }

    /// Some experts of a layer, by their number in the model.
    pub fn experts(&self, layer: usize, experts: &[u32]) -> Result<ExpertsSource, CheckpointError> {
        shard::check_experts(experts, &self.config)?;
        let names = self.names_of(layer)?;
        self.read_experts(self.reader(true), &names, experts)
    }

    /// What the rank has to load, measured without touching it.
    pub fn shard_size(&self, spec: &ShardSpec) -> Result<ShardSize, CheckpointError> {
        let mut size = ShardSize::default();
        if spec.attention {
            let unread = self.reader(false);
            let (embedding, head) = (self.read_embedding(unread)?, self.read_head(unread, spec)?);
            let final_norm = unread.finite(self.layout.final_norm())?;
            size.add(dense_views("weight", "bias", &embedding));
            size.add(dense_views("weight", "bias", &head));
            size.add([("final_norm", &final_norm)]);
        }
        for layer in 0..self.config.num_layers() {
            let names = self.layer_names(layer, spec)?;
            if spec.attention {
                size.add(self.read_layer(self.reader(false), &names, (spec, layer))?.views());
            } else {
                size.add(expert_views(&self.read_experts(
                    self.reader(false),
                    &names,
                    &spec.experts[layer],
                )?));
            }
        }
        Ok(size)
    }

    fn read_layer(
        &self,
        reader: Reader<'_>,
        names: &LayerNames,
        (spec, layer): (&ShardSpec, usize),
    ) -> Result<LayerSource, CheckpointError> {
        let config = &self.config;
        let has_bias = config.attention_bias;
        let key_value_rows = spec.key_value_rows(config);
        let qkv = vec![
            reader.dense(&names.query, spec.query_rows(config), has_bias)?,
            reader.dense(&names.key, key_value_rows.clone(), has_bias)?,
            reader.dense(&names.value, key_value_rows, has_bias)?,
        ];
        let output = reader.dense(&names.output, spec.output_rows(config), has_bias)?;
        let router = DensePart {
            rows: config.num_experts,
            weight: reader.finite(&names.router.weight)?,
            bias: Some(reader.finite(&names.router.bias)?),
        };
        Ok(LayerSource {
            input_norm: reader.finite(&names.input_norm)?,
            qkv: DenseSource { cols: config.hidden_size, parts: qkv },
            sinks: reader.finite_rows(&names.sinks, spec.query_heads(config))?,
            output: DenseSource { cols: config.query_size(), parts: vec![output] },
            post_norm: reader.finite(&names.post_norm)?,
            router: DenseSource { cols: config.hidden_size, parts: vec![router] },
            experts: self.read_experts(reader, names, &spec.experts[layer])?,
        })
    }

    fn read_experts(
        &self,
        reader: Reader<'_>,
        names: &LayerNames,
        experts: &[u32],
    ) -> Result<ExpertsSource, CheckpointError> {
        let (hidden, intermediate) = (self.config.hidden_size, self.config.intermediate_size);
        Ok(ExpertsSource {
            gate_up: reader.mxfp4(&names.gate_up, experts, 2 * intermediate, hidden)?,
            down: reader.mxfp4(&names.down, experts, hidden, intermediate)?,
            swiglu_limit: self.config.swiglu_limit,
        })
    }

    fn read_embedding(&self, reader: Reader<'_>) -> Result<DenseSource, CheckpointError> {
        let rows = 0..self.config.vocab_size;
        let weight = reader.finite_rows(self.layout.embedding(), rows.clone())?;
        Ok(self.table_source(rows.len(), weight))
    }

    fn read_head(&self, reader: Reader<'_>, spec: &ShardSpec) -> Result<DenseSource, CheckpointError> {
        let name = if self.config.tie_word_embeddings { self.layout.embedding() } else { self.layout.head() };
        let rows = spec.vocab_rows(&self.config);
        let weight = reader.finite_rows(name, rows.clone())?;
        Ok(self.table_source(rows.len(), weight))
    }

    fn layer_names(&self, layer: usize, spec: &ShardSpec) -> Result<LayerNames, CheckpointError> {
        spec.check(&self.config)?;
        self.names_of(layer)
    }

    fn names_of(&self, layer: usize) -> Result<LayerNames, CheckpointError> {
        let num_layers = self.config.num_layers();
        if layer >= num_layers {
            let reason = format!("layer {layer} is asked for, the model has {num_layers}");
            return Err(CheckpointError::Shard { reason });
        }
        Ok(self.layout.layer(layer, &self.config))
    }

    fn table_source(&self, rows: usize, weight: Bytes) -> DenseSource {
        DenseSource { cols: self.config.hidden_size, parts: vec![DensePart { rows, weight, bias: None }] }
    }

    fn reader(&self, scans: bool) -> Reader<'_> {
        Reader { table: &self.table, scans: scans && !self.is_made }
    }
}

impl ShardSize {
    fn add<'a>(&mut self, views: impl IntoIterator<Item = (&'static str, &'a Bytes)>) {
        for (_, bytes) in views {
            self.num_bytes += bytes.len() as u64;
            self.num_views += 1;
        }
    }
}
