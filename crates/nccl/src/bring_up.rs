//! How the ranks of an epoch come to communicators: who has what is told over
//! the connections that they have with each other already, with their deadlines
//! and certificates. The world's first rank hears everybody's version before it
//! gives the world's id out; each group's first rank then does the same for its
//! group.

use crate::comm::{Aborting, Bind, Comm, Members};
use crate::error::{NcclError, Version};
use crate::library::{ID_BYTES, Id, Library};
use bytes::Bytes;
use chorale_link::{Fault, Frame, Transport};
use chorale_plan::{Epoch, Rank, Shape};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// What is exchanged before the first step belongs to no exchange of a step.
const EXCHANGE: u32 = u32::MAX;

/// What an answer begins with.
const GIVEN: u8 = 0;
const REFUSED: u8 = 1;

/// Of a reason that another rank gives.
const MAX_REASON_BYTES: usize = 1024;

/// What a rank needs to find the others.
#[derive(Clone, Copy, Debug)]
pub struct Beginning {
    /// The membership.
    pub epoch: Epoch,
    /// How the ranks are grouped.
    pub shape: Shape,
    /// The rank's own number.
    pub rank: Rank,
    /// How long the others may take to come, and later exchanges to begin.
    pub timeout: Duration,
}

/// A rank's communicators. Dropping them aborts what is on its way.
#[derive(Debug)]
pub struct Comms {
    /// Of all ranks.
    pub world: Comm,
    /// Of the rank's group, where it has others.
    pub group: Option<Comm>,
}

impl Drop for Comms {
    fn drop(&mut self) {
        // One ends only when the GPU has come past the other's exchanges.
        let both = [Some(&self.world), self.group.as_ref()];
        let aborting: Vec<_> = both.into_iter().flatten().map(Comm::begin_abort).collect();
        aborting.into_iter().for_each(Aborting::wait);
    }
}

/// Why there are none.
#[derive(Debug, thiserror::Error)]
pub enum BringUpError {
    /// The library refuses, or the others did not come to it.
    #[error(transparent)]
    Nccl(#[from] NcclError),
    /// Another rank did not do its part.
    #[error("no communicator: {0}")]
    Peer(#[from] Fault),
    /// The ranks have libraries that do not talk with each other.
    #[error("NCCL must be the same everywhere: {0}")]
    Mismatched(String),
    /// The first rank cannot.
    #[error("rank {} has no communicator for others: {reason}", rank.0)]
    Refused {
        /// Which.
        rank: Rank,
        /// Why.
        reason: String,
    },
}

impl BringUpError {
    /// The rank that is to blame, if one is: where the first rank cannot, it is NCCL
    /// that could not.
    pub fn rank(&self) -> Option<Rank> {
        match self {
            Self::Peer(fault) => fault.rank(),
            Self::Nccl(_) | Self::Mismatched(_) | Self::Refused { .. } => None,
        }
    }

    /// True if NCCL failed, and the ranks did not.
    pub fn is_of_nccl(&self) -> bool {
        !matches!(self, Self::Peer(_))
    }
}

/// Finds the other ranks, all of which do the same. The thread's current
/// context is the GPU's, and `bind` makes it that of other threads.
///
/// # Errors
///
/// [`BringUpError`] names the rank that was waited for, where one was.
pub fn bring_up(
    transport: &mut dyn Transport,
    library: &Arc<Library>,
    beginning: Beginning,
    bind: &Bind,
) -> Result<Comms, BringUpError> {
    let Beginning { shape, rank, .. } = beginning;
    let mut meeting = Meeting { transport, library, beginning, bind, is_broken: Arc::default() };
    let id = meeting.meet(0..shape.num_ranks)?;
    let world = meeting.join("the world", 0..shape.num_ranks, &id)?;
    let group = match shape.group(rank).filter(|group| group.len() > 1) {
        Some(group) => {
            let id = meeting.meet(group.clone())?;
            Some(meeting.join("a group", group, &id)?)
        }
        None => None,
    };
    Ok(Comms { world, group })
}

struct Meeting<'a> {
    transport: &'a mut dyn Transport,
    library: &'a Arc<Library>,
    beginning: Beginning,
    bind: &'a Bind,
    /// Of all communicators: they break together.
    is_broken: Arc<AtomicBool>,
}

impl Meeting<'_> {
    /// The id of those in `ranks`, from the first of them.
    fn meet(&mut self, ranks: Range<u32>) -> Result<Id, BringUpError> {
        let first = Rank(ranks.start);
        let own = self.library.version();
        if self.beginning.rank != first {
            self.send(first, Bytes::copy_from_slice(&own.code().to_le_bytes()))?;
            return self.hear_id(first);
        }
        let mut unlike = None;
        for rank in ranks.clone().skip(1).map(Rank) {
            let version = self.hear_version(rank)?;
            if version != own {
                unlike.get_or_insert_with(|| {
                    format!("rank {} has {version}, rank {} has {own}", rank.0, first.0)
                });
            }
        }
        let made = match unlike {
            Some(reason) => Err(BringUpError::Mismatched(reason)),
            None => self.library.unique_id().map_err(BringUpError::Nccl),
        };
        let answer = match &made {
            Ok(id) => [&[GIVEN], &id.0[..]].concat(),
            Err(error) => {
                let reason = error.to_string();
                let end = reason.floor_char_boundary(MAX_REASON_BYTES);
                [&[REFUSED], &reason.as_bytes()[..end]].concat()
            }
        };
        let answer = Bytes::from(answer);
        for rank in ranks.skip(1).map(Rank) {
            self.send(rank, answer.clone())?;
        }
        made
    }

