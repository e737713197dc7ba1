//! Dense weights in int8, keys and values in bf16 and fp8: how far that is from
//! the goldens' own model, whose weights are random and so hide no error, and
//! that it is the same however a prompt is cut.

use crate::MODELS;
use crate::engine::{Bench, limits};
use crate::tensors::{Goldens, fixtures};
use chorale_device::{DenseDtype, KvDtype};
use chorale_plan::TokenId;

const EXACT: (DenseDtype, KvDtype) = (DenseDtype::Bf16, KvDtype::F32);

fn prompt(model: &str, name: &str) -> Vec<TokenId> {
    let ids = Goldens::open(model, "logits").i64s(&format!("{name}.input_ids"));
    ids.iter().map(|&id| id as TokenId).collect()
}

fn logits(model: &str, ids: &[TokenId], kept: (DenseDtype, KvDtype), slice: usize) -> Vec<f32> {
    let dir = fixtures().join("models").join(model);
    Bench::kept_as(&dir, limits(1, slice, 64), kept).logits(ids, slice, ids.len())
}

/// Mean over positions of the divergence from `exact`, in nats.
fn mean_divergence(exact: &[f32], found: &[f32], vocab: usize) -> f64 {
    let log_softmax = |logits: &[f32]| -> Vec<f64> {
        let largest = f64::from(logits.iter().copied().fold(f32::MIN, f32::max));
        let sum = logits.iter().map(|&logit| (f64::from(logit) - largest).exp()).sum::<f64>().ln();
        logits.iter().map(|&logit| f64::from(logit) - largest - sum).collect()
    };
    let rows = exact.chunks(vocab).zip(found.chunks(vocab));
    let divergences: Vec<f64> = rows
        .map(|(exact, found)| {
            let (exact, found) = (log_softmax(exact), log_softmax(found));
            exact.iter().zip(found).map(|(exact, found)| exact.exp() * (exact - found)).sum()
        })
        .collect();
    divergences.iter().sum::<f64>() / divergences.len() as f64
}

/// The most of them is about twice what the worst of the three models shows:
/// routes flip where nothing is near certain.
#[test]
fn narrow_types_stay_near_the_goldens() {
    for model in MODELS {
        let ids = prompt(model, "p300");
        let exact = logits(model, &ids, EXACT, 300);
        let vocab = exact.len() / ids.len();
        let divergence = |kept| mean_divergence(&exact, &logits(model, &ids, kept, 300), vocab);
        for (kept, most) in [
            ((DenseDtype::Bf16, KvDtype::Bf16), 0.004),
            ((DenseDtype::Bf16, KvDtype::Fp8), 0.25),
            ((DenseDtype::Int8, KvDtype::F32), 0.04),
            ((DenseDtype::Int8, KvDtype::Fp8), 0.3),
        ] {
            let found = divergence(kept);
            assert!(0.0 < found && found < most, "{model} {kept:?}: {found}");
        }
    }
}

#[test]
fn any_slicing_gives_the_same_bits_in_eight() {
    let kept = (DenseDtype::Int8, KvDtype::Fp8);
    for model in MODELS {
        let ids = prompt(model, "p130");
        let whole = logits(model, &ids, kept, 130);
        for slice in [1, 50] {
            assert!(whole == logits(model, &ids, kept, slice), "{model}: slices of {slice}");
        }
    }
}
