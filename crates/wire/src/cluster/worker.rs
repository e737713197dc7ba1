//! What a worker says.

use super::format::kv_formats;
use super::v1::worker_message::Said;
use super::world::{address, rank};
use super::{MAX_EXPERTS, MAX_LAYERS, MAX_REASON_BYTES, cut, inner, v1};
use crate::InvalidField;
use crate::field::{at_most, present, short};
use chorale_plan::{Epoch, ExpertResidency, FromWorker, Offer, OneShot, Pulse, Rank, Standing, StepReport};

/// Of names and digests.
const MAX_NAME_BYTES: usize = 256;

impl From<FromWorker> for v1::WorkerMessage {
    fn from(message: FromWorker) -> Self {
        let said = match message {
            FromWorker::Offer(offer) => Said::Offer(offer.into()),
            FromWorker::Pulse(pulse) => Said::Pulse(pulse.into()),
            FromWorker::Loading { epoch, bytes, total_bytes, tensors, total_tensors } => {
                Said::Loading(v1::Loading { epoch: epoch.0, bytes, total_bytes, tensors, total_tensors })
            }
            FromWorker::Ready { epoch } => Said::Ready(v1::Ready { epoch: epoch.0 }),
            FromWorker::Unable { epoch, blamed, reason } => Said::Unable(v1::Unable {
                epoch: epoch.0,
                blamed: blamed.map(|rank| rank.0),
                reason: cut(reason),
            }),
            FromWorker::Prepared { epoch, version } => {
                Said::Prepared(v1::Prepared { epoch: epoch.0, version })
            }
            FromWorker::Unprepared { epoch, version, reason } => {
                Said::Unprepared(v1::Unprepared { epoch: epoch.0, version, reason: cut(reason) })
            }
            FromWorker::Done { epoch, output, report } => Said::Done(v1::Done {
                epoch: epoch.0,
                output: Some(output.into()),
                total_us: report.total_us,
                waited_us: report.waited_us,
            }),
            FromWorker::Refused { epoch, step, reason } => {
                Said::Refused(v1::Refused { epoch: epoch.0, step, reason: cut(reason) })
            }
            FromWorker::Lost { epoch, step, blamed, reason } => Said::Lost(v1::Lost {
                epoch: epoch.0,
                step,
                blamed: blamed.map(|rank| rank.0),
                reason: cut(reason),
            }),
            FromWorker::CarrierFailed { epoch, step, reason } => {
                Said::CarrierFailed(v1::CarrierFailed { epoch: epoch.0, step, reason: cut(reason) })
            }
            FromWorker::Loads { epoch, rows, standing: Standing { experts, one_shot } } => {
                let layers = rows.into_iter().map(|rows| v1::LayerLoads { rows }).collect();
                let (experts, one_shot) = (experts.map(Into::into), Some(one_shot.into()));
                Said::Loads(v1::Loads { epoch: epoch.0, layers, experts, one_shot })
            }
            FromWorker::Leaving => Said::Leaving(v1::Leaving {}),
        };
        Self { said: Some(said) }
    }
}

impl TryFrom<v1::WorkerMessage> for FromWorker {
    type Error = InvalidField;

