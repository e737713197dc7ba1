//! A rank's place in one epoch: its model, connected with the others, and what
//! is being prepared beside it.

use crate::pulse::Watched;
use crate::rank::RankError;
use crate::runner::{Reply, Shared, State, Taking};
use chorale_device::{BatchLimits, Device, KvDtype};
use chorale_link::{JoinError, Joining, LinkError, Member, Place};
use chorale_model::checkpoint::Checkpoint;
use chorale_model::config::ModelConfig;
use chorale_model::shard::ShardSpec;
use chorale_model::{GptOss, LoadError, Preparation, Room, Seat, StepError, Submitted, Weights};
use chorale_plan::{Assignment, Placement, Rank, StepOutput, StepPlan};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Rows and sequences of a step that no rank will ever have room for: an
/// assignment that says more is a mistake.
const MAX_STEP: u32 = 1 << 20;

/// A rank among others.
pub(crate) struct Placed<D: Device> {
    model: GptOss<D, Box<dyn Member<D>>>,
    checkpoint: Arc<Checkpoint>,
    /// The group's name in plans; `None` with experts only.
    home: Option<Rank>,
    preparation: Option<Preparation<D>>,
    /// Who waits for the preparation, until it is done.
    preparing: Option<Reply<()>>,
    last_step: Option<u64>,
    /// The step at which the epoch was lost for this rank.
    lost_at: Option<u64>,
}

