//! The ranks of this process: threads that share its memory and divide its
//! processors, behind the engine's own interface.

use crate::device::Devices;
use chorale_coordinator::{Answer, Executor, StepError};
use chorale_link::local;
use chorale_model::LoadProgress;
use chorale_model::checkpoint::Checkpoint;
use chorale_model::config::ModelConfig;
use chorale_model::shard::{ShardSpec, split};
use chorale_plan::{
    Assignment, Carrier, Epoch, ExchangeOptions, Placement, Rank as RankId, Room, Shape, StepPlan,
};
use chorale_worker::{Rank, RankError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A rank of the same process that says nothing for so long never will.
pub(super) const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(60);

/// All ranks of a world, on threads of this process.
pub(super) struct LocalRanks {
    shape: Shape,
    overlap_min_rows: Option<u32>,
    ranks: Vec<Rank>,
}

/// What all ranks have loaded.
pub(super) type OnLoad = Arc<Mutex<dyn FnMut(LoadProgress, usize) + Send>>;

/// A world of `tensor_parallel_size` × `data_parallel_size` ranks.
pub(super) fn shape(tensor_parallel_size: usize, data_parallel_size: usize) -> Shape {
    Shape {
        tensor_parallel_size: tensor_parallel_size as u32,
        data_parallel_size: data_parallel_size as u32,
        num_ranks: (tensor_parallel_size * data_parallel_size) as u32,
    }
}

/// Experts in even runs, the same of every layer.
pub(super) fn placement(shape: Shape, config: &ModelConfig) -> Placement {
    let num_ranks = shape.num_ranks as usize;
    let runs = (0..num_ranks).map(|rank| split(config.num_experts, num_ranks, rank));
    let layer: Vec<Vec<RankId>> =
        runs.zip(0..).flat_map(|(run, rank)| run.map(move |_| vec![RankId(rank)])).collect();
    Placement { version: 0, layers: vec![layer; config.num_layers()] }
}

/// What each rank is to hold.
pub(super) fn shards(shape: Shape, config: &ModelConfig) -> Vec<ShardSpec> {
    let placement = placement(shape, config);
    shape.ranks().map(|rank| ShardSpec::of(shape, rank, &placement)).collect()
}

impl LocalRanks {
    /// Starts the ranks; each loads its shard.
    pub(super) async fn start(
        shape: Shape,
        devices: Devices,
        checkpoint: Arc<Checkpoint>,
        (room, exchange): (Room, ExchangeOptions),
        on_load: OnLoad,
    ) -> Result<Self, RankError> {
        let config = checkpoint.config();
        let placement = placement(shape, config);
        let transports = local(shape.num_ranks, EXCHANGE_TIMEOUT);
        let mut progress = Vec::new();
        for spec in shards(shape, config) {
            let size = checkpoint.shard_size(&spec).map_err(|error| load_error(&error))?;
            let (total_bytes, total_tensors) = (size.num_bytes, size.num_views);
            progress.push(LoadProgress { total_bytes, total_tensors, ..LoadProgress::default() });
        }
        let progress = Arc::new(Mutex::new(progress));
        let ranks = devices.start_ranks().map_err(|error| load_error(&error))?;
        let mut taken = Vec::new();
        for ((id, rank), transport) in shape.ranks().zip(&ranks).zip(transports) {
            let assignment = Assignment {
                epoch: Epoch(1),
                shape,
                rank: id,
                addresses: Vec::new(),
                placement: placement.clone(),
                room,
                exchange,
                carrier: Carrier::Frames,
            };
            let (progress, on_load) = (Arc::clone(&progress), Arc::clone(&on_load));
            let on_progress = Box::new(move |report| tell(&progress, id, report, &on_load));
            taken.push(rank.take(assignment, Arc::clone(&checkpoint), Box::new(transport), on_progress));
        }
        for taken in taken {
            taken.await?;
        }
        Ok(Self { shape, overlap_min_rows: exchange.overlap_min_rows, ranks })
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
            let mut outputs = Vec::new();
            let mut failed: Option<RankError> = None;
            for (step, id) in running.into_iter().zip(shape.ranks()) {
                match step.await {
                    Ok((output, _)) => outputs.push((id, output)),
                    // Who blames another rank only saw it fail.
                    Err(error) if !failed.as_ref().is_some_and(is_cause) => failed = Some(error),
                    Err(_) => {}
                }
            }
            if let Some(error) = failed {
                return Err(StepError::Ended { reason: error.to_string() });
            }
            let homes: Vec<RankId> = shape.homes().collect();
            let outputs = outputs.into_iter().filter(|(id, _)| homes.contains(id));
            plan.join(outputs).ok_or_else(|| StepError::Ended {
                reason: "the ranks sampled something else than the plan asked for".to_owned(),
            })
        })
    }
}

fn is_cause(error: &RankError) -> bool {
    !matches!(error, RankError::Lost { blamed: Some(_), .. })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn experts_are_dealt_out_evenly() {
        let experts: Vec<u32> = (0..4).map(|rank| split(10, 4, rank).len() as u32).collect();
        assert_eq!(experts, [3, 3, 2, 2]);
    }
}
