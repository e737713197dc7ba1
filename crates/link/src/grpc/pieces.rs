//! Large frames come in pieces, which are put together here. Nothing is taken on
//! trust: neither how much is to come nor that it does.

use super::port::Stop;
use crate::transport::Frame;
use bytes::{Bytes, BytesMut};
use chorale_wire::link::Carried;

/// The pieces of at most one frame.
pub(super) struct Pieces {
    max_frame_bytes: usize,
    begun: Option<Begun>,
    /// What has come of its payload. The memory is used again once the frame
    /// before is gone: fresh pages cost more than the copy.
    payload: BytesMut,
}

struct Begun {
    /// Its payload is empty.
    frame: Frame,
    num_missing: u64,
}

impl Pieces {
    pub(super) fn new(max_frame_bytes: usize) -> Self {
        Self { max_frame_bytes, begun: None, payload: BytesMut::new() }
    }

    /// Gives the frame that a piece completes. One that is whole is not copied.
    pub(super) fn add(&mut self, piece: Carried) -> Result<Option<Frame>, Stop> {
        let Carried { epoch, step, exchange, payload, bytes_to_come } = piece;
        let num_bytes = (payload.len() as u64).saturating_add(bytes_to_come);
        let Some(mut begun) = self.begun.take() else {
            if num_bytes > self.max_frame_bytes as u64 {
                let reason = format!("a frame of {num_bytes} bytes, above {}", self.max_frame_bytes);
                return Err(Stop::TooLarge(reason));
            }
            if bytes_to_come == 0 {
                return Ok(Some(Frame { epoch, step, exchange, payload }));
            }
            self.payload.reserve(num_bytes as usize);
            self.payload.extend_from_slice(&payload);
            let frame = Frame { epoch, step, exchange, payload: Bytes::new() };
            self.begun = Some(Begun { frame, num_missing: bytes_to_come });
            return Ok(None);
        };
        let Frame { epoch: of_epoch, step: of_step, exchange: of_exchange, .. } = begun.frame;
        let is_next = (epoch, step, exchange) == (of_epoch, of_step, of_exchange);
        if !is_next || num_bytes != begun.num_missing || payload.is_empty() {
            return Err(Stop::Malformed("a piece that does not follow the one before".to_owned()));
        }
        self.payload.extend_from_slice(&payload);
        begun.num_missing = bytes_to_come;
        if bytes_to_come > 0 {
            self.begun = Some(begun);
            return Ok(None);
        }
        Ok(Some(Frame { payload: self.payload.split().freeze(), ..begun.frame }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chorale_plan::Epoch;

    fn piece(exchange: u32, payload: &'static [u8], bytes_to_come: u64) -> Carried {
        Carried { epoch: Epoch(1), step: 2, exchange, payload: Bytes::from_static(payload), bytes_to_come }
    }

    /// The payload that the pieces make, or what is wrong with the last of them.
    fn put_together(pieces: &[Carried]) -> Result<Option<Bytes>, &'static str> {
        let mut put = Pieces::new(10);
        let mut whole = None;
        for piece in pieces {
            whole = put.add(piece.clone()).map_err(|stop| match stop {
                Stop::TooLarge(_) => "too large",
                Stop::Malformed(_) => "malformed",
                Stop::Over | Stop::Damaged | Stop::Status(_) => "something else",
            })?;
        }
        Ok(whole.map(|frame| frame.payload))
    }

    #[test]
    fn pieces_make_a_whole() {
        let whole = [piece(1, b"ab", 5), piece(1, b"cde", 2), piece(1, b"fg", 0)];
        assert_eq!(put_together(&whole), Ok(Some(Bytes::from_static(b"abcdefg"))));
        assert_eq!(put_together(&whole[..2]), Ok(None));
        assert_eq!(put_together(&[piece(1, b"", 0)]), Ok(Some(Bytes::new())));
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        let first = piece(1, b"ab", 5);
        for next in [piece(2, b"cdefg", 0), piece(1, b"cd", 0), piece(1, b"cd", 5), piece(1, b"", 5)] {
            assert_eq!(put_together(&[first.clone(), next]), Err("malformed"));
        }
        assert_eq!(put_together(&[piece(1, b"ab", 9)]), Err("too large"));
        assert_eq!(put_together(&[piece(1, b"ab", u64::MAX)]), Err("too large"));
    }
}
