//! The model on the GPU, and engines that have it for a while.

use crate::bench::geometry::{BLOCK_SIZE, Extent, Geometry};
use crate::bench::limits::Limits;
use crate::bench::machine::Machine;
use crate::failure::{Failure, Outcome, ensure};
use crate::report::{Measurement, Report};
use chorale_cuda::{Cuda, ExpertRoom, ExpertTraffic};
use chorale_device::{DenseDtype, KvDtype};
use chorale_link::Solo;
use chorale_model::checkpoint::Checkpoint;
use chorale_model::offline::OfflineLimits;
use chorale_model::shard::ShardSpec;
use chorale_model::{GptOss, Seat, Weights};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

pub(super) type Engine = GptOss<Cuda, Solo<Cuda>>;

/// What is loaded.
pub(crate) struct Loading {
    pub(crate) num_layers: usize,
    /// Where experts have room, if not all of them lie on the GPU.
    pub(crate) room: Option<ExpertRoom>,
}

/// The model, between two measurements.
pub(crate) struct Model<'a> {
    pub(super) machine: &'a Machine,
    pub(super) geometry: &'a Geometry,
    pub(super) extent: &'a Extent,
    pub(super) limits: Limits,
    pub(super) checkpoint: Checkpoint,
    spec: ShardSpec,
    traffic: Option<Arc<ExpertTraffic>>,
    /// None while an engine has them.
    parts: Option<(Cuda, Weights<Cuda>)>,
}

impl<'a> Model<'a> {
    /// As many layers as fit.
    pub(crate) fn fitting(
        machine: &'a Machine,
        (geometry, extent): (&'a Geometry, &'a Extent),
        limits: Limits,
        report: &mut Report,
    ) -> Result<Self, Failure> {
        let free = machine.gpu().free_bytes()?;
        let fitting =
            free.saturating_sub(2 * geometry.table_bytes() + extent.spare_bytes) / geometry.layer_bytes();
        let num_layers = geometry.layers.min(extent.layers).min(fitting);
        ensure(num_layers > 0, || format!("no layer of the model fits into {} MiB", free >> 20))?;
        Self::load(machine, (geometry, extent), limits, Loading { num_layers, room: None }, report)
    }

    pub(crate) fn load(
        machine: &'a Machine,
        (geometry, extent): (&'a Geometry, &'a Extent),
        limits: Limits,
        loading: Loading,
        report: &mut Report,
    ) -> Result<Self, Failure> {
        let Loading { num_layers, room } = loading;
        let checkpoint = geometry.checkpoint(num_layers, extent.seed)?;
        let spec = ShardSpec::whole(checkpoint.config());
        let mut device = machine.device();
        let traffic = room.map(|room| device.set_expert_room(room));
        let mut model = Self {
            machine,
            geometry,
            extent,
            limits,
            checkpoint,
            spec,
            traffic,
            parts: Some((device, Weights::default())),
        };
        let (num_bytes, seconds) = model.fill()?;
        let limit = num_bytes as f64 / limits.copied_bytes_per_s;
        let whose = if room.is_some() { ", some experts stay there" } else { "" };
        report.measured(Measurement {
            what: "load".to_owned(),
            of: format!("{num_layers} layers from the host's memory{whose}"),
            microseconds: seconds * 1e6,
            gb_per_s: Some(num_bytes as f64 / seconds / 1e9),
            share_of_limit: (limit > 0.0).then_some(limit / seconds),
            note: format!("{:.1} GB", num_bytes as f64 / 1e9),
            ..Measurement::default()
        });
        Ok(model)
    }

    /// Loads what is not there; gives all bytes of the checkpoint, and the seconds.
    fn fill(&mut self) -> Result<(u64, f64), Failure> {
        let started = Instant::now();
        let mut num_bytes = 0;
        let (mut device, mut weights) = self.take()?;
        let loaded = weights.load(&mut device, &self.checkpoint, &self.spec, &mut |progress| {
            num_bytes = progress.bytes;
            ControlFlow::Continue(())
        });
        let waited = device.wait();
        self.parts = Some((device, weights));
        loaded?;
        waited?;
        Ok((num_bytes, started.elapsed().as_secs_f64()))
    }

    /// Keeps dense weights in a type from now on.
    pub(super) fn keep_in(&mut self, dense: DenseDtype) -> Outcome {
        if self.spec.dense_dtype != dense {
            self.spec.dense_dtype = dense;
            self.fill()?;
        }
        Ok(())
    }

    /// In what dense weights are kept.
    pub(super) fn dense_dtype(&self) -> DenseDtype {
        self.spec.dense_dtype
    }

    pub(crate) fn num_layers(&self) -> usize {
        self.checkpoint.config().num_layers()
    }

    /// What became of experts that lie with the host.
    pub(crate) fn traffic(&self) -> Option<&ExpertTraffic> {
        self.traffic.as_deref()
    }

    /// False after a failure that took a part of it along.
    pub(crate) fn is_whole(&self) -> bool {
        self.parts.is_some()
    }

    fn take(&mut self) -> Result<(Cuda, Weights<Cuda>), Failure> {
        self.parts.take().ok_or_else(|| Failure("the model was lost to an earlier failure".to_owned()))
    }

    /// Runs something with the engine that has room as told.
    pub(super) fn with<R>(
        &mut self,
        (limits, kv): (OfflineLimits, KvDtype),
        run: impl FnOnce(&mut Engine) -> Result<R, Failure>,
    ) -> Result<R, Failure> {
        let (mut device, weights) = self.take()?;
        let config = self.checkpoint.config();
        let made = Solo::new(&mut device, config.num_experts as u32).and_then(|link| {
            Ok((link, Seat::new(&mut device, config, &self.spec, &limits.room(config, kv))?))
        });
        let (link, seat) = match made {
            Ok(made) => made,
            Err(error) => {
                self.parts = Some((device, weights));
                return Err(error.into());
            }
        };
        let mut engine = GptOss::new(device, link, weights, seat);
        let ran = run(&mut engine);
        self.parts = Some(engine.take_apart());
        ran
    }

    /// As long a context as the memory has room for.
    pub(super) fn context(&self, num_sequences: usize, kv: KvDtype) -> Result<usize, Failure> {
        let free = self.machine.gpu().free_bytes()?.saturating_sub(self.extent.spare_bytes);
        let each = free / num_sequences / (self.geometry.kv_bytes(kv) * self.num_layers());
        // Half of the layers keep a window and a slice only.
        let slice = self.extent.fill_rows / num_sequences;
        let sliding = self.geometry.window as usize + slice + 2 * BLOCK_SIZE;
        let full = (2 * each).saturating_sub(sliding) / BLOCK_SIZE * BLOCK_SIZE;
        ensure(full > 3 * BLOCK_SIZE, || format!("no memory for the pages of {num_sequences} sequences"))?;
        Ok((full - 2 * BLOCK_SIZE).min(self.extent.context))
    }
}
