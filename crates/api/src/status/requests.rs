//! Requests by id: the list, and how to end one. Callers see their own, and
//! administrators everyone's; nobody sees text.

use crate::auth::Account;
use crate::error::ApiError;
use crate::server::{RequestView, Shared};
use axum::extract::{Path, State};
use axum::{Extension, Json};
use serde::Serialize;
use std::sync::Arc;

#[derive(Debug, Serialize)]
pub(crate) struct RequestList {
    object: &'static str,
    data: Vec<RequestView>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Cancelled {
    id: String,
    object: &'static str,
    /// Several, where clients gave the same id to several requests.
    num_cancelled: usize,
}

pub(crate) async fn list(
    State(shared): State<Shared>,
    Extension(account): Extension<Arc<Account>>,
) -> Json<RequestList> {
    Json(RequestList { object: "list", data: shared.requests().list(account.caller()) })
}

pub(crate) async fn cancel(
    State(shared): State<Shared>,
    Extension(account): Extension<Arc<Account>>,
    Path(id): Path<String>,
) -> Result<Json<Cancelled>, ApiError> {
    let num_cancelled = shared.requests().cancel(&id, account.caller());
    if num_cancelled == 0 {
        return Err(ApiError::NotFound { message: format!("no request {id:?} is being answered") });
    }
    Ok(Json(Cancelled { id, object: "request.cancelled", num_cancelled }))
}
