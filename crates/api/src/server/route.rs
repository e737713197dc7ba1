//! Every route there is, in one list: the router, the guard and the OpenAPI
//! document all read it, so that none of them can miss one.

use super::Shared;
use super::generations::{chat_completions, completions};
use crate::{openapi, status};
use axum::extract::State;
#[cfg(test)]
use axum::http::Method;
use axum::routing::{MethodRouter, get, post};

/// A route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    ChatCompletions,
    Completions,
    Models,
    Model,
    Tokenize,
    Detokenize,
    Requests,
    CancelRequest,
    Health,
    Ready,
    LoadStatus,
    Cluster,
    Version,
    Metrics,
    OpenApi,
}

impl Route {
    pub(crate) const ALL: [Self; 15] = [
        Self::ChatCompletions,
        Self::Completions,
        Self::Models,
        Self::Model,
        Self::Tokenize,
        Self::Detokenize,
        Self::Requests,
        Self::CancelRequest,
        Self::Health,
        Self::Ready,
        Self::LoadStatus,
        Self::Cluster,
        Self::Version,
        Self::Metrics,
        Self::OpenApi,
    ];

    /// As the router wants it.
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::ChatCompletions => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
            Self::Models => "/v1/models",
            // Ids contain slashes.
            Self::Model => "/v1/models/{*model}",
            Self::Tokenize => "/tokenize",
            Self::Detokenize => "/detokenize",
            Self::Requests => "/v1/requests",
            Self::CancelRequest => "/v1/requests/{id}/cancel",
            Self::Health => "/health",
            Self::Ready => "/ready",
            Self::LoadStatus => "/v1/load_status",
            Self::Cluster => "/v1/cluster",
            Self::Version => "/version",
            Self::Metrics => "/metrics",
            Self::OpenApi => "/openapi.json",
        }
    }

    /// The one method of it, beside `HEAD` where that is `GET`.
    #[cfg(test)]
    pub(crate) fn method(self) -> Method {
        match self {
            Self::ChatCompletions
            | Self::Completions
            | Self::Tokenize
            | Self::Detokenize
            | Self::CancelRequest => Method::POST,
            Self::Models
            | Self::Model
            | Self::Requests
            | Self::Health
            | Self::Ready
            | Self::LoadStatus
            | Self::Cluster
            | Self::Version
            | Self::Metrics
            | Self::OpenApi => Method::GET,
        }
    }

    /// The route of a path, as [`Self::path`] writes it.
    pub(crate) fn at(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|route| route.path() == path)
    }

    /// Asked every few seconds by machines.
    pub(crate) fn is_probe(self) -> bool {
        matches!(self, Self::Health | Self::Ready | Self::Metrics)
    }

    pub(super) fn endpoint(self) -> MethodRouter<Shared> {
        match self {
            Self::ChatCompletions => post(chat_completions),
            Self::Completions => post(completions),
            Self::Models => get(status::list_models),
            Self::Model => get(status::retrieve_model),
            Self::Tokenize => post(status::tokenize),
            Self::Detokenize => post(status::detokenize),
            Self::Requests => get(status::list_requests),
            Self::CancelRequest => post(status::cancel_request),
            Self::Health => get(status::health),
            Self::Ready => get(status::ready),
            Self::LoadStatus => get(status::load_status),
            Self::Cluster => get(status::cluster),
            Self::Version => get(status::version),
            Self::Metrics => get(async |State(shared): State<Shared>| shared.metrics().response()),
            Self::OpenApi => get(openapi::document),
        }
    }
}