    fn try_from(message: v1::WorkerMessage) -> Result<Self, InvalidField> {
        let (name, read) = match present("said", message.said)? {
            Said::Offer(offer) => ("offer", offer.try_into().map(Self::Offer)),
            Said::Pulse(pulse) => ("pulse", pulse.try_into().map(Self::Pulse)),
            Said::Loading(v1::Loading { epoch, bytes, total_bytes, tensors, total_tensors }) => {
                let epoch = Epoch(epoch);
                ("loading", Ok(Self::Loading { epoch, bytes, total_bytes, tensors, total_tensors }))
            }
            Said::Ready(v1::Ready { epoch }) => ("ready", Ok(Self::Ready { epoch: Epoch(epoch) })),
            Said::Unable(unable) => ("unable", unable.try_into()),
            Said::Prepared(v1::Prepared { epoch, version }) => {
                ("prepared", Ok(Self::Prepared { epoch: Epoch(epoch), version }))
            }
            Said::Unprepared(unprepared) => ("unprepared", unprepared.try_into()),
            Said::Done(done) => ("done", done.try_into()),
            Said::Refused(refused) => ("refused", refused.try_into()),
            Said::Lost(lost) => ("lost", lost.try_into()),
            Said::CarrierFailed(failed) => ("carrier_failed", failed.try_into()),
            Said::Loads(loads) => ("loads", loads.try_into()),
            Said::Leaving(v1::Leaving {}) => ("leaving", Ok(Self::Leaving)),
        };
        read.map_err(|error: InvalidField| error.within(name))
    }
}

impl From<Offer> for v1::Offer {
    fn from(offer: Offer) -> Self {
        let Offer { session, version, protocol, checkpoint, address, device, .. } = offer;
        Self {
            session,
            version,
            protocol,
            checkpoint,
            address,
            device,
            memory_bytes: offer.memory_bytes,
            memory_bytes_per_s: offer.memory_bytes_per_s,
            experts_only: offer.experts_only,
            nccl: offer.nccl,
            kv_dtypes: offer.kv_dtypes.into_iter().map(|format| v1::KvFormat::from(format).into()).collect(),
            host_expert_bytes: offer.host_expert_bytes,
        }
    }
}

impl TryFrom<v1::Offer> for Offer {
    type Error = InvalidField;

    fn try_from(message: v1::Offer) -> Result<Self, InvalidField> {
        Ok(Self {
            session: message.session,
            version: short("version", message.version, MAX_NAME_BYTES)?,
            protocol: message.protocol,
            checkpoint: short("checkpoint", message.checkpoint, MAX_NAME_BYTES)?,
            address: address("address", message.address)?,
            device: short("device", message.device, MAX_NAME_BYTES)?,
            memory_bytes: message.memory_bytes,
            memory_bytes_per_s: message.memory_bytes_per_s,
            experts_only: message.experts_only,
            nccl: message.nccl,
            kv_dtypes: kv_formats("kv_dtypes", message.kv_dtypes)?,
            host_expert_bytes: message.host_expert_bytes,
        })
    }
}

impl From<Pulse> for v1::WorkerPulse {
    fn from(pulse: Pulse) -> Self {
        let Pulse { step, waiting_for, stalled_ms, exchanges, memory_bytes_per_s } = pulse;
        let waiting_for = waiting_for.map(|rank| rank.0);
        Self { step, waiting_for, stalled_ms, exchanges, memory_bytes_per_s }
    }
}

impl TryFrom<v1::WorkerPulse> for Pulse {
    type Error = InvalidField;

    fn try_from(message: v1::WorkerPulse) -> Result<Self, InvalidField> {
        let v1::WorkerPulse { step, waiting_for, stalled_ms, exchanges, memory_bytes_per_s } = message;
        let waiting_for = some_rank("waiting_for", waiting_for)?;
        Ok(Self { step, waiting_for, stalled_ms, exchanges, memory_bytes_per_s })
    }
}

fn some_rank(field: &str, value: Option<u32>) -> Result<Option<Rank>, InvalidField> {
    value.map(|value| rank(field, value)).transpose()
}

impl TryFrom<v1::Unable> for FromWorker {
    type Error = InvalidField;

    fn try_from(v1::Unable { epoch, blamed, reason }: v1::Unable) -> Result<Self, InvalidField> {
        let reason = short("reason", reason, MAX_REASON_BYTES)?;
        Ok(Self::Unable { epoch: Epoch(epoch), blamed: some_rank("blamed", blamed)?, reason })
    }
}

impl TryFrom<v1::Unprepared> for FromWorker {
    type Error = InvalidField;

