//! A JSON object as the list of its entries, in file order and with
//! repetitions: a map would keep one of two entries of the same name and hide
//! that there were two.

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use std::collections::HashMap;
use std::fmt;
use std::marker::PhantomData;

/// The safetensors header's only entry that is no tensor: strings for people.
const METADATA: &str = "__metadata__";

/// The entries of a JSON object.
pub(super) struct Entries<T>(pub(super) Vec<(String, T)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Entries<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let entries =
            deserializer.deserialize_map(EntriesVisitor { skips_metadata: false, of: PhantomData })?;
        Ok(Self(entries))
    }
}

/// The tensors of a safetensors header, without its metadata.
pub(super) struct HeaderEntries<T>(pub(super) Vec<(String, T)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for HeaderEntries<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let entries =
            deserializer.deserialize_map(EntriesVisitor { skips_metadata: true, of: PhantomData })?;
        Ok(Self(entries))
    }
}

struct EntriesVisitor<T> {
    skips_metadata: bool,
    of: PhantomData<T>,
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for EntriesVisitor<T> {
    type Value = Vec<(String, T)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries = Vec::new();
        let mut num_metadata = 0;
        while let Some(name) = map.next_key::<String>()? {
            if self.skips_metadata && name == METADATA {
                num_metadata += 1;
                if num_metadata > 1 {
                    return Err(A::Error::custom("`__metadata__` is there twice"));
                }
                map.next_value::<Option<HashMap<String, String>>>()?;
                continue;
            }
            let value = map.next_value().map_err(|error| A::Error::custom(format!("`{name}`: {error}")))?;
            entries.push((name, value));
        }
        Ok(entries)
    }
}

/// An index file, of which only the map is read.
#[derive(serde::Deserialize)]
pub(super) struct IndexFile {
    pub(super) weight_map: Entries<String>,
}
