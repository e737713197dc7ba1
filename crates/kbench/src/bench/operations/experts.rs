//! The router, and a layer of experts: rows that go to other experts each time.

use super::Bench;
use crate::bench::geometry::Geometry;
use crate::bench::limits::Work;
use crate::noise;
use crate::reference::Random;
use chorale_cuda::GpuError;
use chorale_device::Precision::Half;
use chorale_device::{DenseDtype, Device};
use std::collections::HashSet;

/// Batches of rows that take turns.
const BATCHES: usize = 8;

impl Bench<'_> {
    pub(super) fn experts(&mut self, rows: &[usize]) -> Result<(), GpuError> {
        let Geometry { hidden, experts: num_experts, top_k, .. } = *self.geometry;
        let device = &mut self.meter.device;
        let experts = device.experts(noise::experts(&mut Random(1), num_experts, hidden, hidden))?;
        let router =
            device.linear(noise::dense(&mut Random(2), num_experts, hidden, true), DenseDtype::Bf16)?;
        let all: Vec<u32> = (0..num_experts as u32).collect();
        for &rows in rows {
            let device = &mut self.meter.device;
            let num_batches = if rows > 1000 { 2 } else { BATCHES };
            let mut batches = Vec::with_capacity(num_batches);
            let mut num_met = 0;
            for batch in 0..num_batches {
                let mut input = device.matrix(rows, hidden, Half)?;
                device.write(&noise::activations(&mut Random(batch as u64), rows * hidden), &mut input)?;
                let mut routing = device.routing(rows, top_k)?;
                device.route(&input, &router, &mut routing)?;
                let met: HashSet<u32> =
                    device.read_routing(&routing)?.concat().iter().map(|choice| choice.expert).collect();
                num_met += met.len();
                batches.push((input, routing, device.groups(&all)?));
            }
            let mut outputs = device.matrix(rows * top_k, hidden, Half)?;
            let of = format!("{rows} rows");
            let seconds = self.meter.time(|device| {
                batches.iter_mut().try_for_each(|(input, routing, _)| device.route(input, &router, routing))
            })?;
            let work =
                Work { bytes: 2 * hidden * (rows + num_experts), flop: 2 * rows * hidden * num_experts };
            self.add("router", of.clone(), seconds, num_batches, work);
            let seconds = self.meter.time(|device| {
                batches.iter_mut().try_for_each(|(_, routing, groups)| device.group(routing, groups))
            })?;
            self.add("grouping by expert", of.clone(), seconds, num_batches, Work::default());
            let seconds = self.meter.time(|device| {
                batches.iter().try_for_each(|(input, _, groups)| {
                    device.run_experts(input, groups, &experts, &mut outputs)
                })
            })?;
            let met = num_met as f64 / num_batches as f64;
            let work = Work {
                bytes: (met * self.geometry.expert_bytes() as f64) as usize + 2 * rows * hidden * (1 + top_k),
                flop: rows * top_k * self.geometry.expert_flop(),
            };
            self.add("experts", format!("{of}, {met:.0} experts"), seconds, num_batches, work);
        }
        Ok(())
    }
}
