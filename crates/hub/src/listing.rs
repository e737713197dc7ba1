//! What a repository holds at one commit: names, sizes and hashes.
//!
//! Made from the hub's JSON, which is checked here once: a commit, a hash and a
//! size that come out of a listing are what they claim to be.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::digest::{BlobId, is_commit};
use crate::weights::{CONFIG, GENERATION_CONFIG, INDEX, SINGLE};

/// What a repository holds at one commit.
#[derive(Debug)]
pub(crate) struct Listing {
    /// The commit that the asked revision stands for.
    pub(crate) commit: String,
    files: BTreeMap<String, RawFile>,
}

/// A file of the repository, and how to tell that it arrived whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RemoteFile {
    pub(crate) path: String,
    pub(crate) num_bytes: u64,
    pub(crate) blob: BlobId,
}

/// Why a listing does not give a file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Lacking {
    /// The repository has no such file.
    File(String),
    /// The hub does not describe it well enough to check it.
    Description(String),
}

#[derive(Deserialize)]
struct RawListing {
    sha: String,
    siblings: Vec<RawFile>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawFile {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<RawLfs>,
}

#[derive(Debug, Deserialize)]
struct RawLfs {
    sha256: String,
    size: u64,
}

impl Listing {
    /// Reads the hub's answer, or says what is wrong with it.
    pub(crate) fn parse(json: &[u8]) -> Result<Self, String> {
        let raw: RawListing = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        if !is_commit(&raw.sha) {
            return Err(format!("`{}` is not a commit", raw.sha));
        }
        let files = raw.siblings.into_iter().map(|file| (file.rfilename.clone(), file)).collect();
        Ok(Self { commit: raw.sha, files })
    }

    /// The small files that a model needs: what else it needs is written in them.
    pub(crate) fn metadata(&self) -> Result<Vec<RemoteFile>, Lacking> {
        let mut names = vec![CONFIG];
        names.extend([GENERATION_CONFIG, INDEX].into_iter().filter(|name| self.files.contains_key(*name)));
        names.into_iter().map(|name| self.file(name)).collect()
    }

    /// Whether the weights are in shards, which the index names.
    pub(crate) fn is_sharded(&self) -> bool {
        self.files.contains_key(INDEX)
    }

    /// The weights of a model that is one file.
    pub(crate) fn single(&self) -> Result<RemoteFile, Lacking> {
        self.file(SINGLE)
    }

    /// One file by name.
    pub(crate) fn file(&self, name: &str) -> Result<RemoteFile, Lacking> {
        let raw = self.files.get(name).ok_or_else(|| Lacking::File(name.to_owned()))?;
        let described = match (&raw.lfs, &raw.blob_id, raw.size) {
            (Some(lfs), _, _) => BlobId::sha256(&lfs.sha256).map(|blob| (blob, lfs.size)),
            (None, Some(oid), Some(size)) => BlobId::git(oid).map(|blob| (blob, size)),
            (None, _, _) => None,
        };
        let (blob, num_bytes) = described.ok_or_else(|| Lacking::Description(name.to_owned()))?;
        Ok(RemoteFile { path: name.to_owned(), num_bytes, blob })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "b5c939de8f754692c1647ca79fbf85e8c1e70f8a";

    fn listing(siblings: serde_json::Value) -> Listing {
        Listing::parse(serde_json::json!({ "sha": COMMIT, "siblings": siblings }).to_string().as_bytes())
            .unwrap()
    }

    #[test]
    fn a_large_file_is_known_by_its_sha256_and_a_small_one_by_its_git_id() {
        let (oid, sha256) = ("a".repeat(40), "b".repeat(64));
        let listing = listing(serde_json::json!([
            { "rfilename": "config.json", "size": 7, "blobId": oid },
            { "rfilename": "model.safetensors", "size": 9, "blobId": oid,
              "lfs": { "sha256": sha256, "size": 9, "pointerSize": 135 } },
        ]));
        assert_eq!(listing.metadata().unwrap()[0].blob, BlobId::Git(oid));
        assert_eq!(listing.single().unwrap().blob, BlobId::Sha256(sha256));
        assert!(!listing.is_sharded());
    }

    #[test]
    fn what_is_missing_or_cannot_be_checked_is_told_apart() {
        let listing = listing(serde_json::json!([
            { "rfilename": "config.json" },
            { "rfilename": "model.safetensors", "lfs": { "sha256": "../../../etc", "size": 1 } },
        ]));
        assert_eq!(listing.metadata(), Err(Lacking::Description("config.json".into())));
        assert_eq!(listing.single(), Err(Lacking::Description("model.safetensors".into())));
        assert_eq!(listing.file("x.safetensors"), Err(Lacking::File("x.safetensors".into())));
    }

    #[test]
    fn a_commit_that_is_no_commit_is_refused() {
        assert!(Listing::parse(br#"{"sha": "../..", "siblings": []}"#).unwrap_err().contains("../.."));
        assert!(Listing::parse(b"<html>").is_err());
    }
}
