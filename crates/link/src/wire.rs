//! A rank's transport, and where in the step the rank is: every frame carries
//! it, and every frame that comes is held against it.

use crate::mesh::Place;
use crate::rows;
use crate::transport::{Fault, Frame, Transport};
use crate::{Half, LinkError};
use bytes::Bytes;
use chorale_plan::{Epoch, Rank};
use std::ops::Range;
use std::time::{Duration, Instant};

/// Exchanges of a half's layer: two gathers, a dispatch and a combine.
const EXCHANGES: u32 = 4;

/// Where in the step a half is.
#[derive(Clone, Copy, Default)]
struct At {
    layer: usize,
    /// Within the layer; behind the last layer, gathers only.
    exchange: u32,
}

/// The transport, and where in the step the rank is.
pub(crate) struct Wire<T> {
    transport: T,
    epoch: Epoch,
    num_layers: usize,
    step: u64,
    at: [At; 2],
    pub(crate) waited: Duration,
}

impl<T: Transport> Wire<T> {
    pub(crate) fn new(transport: T, place: &Place) -> Self {
        Self {
            transport,
            epoch: place.epoch,
            num_layers: place.num_layers,
            step: 0,
            at: [At::default(); 2],
            waited: Duration::ZERO,
        }
    }

    /// A half goes on to an exchange of its layer.
    pub(crate) fn come_to(&mut self, half: Half, exchange: u32) {
        self.at[half as usize].exchange = exchange;
        self.transport.come_to_exchange();
    }

    pub(crate) fn layer(&self, half: Half) -> usize {
        self.at[half as usize].layer
    }

    pub(crate) fn begin(&mut self, step: u64) {
        self.step = step;
        self.at = [At::default(); 2];
    }

    /// A half's gather has ended.
    pub(crate) fn next_gather(&mut self, half: Half) {
        self.at[half as usize].exchange += 1;
    }

    pub(crate) fn next_layer(&mut self, half: Half) {
        self.at[half as usize] = At { layer: self.layer(half) + 1, exchange: 0 };
    }

    fn number(&self, half: Half) -> u32 {
        let At { layer, exchange } = self.at[half as usize];
        (2 * layer as u32 + half as u32) * EXCHANGES + exchange
    }

    pub(crate) fn send(&mut self, half: Half, to: Rank, payload: Bytes) -> Result<(), Fault> {
        let frame = Frame { epoch: self.epoch, step: self.step, exchange: self.number(half), payload };
        let started = Instant::now();
        let sent = self.transport.send(to, frame);
        self.waited += started.elapsed();
        sent
    }

    pub(crate) fn receive(&mut self, half: Half, from: Rank) -> Result<Bytes, Fault> {
        let started = Instant::now();
        let frame = self.transport.receive(from);
        self.waited += started.elapsed();
        let frame = frame?;
        if (frame.epoch, frame.step, frame.exchange) != (self.epoch, self.step, self.number(half)) {
            let show = |epoch: Epoch, step, exchange| {
                format!("exchange {exchange} of step {step} of epoch {}", epoch.0)
            };
            return Err(Fault::Astray {
                rank: from,
                found: show(frame.epoch, frame.step, frame.exchange),
                expected: show(self.epoch, self.step, self.number(half)),
            });
        }
        Ok(frame.payload)
    }

    /// What a half's exchange is called.
    fn name(&self, half: Half) -> String {
        let At { layer, exchange } = self.at[half as usize];
        let what = match exchange {
            2 if layer < self.num_layers => "dispatch".to_owned(),
            3 if layer < self.num_layers => "combine".to_owned(),
            gather => format!("gather {gather}"),
        };
        let of = if half == Half::Second { " of the second half" } else { "" };
        if layer < self.num_layers {
            format!("layer {layer}, {what}{of}")
        } else {
            format!("head, {what}{of}")
        }
    }

    pub(crate) fn fault<E>(&self, half: Half, fault: Fault) -> LinkError<E> {
        LinkError::Peer { step: self.step, exchange: self.name(half), fault }
    }

    /// Sends columns to the others of a group.
    pub(crate) fn send_part(
        &mut self,
        half: Half,
        own: Rank,
        group: Range<u32>,
        part: &Bytes,
    ) -> Result<(), Fault> {
        let mut others = group.map(Rank).filter(|&to| to != own);
        others.try_for_each(|to| self.send(half, to, part.clone()))
    }

    /// Joins the columns of a group, this rank's `part` among them.
    pub(crate) fn join_parts(
        &mut self,
        half: Half,
        own: Rank,
        group: Range<u32>,
        cols: &[usize],
        part: &Bytes,
    ) -> Result<Vec<f32>, Fault> {
        let num_rows = part.len() / 4 / cols[(own.0 - group.start) as usize];
        let width: usize = cols.iter().sum();
        let mut whole = vec![0.0; num_rows * width];
        let mut first = 0;
        for (from, &cols) in group.map(Rank).zip(cols) {
            let received = (from != own).then(|| self.receive(half, from)).transpose()?;
            let len = num_rows * cols;
            let payload = received.as_ref().unwrap_or(part);
            if payload.len() != 4 * len {
                let reason = format!("it has {} bytes for {num_rows} rows of {cols} columns", payload.len());
                return Err(Fault::Malformed { rank: from, reason });
            }
            let mut values = rows::f32s(payload);
            for row in whole.chunks_exact_mut(width) {
                row[first..first + cols].iter_mut().zip(&mut values).for_each(|(to, value)| *to = value);
            }
            first += cols;
        }
        Ok(whole)
    }
}
