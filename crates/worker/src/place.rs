//! A rank's place in one epoch: its model, connected with the others, and what
//! is being prepared beside it.

use crate::formats;
use crate::pulse::Watched;
use crate::rank::RankError;
use crate::runner::{Reply, Shared, State, Taking};
use chorale_device::{BatchLimits, Device, KvDtype};
use chorale_link::{Fault, Health, JoinError, Joining, LinkError, Member, Place};
use chorale_model::checkpoint::Checkpoint;
use chorale_model::config::ModelConfig;
use chorale_model::shard::ShardSpec;
use chorale_model::{GptOss, LoadError, Preparation, Room, Seat, StepError, Submitted, Weights};
use chorale_plan::{Assignment, Placement, Rank, StepOutput, StepPlan};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
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
    let made = make_room(&assignment, &config, D::KV_DTYPES).and_then(|(place, room, spec)| {
        // First: the others come at about the same time, and shards take their own.
        let transport = Box::new(Watched { transport, watch: Arc::clone(&shared.watch) });
        let joined = joining.join(&mut device, transport, place, assignment.placement);
        let link = joined.map_err(|JoinError { rank, reason, carrier_failed }| match rank {
            Some(_) => RankError::Lost { reason, blamed: rank },
            None if carrier_failed => RankError::Carrier { reason },
            None => RankError::Load { reason },
        })?;
        let early = match device.fills_memory() {
            true => Some(seat_beside(&mut weights, &mut device, &config, (&spec, &room)).map_err(unable)?),
            false => None,
        };
        let told = weights.load(&mut device, &checkpoint, &spec, &mut |progress| {
            on_progress(progress);
            if is_current() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        told.map_err(|error| match error {
            LoadError::GivenUp => RankError::Refused { reason: "another place was taken".to_owned() },
            error => unable(error),
        })?;
        let seat = match early {
            Some(seat) => seat,
            None => Seat::new(&mut device, &config, &spec, &room).map_err(unable)?,
        };
        Ok((link, seat))
    });
    match made {
        Ok((link, seat)) => {
            shared.set_placed(Some((Arc::clone(link.loads()), link.one_shot())));
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

/// Makes room before experts fill what is left. Those of an older place, which may
/// leave too little, go if need be and are loaded anew.
fn seat_beside<D: Device>(
    weights: &mut Weights<D>,
    device: &mut D,
    config: &ModelConfig,
    (spec, room): (&ShardSpec, &Room),
) -> Result<Seat<D>, D::Error> {
    match Seat::new(device, config, spec, room) {
        Err(_) if !weights.is_empty() => {
            *weights = Weights::default();
            Seat::new(device, config, spec, room)
        }
        outcome => outcome,
    }
}

/// What an assignment asks of the device, checked: it comes from another process.
fn make_room(
    assignment: &Assignment,
    config: &ModelConfig,
    kept: &[KvDtype],
) -> Result<(Place, Room, ShardSpec), RankError> {
    let Assignment { epoch, shape, rank, room, exchange, carrier, placement, .. } = assignment;
    let kv_dtype = formats::kv_dtype(room.kv_dtype);
    if !kept.contains(&kv_dtype) {
        let words: Vec<&str> = kept.iter().map(|dtype| dtype.name()).collect();
        return Err(RankError::Load {
            reason: format!(
                "keys and values as {} are not what this device keeps: set --kv-cache-dtype to {}",
                kv_dtype.name(),
                words.join(" or ")
            ),
        });
    }
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
    let spec = ShardSpec::of(*shape, *rank, placement);
    Ok((place, room, ShardSpec { dense_dtype: formats::dense_dtype(assignment.dense_dtype), ..spec }))
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
                let reason = error.to_string();
                match error {
                    LinkError::Peer { fault, .. } => lost(reason, &fault),
                    LinkError::Device(_) => RankError::Lost { reason, blamed: None },
                }
            }
        })?;
        // All ranks of a group draw the same; the first one tells.
        let tells = self.home == Some(self.model.link().place().rank);
        Ok(Running { submitted, tells, health: self.model.link().health() })
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

    /// True once the device is of no use any more.
    pub(crate) fn is_lost(&mut self) -> bool {
        self.model.device_mut().is_lost()
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
    health: Arc<dyn Health>,
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
        if let Some(fault) = self.health.fault() {
            return Err(lost(fault.to_string(), &fault));
        }
        Ok(StepOutput { samples: if self.tells { output.samples } else { Vec::new() }, ..output })
    }
}

/// What a fault between ranks means for a step.
fn lost(reason: String, fault: &Fault) -> RankError {
    match fault {
        Fault::Unknown { .. } => RankError::Carrier { reason },
        fault => RankError::Lost { reason, blamed: fault.rank() },
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
    use chorale_device::DenseDtype;
    use chorale_plan::{Carrier, DenseFormat, Epoch, ExchangeOptions, KvFormat, Shape};

    #[test]
    fn a_room_holds_what_the_device_keeps() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/models/a-small");
        let checkpoint = Checkpoint::open(std::path::Path::new(folder)).unwrap();
        let config = checkpoint.config();
        let assignment = Assignment {
            epoch: Epoch(1),
            shape: Shape::SOLO,
            rank: Rank(0),
            addresses: Vec::new(),
            placement: Placement::solo(config.num_layers(), config.num_experts),
            room: chorale_plan::Room {
                max_step_tokens: 8,
                max_step_slices: 8,
                block_size_tokens: 16,
                num_full_blocks: 8,
                num_sliding_blocks: 8,
                kv_dtype: KvFormat::Fp8,
            },
            exchange: ExchangeOptions::exact(1000),
            carrier: Carrier::Frames,
            dense_dtype: DenseFormat::Int8,
        };
        let (_, room, spec) = make_room(&assignment, config, &[KvDtype::Bf16, KvDtype::Fp8]).unwrap();
        assert_eq!((room.kv_dtype, spec.dense_dtype), (KvDtype::Fp8, DenseDtype::Int8));
        let Err(RankError::Load { reason }) = make_room(&assignment, config, &[KvDtype::F32, KvDtype::Bf16])
        else {
            panic!("fp8 is not kept here");
        };
        assert!(
            reason.contains("fp8") && reason.ends_with("set --kv-cache-dtype to f32 or bf16"),
            "{reason}"
        );
    }

    #[test]
    fn steps_neither_repeat_nor_skip() {
        assert_eq!(in_order(None, 7), Ok(()));
        assert_eq!(in_order(Some(7), 8), Ok(()));
        assert!(in_order(Some(7), 7).is_err());
        assert!(in_order(Some(7), 9).is_err());
        assert!(in_order(Some(u64::MAX), 0).is_err());
    }
}
