//! From a hub id to a snapshot directory: what is wanted, what is here, what to fetch.
//!
//! Decides when the network is asked and what happens when it does not answer.
//! How a file is moved is `download`'s concern.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::Description;
use crate::cache::{DEFAULT_REVISION, RepoCache, Revision};
use crate::client::Client;
use crate::download::Download;
use crate::error::{Error, Result};
use crate::listing::{Lacking, Listing, RemoteFile};
use crate::name::HubId;
use crate::options::HubOptions;
use crate::patience::{Patience, Stop, retry};
use crate::progress::{Event, Progress};
use crate::weights::{INDEX, shards};

/// Files in flight. One connection rarely fills a data centre's link, many annoy the hub.
const NUM_DOWNLOADS: usize = 4;
/// Attempts at the listing. Somebody waits for it who may have no network at all, which is soon known.
const LISTING_ATTEMPTS: u32 = 4;
/// The same when there is a cached model to fall back to.
const FALLBACK_ATTEMPTS: u32 = 2;

/// One repository at one revision, and what the cache holds of it.
struct Hub<'a> {
    id: &'a HubId,
    options: &'a HubOptions,
    patience: Patience,
    progress: Progress<'a>,
    revision: Revision,
    cache: RepoCache,
    /// The commit of the revision, if all of it is cached.
    cached: Option<String>,
}

/// The directory of `id`, from the cache where the network is forbidden, needless or down.
pub(crate) fn resolve(
    id: &HubId,
    options: &HubOptions,
    patience: Patience,
    progress: Progress<'_>,
) -> Result<PathBuf> {
    let hub = Hub::new(id, options, patience, progress)?;
    match &hub.cached {
        Some(commit) if options.offline || hub.revision.is_commit() => Ok(hub.cache.snapshot(commit)),
        None if options.offline => Err(hub.not_cached()),
        None => hub.download(LISTING_ATTEMPTS),
        Some(commit) => match hub.download(FALLBACK_ATTEMPTS) {
            Err(error @ Error::Unreachable { .. }) => {
                tracing::warn!(%id, commit, %error, "using the cached model, which may not be the newest");
                Ok(hub.cache.snapshot(commit))
            }
            other => other,
        },
    }
}

/// The directory of `id` as the hub has it now.
pub(crate) fn pull(
    id: &HubId,
    options: &HubOptions,
    patience: Patience,
    progress: Progress<'_>,
) -> Result<PathBuf> {
    let hub = Hub::new(id, options, patience, progress)?;
    match &hub.cached {
        Some(commit) if hub.revision.is_commit() => Ok(hub.cache.snapshot(commit)),
        Some(_) | None if options.offline => Err(Error::Offline { id: id.to_string() }),
        Some(_) | None => hub.download(LISTING_ATTEMPTS),
    }
}

/// A directory with the configuration of `id`, which is small; the weights are
/// in it only if they were here before.
pub(crate) fn describe(id: &HubId, options: &HubOptions, patience: Patience) -> Result<Description> {
    let hub = Hub::new(id, options, patience, &|_| {})?;
    match &hub.cached {
        Some(commit) => Ok(Description { directory: hub.cache.snapshot(commit), has_weights: true }),
        None if options.offline => Err(hub.not_cached()),
        None => {
            let client = Client::new(options, patience)?;
            let listing = hub.listing(&client, LISTING_ATTEMPTS)?;
            hub.fetch_metadata(&client, &listing)?;
            // No ref: a branch that was pulled whole before is still that.
            Ok(Description { directory: hub.cache.snapshot(&listing.commit), has_weights: false })
        }
    }
}

impl<'a> Hub<'a> {
    fn new(
        id: &'a HubId,
        options: &'a HubOptions,
        patience: Patience,
        progress: Progress<'a>,
    ) -> Result<Self> {
        let revision = Revision::parse(options.revision.as_deref().unwrap_or(DEFAULT_REVISION))?;
        let cache = RepoCache::new(&options.cache_dir, id);
        let cached = cache.commit(&revision).filter(|commit| cache.missing(commit).is_none());
        Ok(Self { id, options, patience, progress, revision, cache, cached })
    }

