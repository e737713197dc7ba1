//! How frames get from rank to rank. What is in them, and which come when, is
//! the business of those who exchange rows.

use bytes::Bytes;
use chorale_plan::{Epoch, Rank};
use std::time::Duration;

/// What one rank sends to another in one exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The sender's membership.
    pub epoch: Epoch,
    /// The step that it computes.
    pub step: u64,
    /// Counts the exchanges of the step, from 0. All ranks of a step count alike.
    pub exchange: u32,
    /// What crosses.
    pub payload: Bytes,
}

/// One rank's connections with all others of its world.
///
/// Frames between two ranks arrive whole and in order, or the connection
/// counts as broken. Both calls may block, neither for ever.
pub trait Transport: Send {
    /// Hands a frame to a rank. It need not have arrived when this returns.
    fn send(&mut self, to: Rank, frame: Frame) -> Result<(), Fault>;

    /// The next frame of a rank.
    fn receive(&mut self, from: Rank) -> Result<Frame, Fault>;

    /// The rank has come to its next exchange, with or without frames in it:
    /// told for those who watch whether it gets on.
    fn come_to_exchange(&mut self) {}

    /// Why nothing can be exchanged any more, if that is known already: the epoch
    /// is over, or a connection has broken.
    fn broken(&self) -> Option<Fault> {
        None
    }

    /// Has something done when the epoch is ended from elsewhere, beside that
    /// whoever waits stops waiting: on a thread of its own, at once if it is over.
    /// A transport that cannot be ended drops it.
    fn at_end(&mut self, _then: Box<dyn FnOnce() + Send>) {}
}

impl<T: Transport + ?Sized> Transport for Box<T> {
    fn send(&mut self, to: Rank, frame: Frame) -> Result<(), Fault> {
        (**self).send(to, frame)
    }

    fn receive(&mut self, from: Rank) -> Result<Frame, Fault> {
        (**self).receive(from)
    }

    fn come_to_exchange(&mut self) {
        (**self).come_to_exchange();
    }

    fn broken(&self) -> Option<Fault> {
        (**self).broken()
    }

    fn at_end(&mut self, then: Box<dyn FnOnce() + Send>) {
        (**self).at_end(then);
    }
}

/// Why a frame did not cross. Every fault names the other rank.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The other rank sent nothing in time, or took nothing.
    #[error("rank {} did not answer within {waited:?}", rank.0)]
    Timeout {
        /// Which.
        rank: Rank,
        /// How long was waited.
        waited: Duration,
    },
    /// The connection ended.
    #[error("the connection with rank {} broke: {reason}", rank.0)]
    Broken {
        /// Which.
        rank: Rank,
        /// What is known of the reason.
        reason: String,
    },
    /// A frame came whose checksum is wrong.
    #[error("a frame of rank {} was damaged on its way", rank.0)]
    Damaged {
        /// Which.
        rank: Rank,
    },
    /// A frame came that belongs elsewhere: the ranks do not compute the same.
    #[error("rank {} sent what belongs to {found}, expected was {expected}", rank.0)]
    Astray {
        /// Which.
        rank: Rank,
        /// Epoch, step and exchange of the frame.
        found: String,
        /// Epoch, step and exchange that were due.
        expected: String,
    },
    /// A frame came whose content cannot be.
    #[error("rank {} sent what cannot be: {reason}", rank.0)]
    Malformed {
        /// Which.
        rank: Rank,
        /// What is wrong with it.
        reason: String,
    },
    /// What all ranks do together failed, and nobody can say whose fault it is.
    #[error("{reason}")]
    Unknown {
        /// What is known of the reason.
        reason: String,
    },
    /// The epoch is over; nobody is to blame.
    #[error("the epoch is over")]
    Over,
}

impl Fault {
    /// The rank that was waited for; `None` if nobody failed.
    pub fn rank(&self) -> Option<Rank> {
        match self {
            Self::Timeout { rank, .. }
            | Self::Broken { rank, .. }
            | Self::Damaged { rank }
            | Self::Astray { rank, .. }
            | Self::Malformed { rank, .. } => Some(*rank),
            Self::Unknown { .. } | Self::Over => None,
        }
    }
}