    fn hear_version(&mut self, rank: Rank) -> Result<Version, Fault> {
        let payload = self.receive(rank)?;
        let code = <[u8; 4]>::try_from(&payload[..]);
        let code = code.map_err(|_| malformed(rank, format!("a version of {} bytes", payload.len())))?;
        Ok(Version::from_code(u32::from_le_bytes(code)))
    }

    fn hear_id(&mut self, rank: Rank) -> Result<Id, BringUpError> {
        let payload = self.receive(rank)?;
        match payload.split_first() {
            Some((&GIVEN, id)) => match <[u8; ID_BYTES]>::try_from(id) {
                Ok(id) => Ok(Id(id)),
                Err(_) => Err(malformed(rank, format!("an id of {} bytes", id.len())).into()),
            },
            Some((&REFUSED, reason)) if reason.len() <= MAX_REASON_BYTES => {
                let reason = String::from_utf8_lossy(reason).into_owned();
                Err(BringUpError::Refused { rank, reason })
            }
            _ => Err(malformed(rank, "neither an id nor a reason why there is none".to_owned()).into()),
        }
    }

    fn send(&mut self, to: Rank, payload: Bytes) -> Result<(), Fault> {
        let frame = Frame { epoch: self.beginning.epoch, step: 0, exchange: EXCHANGE, payload };
        self.transport.send(to, frame)
    }

    fn receive(&mut self, from: Rank) -> Result<Bytes, Fault> {
        let frame = self.transport.receive(from)?;
        if (frame.epoch, frame.step, frame.exchange) != (self.beginning.epoch, 0, EXCHANGE) {
            let show = |epoch: Epoch, step, exchange| {
                format!("exchange {exchange} of step {step} of epoch {}", epoch.0)
            };
            return Err(Fault::Astray {
                rank: from,
                found: show(frame.epoch, frame.step, frame.exchange),
                expected: format!("the beginning of epoch {}", self.beginning.epoch.0),
            });
        }
        Ok(frame.payload)
    }

    fn join(&mut self, what: &str, ranks: Range<u32>, id: &Id) -> Result<Comm, NcclError> {
        let Beginning { epoch, rank, timeout, .. } = self.beginning;
        let members = Members {
            name: format!("{what} of epoch {}", epoch.0),
            rank: rank.0 - ranks.start,
            num_ranks: ranks.len() as u32,
            timeout,
            is_broken: Arc::clone(&self.is_broken),
        };
        Comm::join(Arc::clone(self.library), id, members, Arc::clone(self.bind), |abort| {
            self.transport.at_end(Box::new(move || abort.abort()));
        })
    }
}

pub(crate) fn malformed(rank: Rank, reason: String) -> Fault {
    Fault::Malformed { rank, reason }
}
