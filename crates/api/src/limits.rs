//! What a request may weigh, and how long it may take to arrive. The body is
//! read here, whole, so that no handler waits for a client.

use crate::error::{ApiError, ErrorBody, ErrorObject};
use crate::server::ServerConfig;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use std::sync::Arc;

/// Refuses heads that are too large.
pub(crate) async fn limit_head(
    State(config): State<Arc<ServerConfig>>,
    request: Request,
    next: Next,
) -> Response {
    let target = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
    if head_bytes(request.headers()) + target > config.max_header_bytes {
        return head_too_large(config.max_header_bytes);
    }
    next.run(request).await
}

/// Reads the body, or says what is wrong with it.
pub(crate) async fn read_body(
    State(config): State<Arc<ServerConfig>>,
    request: Request,
    next: Next,
) -> Response {
    let (head, body) = request.into_parts();
    match read(&config, &head.headers, body).await {
        Ok(body) => next.run(Request::from_parts(head, body)).await,
        Err(error) => error.into_response(),
    }
}

async fn read(config: &ServerConfig, headers: &HeaderMap, body: Body) -> Result<Body, ApiError> {
    let too_large = ApiError::TooLarge { limit_bytes: config.max_body_bytes };
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if announced.is_some_and(|length: u64| length > config.max_body_bytes as u64) {
        return Err(too_large);
    }
    let whole = Limited::new(body, config.max_body_bytes).collect();
    match tokio::time::timeout(config.body_timeout, whole).await {
        Ok(Ok(body)) => Ok(Body::from(body.to_bytes())),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large),
        Ok(Err(_)) => Err(ApiError::malformed("incomplete_body", "the request body breaks off")),
        Err(_) => Err(ApiError::SlowRequest { limit_ms: config.body_timeout.as_millis() as u64 }),
    }
}

/// As HTTP/1.1 writes them: name, colon, space, value, line break.
fn head_bytes(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum()
}

/// OpenAI has no error for this; the shape is the same.
fn head_too_large(limit_bytes: usize) -> Response {
    let error = ErrorObject {
        message: format!("the request headers are larger than {limit_bytes} bytes"),
        kind: "invalid_request_error",
        param: None,
        code: Some("headers_too_large"),
    };
    (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, axum::Json(ErrorBody { error })).into_response()
}
