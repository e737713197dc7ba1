//! MXFP4's reference decoder against the fixtures: every code under every kind
//! of scale.

use chorale_device::{BLOCK_BYTES, NAN_SCALE, decode_block};
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
