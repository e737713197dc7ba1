//! A rank's weights on its device, loaded layer by layer so that no more than
//! one layer's source is held beside what is already packed.

use crate::checkpoint::{Checkpoint, CheckpointError, LayerSource, dense_views};
use crate::shard::ShardSpec;
use bytes::Bytes;
use chorale_device::Device;

/// How far loading has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadProgress {
    /// Bytes of the checkpoint that are on the device.
    pub bytes: u64,
    /// All bytes of the shard.
    pub total_bytes: u64,
    /// Tensors that are on the device.
    pub tensors: usize,
    /// All tensors of the shard.
    pub total_tensors: usize,
}

/// Why a shard did not load.
#[derive(Debug, thiserror::Error)]
pub enum LoadError<E> {
    /// The checkpoint is at fault.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The device has no room, or failed.
    #[error(transparent)]
    Device(E),
}

pub(crate) struct Weights<D: Device> {
    pub(crate) embedding: D::Embedding,
    pub(crate) layers: Vec<Layer<D>>,
    pub(crate) norm: D::Norm,
    pub(crate) head: D::Linear,
}

pub(crate) struct Layer<D: Device> {
    pub(crate) input_norm: D::Norm,
    pub(crate) qkv: D::Linear,
    pub(crate) sinks: D::Sinks,
    pub(crate) output: D::Linear,
    pub(crate) post_norm: D::Norm,
    pub(crate) router: D::Linear,
    pub(crate) experts: D::Experts,
}

/// Loads one rank's part of a checkpoint.
pub(crate) struct Loader<'a, D: Device> {
    pub(crate) device: &'a mut D,
    pub(crate) checkpoint: &'a Checkpoint,
    pub(crate) spec: &'a ShardSpec,
    pub(crate) on_progress: &'a mut dyn FnMut(LoadProgress),
}

impl<D: Device> Loader<'_, D> {
    pub(crate) fn load(mut self) -> Result<Weights<D>, LoadError<D::Error>> {
        let size = self.checkpoint.shard_size(self.spec)?;
        let mut progress = LoadProgress {
            total_bytes: size.num_bytes,
            total_tensors: size.num_views,
            ..LoadProgress::default()
        };
        (self.on_progress)(progress);

        let source = self.checkpoint.embedding()?;
        self.advance(&mut progress, dense_views("weight", "bias", &source).map(|view| view.1));
        let embedding = self.device.embedding(source).map_err(LoadError::Device)?;

        let mut layers = Vec::with_capacity(self.checkpoint.config().num_layers());
        for index in 0..self.checkpoint.config().num_layers() {
            let source = self.checkpoint.layer(index, self.spec)?;
            self.advance(&mut progress, source.views().into_iter().map(|view| view.1));
            layers.push(self.layer(source).map_err(LoadError::Device)?);
        }

        let gain = self.checkpoint.final_norm()?;
        let source = self.checkpoint.head(self.spec)?;
        self.advance(&mut progress, dense_views("weight", "bias", &source).map(|view| view.1).chain([&gain]));
        let norm = self.norm(gain).map_err(LoadError::Device)?;
        let head = self.device.linear(source).map_err(LoadError::Device)?;
        (self.on_progress)(progress);
        Ok(Weights { embedding, layers, norm, head })
    }

    fn layer(&mut self, source: LayerSource) -> Result<Layer<D>, D::Error> {
        Ok(Layer {
            input_norm: self.norm(source.input_norm)?,
            qkv: self.device.linear(source.qkv)?,
            sinks: self.device.sinks(source.sinks)?,
            output: self.device.linear(source.output)?,
            post_norm: self.norm(source.post_norm)?,
            router: self.device.linear(source.router)?,
            experts: self.device.experts(source.experts)?,
        })
    }

    fn norm(&mut self, gain: Bytes) -> Result<D::Norm, D::Error> {
        self.device.norm(gain, self.checkpoint.config().rms_norm_eps)
    }

    /// Reports what has been loaded so far, and counts the views that come next.
    fn advance<'b>(&mut self, progress: &mut LoadProgress, views: impl Iterator<Item = &'b Bytes>) {
        (self.on_progress)(*progress);
        for view in views {
            progress.bytes += view.len() as u64;
            progress.tensors += 1;
        }
    }
}