/// Loads what a place asks for, and takes it.
pub(crate) fn take<D: Device>(
    mut weights: Weights<D>,
    mut device: D,
    taking: Taking,
    shared: &Arc<Shared>,
    joining: &mut dyn Joining<D>,
) -> State<D> {
    let Taking { place: number, assignment, checkpoint, transport, mut on_progress, reply } = taking;
    let config = checkpoint.config().clone();
    let is_current = || shared.places.load(Ordering::Relaxed) == number;
    let made = make_room(&assignment, &config, D::KV_DTYPES[0]).and_then(|(place, room, spec)| {
        // First: the others come at about the same time, and shards take their own.
        let transport = Box::new(Watched { transport, watch: Arc::clone(&shared.watch) });
        let joined = joining.join(&mut device, transport, place, assignment.placement);
        let link = joined.map_err(|JoinError { rank, reason }| match rank {
            Some(_) => RankError::Lost { reason, blamed: rank },
            None => RankError::Load { reason },
        })?;
        let told = weights.load(&mut device, &checkpoint, &spec, &mut |progress| {
            on_progress(progress);
            if is_current() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        told.map_err(|error| match error {
            LoadError::GivenUp => RankError::Refused { reason: "another place was taken".to_owned() },
            error => unable(error),
        })?;
        let seat = Seat::new(&mut device, &config, &spec, &room).map_err(unable)?;
        Ok((link, seat))
    });
    match made {
        Ok((link, seat)) => {
            shared.set_loads(Some(Arc::clone(link.loads())));
            let home = assignment.shape.home(assignment.rank);
            let placed = Placed {
                model: GptOss::new(device, link, weights, seat),
                checkpoint,
                home,
                preparation: None,
                preparing: None,
                last_step: None,
                lost_at: None,
            };
            let _ = reply.send(Ok(()));
            State::Placed(Box::new(placed))
        }
        Err(error) => {
            let _ = reply.send(Err(error));
            State::Idle(weights, device)
        }
    }
}

/// What an assignment asks of the device, checked: it comes from another process.
fn make_room(
    assignment: &Assignment,
    config: &ModelConfig,
    kv_dtype: KvDtype,
) -> Result<(Place, Room, ShardSpec), RankError> {
    let Assignment { epoch, shape, rank, room, exchange, carrier, placement, .. } = assignment;
    let place = Place {
        epoch: *epoch,
        shape: *shape,
        rank: *rank,
        exchange: *exchange,
        carrier: *carrier,
        num_layers: config.num_layers(),
        num_experts: config.num_experts,
        top_k: config.experts_per_token,
        hidden_size: config.hidden_size,
        max_rows: room.max_step_tokens as usize,
    };
    place.check(placement).map_err(unable)?;
    for (what, value) in
        [("rows of a step", room.max_step_tokens), ("sequences of a step", room.max_step_slices)]
    {
        if !(1..=MAX_STEP).contains(&value) {
            return Err(RankError::Load { reason: format!("{value} {what} are no room") });
        }
    }
    if room.block_size_tokens == 0 {
        return Err(RankError::Load { reason: "KV pages hold no positions".to_owned() });
    }
    let room = Room {
        limits: BatchLimits {
            max_rows: room.max_step_tokens as usize,
            max_slices: room.max_step_slices as usize,
            max_logit_rows: room.max_step_slices as usize,
        },
        num_homes: shape.data_parallel_size as usize,
        block_size: room.block_size_tokens as usize,
        num_full_blocks: room.num_full_blocks as usize,
        num_sliding_blocks: room.num_sliding_blocks as usize,
        kv_dtype,
        has_halves: exchange.overlap_min_rows.is_some() && shape.num_ranks > 1,
    };
    Ok((place, room, ShardSpec::of(*shape, *rank, placement)))
}

impl<D: Device> Placed<D> {
    /// Begins the rank's part of a step.
    pub(crate) fn submit(&mut self, placement: u32, plan: &StepPlan) -> Result<Running<D>, RankError> {
        if let Some(step) = self.lost_at {
            let reason = format!("the rank lost step {step} of this epoch and runs no more of it");
            return Err(RankError::Lost { reason, blamed: None });
        }
        in_order(self.last_step, plan.step)?;
        self.last_step = Some(plan.step);
        if let Some(slice) = plan.slices.iter().find(|slice| Some(slice.home) != self.home) {
            let reason = format!("sequence {} is at home on rank {}", slice.sequence.0, slice.home.0);
            return Err(RankError::Refused { reason });
        }
        self.model.link().check_plan(plan).map_err(|reason| RankError::Refused { reason })?;
        self.place_experts(placement)?;
        let submitted = self.model.submit(plan).map_err(|error| match error {
            StepError::Plan(error) => RankError::Refused { reason: error.to_string() },
            StepError::Lost(error) => {
                self.lost_at = Some(plan.step);
                let blamed = match &error {
                    LinkError::Peer { fault, .. } => fault.rank(),
                    LinkError::Device(_) => None,
                };
                RankError::Lost { reason: error.to_string(), blamed }
            }
        })?;
        // All ranks of a group draw the same; the first one tells.
        let tells = self.home == Some(self.model.link().place().rank);
        Ok(Running { submitted, tells, is_broken: self.model.link().is_broken() })
    }

    /// Goes over to the placement that a step names, if it is another.
    fn place_experts(&mut self, version: u32) -> Result<(), RankError> {
        let current = self.model.link().placement().version;
        if version == current {
            return Ok(());
        }
        let is_ready =
            |preparation: &mut Preparation<D>| preparation.version() == version && preparation.is_done();
        let Some(preparation) = self.preparation.take_if(is_ready) else {
            let reason = format!("placement {version} is not prepared, {current} is in use");
            return Err(RankError::Refused { reason });
        };
        self.model
            .go_over(preparation)
            .map_err(|error| RankError::Lost { reason: error.to_string(), blamed: None })
    }

    /// Begins to load a placement, instead of any that still loads.
    pub(crate) fn prepare(&mut self, placement: Placement, reply: Reply<()>) {
        self.stop_preparing("a newer placement is prepared");
        let current = self.model.link().placement().version;
        if placement.version <= current {
            let reason = format!("placement {} is not newer than {current}", placement.version);
            let _ = reply.send(Err(RankError::Refused { reason }));
            return;
        }
        match self.model.begin_preparation(placement) {
            Ok(preparation) => {
                self.preparation = Some(preparation);
                self.preparing = Some(reply);
            }
            Err(error) => {
                let _ = reply.send(Err(RankError::Refused { reason: error.to_string() }));
            }
        }
    }

    /// True while layers of a placement are left to load.
    pub(crate) fn is_preparing(&self) -> bool {
        self.preparing.is_some()
    }

    /// Loads the next layer of what is prepared, if something is.
    pub(crate) fn prepare_layer(&mut self) {
        let (Some(preparation), Some(reply)) = (&mut self.preparation, self.preparing.take()) else {
            return;
        };
        let loaded = match preparation.is_done() {
            true => Ok(()),
            false => self.model.prepare_layer(&self.checkpoint, preparation),
        };
        match loaded {
            Ok(()) if preparation.is_done() => {
                let _ = reply.send(Ok(()));
            }
            Ok(()) => self.preparing = Some(reply),
            Err(error) => {
                self.preparation = None;
                let _ = reply.send(Err(unable(error)));
            }
        }
    }

    fn stop_preparing(&mut self, reason: &str) {
        self.preparation = None;
        if let Some(reply) = self.preparing.take() {
            let _ = reply.send(Err(RankError::Refused { reason: reason.to_owned() }));
        }
    }

    /// How long the last step waited for other ranks.
    pub(crate) fn take_waited(&mut self) -> Duration {
        self.model.link_mut().take_waited()
    }

    /// What outlives the place.
    pub(crate) fn give_up(mut self) -> (Weights<D>, D) {
        self.stop_preparing("the rank gave its place up");
        let (device, weights) = self.model.take_apart();
        (weights, device)
    }
}

/// A step that was begun.
pub(crate) struct Running<D: Device> {
    submitted: Submitted<D::Error>,
    tells: bool,
    /// Set before what is still computed may be wrong.
    is_broken: Arc<AtomicBool>,
}

impl<D: Device> Running<D> {
    /// True if nothing is to be waited for.
    pub(crate) fn is_here(&self) -> bool {
        self.submitted.is_here()
    }

    /// Waits for the step's end.
    pub(crate) fn finish(self) -> Result<StepOutput, RankError> {
        let output = self
            .submitted
            .finish()
            .map_err(|error| RankError::Lost { reason: error.to_string(), blamed: None })?;
        if self.is_broken.load(Ordering::Acquire) {
            let reason = "exchanges with other ranks were given up while it was computed".to_owned();
            return Err(RankError::Lost { reason, blamed: None });
        }
        Ok(StepOutput { samples: if self.tells { output.samples } else { Vec::new() }, ..output })
    }
}

/// A plan that repeats or skips comes from a planner that lost count.
fn in_order(last_step: Option<u64>, step: u64) -> Result<(), RankError> {
    match last_step {
        Some(last) if last.checked_add(1) != Some(step) => {
            Err(RankError::Refused { reason: format!("step {step} does not follow step {last}") })
        }
        Some(_) | None => Ok(()),
    }
}

fn unable(error: impl std::fmt::Display) -> RankError {
    RankError::Load { reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_neither_repeat_nor_skip() {
        assert_eq!(in_order(None, 7), Ok(()));
        assert_eq!(in_order(Some(7), 8), Ok(()));
        assert!(in_order(Some(7), 7).is_err());
        assert!(in_order(Some(7), 9).is_err());
        assert!(in_order(Some(u64::MAX), 0).is_err());
    }
}
