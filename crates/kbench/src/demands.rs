//! What a device says of itself, and what it is held to accordingly.

use chorale_device::{RopeParams, YarnParams};

/// What a kind of device can be asked for.
#[derive(Clone, Copy, Debug)]
pub struct Demands {
    /// How it computes.
    pub kind: Kind,
    /// Widths of a head that it knows.
    pub head_dims: &'static [usize],
    /// Positions of a page that it takes.
    pub block_sizes: &'static [usize],
    /// What the columns of its matrices' inputs are multiples of.
    pub cols_multiple: usize,
    /// Whether a row gets the same bits whatever the number of rows beside it.
    pub is_steady: bool,
    /// Whether a query gets the same bits whatever slice it is computed in.
    pub is_slice_steady: bool,
    /// How many random cases are drawn where cases are random.
    pub num_cases: usize,
    /// Whether matrices are as large as gpt-oss-120b's where that matters.
    pub is_full_size: bool,
    /// Where random numbers begin.
    pub seed: u64,
}

/// How a device computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// In f32 throughout.
    F32,
    /// With activations in bf16, except those of `Precision::Full`, and sums in f32.
    Bf16,
}

impl Demands {
    /// For the portable device.
    pub const CPU: Self = Self {
        kind: Kind::F32,
        head_dims: &[8, 64],
        block_sizes: &[1, 3, 8, 64],
        cols_multiple: 1,
        is_steady: true,
        is_slice_steady: true,
        num_cases: 40,
        is_full_size: false,
        seed: 0,
    };

    /// For CUDA on hardware.
    pub const CUDA: Self = Self {
        kind: Kind::Bf16,
        head_dims: &[64],
        block_sizes: &[1, 8, 16, 64, 128],
        cols_multiple: 32,
        // Kernels add in the same order, but nobody promises that all of a GPU's
        // instructions for it round alike.
        is_steady: false,
        is_slice_steady: false,
        num_cases: 40,
        is_full_size: true,
        seed: 0,
    };

    /// A value as a matrix of `Precision::Half` keeps it.
    pub fn round(&self, value: f64) -> f64 {
        match self.kind {
            Kind::F32 => value,
            Kind::Bf16 => to_nearest_bf16(value),
        }
    }

    /// What keeping a value in `Precision::Half` may cost, in halves of the last
    /// place of a bf16.
    pub(crate) fn rounding(&self) -> f64 {
        match self.kind {
            Kind::F32 => 0.0,
            Kind::Bf16 => 1.0,
        }
    }

    /// One of two shares of the largest value, as the device computes.
    pub(crate) fn share(&self, of_f32: f64, of_bf16: f64) -> f64 {
        match self.kind {
            Kind::F32 => of_f32,
            Kind::Bf16 => of_bf16,
        }
    }

    /// The next width at or above `cols` that the device takes.
    pub(crate) fn cols(&self, cols: usize) -> usize {
        cols.next_multiple_of(self.cols_multiple)
    }

    /// A rotary embedding for heads of a width: gpt-oss's for its own.
    pub(crate) fn rope(&self, head_dim: usize) -> RopeParams {
        if head_dim != 64 {
            return RopeParams { head_dim, theta: 10_000.0, yarn: None };
        }
        let yarn = YarnParams {
            factor: 32.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            original_context: 4096.0,
            truncate: false,
            attention_factor: 0.1 * 32f64.ln() + 1.0,
        };
        RopeParams { head_dim, theta: 150_000.0, yarn: Some(yarn) }
    }
}

/// The nearest bf16, ties to even.
fn to_nearest_bf16(value: f64) -> f64 {
    let bits = (value as f32).to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000;
    f64::from(f32::from_bits(rounded))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_go_to_even_bits() {
        let rounded = [1.0, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, -1.0 - 1.0 / 200.0].map(to_nearest_bf16);
        assert_eq!(rounded, [1.0, 1.0, 1.0 + 4.0 / 256.0, -1.0 - 1.0 / 128.0]);
    }
}
