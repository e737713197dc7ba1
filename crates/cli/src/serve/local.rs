//! The ranks of this process: threads that share its memory and divide its
//! processors, behind the engine's own interface.

use crate::config::PeerExchange;
use crate::device::Devices;
use chorale_coordinator::{Answer, Executor, StepError};
use chorale_link::{LocalTransport, local};
use chorale_model::LoadProgress;
use chorale_model::checkpoint::Checkpoint;
use chorale_model::config::ModelConfig;
use chorale_model::shard::{ShardSpec, split};
use chorale_nccl::Library;
use chorale_plan::{
    Assignment, Carrier, DenseFormat, Epoch, ExchangeOptions, Placement, Rank as RankId, Room, RowFormat,
    Shape, StepJoin, StepPlan, WrongAnswer,
};
use chorale_worker::{Rank, RankError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::task::JoinSet;

/// A rank of the same process that says nothing for so long never will.
pub(super) const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(60);

/// All ranks of a world, on threads of this process.
pub(super) struct LocalRanks {
    shape: Shape,
    overlap_min_rows: Option<u32>,
    ranks: Vec<Rank>,
}

/// What all ranks are told alike.
#[derive(Clone, Copy, Debug)]
pub(super) struct Alike {
    pub(super) room: Room,
    pub(super) exchange: ExchangeOptions,
    pub(super) dense_dtype: DenseFormat,
    pub(super) peer_exchange: PeerExchange,
}

/// What all ranks have loaded.
pub(super) type OnLoad = Arc<Mutex<dyn FnMut(LoadProgress, usize) + Send>>;

/// A world of `tensor_parallel_size` × `data_parallel_size` ranks.
pub(crate) fn shape(tensor_parallel_size: usize, data_parallel_size: usize) -> Shape {
    Shape {
        tensor_parallel_size: tensor_parallel_size as u32,
        data_parallel_size: data_parallel_size as u32,
        num_ranks: (tensor_parallel_size * data_parallel_size) as u32,
    }
}

/// Experts in even runs, the same of every layer.
pub(crate) fn even_runs(shape: Shape, config: &ModelConfig) -> Placement {
    let num_ranks = shape.num_ranks as usize;
    let runs = (0..num_ranks).map(|rank| split(config.num_experts, num_ranks, rank));
    let layer: Vec<Vec<RankId>> =
        runs.zip(0..).flat_map(|(run, rank)| run.map(move |_| vec![RankId(rank)])).collect();
    Placement { version: 0, layers: vec![layer; config.num_layers()] }
}

/// What each rank is to hold.
fn shards(shape: Shape, config: &ModelConfig) -> Vec<ShardSpec> {
    let placement = even_runs(shape, config);
    shape.ranks().map(|rank| ShardSpec::of(shape, rank, &placement)).collect()
}

impl LocalRanks {
    /// Starts the ranks; each loads its shard. Where GPUs do not come to an exchange
    /// by NCCL, they exchange through the host.
    pub(super) async fn start(
        shape: Shape,
        (devices, library): (Devices, Option<Arc<Library>>),
        checkpoint: Arc<Checkpoint>,
        alike: Alike,
        on_load: OnLoad,
    ) -> Result<Self, RankError> {
        let config = checkpoint.config();
        let mut progress = Vec::new();
        for spec in shards(shape, config) {
            let size = checkpoint.shard_size(&spec).map_err(|error| load_error(&error))?;
            let (total_bytes, total_tensors) = (size.num_bytes, size.num_views);
            progress.push(LoadProgress { total_bytes, total_tensors, ..LoadProgress::default() });
        }
        let progress = Arc::new(Mutex::new(progress));
        let carrier = carrier(shape, &alike, &devices, library.as_deref());
        let ranks =
            devices.start_ranks(library.as_ref(), alike.peer_exchange).map_err(|error| load_error(&error))?;
        let world = LocalWorld { shape, ranks: &ranks, checkpoint: &checkpoint, alike, progress, on_load };
        match world.take_places(Epoch(1), carrier).await {
            Err(RankError::Carrier { reason }) => {
                tracing::warn!(
                    reason,
                    "NCCL does not connect these GPUs: rows travel through the host; --nccl off says so from \
                     the start, NCCL_DEBUG=INFO tells more"
                );
                world.take_places(Epoch(2), Carrier::Frames).await?;
            }
            taken => taken?,
        }
        Ok(Self { shape, overlap_min_rows: alike.exchange.overlap_min_rows, ranks })
    }
}

/// By what ranks of this process exchange rows: NCCL does neither uneven shares nor
/// rows as 8-bit integers.
fn carrier(shape: Shape, alike: &Alike, devices: &Devices, library: Option<&Library>) -> Carrier {
    let is_even = alike.room.max_step_tokens.is_multiple_of(shape.tensor_parallel_size);
    let can = shape.num_ranks > 1 && is_even && alike.exchange.dispatch == RowFormat::F32;
    match devices {
        Devices::Cuda(_) if can && library.is_some() => Carrier::Nccl,
        Devices::Cuda(_) | Devices::Cpu(_) => Carrier::Frames,
    }
}

/// Ranks that are to take their places.
struct LocalWorld<'a> {
    shape: Shape,
    ranks: &'a [Rank],
    checkpoint: &'a Arc<Checkpoint>,
    alike: Alike,
    progress: Arc<Mutex<Vec<LoadProgress>>>,
    on_load: OnLoad,
}

