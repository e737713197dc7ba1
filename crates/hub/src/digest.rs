//! The hash that names a blob, and the hashing of bytes as they come.
//!
//! Large files are named by their SHA-256, the others by git's object id. What
//! arrives is always hashed to the kind that its name is.

use std::io::{self, Read};

use sha1::Sha1;
use sha2::{Digest, Sha256};

const SHA256_LEN: usize = 64;
const GIT_LEN: usize = 40;

/// Bytes moved at a time: large against a system call, small against a progress bar.
pub(crate) const CHUNK_LEN: usize = 256 << 10;

/// What names a blob: the hash of its content, in lower-case hex, safe in a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BlobId {
    /// SHA-256 of the content, for what the hub keeps outside git.
    Sha256(String),
    /// Git's object id, for what it keeps inside.
    Git(String),
}

/// Computes a [`BlobId`] from bytes as they come.
#[derive(Clone)]
pub(crate) enum Hasher {
    Sha256(Sha256),
    Git(Sha1),
}

impl BlobId {
    pub(crate) fn sha256(hex: &str) -> Option<Self> {
        is_hex(hex, SHA256_LEN).then(|| Self::Sha256(hex.to_owned()))
    }

    pub(crate) fn git(hex: &str) -> Option<Self> {
        is_hex(hex, GIT_LEN).then(|| Self::Git(hex.to_owned()))
    }

    pub(crate) fn as_str(&self) -> &str {
        match self {
            Self::Sha256(hex) | Self::Git(hex) => hex,
        }
    }

    /// A hasher of this kind for a file of `num_bytes`, which git hashes before the content.
    pub(crate) fn hasher(&self, num_bytes: u64) -> Hasher {
        match self {
            Self::Sha256(_) => Hasher::Sha256(Sha256::new()),
            Self::Git(_) => Hasher::Git(Sha1::new_with_prefix(format!("blob {num_bytes}\0"))),
        }
    }
}

impl Hasher {
    pub(crate) fn sha256() -> Self {
        Self::Sha256(Sha256::new())
    }

    /// Hashes all that `reader` has left, and counts it.
    pub(crate) fn read_from(&mut self, mut reader: impl Read) -> io::Result<u64> {
        let mut chunk = vec![0; CHUNK_LEN];
        let mut num_bytes = 0;
        loop {
            match reader.read(&mut chunk) {
                Ok(0) => return Ok(num_bytes),
                Ok(len) => {
                    self.update(&chunk[..len]);
                    num_bytes += len as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::Git(hash) => hash.update(bytes),
        }
    }

    pub(crate) fn finish(self) -> BlobId {
        match self {
            Self::Sha256(hash) => BlobId::Sha256(hex(&hash.finalize())),
            Self::Git(hash) => BlobId::Git(hex(&hash.finalize())),
        }
    }
}

/// Whether `text` is a commit: forty digits of lower-case hex.
pub(crate) fn is_commit(text: &str) -> bool {
    is_hex(text, GIT_LEN)
}

/// The SHA-256 of `bytes` in hex.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Lower-case hex.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn is_hex(text: &str, len: usize) -> bool {
    text.len() == len && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hashed(kind: &BlobId, content: &[u8]) -> BlobId {
        let mut hasher = kind.hasher(content.len() as u64);
        content.chunks(3).for_each(|chunk| hasher.update(chunk));
        hasher.finish()
    }

    #[test]
    fn both_kinds_agree_with_git_and_sha256sum() {
        // `echo hello | git hash-object --stdin` and `echo hello | sha256sum`.
        let git = BlobId::git("ce013625030ba8dba906f756967f9e9ca394464a").unwrap();
        let large =
            BlobId::sha256("5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03").unwrap();
        assert_eq!(hashed(&git, b"hello\n"), git);
        assert_eq!(hashed(&large, b"hello\n"), large);
        assert_ne!(hashed(&git, b"hello!"), git);
    }

    #[test]
    fn what_is_no_hash_is_no_blob_id() {
        for text in ["", "../../etc/passwd", "CE013625030BA8DBA906F756967F9E9CA394464A", "ce01"] {
            assert_eq!((BlobId::git(text), BlobId::sha256(text)), (None, None), "{text}");
        }
    }
}