    /// Brings every file of the revision here. The small ones come first, for they name the large ones.
    fn download(&self, listing_attempts: u32) -> Result<PathBuf> {
        let client = Client::new(self.options, self.patience)?;
        let listing = self.listing(&client, listing_attempts)?;
        self.fetch_metadata(&client, &listing)?;
        let weights = self.weights(&listing)?;
        self.fetch(&client, &listing.commit, &weights, self.progress)?;
        if !self.revision.is_commit() {
            self.cache.write_ref(&self.revision, &listing.commit)?;
        }
        Ok(self.cache.snapshot(&listing.commit))
    }

    fn listing(&self, client: &Client, attempts: u32) -> Result<Listing> {
        retry(self.patience.at_most(attempts), || client.listing(self.id, self.revision.as_str()))
    }

    fn fetch_metadata(&self, client: &Client, listing: &Listing) -> Result<()> {
        let metadata = listing.metadata().map_err(|lacking| self.lacking(lacking))?;
        self.fetch(client, &listing.commit, &metadata, &|_| {})
    }

    /// The weights, by the index where there is one. It was fetched before.
    fn weights(&self, listing: &Listing) -> Result<Vec<RemoteFile>> {
        let weights = if listing.is_sharded() {
            let path = self.cache.snapshot(&listing.commit).join(INDEX);
            let index = fs::read(&path).map_err(Error::reading(&path))?;
            let names = shards(&index)
                .map_err(|why| Error::Unexpected { url: self.url(), why: format!("{INDEX}: {why}") })?;
            names.iter().map(|name| listing.file(name)).collect()
        } else {
            listing.single().map(|file| vec![file])
        };
        weights.map_err(|lacking| self.lacking(lacking))
    }

    /// Fetches those of `files` that are not here, some at a time; the first failure ends them all.
    fn fetch(
        &self,
        client: &Client,
        commit: &str,
        files: &[RemoteFile],
        progress: Progress<'_>,
    ) -> Result<()> {
        let files: Vec<_> = files.iter().filter(|file| !self.cache.holds(commit, file)).collect();
        if files.is_empty() {
            return Ok(());
        }
        progress(Event::Planned {
            num_files: files.len(),
            num_bytes: files.iter().map(|file| file.num_bytes).sum(),
        });
        let stop = Stop::default();
        let (id, cache, patience) = (self.id, &self.cache, self.patience);
        let download = Download { client, cache, id, commit, patience, progress, stop: &stop };
        let next = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..files.len().min(NUM_DOWNLOADS) {
                scope.spawn(|| {
                    while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed))
                        && !stop.is_set()
                    {
                        if let Err(error) = download.fetch(file) {
                            stop.fail(error);
                        }
                    }
                });
            }
        });
        stop.into_result()?;
        progress(Event::Finished);
        Ok(())
    }

    fn not_cached(&self) -> Error {
        let revision = self.revision.as_str().to_owned();
        let file = match self.cache.commit(&self.revision) {
            Some(commit) => self.cache.missing(&commit),
            None => None,
        };
        Error::NotCached {
            id: self.id.to_string(),
            revision,
            file: file.unwrap_or_else(|| "anything".into()),
            cache_dir: self.options.cache_dir.clone(),
        }
    }

    fn lacking(&self, lacking: Lacking) -> Error {
        match lacking {
            Lacking::File(file) => {
                Error::NoFile { id: self.id.to_string(), revision: self.revision.as_str().to_owned(), file }
            }
            Lacking::Description(file) => Error::Unexpected {
                url: self.url(),
                why: format!("it does not say the size and hash of `{file}`"),
            },
        }
    }

    fn url(&self) -> String {
        format!("{}/{}", self.options.endpoint, self.id)
    }
}