    fn try_from(v1::Unprepared { epoch, version, reason }: v1::Unprepared) -> Result<Self, InvalidField> {
        let reason = short("reason", reason, MAX_REASON_BYTES)?;
        Ok(Self::Unprepared { epoch: Epoch(epoch), version, reason })
    }
}

impl TryFrom<v1::Done> for FromWorker {
    type Error = InvalidField;

    fn try_from(message: v1::Done) -> Result<Self, InvalidField> {
        let v1::Done { epoch, output, total_us, waited_us } = message;
        let report = StepReport { total_us, waited_us };
        Ok(Self::Done { epoch: Epoch(epoch), output: inner("output", output)?, report })
    }
}

impl TryFrom<v1::Refused> for FromWorker {
    type Error = InvalidField;

    fn try_from(v1::Refused { epoch, step, reason }: v1::Refused) -> Result<Self, InvalidField> {
        let reason = short("reason", reason, MAX_REASON_BYTES)?;
        Ok(Self::Refused { epoch: Epoch(epoch), step, reason })
    }
}

impl TryFrom<v1::Lost> for FromWorker {
    type Error = InvalidField;

    fn try_from(v1::Lost { epoch, step, blamed, reason }: v1::Lost) -> Result<Self, InvalidField> {
        let reason = short("reason", reason, MAX_REASON_BYTES)?;
        Ok(Self::Lost { epoch: Epoch(epoch), step, blamed: some_rank("blamed", blamed)?, reason })
    }
}

impl TryFrom<v1::CarrierFailed> for FromWorker {
    type Error = InvalidField;

    fn try_from(message: v1::CarrierFailed) -> Result<Self, InvalidField> {
        let v1::CarrierFailed { epoch, step, reason } = message;
        let reason = short("reason", reason, MAX_REASON_BYTES)?;
        Ok(Self::CarrierFailed { epoch: Epoch(epoch), step, reason })
    }
}

impl TryFrom<v1::Loads> for FromWorker {
    type Error = InvalidField;

    fn try_from(message: v1::Loads) -> Result<Self, InvalidField> {
        let v1::Loads { epoch, layers, experts, one_shot } = message;
        let layers = at_most("layers", layers, MAX_LAYERS)?;
        let num_experts = layers.first().map_or(0, |layer| layer.rows.len());
        let is_odd = |layer: &v1::LayerLoads| layer.rows.len() != num_experts;
        if num_experts > MAX_EXPERTS || layers.iter().any(is_odd) {
            let reason = format_args!("must be of as many experts each, at most {MAX_EXPERTS}");
            return Err(InvalidField::new("layers", reason));
        }
        Ok(Self::Loads {
            epoch: Epoch(epoch),
            rows: layers.into_iter().map(|layer| layer.rows).collect(),
            standing: Standing {
                experts: experts.map(Into::into),
                one_shot: one_shot.map(Into::into).unwrap_or_default(),
            },
        })
    }
}

impl From<ExpertResidency> for v1::ExpertResidency {
    fn from(experts: ExpertResidency) -> Self {
        let ExpertResidency { gpu_experts, host_experts, hits, misses, streamed, moves } = experts;
        Self { gpu_experts, host_experts, hits, misses, streamed, moves }
    }
}

impl From<v1::ExpertResidency> for ExpertResidency {
    fn from(message: v1::ExpertResidency) -> Self {
        let v1::ExpertResidency { gpu_experts, host_experts, hits, misses, streamed, moves } = message;
        Self { gpu_experts, host_experts, hits, misses, streamed, moves }
    }
}

impl From<OneShot> for v1::OneShot {
    fn from(OneShot { world, group }: OneShot) -> Self {
        Self { world, group }
    }
}

impl From<v1::OneShot> for OneShot {
    fn from(v1::OneShot { world, group }: v1::OneShot) -> Self {
        Self { world, group }
    }
}
