//! In what numbers weights and cached keys and values are kept.

/// How a dense matrix is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum DenseDtype {
    /// As in the checkpoint.
    #[default]
    Bf16,
    /// 8-bit integers with a scale for each row: see [`crate::quantize_row`].
    Int8,
}

/// How keys and values are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvDtype {
    /// As they are computed.
    F32,
    /// Rounded to the nearest.
    Bf16,
    /// FP8 (E4M3), with an exponent for each head's key or value: see
    /// [`crate::encode_fp8_row`].
    Fp8,
}

impl DenseDtype {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Bf16, Self::Int8];

    /// Bytes of a row of `cols` weights, its scale included.
    pub fn row_bytes(self, cols: usize) -> usize {
        match self {
            Self::Bf16 => 2 * cols,
            Self::Int8 => cols + size_of::<f32>(),
        }
    }

    /// Its word in settings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        }
    }
}

impl KvDtype {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::F32, Self::Bf16, Self::Fp8];

    /// Bytes of one head's key or value.
    pub fn row_bytes(self, head_dim: usize) -> usize {
        match self {
            Self::F32 => 4 * head_dim,
            Self::Bf16 => 2 * head_dim,
            Self::Fp8 => head_dim + 1,
        }
    }

    /// Its word in settings.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Fp8 => "fp8",
        }
    }
}
