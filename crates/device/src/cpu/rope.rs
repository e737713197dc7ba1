//! Rotates heads. Angles are computed in f64: f32 angles are off by 3e-3 at
//! position 131071.

use crate::rope::RopeParams;

/// Cosines and sines of the step's positions.
#[derive(Debug)]
pub(super) struct Rope {
    frequencies: Vec<f64>,
    factor: f64,
    /// `[rows, head_dim / 2]` each.
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rope {
    pub(super) fn new(params: &RopeParams) -> Self {
        Self { frequencies: params.frequencies(), factor: params.factor(), cos: Vec::new(), sin: Vec::new() }
    }

    pub(super) fn set_positions(&mut self, positions: &[u32]) {
        self.cos.clear();
        self.sin.clear();
        for &position in positions {
            for frequency in &self.frequencies {
                let (sin, cos) = (f64::from(position) * frequency).sin_cos();
                self.cos.push((cos * self.factor) as f32);
                self.sin.push((sin * self.factor) as f32);
            }
        }
    }

    /// Rotates the pairs `(i, i + head_dim / 2)` of one head of one row.
    pub(super) fn rotate(&self, row: usize, head: &mut [f32]) {
        let half = self.frequencies.len();
        let cos = &self.cos[row * half..][..half];
        let sin = &self.sin[row * half..][..half];
        let (low, high) = head.split_at_mut(half);
        for (((low, high), cos), sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
            (*low, *high) = (*low * cos - *high * sin, *high * cos + *low * sin);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rope::YarnParams;
    use safetensors::SafeTensors;

    #[test]
    fn agrees_with_the_exact_table() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/yarn/");
        let file = std::fs::read(format!("{folder}rope-gpt-oss.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&file).unwrap();
        let f64s = |name: &str| -> Vec<f64> {
            let data = tensors.tensor(name).unwrap().data().to_vec();
            data.as_chunks::<8>().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect()
        };
        let positions = tensors.tensor("positions").unwrap().data().to_vec();
        let positions: Vec<u32> =
            positions.as_chunks::<8>().0.iter().map(|bytes| i64::from_le_bytes(*bytes) as u32).collect();
        let mut rope = Rope::new(&gpt_oss());
        rope.set_positions(&positions);
        let close = |ours: &[f32], exact: Vec<f64>| {
            assert_eq!(ours.len(), exact.len());
            ours.iter().zip(exact).map(|(&a, b)| (f64::from(a) - b).abs()).fold(0.0, f64::max)
        };
        assert!(close(&rope.cos, f64s("cos_f64")) < 2e-7);
        assert!(close(&rope.sin, f64s("sin_f64")) < 2e-7);
    }

    fn gpt_oss() -> RopeParams {
        let yarn = YarnParams {
            factor: 32.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            original_context: 4096.0,
            truncate: false,
            attention_factor: 0.1 * 32f64.ln() + 1.0,
        };
        RopeParams { head_dim: 64, theta: 150_000.0, yarn: Some(yarn) }
    }
}
