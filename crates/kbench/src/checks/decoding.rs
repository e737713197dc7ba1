//! MXFP4 in the kernels: they decode in other ways than `decode_block`, so with
//! a single 1 as input, an expert's down matrix must come out column by column.

use super::upload;
use crate::demands::Demands;
use crate::failure::{Outcome, ensure};
use crate::reference::to_bf16;
use chorale_device::Precision::Half;
use chorale_device::{
    BLOCK, BLOCK_BYTES, Choice, Device, ExpertsSource, Mxfp4Part, Mxfp4Source, decode_block,
};
use std::ops::Range;

/// Scales of one matrix each; larger ones overflow with the activations below.
const SCALES: [Range<usize>; 3] = [0..96, 72..168, 144..240];
/// What comes out of an expert's first half where its input is let through.
const ACTIVATION: f64 = 64.0;

pub(super) fn codes<D: Device>(device: &mut D, _: &Demands) -> Outcome {
    let (hidden, intermediate) = (SCALES[0].len() * BLOCK, BLOCK);
    let codes: [u8; BLOCK_BYTES] =
        std::array::from_fn(|i| ((2 * i as u8) & 15) | (((2 * i as u8 + 1) & 15) << 4));
    // Row r of down: one block of every code, under a scale that every BLOCK rows share.
    let down = |scales: &Range<usize>| Mxfp4Part {
        blocks: codes.repeat(hidden).into(),
        scales: scales.clone().flat_map(|scale| [scale as u8; BLOCK]).collect::<Vec<u8>>().into(),
        bias: None,
    };
    // Gates of 64 make the sigmoid 1, so an activation is 64 * (up + 1): 64 for
    // one input, 0 for the others.
    for input in [0, 1, 7, 18, 31] {
        let up = |row: usize| if row / 2 == input { 0.0 } else { -1.0 };
        let bias = (0..2 * intermediate).map(|row| if row % 2 == 0 { ACTIVATION } else { up(row) });
        let gate_up = Mxfp4Part {
            blocks: vec![0; intermediate * hidden].into(),
            scales: vec![127; 2 * intermediate * hidden / BLOCK].into(),
            bias: Some(to_bf16(&bias.collect::<Vec<f64>>())),
        };
        let source = ExpertsSource {
            gate_up: Mxfp4Source {
                rows: 2 * intermediate,
                cols: hidden,
                experts: vec![gate_up; SCALES.len()],
            },
            down: Mxfp4Source {
                rows: hidden,
                cols: intermediate,
                experts: SCALES.iter().map(down).collect(),
            },
            swiglu_limit: ACTIVATION as f32,
        };
        let experts = device.experts(source)?;
        let rows = upload(device, &vec![vec![0.0; hidden]], Half)?;
        let mut groups = device.groups(&[0, 1, 2])?;
        let choices = [0, 1, 2].map(|expert| Choice { row: 0, expert });
        device.group_choices(&choices, &mut groups)?;
        let mut outputs = device.matrix(SCALES.len(), hidden, Half)?;
        device.run_experts(&rows, &groups, &experts, &mut outputs)?;
        let outputs = device.read(&outputs)?;
        for (outputs, scales) in outputs.chunks(hidden).zip(&SCALES) {
            for (outputs, scale) in outputs.chunks(BLOCK).zip(scales.clone()) {
                let exact = decode_block(&codes, scale as u8)[input] * ACTIVATION as f32;
                ensure(outputs.iter().all(|&output| output == exact), || {
                    format!("code {} under scale {scale} gives {outputs:?}, not {exact}", input % 16)
                })?;
            }
        }
    }
    Ok(())
}
