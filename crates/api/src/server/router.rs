//! The routes, and what every request goes through on its way to them. Layers
//! are listed from the inside out.

use super::access_log::{AccessLog, log_access};
use super::request_id::{REQUEST_ID, identify};
use super::route::Route;
use super::{ServeError, ServerConfig, Shared};
use crate::auth::{Guard, require_key};
use crate::error::ApiError;
use crate::limits::{limit_head, read_body};
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderValue, Method, Uri, header};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use std::any::Any;
use std::sync::Arc;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

pub(super) fn router(config: &Arc<ServerConfig>, shared: &Shared) -> Result<Router, ServeError> {
    let guard = Guard { shared: shared.clone(), metrics_need_key: config.metrics_need_key };
    let log = AccessLog::new(shared.clone());
    let mut router = Router::new();
    for route in Route::ALL {
        router = router.route(route.path(), route.endpoint());
    }
    let mut router = router
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(shared.clone())
        // `read_body` knows the limit.
        .layer(DefaultBodyLimit::disable())
        .layer(from_fn_with_state(config.clone(), read_body))
        .layer(from_fn_with_state(guard, require_key));
    if !config.cors_origins.is_empty() {
        // Outside of the guard: preflights have no key.
        router = router.layer(cors(&config.cors_origins)?);
    }
    Ok(router
        .layer(from_fn_with_state(config.clone(), limit_head))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn_with_state(log, log_access))
        .layer(from_fn(identify)))
}

fn cors(origins: &[String]) -> Result<CorsLayer, ServeError> {
    let parse = |origin: &String| {
        HeaderValue::from_str(origin).map_err(|_| ServeError::Origin { origin: origin.clone() })
    };
    let origins = match origins {
        [any] if any == "*" => AllowOrigin::any(),
        several => {
            // The library panics on it.
            if let Some(any) = several.iter().find(|origin| *origin == "*") {
                return Err(ServeError::Origin { origin: any.clone() });
            }
            AllowOrigin::list(several.iter().map(parse).collect::<Result<Vec<_>, _>>()?)
        }
    };
    Ok(CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::GET, Method::POST])
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([REQUEST_ID, header::RETRY_AFTER]))
}

async fn not_found(method: Method, uri: Uri) -> ApiError {
    ApiError::NotFound { message: format!("there is no route {method} {}", uri.path()) }
}

async fn method_not_allowed(method: Method) -> ApiError {
    ApiError::MethodNotAllowed { method: method.to_string() }
}

/// The hook has printed where; the client learns only that it was not its fault.
fn panicked(_: Box<dyn Any + Send>) -> Response {
    tracing::error!("a request handler panicked");
    ApiError::Engine { reason: "internal error".to_owned() }.into_response()
}
