//! Reads golden files.

use safetensors::SafeTensors;
use std::collections::BTreeMap;
use std::path::PathBuf;

pub(crate) fn fixtures() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures"))
}

/// The tensors of one golden file.
pub(crate) struct Goldens {
    bytes: Vec<u8>,
}

impl Goldens {
    pub(crate) fn open(model: &str, file: &str) -> Self {
        let path = fixtures().join("goldens").join(model).join(format!("{file}.safetensors"));
        Self { bytes: std::fs::read(path).unwrap() }
    }

    pub(crate) fn f32s(&self, name: &str) -> Vec<f32> {
        self.numbers(name, |bytes: &[u8; 4]| f32::from_le_bytes(*bytes))
    }

    pub(crate) fn i32s(&self, name: &str) -> Vec<i32> {
        self.numbers(name, |bytes: &[u8; 4]| i32::from_le_bytes(*bytes))
    }

    pub(crate) fn i64s(&self, name: &str) -> Vec<i64> {
        self.numbers(name, |bytes: &[u8; 8]| i64::from_le_bytes(*bytes))
    }

    fn numbers<T, const N: usize>(&self, name: &str, read: impl Fn(&[u8; N]) -> T) -> Vec<T> {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        let data = tensors.tensor(name).unwrap().data().to_vec();
        data.as_chunks::<N>().0.iter().map(read).collect()
    }
}

/// A file of JSON, by prompt.
pub(crate) fn json(model: &str, file: &str) -> BTreeMap<String, serde_json::Value> {
    let path = fixtures().join("goldens").join(model).join(format!("{file}.json"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}
