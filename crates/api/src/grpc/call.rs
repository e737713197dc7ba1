//! Who calls, under which name, and until when. Every method begins here, so
//! that none forgets to ask for the key.

use super::deadline::deadline;
use crate::auth::{Account, secret};
use crate::error::ApiError;
use crate::server::{Notes, RequestId, Shared};
use axum::http::HeaderMap;
use std::sync::Arc;
use tokio::time::Instant;
use tonic::Extensions;
use tonic::metadata::MetadataMap;

/// A call whose caller may ask.
pub(super) struct Call {
    pub(super) account: Arc<Account>,
    /// The client's name for it, or one of ours.
    pub(super) id: RequestId,
    pub(super) deadline: Option<Instant>,
    /// For the line in the log.
    pub(super) notes: Notes,
}

impl Call {
    /// Looks at a call's metadata, and at what the layers before found out.
    pub(super) fn new(
        shared: &Shared,
        metadata: &MetadataMap,
        extensions: &Extensions,
    ) -> Result<Self, ApiError> {
        let headers: &HeaderMap = metadata.as_ref();
        let account = shared.authenticate(secret(headers))?;
        let id = extensions.get().cloned().unwrap_or_else(|| RequestId::of(headers));
        let notes: Notes = extensions.get().cloned().unwrap_or_default();
        notes.set_account(&account);
        Ok(Self { account, id, deadline: deadline(metadata)?, notes })
    }
}
