//! The header of one safetensors file: which tensors lie where in it.
//! Everything is checked before a byte of a tensor is looked at, so what comes
//! out can be sliced without further thought; the tensors' names and shapes
//! mean nothing yet.

use super::CheckpointError;
use super::entries::HeaderEntries;
use super::files::refuse_lfs_pointer;
use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;

/// The format's own bound.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// The header's length, little-endian, stands in front of it.
const PREFIX_BYTES: usize = 8;

/// The tensors of one safetensors file, in the order of their bytes, which
/// they cover without overlap or gap up to the file's end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The tensors.
    pub tensors: Vec<HeaderTensor>,
}

/// One tensor of a safetensors file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderTensor {
    /// Its name, unique in the file.
    pub name: String,
    /// Type of its elements.
    pub dtype: Dtype,
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// Where its bytes lie in the file, from the file's start.
    pub bytes: Range<usize>,
}

impl Header {
    /// Parses the header of a whole file. `file` is for the messages only.
    pub fn parse(file: &Path, content: &[u8]) -> Result<Self, CheckpointError> {
        refuse_lfs_pointer(file, content)?;
        let text = header_text(file, content)?;
        let entries: HeaderEntries<TensorInfo> =
            serde_json::from_str(text).map_err(|error| damaged(file, format!("its header: {error}")))?;
        let mut entries = entries.0;
        refuse_duplicates(file, &entries)?;
        entries.sort_by_key(|(_, info)| info.data_offsets);

        let data_start = PREFIX_BYTES + text.len();
        let mut end = 0;
        let mut tensors = Vec::with_capacity(entries.len());
        for (name, info) in entries {
            check_place(&info, end).map_err(|reason| CheckpointError::TensorHeader {
                file: file.to_owned(),
                tensor: name.clone(),
                reason,
            })?;
            let needed = data_start.saturating_add(info.data_offsets.1);
            if needed > content.len() {
                return Err(CheckpointError::Truncated {
                    file: file.to_owned(),
                    tensor: name,
                    needed: needed as u64,
                    len: content.len() as u64,
                });
            }
            end = info.data_offsets.1;
            let bytes = data_start + info.data_offsets.0..needed;
            tensors.push(HeaderTensor { name, dtype: info.dtype, shape: info.shape, bytes });
        }
        let num_left = content.len() - data_start - end;
        if num_left > 0 {
            return Err(damaged(file, format!("{num_left} bytes follow its last tensor")));
        }
        Ok(Self { tensors })
    }
}

fn header_text<'a>(file: &Path, content: &'a [u8]) -> Result<&'a str, CheckpointError> {
    let Some((prefix, rest)) = content.split_first_chunk::<PREFIX_BYTES>() else {
        return Err(damaged(file, format!("it has {} bytes, too few for a header", content.len())));
    };
    let len = u64::from_le_bytes(*prefix);
    if len > MAX_HEADER_BYTES {
        return Err(damaged(
            file,
            format!("its first 8 bytes give a header of {len} bytes, at most {MAX_HEADER_BYTES} are allowed"),
        ));
    }
    let Some(header) = rest.get(..len as usize) else {
        return Err(damaged(
            file,
            format!("its header takes {len} bytes, the file has {}: download it anew", content.len()),
        ));
    };
    std::str::from_utf8(header).map_err(|error| damaged(file, format!("its header is no UTF-8: {error}")))
}

fn refuse_duplicates(file: &Path, entries: &[(String, TensorInfo)]) -> Result<(), CheckpointError> {
    let mut seen = HashSet::with_capacity(entries.len());
    match entries.iter().find(|(name, _)| !seen.insert(name)) {
        None => Ok(()),
        Some((name, _)) => Err(CheckpointError::TensorHeader {
            file: file.to_owned(),
            tensor: name.clone(),
            reason: "it is in the header twice".to_owned(),
        }),
    }
}

/// Whether the tensor starts where the one before it `end`s, and is as long as
/// its type and shape say.
fn check_place(info: &TensorInfo, end: usize) -> Result<(), String> {
    let (start, stop) = info.data_offsets;
    if start < end {
        return Err(format!("it starts at {start}, inside of the tensor before it, which ends at {end}"));
    }
    if start > end {
        return Err(format!(
            "it starts at {start}, the tensor before it ends at {end}: bytes between are no tensor's"
        ));
    }
    if stop < start {
        return Err(format!("it ends at {stop}, before its start at {start}"));
    }
    let bits = info
        .shape
        .iter()
        .try_fold(1usize, |product, &size| product.checked_mul(size))
        .and_then(|elements| elements.checked_mul(info.dtype.bitsize()))
        .ok_or_else(|| format!("its shape {:?} overflows", info.shape))?;
    if bits % 8 != 0 || bits / 8 != stop - start {
        return Err(format!(
            "{} of shape {:?} takes {} bytes, its offsets span {}",
            info.dtype,
            info.shape,
            bits.div_ceil(8),
            stop - start
        ));
    }
    Ok(())
}

fn damaged(file: &Path, reason: String) -> CheckpointError {
    CheckpointError::Header { file: file.to_owned(), reason }
}
