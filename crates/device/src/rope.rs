//! Rotary position embedding with YaRN (arXiv:2309.00071): which angle each
//! pair of a head turns by.

use std::f64::consts::TAU;

/// Rotary position embedding: pairs `(i, i + head_dim / 2)` are rotated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeParams {
    /// Width of a head, even.
    pub head_dim: usize,
    /// The base of the frequencies.
    pub theta: f64,
    /// YaRN's stretching of the context, if any.
    pub yarn: Option<YarnParams>,
}

/// YaRN (arXiv:2309.00071), as the gpt-oss checkpoints use it: at every
/// position, in every layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct YarnParams {
    /// How many times the context is stretched.
    pub factor: f64,
    /// Rotations over the original context above which a frequency is kept.
    pub beta_fast: f64,
    /// Rotations below which a frequency is divided by `factor`.
    pub beta_slow: f64,
    /// The context that the model was first trained on.
    pub original_context: f64,
    /// Whether the correction range is rounded outwards to whole pairs. The
    /// released checkpoints say no.
    pub truncate: bool,
    /// Multiplies cos and sin; usually `0.1 ln(factor) + 1`.
    pub attention_factor: f64,
}

impl RopeParams {
    /// Radians per position of each pair.
    pub fn frequencies(&self) -> Vec<f64> {
        let dim = self.head_dim as f64;
        let plain = (0..self.head_dim / 2).map(|i| self.theta.powf(-2.0 * i as f64 / dim));
        let Some(yarn) = self.yarn else { return plain.collect() };
        let (low, high) = self.correction_range(&yarn);
        let stretched = plain.enumerate().map(|(i, frequency)| {
            let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
            frequency * (1.0 - ramp) + frequency / yarn.factor * ramp
        });
        stretched.collect()
    }

    /// What cosines and sines are multiplied with.
    pub fn factor(&self) -> f64 {
        self.yarn.map_or(1.0, |yarn| yarn.attention_factor)
    }

    /// The pairs between which frequencies pass from kept to stretched.
    fn correction_range(&self, yarn: &YarnParams) -> (f64, f64) {
        let dim = self.head_dim as f64;
        let pair =
            |rotations: f64| dim * (yarn.original_context / (rotations * TAU)).ln() / (2.0 * self.theta.ln());
        let (mut low, mut high) = (pair(yarn.beta_fast), pair(yarn.beta_slow));
        if yarn.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, high) = (low.max(0.0), high.min(dim - 1.0));
        // As in transformers: a range of one point would divide by zero.
        if low == high { (low, high + 0.001) } else { (low, high) }
    }
}
