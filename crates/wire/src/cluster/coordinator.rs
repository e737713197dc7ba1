//! What the coordinator says.

use super::v1::coordinator_message::Said;
use super::{MAX_REASON_BYTES, cut, inner, v1};
use crate::InvalidField;
use crate::field::{in_range, present, short};
use chorale_plan::{Epoch, ToWorker};

/// No exchange waits longer.
pub const MAX_TIMEOUT_MS: u32 = 3_600_000;
/// No pulse comes more rarely.
const MAX_PULSE_MS: u32 = 60_000;

impl From<ToWorker> for v1::CoordinatorMessage {
    fn from(message: ToWorker) -> Self {
        let said = match message {
            ToWorker::Turned { reason, may_retry } => {
                Said::Turned(v1::Turned { reason: cut(reason), may_retry })
            }
            ToWorker::Welcome { pulse_ms } => Said::Welcome(v1::Welcome { pulse_ms }),
            ToWorker::Assigned(assignment) => Said::Assigned((*assignment).into()),
            ToWorker::Dismissed { epoch } => Said::Dismissed(v1::Dismissed { epoch: epoch.0 }),
            ToWorker::Prepare { epoch, placement } => {
                Said::Prepare(v1::Prepare { epoch: epoch.0, placement: Some(placement.into()) })
            }
            ToWorker::Step { epoch, placement, plan } => {
                Said::Step(v1::Step { epoch: epoch.0, placement, plan: Some(plan.into()) })
            }
            ToWorker::Farewell => Said::Farewell(v1::Farewell {}),
            ToWorker::Pulse => Said::Pulse(v1::CoordinatorPulse {}),
        };
        Self { said: Some(said) }
    }
}

impl TryFrom<v1::CoordinatorMessage> for ToWorker {
    type Error = InvalidField;

    fn try_from(message: v1::CoordinatorMessage) -> Result<Self, InvalidField> {
        match present("said", message.said)? {
            Said::Turned(turned) => turned.try_into().map_err(|error: InvalidField| error.within("turned")),
            Said::Welcome(v1::Welcome { pulse_ms }) => {
                in_range("welcome.pulse_ms", Some(pulse_ms), 1..=MAX_PULSE_MS)?;
                Ok(Self::Welcome { pulse_ms })
            }
            Said::Assigned(assigned) => {
                let assignment =
                    assigned.try_into().map_err(|error: InvalidField| error.within("assigned"))?;
                Ok(Self::Assigned(Box::new(assignment)))
            }
            Said::Dismissed(v1::Dismissed { epoch }) => Ok(Self::Dismissed { epoch: Epoch(epoch) }),
            Said::Prepare(v1::Prepare { epoch, placement }) => {
                let placement = inner("placement", placement).map_err(|error| error.within("prepare"))?;
                Ok(Self::Prepare { epoch: Epoch(epoch), placement })
            }
            Said::Step(v1::Step { epoch, placement, plan }) => {
                let plan = inner("plan", plan).map_err(|error| error.within("step"))?;
                Ok(Self::Step { epoch: Epoch(epoch), placement, plan })
            }
            Said::Farewell(v1::Farewell {}) => Ok(Self::Farewell),
            Said::Pulse(v1::CoordinatorPulse {}) => Ok(Self::Pulse),
        }
    }
}

impl TryFrom<v1::Turned> for ToWorker {
    type Error = InvalidField;

    fn try_from(v1::Turned { reason, may_retry }: v1::Turned) -> Result<Self, InvalidField> {
        Ok(Self::Turned { reason: short("reason", reason, MAX_REASON_BYTES)?, may_retry })
    }
}