impl LocalWorld<'_> {
    /// All or none: what the first to fail says is why.
    async fn take_places(&self, epoch: Epoch, carrier: Carrier) -> Result<(), RankError> {
        let Self { shape, alike: Alike { room, exchange, dense_dtype, .. }, .. } = *self;
        let placement = even_runs(shape, self.checkpoint.config());
        let transports = local(shape.num_ranks, EXCHANGE_TIMEOUT);
        let abort = transports.first().map(LocalTransport::abort_handle);
        let mut taking = JoinSet::new();
        for ((id, rank), transport) in shape.ranks().zip(self.ranks).zip(transports) {
            let assignment = Assignment {
                epoch,
                shape,
                rank: id,
                addresses: Vec::new(),
                placement: placement.clone(),
                room,
                exchange,
                carrier,
                dense_dtype,
            };
            let (progress, on_load) = (Arc::clone(&self.progress), Arc::clone(&self.on_load));
            let on_progress = Box::new(move |report| tell(&progress, id, report, &on_load));
            let checkpoint = Arc::clone(self.checkpoint);
            taking.spawn(rank.take(assignment, checkpoint, Box::new(transport), on_progress));
        }
        let mut failed: Option<RankError> = None;
        while let Some(taken) = taking.join_next().await {
            let Err(error) = taken.unwrap_or(Err(RankError::Stopped)) else { continue };
            // The others would wait for it.
            if let Some(abort) = &abort {
                abort.abort();
            }
            if failed.as_ref().is_none_or(|failed| !is_cause(failed) && is_cause(&error)) {
                failed = Some(error);
            }
        }
        failed.map_or(Ok(()), Err)
    }
}

/// Sums what all ranks have loaded.
fn tell(progress: &Mutex<Vec<LoadProgress>>, rank: RankId, report: LoadProgress, on_load: &OnLoad) {
    let mut progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
    progress[rank.0 as usize] = report;
    let ranks_ready = progress.iter().filter(|rank| rank.bytes == rank.total_bytes).count();
    let sum = progress.iter().fold(LoadProgress::default(), |sum, rank| LoadProgress {
        bytes: sum.bytes + rank.bytes,
        total_bytes: sum.total_bytes + rank.total_bytes,
        tensors: sum.tensors + rank.tensors,
        total_tensors: sum.total_tensors + rank.total_tensors,
    });
    // Told under the lock, so that reports come in order.
    on_load.lock().unwrap_or_else(PoisonError::into_inner)(sum, ranks_ready);
}

fn load_error(error: &dyn std::error::Error) -> RankError {
    RankError::Load { reason: error.to_string() }
}

impl Executor for LocalRanks {
    fn step(&mut self, plan: Arc<StepPlan>) -> Answer {
        let ids = self.shape.ranks();
        // All have their parts before the first one is waited for.
        let in_halves = plan.pays_in_halves(self.shape, self.overlap_min_rows);
        let part = |id| StepPlan { in_halves, ..plan.part_of(self.shape, id) };
        let running: Vec<_> = self.ranks.iter().zip(ids).map(|(rank, id)| rank.step(0, part(id))).collect();
        let shape = self.shape;
        Box::pin(async move {
            let ended = |reason: String| StepError::Ended { reason };
            let mut join =
                StepJoin::new(shape, &plan).ok_or_else(|| ended("the plan is for other homes".to_owned()))?;
            let mut joined = Ok(None);
            let mut failed: Option<RankError> = None;
            for (step, id) in running.into_iter().zip(shape.ranks()) {
                match step.await {
                    Ok((output, _)) if joined.is_ok() => joined = join.done(id, output),
                    Ok(_) => {}
                    // Who blames another rank only saw it fail.
                    Err(error) if !failed.as_ref().is_some_and(is_cause) => failed = Some(error),
                    Err(_) => {}
                }
            }
            if let Some(error) = failed {
                return Err(ended(error.to_string()));
            }
            match joined {
                Ok(Some(output)) => Ok(output),
                Ok(None) => Err(ended("not all ranks answered".to_owned())),
                Err(WrongAnswer { rank, reason }) => Err(ended(format!("rank {}: {reason}", rank.0))),
            }
        })
    }
}

fn is_cause(error: &RankError) -> bool {
    !matches!(error, RankError::Lost { blamed: Some(_), .. })
}

#[cfg(test)]
mod tests;
