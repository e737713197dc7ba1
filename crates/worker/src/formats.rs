//! The contract's words for what weights, keys and values are kept in, as the
//! device's.

use chorale_device::{DenseDtype, KvDtype};
use chorale_plan::{DenseFormat, KvFormat};

/// How a device is to keep dense weights.
pub fn dense_dtype(format: DenseFormat) -> DenseDtype {
    match format {
        DenseFormat::Bf16 => DenseDtype::Bf16,
        DenseFormat::Int8 => DenseDtype::Int8,
    }
}

/// What a device keeps dense weights as, for others.
pub fn dense_format(dtype: DenseDtype) -> DenseFormat {
    match dtype {
        DenseDtype::Bf16 => DenseFormat::Bf16,
        DenseDtype::Int8 => DenseFormat::Int8,
    }
}

/// How a device is to keep keys and values.
pub fn kv_dtype(format: KvFormat) -> KvDtype {
    match format {
        KvFormat::F32 => KvDtype::F32,
        KvFormat::Bf16 => KvDtype::Bf16,
        KvFormat::Fp8 => KvDtype::Fp8,
    }
}

/// What a device keeps keys and values as, for others.
pub fn kv_format(dtype: KvDtype) -> KvFormat {
    match dtype {
        KvDtype::F32 => KvFormat::F32,
        KvDtype::Bf16 => KvFormat::Bf16,
        KvDtype::Fp8 => KvFormat::Fp8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_have_the_same_words() {
        for format in KvFormat::ALL {
            assert_eq!(kv_format(kv_dtype(format)), format);
            assert_eq!(kv_dtype(format).name(), format.name());
        }
        for dtype in [DenseDtype::Bf16, DenseDtype::Int8] {
            assert_eq!(dense_dtype(dense_format(dtype)), dtype);
        }
    }
}
