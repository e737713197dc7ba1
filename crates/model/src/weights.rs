//! A rank's weights on its device, loaded layer by layer so that no more than
//! one layer's source is held beside what is already packed. They outlive the
//! place that they were loaded for: the next one loads only what is missing.

use crate::checkpoint::{Checkpoint, CheckpointError, Fingerprint, LayerSource, dense_views, expert_views};
use crate::shard::{ShardSpec, Split};
use bytes::Bytes;
use chorale_device::{DenseDtype, Device, ExpertOrigin};
use std::ops::ControlFlow;

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
    /// Whoever was told of the progress wanted no more.
    #[error("loading was given up")]
    GivenUp,
}

/// What is told of progress, and says whether to go on.
pub type OnProgress<'a> = &'a mut dyn FnMut(LoadProgress) -> ControlFlow<()>;

/// What is on the device, perhaps nothing.
pub struct Weights<D: Device> {
    /// Of which checkpoint.
    checkpoint: Option<Fingerprint>,
    dense: Option<Dense<D>>,
    experts: Vec<HeldExperts<D>>,
}

/// Everything but the experts.
pub(crate) struct Dense<D: Device> {
    split: Split,
    dtype: DenseDtype,
    pub(crate) embedding: D::Embedding,
    pub(crate) layers: Vec<DenseLayer<D>>,
    pub(crate) norm: D::Norm,
    pub(crate) head: D::Linear,
}

pub(crate) struct DenseLayer<D: Device> {
    pub(crate) input_norm: D::Norm,
    pub(crate) qkv: D::Linear,
    pub(crate) sinks: D::Sinks,
    pub(crate) output: D::Linear,
    pub(crate) post_norm: D::Norm,
    pub(crate) router: D::Linear,
}

/// Experts of one layer.
pub(crate) struct HeldExperts<D: Device> {
    /// By their number in the model.
    numbers: Vec<u32>,
    pub(crate) packed: D::Experts,
}

impl<D: Device> Default for Weights<D> {
    fn default() -> Self {
        Self { checkpoint: None, dense: None, experts: Vec::new() }
    }
}

impl<D: Device> Weights<D> {
    /// Loads what a shard asks for and is not here, and drops what it does not
    /// ask for. What was loaded stays when loading fails or is given up.
    pub fn load(
        &mut self,
        device: &mut D,
        checkpoint: &Checkpoint,
        spec: &ShardSpec,
        on_progress: OnProgress<'_>,
    ) -> Result<(), LoadError<D::Error>> {
        spec.check(checkpoint.config())?;
        let fingerprint = checkpoint.fingerprint();
        if self.checkpoint != Some(fingerprint) {
            *self = Self { checkpoint: Some(fingerprint), ..Self::default() };
        }
        self.dense
            .take_if(|dense| !spec.attention || (dense.split, dense.dtype) != (spec.group, spec.dense_dtype));
        let progress = self.progress(checkpoint, spec)?;
        let mut loader = Loader { device, checkpoint, progress, on_progress };
        loader.tell()?;
        if spec.attention && self.dense.is_none() {
            self.dense = Some(loader.dense(spec)?);
        }
        for (layer, numbers) in spec.experts.iter().enumerate() {
            let held = self.experts.get(layer);
            if held.is_some_and(|held| &held.numbers == numbers) {
                continue;
            }
            let experts = loader.experts(layer, numbers, held)?;
            match self.experts.get_mut(layer) {
                Some(place) => *place = experts,
                None => self.experts.push(experts),
            }
            loader.tell()?;
        }
        Ok(())
    }

    /// What is there already of a shard, out of all of it.
    fn progress(&self, checkpoint: &Checkpoint, spec: &ShardSpec) -> Result<LoadProgress, CheckpointError> {
        let all = checkpoint.shard_size(spec)?;
        let lacks = |(layer, numbers): (usize, &Vec<u32>)| -> Vec<u32> {
            let held = self.experts.get(layer).map_or(&[][..], |held| &held.numbers);
            numbers.iter().copied().filter(|number| !held.contains(number)).collect()
        };
        let missing = checkpoint.shard_size(&ShardSpec {
            attention: spec.attention && self.dense.is_none(),
            experts: spec.experts.iter().enumerate().map(lacks).collect(),
            ..spec.clone()
        })?;
        Ok(LoadProgress {
            bytes: all.num_bytes - missing.num_bytes,
            total_bytes: all.num_bytes,
            tensors: all.num_views - missing.num_views,
            total_tensors: all.num_views,
        })
    }

    /// True if nothing is here.
    pub fn is_empty(&self) -> bool {
        self.dense.is_none() && self.experts.is_empty()
    }

    /// True if everything that a shard asks for is here.
    pub fn hold(&self, spec: &ShardSpec) -> bool {
        let dense = self.dense.as_ref().map(|dense| (dense.split, dense.dtype));
        let numbers = self.experts.iter().map(|held| &held.numbers);
        dense == spec.attention.then_some((spec.group, spec.dense_dtype)) && numbers.eq(&spec.experts)
    }

