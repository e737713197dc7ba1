//! What weights, keys and values are kept in, as settings say it.

use chorale_device::{DenseDtype, KvDtype};
use serde::de::{Error, Unexpected};
use serde::{Deserialize, Deserializer, Serializer};

/// The words of `dense_dtype`.
pub(crate) const DENSE_WORDS: &[&str] = &["bf16", "int8"];

/// The words of `kv_cache_dtype`; the first leaves it to the device.
pub(crate) const KV_WORDS: &[&str] = &[AUTO, "bf16", "f32", "fp8"];

const AUTO: &str = "auto";

/// A [`DenseDtype`] by its word.
pub(crate) mod dense {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(dtype: &DenseDtype, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(dtype.name())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<DenseDtype, D::Error> {
        let word = String::deserialize(deserializer)?;
        let found = DenseDtype::ALL.into_iter().find(|dtype| dtype.name() == word);
        found.ok_or_else(|| D::Error::invalid_value(Unexpected::Str(&word), &"bf16 or int8"))
    }
}

/// A [`KvDtype`] by its word; `None` is `auto`, or nothing.
pub(crate) mod kv {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(
        dtype: &Option<KvDtype>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match dtype {
            Some(dtype) => serializer.serialize_some(dtype.name()),
            None => serializer.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<KvDtype>, D::Error> {
        let Some(word) = Option::<String>::deserialize(deserializer)?.filter(|word| word != AUTO) else {
            return Ok(None);
        };
        let found = KvDtype::ALL.into_iter().find(|dtype| dtype.name() == word);
        found.map(Some).ok_or_else(|| D::Error::invalid_value(Unexpected::Str(&word), &"bf16, f32 or fp8"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_has_a_word() {
        assert!(DenseDtype::ALL.iter().map(|dtype| dtype.name()).eq(DENSE_WORDS.iter().copied()));
        assert!(KvDtype::ALL.iter().all(|dtype| KV_WORDS[1..].contains(&dtype.name())));
    }
}
