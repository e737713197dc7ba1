//! The models that are served: one, under one or several names. The list is
//! empty of models that could be loaded but are not.

use super::Served;
use crate::error::ApiError;
use crate::server::Shared;
use axum::Json;
use axum::extract::{Path, State};
use serde::Serialize;
use std::time::UNIX_EPOCH;

/// OpenAI's `model`, with vLLM's `root` and `max_model_len`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Model {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    root: String,
    parent: Option<String>,
    max_model_len: u32,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct ModelList {
    object: &'static str,
    data: Vec<Model>,
}

fn models(shared: &Shared, served: &Served) -> Vec<Model> {
    let created = served.since.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let names = shared.served_model_names();
    let root = names.first().cloned().unwrap_or_default();
    let model = |id: &String| Model {
        id: id.clone(),
        object: "model",
        created,
        owned_by: "chorale",
        root: root.clone(),
        parent: None,
        max_model_len: served.max_model_len,
    };
    names.iter().map(model).collect()
}

/// All names; 503 until the model is loaded, since routers probe this.
pub(crate) async fn list(State(shared): State<Shared>) -> Result<Json<ModelList>, ApiError> {
    let served = shared.ready()?;
    Ok(Json(ModelList { object: "list", data: models(&shared, &served) }))
}

/// One name, which may contain slashes.
pub(crate) async fn retrieve(
    State(shared): State<Shared>,
    Path(id): Path<String>,
) -> Result<Json<Model>, ApiError> {
    let served = shared.ready()?;
    let found = models(&shared, &served).into_iter().find(|model| model.id == id);
    let served = || shared.served_model_names().join(", ");
    found.map(Json).ok_or_else(|| ApiError::UnknownModel { served: served(), model: id })
}
