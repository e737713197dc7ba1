//! MXFP4 against the fixtures: every code under every kind of scale, in the
//! reference decoder and in the kernels.

use crate::{cpu, upload};
use chorale_device::{BLOCK_BYTES, Device, ExpertsSource, Mxfp4Part, Mxfp4Source, NAN_SCALE, decode_block};
use safetensors::SafeTensors;

fn fixture(name: &str) -> Vec<u8> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/mxfp4");
    std::fs::read(format!("{folder}/{name}.safetensors")).unwrap()
}

fn f32s(tensors: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let data = tensors.tensor(name).unwrap().data();
    data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

#[test]
fn every_code_under_every_scale_decodes_exactly() {
    let file = fixture("decode");
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let exact = f32s(&tensors, "f32");
    let scales = tensors.tensor("scales").unwrap().data();
    let codes = tensors.tensor("codes").unwrap().data();
    for (&scale, exact) in scales.iter().zip(exact.chunks(16)) {
        for (&code, exact) in codes.iter().zip(exact) {
            let decoded = decode_block(&[code << 4 | code; BLOCK_BYTES], scale);
            if scale == NAN_SCALE {
                assert!(decoded[0].is_nan());
            } else {
                assert_eq!(decoded.map(f32::to_bits), [exact.to_bits(); 32], "code {code}, scale {scale}");
            }
        }
    }
}

#[test]
fn random_blocks_decode_exactly() {
    let file = fixture("blocks");
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let exact = f32s(&tensors, "weight");
    let blocks = tensors.tensor("blocks").unwrap().data().to_vec();
    let scales = tensors.tensor("scales").unwrap().data().to_vec();
    let decoded = blocks.as_chunks::<BLOCK_BYTES>().0.iter().zip(&scales);
    let decoded: Vec<f32> = decoded.flat_map(|(packed, &scale)| decode_block(packed, scale)).collect();
    assert_eq!(decoded, exact);
}

/// The kernels decode in another way than `decode_block`: with an identity as
/// input, an expert's down matrix comes out column by column.
#[test]
fn kernels_decode_every_code_and_scale_exactly() {
    let device = &mut cpu();
    // Larger scales overflow f32 with the activations below.
    let (hidden, intermediate) = (240 * 32, 32);
    // Row r of down: one block of scale r / 32 and every code.
    let codes: [u8; BLOCK_BYTES] =
        std::array::from_fn(|i| ((2 * i as u8) & 15) | (((2 * i as u8 + 1) & 15) << 4));
    let scales: Vec<u8> = (0..hidden).map(|row| (row / 32) as u8).collect();
    let down = Mxfp4Part { blocks: codes.repeat(hidden).into(), scales: scales.clone().into(), bias: None };
    // Gates of 64 make the sigmoid 1, so an activation is 64 * (up + 1): 64 for
    // one input, 0 for the others.
    for input in [0, 1, 7, 18, 31] {
        let up = |row: usize| if row / 2 == input { 0.0 } else { -1.0 };
        let bias: Vec<f64> = (0..64).map(|row| if row % 2 == 0 { 64.0 } else { up(row) }).collect();
        let gate_up = Mxfp4Part {
            blocks: vec![0; 64 * hidden / 2].into(),
            scales: vec![127; 64 * hidden / 32].into(),
            bias: Some(crate::reference::to_bf16(&bias)),
        };
        let source = ExpertsSource {
            gate_up: Mxfp4Source { rows: 64, cols: hidden, experts: vec![gate_up] },
            down: Mxfp4Source { rows: hidden, cols: intermediate, experts: vec![down.clone()] },
            swiglu_limit: 64.0,
        };
        let experts = device.experts(source).unwrap();
        let rows = upload(device, &vec![vec![0.0; hidden]]);
        let router = device.linear(crate::reference::dense(&[(&[vec![0.0; hidden]], None)])).unwrap();
        let mut routing = device.routing(1, 1).unwrap();
        device.route(&rows, &router, &mut routing).unwrap();
        let mut groups = device.groups(&[0]).unwrap();
        device.group(&routing, &mut groups).unwrap();
        let mut outputs = device.matrix(1, hidden).unwrap();
        device.run_experts(&rows, &groups, &experts, &mut outputs).unwrap();
        let outputs = device.read(&outputs).unwrap();
        for (row, output) in outputs.iter().enumerate() {
            let exact = decode_block(&codes, scales[row])[input] * 64.0;
            assert_eq!(*output, exact, "input {input}, scale {}", scales[row]);
        }
    }
}
