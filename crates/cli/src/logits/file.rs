//! The safetensors file that results go to, written as they come: the logits of
//! a long prompt over a large vocabulary are more than one wants in memory.
//!
//! Its header is written first, so shapes are known before anything is
//! computed. Integers stand before floats, which keeps each type aligned.

use crate::exit::UsageError;
use anyhow::Context;
use serde_json::{Map, Value, json};
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// Headers are padded to this.
const ALIGNMENT: usize = 8;

/// What one prompt leaves in the file.
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) first_position: usize,
    pub(super) num_positions: usize,
    pub(super) num_generated: usize,
}

/// A file that gets its name when it is complete.
pub(super) struct LogitsFile {
    target: PathBuf,
    file: BufWriter<NamedTempFile>,
    /// Where the next continuation goes.
    next_generated: u64,
    /// Where the next logits go.
    next_logits: u64,
}

/// Refuses a target that cannot be written, before anything is computed.
pub(super) fn check_target(path: &Path) -> Result<PathBuf, UsageError> {
    let refuse = |why: String| UsageError(format!("--out is {}: {why}", path.display()));
    // Through a link its target is written, not the link.
    let target = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    match std::fs::metadata(&target) {
        Ok(metadata) if !metadata.is_file() => {
            return Err(refuse("it is there and not a regular file".to_owned()));
        }
        Ok(_) | Err(_) => {}
    }
    let folder = folder_of(&target);
    let probe = tempfile::Builder::new().prefix(".logits-").tempfile_in(&folder);
    probe.map_err(|error| refuse(format!("{} cannot be written: {error}", folder.display())))?;
    Ok(target)
}

fn folder_of(path: &Path) -> PathBuf {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.map_or_else(|| PathBuf::from("."), Path::to_owned)
}

impl LogitsFile {
    /// Starts a file for these entries, in their order.
    pub(super) fn create(target: PathBuf, entries: &[Entry], vocab_size: usize) -> anyhow::Result<Self> {
        let mut header = Map::new();
        let mut offset = 0u64;
        let mut place = |name: String, dtype: &str, shape: &[usize], size: usize| {
            let end = offset + (shape.iter().product::<usize>() * size) as u64;
            header.insert(name, json!({"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}));
            std::mem::replace(&mut offset, end)
        };
        for entry in entries {
            place(format!("{}.positions", entry.name), "I64", &[entry.num_positions], size_of::<i64>());
        }
        let mut first_generated = None;
        for entry in entries.iter().filter(|entry| entry.num_generated > 0) {
            let at =
                place(format!("{}.generated", entry.name), "I64", &[entry.num_generated], size_of::<i64>());
            first_generated.get_or_insert(at);
        }
        let mut first_logits = None;
        for entry in entries {
            let shape = [entry.num_positions, vocab_size];
            let at = place(format!("{}.logits", entry.name), "F32", &shape, size_of::<f32>());
            first_logits.get_or_insert(at);
        }

        let mut header = serde_json::to_vec(&Value::Object(header))?;
        header.resize(header.len().next_multiple_of(ALIGNMENT), b' ');
        let data = (size_of::<u64>() + header.len()) as u64;
        let mut builder = tempfile::Builder::new();
        builder.prefix(".logits-");
        #[cfg(unix)]
        {
            // As any new file: the user's mask decides who may read it.
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(std::fs::Permissions::from_mode(0o666));
        }
        let file = builder.tempfile_in(folder_of(&target))?;
        let mut file = BufWriter::new(file);
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        for entry in entries {
            write_i64s(&mut file, (entry.first_position as i64..).take(entry.num_positions))?;
        }
        Ok(Self {
            target,
            file,
            next_generated: data + first_generated.unwrap_or(0),
            next_logits: data + first_logits.unwrap_or(0),
        })
    }

    /// Writes the next rows of logits, in the order of the entries.
    pub(super) fn logits(&mut self, values: &[f32]) -> anyhow::Result<()> {
        self.file.seek(SeekFrom::Start(self.next_logits))?;
        for value in values {
            self.file.write_all(&value.to_le_bytes())?;
        }
        self.next_logits += size_of_val(values) as u64;
        Ok(())
    }

    /// Writes the next entry's continuation.
    pub(super) fn generated(&mut self, tokens: &[u32]) -> anyhow::Result<()> {
        self.file.seek(SeekFrom::Start(self.next_generated))?;
        write_i64s(&mut self.file, tokens.iter().copied().map(i64::from))?;
        self.next_generated += (tokens.len() * size_of::<i64>()) as u64;
        Ok(())
    }

    /// Everything is there: gives the file its name.
    pub(super) fn finish(self) -> anyhow::Result<()> {
        let what = || format!("cannot write {}", self.target.display());
        let file = self.file.into_inner().map_err(|error| error.into_error()).with_context(what)?;
        file.persist(&self.target).with_context(what)?;
        Ok(())
    }
}

fn write_i64s(file: &mut impl Write, values: impl Iterator<Item = i64>) -> std::io::Result<()> {
    for value in values {
        file.write_all(&value.to_le_bytes())?;
    }
    Ok(())
}
