//! Who calls, under which name, and until when. Every method begins here, so
//! that none forgets to ask for the key.

use super::deadline::deadline;
use crate::auth::{Account, secret};
use crate::error::ApiError;
use crate::server::{RequestId, Shared};
use axum::http::HeaderMap;
use std::sync::Arc;
use tokio::time::Instant;
use tonic::metadata::{MetadataMap, MetadataValue};

/// Where a request's id stands in the metadata, both ways.
const REQUEST_ID: &str = "x-request-id";

/// A call whose caller may ask.
pub(super) struct Call {
    pub(super) account: Arc<Account>,
    /// The client's name for it, or one of ours.
    pub(super) id: RequestId,
    pub(super) deadline: Option<Instant>,
}

impl Call {
    /// Looks at a call's metadata.
    pub(super) fn new(shared: &Shared, metadata: &MetadataMap) -> Result<Self, ApiError> {
        let headers: &HeaderMap = metadata.as_ref();
        let account = shared.authenticate(secret(headers))?;
        Ok(Self { account, id: RequestId::of(headers), deadline: deadline(metadata)? })
    }

    /// A response that names the request.
    pub(super) fn respond<T>(id: &RequestId, message: T) -> tonic::Response<T> {
        let mut response = tonic::Response::new(message);
        if let Ok(value) = MetadataValue::try_from(&*id.0) {
            response.metadata_mut().insert(REQUEST_ID, value);
        }
        response
    }
}