    pub(crate) fn dense(&self) -> Option<&Dense<D>> {
        self.dense.as_ref()
    }

    pub(crate) fn experts(&self) -> &[HeldExperts<D>] {
        &self.experts
    }

    /// Experts of a layer beside those that are here, sharing what both hold.
    pub(crate) fn other_experts(
        &self,
        device: &mut D,
        checkpoint: &Checkpoint,
        layer: usize,
        numbers: &[u32],
    ) -> Result<HeldExperts<D>, LoadError<D::Error>> {
        let on_progress: OnProgress<'_> = &mut |_| ControlFlow::Continue(());
        let mut loader = Loader { device, checkpoint, progress: LoadProgress::default(), on_progress };
        loader.experts(layer, numbers, self.experts.get(layer))
    }

    pub(crate) fn replace_experts(&mut self, experts: Vec<HeldExperts<D>>) {
        self.experts = experts;
    }
}

/// Loads parts of a checkpoint, and tells how far it is.
struct Loader<'a, D: Device> {
    device: &'a mut D,
    checkpoint: &'a Checkpoint,
    progress: LoadProgress,
    on_progress: OnProgress<'a>,
}

impl<D: Device> Loader<'_, D> {
    fn tell(&mut self) -> Result<(), LoadError<D::Error>> {
        match (self.on_progress)(self.progress) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(LoadError::GivenUp),
        }
    }

    fn count<'b>(&mut self, views: impl Iterator<Item = &'b Bytes>) {
        for view in views {
            self.progress.bytes += view.len() as u64;
            self.progress.tensors += 1;
        }
    }

    fn dense(&mut self, spec: &ShardSpec) -> Result<Dense<D>, LoadError<D::Error>> {
        let num_layers = self.checkpoint.config().num_layers();
        let spec = ShardSpec { experts: vec![Vec::new(); num_layers], ..spec.clone() };
        let source = self.checkpoint.embedding()?;
        self.count(dense_views("weight", "bias", &source).map(|view| view.1));
        let embedding = self.device.embedding(source).map_err(LoadError::Device)?;
        self.tell()?;
        let mut layers = Vec::with_capacity(num_layers);
        for index in 0..num_layers {
            let source = self.checkpoint.layer(index, &spec)?;
            self.count(source.views().into_iter().map(|view| view.1));
            layers.push(self.layer(source, spec.dense_dtype).map_err(LoadError::Device)?);
            self.tell()?;
        }
        let gain = self.checkpoint.final_norm()?;
        let source = self.checkpoint.head(&spec)?;
        self.count(dense_views("weight", "bias", &source).map(|view| view.1).chain([&gain]));
        let norm = self.norm(gain).map_err(LoadError::Device)?;
        let head = self.device.linear(source, spec.dense_dtype).map_err(LoadError::Device)?;
        self.tell()?;
        Ok(Dense { split: spec.group, dtype: spec.dense_dtype, embedding, layers, norm, head })
    }

    fn layer(&mut self, source: LayerSource, dtype: DenseDtype) -> Result<DenseLayer<D>, D::Error> {
        Ok(DenseLayer {
            input_norm: self.norm(source.input_norm)?,
            qkv: self.device.linear(source.qkv, dtype)?,
            sinks: self.device.sinks(source.sinks)?,
            output: self.device.linear(source.output, dtype)?,
            post_norm: self.norm(source.post_norm)?,
            router: self.device.linear(source.router, DenseDtype::Bf16)?,
        })
    }

    fn norm(&mut self, gain: Bytes) -> Result<D::Norm, D::Error> {
        self.device.norm(gain, self.checkpoint.config().rms_norm_eps)
    }

    /// Experts of a layer: those of `held` as they are, the others from the file.
    fn experts(
        &mut self,
        layer: usize,
        numbers: &[u32],
        held: Option<&HeldExperts<D>>,
    ) -> Result<HeldExperts<D>, LoadError<D::Error>> {
        let place = |number: &u32| held.and_then(|held| held.numbers.iter().position(|at| at == number));
        let added: Vec<u32> = numbers.iter().copied().filter(|number| place(number).is_none()).collect();
        let source = self.checkpoint.experts(layer, &added)?;
        self.count(expert_views(&source).map(|view| view.1));
        let packed = match held {
            None => self.device.experts(source),
            Some(held) => {
                let mut next = 0..added.len();
                let order = numbers.iter().filter_map(|number| match place(number) {
                    Some(index) => Some(ExpertOrigin::Held(index)),
                    None => next.next().map(ExpertOrigin::Added),
                });
                let order: Vec<ExpertOrigin> = order.collect();
                self.device.regroup_experts(&held.packed, &order, source)
            }
        };
        Ok(HeldExperts { numbers: numbers.to_vec(), packed: packed.map_err(LoadError::Device)? })
    }
}
