//! A rank's transport, and where in the step the rank is: every frame carries
//! it, and every frame that comes is held against it.

use crate::LinkError;
use crate::mesh::Place;
use crate::rows;
use crate::transport::{Fault, Frame, Transport};
use bytes::Bytes;
use chorale_plan::{Epoch, Rank};
use std::ops::Range;
use std::time::{Duration, Instant};

/// Exchanges of a layer: two gathers, a dispatch and a combine.
const EXCHANGES: u32 = 4;

/// The transport, and where in the step the rank is.
pub(crate) struct Wire<T> {
    transport: T,
    epoch: Epoch,
    num_layers: usize,
    step: u64,
    pub(crate) layer: usize,
    /// Within the layer; behind the last layer, gathers only.
    pub(crate) exchange: u32,
    pub(crate) waited: Duration,
}

impl<T: Transport> Wire<T> {
    pub(crate) fn new(transport: T, place: &Place) -> Self {
        Self {
            transport,
            epoch: place.epoch,
            num_layers: place.num_layers,
            step: 0,
            layer: 0,
            exchange: 0,
            waited: Duration::ZERO,
        }
    }

    /// Goes on to an exchange of the layer.
    pub(crate) fn come_to(&mut self, exchange: u32) {
        self.exchange = exchange;
        self.transport.come_to_exchange();
    }

    pub(crate) fn begin(&mut self, step: u64) {
        self.step = step;
        self.layer = 0;
        self.exchange = 0;
    }

    pub(crate) fn next_layer(&mut self) {
        self.layer += 1;
        self.exchange = 0;
    }

    fn number(&self) -> u32 {
        self.layer as u32 * EXCHANGES + self.exchange
    }

    pub(crate) fn send(&mut self, to: Rank, payload: Bytes) -> Result<(), Fault> {
        let frame = Frame { epoch: self.epoch, step: self.step, exchange: self.number(), payload };
        let started = Instant::now();
        let sent = self.transport.send(to, frame);
        self.waited += started.elapsed();
        sent
    }

    pub(crate) fn receive(&mut self, from: Rank) -> Result<Bytes, Fault> {
        let started = Instant::now();
        let frame = self.transport.receive(from);
        self.waited += started.elapsed();
        let frame = frame?;
        if (frame.epoch, frame.step, frame.exchange) != (self.epoch, self.step, self.number()) {
            let show = |epoch: Epoch, step, exchange| {
                format!("exchange {exchange} of step {step} of epoch {}", epoch.0)
            };
            return Err(Fault::Astray {
                rank: from,
                found: show(frame.epoch, frame.step, frame.exchange),
                expected: show(self.epoch, self.step, self.number()),
            });
        }
        Ok(frame.payload)
    }

    /// What the current exchange is called.
    fn name(&self) -> String {
        let what = match self.exchange {
            2 if self.layer < self.num_layers => "dispatch".to_owned(),
            3 if self.layer < self.num_layers => "combine".to_owned(),
            gather => format!("gather {gather}"),
        };
        if self.layer < self.num_layers {
            format!("layer {}, {what}", self.layer)
        } else {
            format!("head, {what}")
        }
    }

    pub(crate) fn fault<E>(&self, fault: Fault) -> LinkError<E> {
        LinkError::Peer { step: self.step, exchange: self.name(), fault }
    }

    /// Exchanges columns inside a group, and joins them.
    pub(crate) fn gather(
        &mut self,
        own: Rank,
        group: Range<u32>,
        cols: &[usize],
        values: &[f32],
        num_rows: usize,
    ) -> Result<Vec<f32>, Fault> {
        let mut payload = Vec::new();
        rows::write_f32s(values, &mut payload);
        let payload = Bytes::from(payload);
        for to in group.clone().map(Rank).filter(|&to| to != own) {
            self.send(to, payload.clone())?;
        }
        let width: usize = cols.iter().sum();
        let mut whole = vec![0.0; num_rows * width];
        let mut first = 0;
        for (from, &cols) in group.map(Rank).zip(cols) {
            let received = (from != own).then(|| self.receive(from)).transpose()?;
            let len = num_rows * cols;
            let payload = received.as_ref().unwrap_or(&payload);
            if payload.len() != 4 * len {
                let reason = format!("it has {} bytes for {num_rows} rows of {cols} columns", payload.len());
                return Err(Fault::Malformed { rank: from, reason });
            }
            let mut part = rows::f32s(payload);
            for row in whole.chunks_exact_mut(width) {
                row[first..first + cols].iter_mut().zip(&mut part).for_each(|(to, value)| *to = value);
            }
            first += cols;
        }
        Ok(whole)
    }
}
