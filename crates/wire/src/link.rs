//! What ranks say to each other, `chorale.link.v1`: frames with a checksum, and
//! who carries them. What is in a frame is not known here.

use crate::InvalidField;
use crate::cluster::MAX_RANKS;
use crate::field::in_range;
use bytes::Bytes;
use chorale_plan::{Epoch, Rank};

/// What the protos say, in Rust: messages, the service's trait and its client.
#[allow(missing_docs, clippy::all, clippy::unwrap_used)]
pub mod v1 {
    tonic::include_proto!("chorale.link.v1");
}

/// The most that a frame holds: what a cache of the second level does.
pub const MAX_PIECE_BYTES: usize = 256 << 10;

/// A frame on its way, or a piece of a large one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Carried {
    /// The sender's membership.
    pub epoch: Epoch,
    /// The step that it computes.
    pub step: u64,
    /// Counts the exchanges of the step, from 0.
    pub exchange: u32,
    /// What crosses.
    pub payload: Bytes,
    /// What of it follows in further pieces.
    pub bytes_to_come: u64,
}

/// A frame is not as it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the checksum of a frame is wrong")]
pub struct Damaged;

impl From<Carried> for v1::Frame {
    /// Computes the checksum: it should not happen where somebody waits.
    fn from(frame: Carried) -> Self {
        let Carried { epoch: Epoch(epoch), step, exchange, payload, bytes_to_come } = frame;
        let mut message = Self { epoch, step, exchange, crc32: 0, payload, bytes_to_come };
        message.crc32 = checksum(&message);
        message
    }
}

impl TryFrom<v1::Frame> for Carried {
    type Error = Damaged;

    fn try_from(message: v1::Frame) -> Result<Self, Damaged> {
        if message.crc32 != checksum(&message) {
            return Err(Damaged);
        }
        let v1::Frame { epoch, step, exchange, payload, bytes_to_come, .. } = message;
        Ok(Self { epoch: Epoch(epoch), step, exchange, payload, bytes_to_come })
    }
}

/// Of everything but the checksum.
fn checksum(frame: &v1::Frame) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&frame.epoch.to_le_bytes());
    hasher.update(&frame.step.to_le_bytes());
    hasher.update(&frame.exchange.to_le_bytes());
    hasher.update(&(frame.payload.len() as u64).to_le_bytes());
    hasher.update(&frame.bytes_to_come.to_le_bytes());
    hasher.update(&frame.payload);
    hasher.finalize()
}

/// Who carries to whom, and in which membership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Introduction {
    /// The membership that both are part of.
    pub epoch: Epoch,
    /// The sender.
    pub from: Rank,
    /// The receiver, as the sender believes.
    pub to: Rank,
}

impl From<Introduction> for v1::Introduction {
    fn from(Introduction { epoch, from, to }: Introduction) -> Self {
        Self { epoch: epoch.0, from: from.0, to: to.0 }
    }
}

impl TryFrom<v1::Introduction> for Introduction {
    type Error = InvalidField;

    fn try_from(v1::Introduction { epoch, from, to }: v1::Introduction) -> Result<Self, InvalidField> {
        in_range("from", Some(from), 0..=MAX_RANKS - 1)?;
        in_range("to", Some(to), 0..=MAX_RANKS - 1)?;
        if from == to {
            return Err(InvalidField::new("from", "must be another rank than the receiver's"));
        }
        Ok(Self { epoch: Epoch(epoch), from: Rank(from), to: Rank(to) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;

    fn frame() -> v1::Frame {
        let payload = Bytes::from_static(b"rows and rows and rows");
        Carried { epoch: Epoch(3), step: 1 << 40, exchange: 70, payload, bytes_to_come: 5 }.into()
    }

    #[test]
    fn a_frame_comes_back_without_being_copied() {
        let sent = Carried::try_from(frame()).unwrap();
        let bytes = Bytes::from(frame().encode_to_vec());
        let received = Carried::try_from(v1::Frame::decode(bytes.clone()).unwrap()).unwrap();
        assert_eq!(received, sent);
        assert!(bytes.as_ptr_range().contains(&received.payload.as_ptr()));
    }

    #[test]
    fn any_flipped_bit_is_found() {
        let sent = frame().encode_to_vec();
        let good = Carried::try_from(frame());
        for bit in 0..sent.len() * 8 {
            let mut bytes = sent.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            // What protobuf does not notice, the checksum does; a field that is
            // not ours any more reads as 0.
            if let Ok(message) = v1::Frame::decode(bytes.as_slice()) {
                assert!(Carried::try_from(message) != good, "bit {bit}");
            }
        }
    }

    #[test]
    fn nobody_carries_to_itself() {
        let introduction = |from, to| Introduction::try_from(v1::Introduction { epoch: 1, from, to });
        assert!(introduction(0, 1).is_ok());
        assert!(introduction(1, 1).is_err());
        assert!(introduction(MAX_RANKS, 0).is_err());
        assert!(introduction(0, MAX_RANKS).is_err());
    }
}
