//! In what numbers ranks keep weights, keys and values.

use super::v1;
use crate::InvalidField;
use crate::field::{at_most, known, present};
use chorale_plan::{DenseFormat, KvFormat};

impl From<DenseFormat> for v1::DenseFormat {
    fn from(format: DenseFormat) -> Self {
        match format {
            DenseFormat::Bf16 => Self::Bf16,
            DenseFormat::Int8 => Self::Int8,
        }
    }
}

impl From<KvFormat> for v1::KvFormat {
    fn from(format: KvFormat) -> Self {
        match format {
            KvFormat::F32 => Self::F32,
            KvFormat::Bf16 => Self::Bf16,
            KvFormat::Fp8 => Self::Fp8,
        }
    }
}

pub(super) fn dense_format(field: &str, value: i32) -> Result<DenseFormat, InvalidField> {
    let format = match known(field, value)? {
        v1::DenseFormat::Unspecified => None,
        v1::DenseFormat::Bf16 => Some(DenseFormat::Bf16),
        v1::DenseFormat::Int8 => Some(DenseFormat::Int8),
    };
    present(field, format)
}

pub(super) fn kv_format(field: &str, value: i32) -> Result<KvFormat, InvalidField> {
    let format = match known(field, value)? {
        v1::KvFormat::Unspecified => None,
        v1::KvFormat::F32 => Some(KvFormat::F32),
        v1::KvFormat::Bf16 => Some(KvFormat::Bf16),
        v1::KvFormat::Fp8 => Some(KvFormat::Fp8),
    };
    present(field, format)
}

/// Each at most once. None at all is what a worker of another release says: it
/// is refused for that, by name, and not here.
pub(super) fn kv_formats(field: &str, values: Vec<i32>) -> Result<Vec<KvFormat>, InvalidField> {
    let values = at_most(field, values, KvFormat::ALL.len())?;
    let mut formats = Vec::with_capacity(values.len());
    for (index, value) in values.into_iter().enumerate() {
        let field = format!("{field}[{index}]");
        let format = kv_format(&field, value)?;
        if formats.contains(&format) {
            return Err(InvalidField::new(field, format_args!("{} is there twice", format.name())));
        }
        formats.push(format);
    }
    Ok(formats)
}
