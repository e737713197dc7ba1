//! Why a request is refused or an answer breaks off, and what each reason is
//! called in HTTP and in gRPC. It decides nothing: every door translates through
//! the one table here.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use chorale_coordinator::{Rejected, SubmitError};
use serde::Serialize;

/// What went wrong, by what the caller can do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// The request must be changed.
    #[error("{message}")]
    Invalid {
        /// The field at fault, as a path: `messages[2].content[0].type`.
        param: Option<String>,
        /// A word for programs.
        code: Option<&'static str>,
        /// What is wrong with it, and what would be right.
        message: String,
    },
    /// Another model must be named.
    #[error("model {model:?} is not served here; served: {served}")]
    UnknownModel {
        /// As asked for.
        model: String,
        /// What there is.
        served: String,
    },
    /// A valid key must be shown.
    #[error("{message}")]
    Unauthenticated {
        /// What is wrong with the one that was shown.
        message: String,
    },
    /// The key does not allow it.
    #[error("{message}")]
    Forbidden {
        /// What it does not allow.
        message: String,
    },
    /// There is no such thing.
    #[error("{message}")]
    NotFound {
        /// What was looked for.
        message: String,
    },
    /// The route takes another method.
    #[error("{method} is not allowed here")]
    MethodNotAllowed {
        /// The one that was tried.
        method: String,
    },
    /// The request must be shorter.
    #[error("the request body is larger than {limit_bytes} bytes")]
    TooLarge {
        /// What is served.
        limit_bytes: usize,
    },
    /// The client took too long to send its request.
    #[error("the request did not arrive within {limit_ms} ms")]
    SlowRequest {
        /// How long it may take.
        limit_ms: u64,
    },
    /// This caller must wait before it asks for more.
    #[error("{message}")]
    RateLimited {
        /// Which limit was reached.
        message: String,
        /// For how long.
        retry_after_s: u64,
    },
    /// Everybody must wait: more is asked for than can be queued.
    #[error("the queue is full: {waiting_requests} requests with {waiting_tokens} tokens wait")]
    QueueFull {
        /// Requests that wait for their first step.
        waiting_requests: u32,
        /// Their prompt tokens.
        waiting_tokens: u64,
        /// When to come back.
        retry_after_s: u64,
    },
    /// This server cannot, now; another one can, or this one later.
    #[error("{message}")]
    Unavailable {
        /// Why.
        message: String,
        /// When to come back.
        retry_after_s: u64,
    },
    /// Nobody waits for the answer any more.
    #[error("the deadline of the request has passed")]
    DeadlineExceeded,
    /// Somebody ended the request by its id.
    #[error("the request was cancelled")]
    Cancelled,
    /// Our own fault.
    #[error("the engine failed: {reason}")]
    Engine {
        /// What it said.
        reason: String,
    },
}

/// gRPC's numbers for what went wrong, as `google.rpc.Code` has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum GrpcCode {
    /// The caller left or cancelled.
    Cancelled = 1,
    /// The request must be changed.
    InvalidArgument = 3,
    /// Too late.
    DeadlineExceeded = 4,
    /// No such model or request.
    NotFound = 5,
    /// The key does not allow it.
    PermissionDenied = 7,
    /// A limit is reached.
    ResourceExhausted = 8,
    /// No such method.
    Unimplemented = 12,
    /// Our own fault.
    Internal = 13,
    /// Try again, here or elsewhere.
    Unavailable = 14,
    /// No valid key.
    Unauthenticated = 16,
}

/// What a status is in each protocol.
struct Translation {
    status: StatusCode,
    kind: &'static str,
    code: Option<&'static str>,
    grpc: GrpcCode,
}

impl ApiError {
    /// A field that is wrong.
    pub fn invalid(param: impl Into<String>, message: impl std::fmt::Display) -> Self {
        let param = param.into();
        let message = format!("{param}: {message}");
        Self::Invalid { param: Some(param), code: None, message }
    }

    /// A request that is wrong as a whole.
    pub fn malformed(code: &'static str, message: impl Into<String>) -> Self {
        Self::Invalid { param: None, code: Some(code), message: message.into() }
    }

    /// The one table. What HTTP says, what OpenAI's `error.type` and `error.code`
    /// are, and what gRPC says.
    fn translation(&self) -> Translation {
        let (status, kind, code, grpc) = match self {
            Self::Invalid { code, .. } => (400, INVALID_REQUEST, *code, GrpcCode::InvalidArgument),
            Self::UnknownModel { .. } => (404, INVALID_REQUEST, Some("model_not_found"), GrpcCode::NotFound),
            Self::Unauthenticated { .. } => {
                (401, INVALID_REQUEST, Some("invalid_api_key"), GrpcCode::Unauthenticated)
            }
            Self::Forbidden { .. } => (403, "permission_error", None, GrpcCode::PermissionDenied),
            Self::NotFound { .. } => (404, INVALID_REQUEST, Some("not_found"), GrpcCode::NotFound),
            Self::MethodNotAllowed { .. } => {
                (405, INVALID_REQUEST, Some("method_not_allowed"), GrpcCode::Unimplemented)
            }
            Self::TooLarge { .. } => {
                (413, INVALID_REQUEST, Some("request_too_large"), GrpcCode::ResourceExhausted)
            }
            Self::SlowRequest { .. } => {
                (408, INVALID_REQUEST, Some("request_timeout"), GrpcCode::DeadlineExceeded)
            }
            Self::RateLimited { .. } => {
                (429, "rate_limit_error", Some("rate_limit_exceeded"), GrpcCode::ResourceExhausted)
            }
            Self::QueueFull { .. } => {
                (429, "rate_limit_error", Some("queue_full"), GrpcCode::ResourceExhausted)
            }
            Self::Unavailable { .. } => (503, SERVER, Some("unavailable"), GrpcCode::Unavailable),
            Self::DeadlineExceeded => (504, SERVER, Some("deadline_exceeded"), GrpcCode::DeadlineExceeded),
            // What nginx says when a client is gone before its answer.
            Self::Cancelled => (499, INVALID_REQUEST, Some("cancelled"), GrpcCode::Cancelled),
            Self::Engine { .. } => (500, SERVER, Some("engine_failed"), GrpcCode::Internal),
        };
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Translation { status, kind, code, grpc }
    }

    /// What HTTP says.
    pub fn status(&self) -> StatusCode {
        self.translation().status
    }

    /// What gRPC says.
    pub fn grpc_code(&self) -> GrpcCode {
        self.translation().grpc
    }

    /// When to come back, where waiting helps.
    pub fn retry_after_s(&self) -> Option<u64> {
        match self {
            Self::RateLimited { retry_after_s, .. }
            | Self::QueueFull { retry_after_s, .. }
            | Self::Unavailable { retry_after_s, .. } => Some(*retry_after_s),
            _ => None,
        }
    }

    /// The field at fault.
    pub fn param(&self) -> Option<&str> {
        match self {
            Self::Invalid { param, .. } => param.as_deref(),
            Self::UnknownModel { .. } => Some("model"),
            _ => None,
        }
    }

    /// OpenAI's error object: `{"error": {message, type, param, code}}`.
    pub fn body(&self) -> ErrorBody {
        let Translation { kind, code, .. } = self.translation();
        let param = self.param().map(str::to_owned);
        ErrorBody { error: ErrorObject { message: self.to_string(), kind, param, code } }
    }
}

const INVALID_REQUEST: &str = "invalid_request_error";
const SERVER: &str = "server_error";

/// How long to wait when nothing is known of how long it takes.
const RETRY_AFTER_S: u64 = 1;

/// OpenAI's error body.
#[derive(Clone, Debug, Serialize)]
pub struct ErrorBody {
    /// All of it.
    pub error: ErrorObject,
}

/// What went wrong, as OpenAI's clients read it.
#[derive(Clone, Debug, Serialize)]
pub struct ErrorObject {
    /// For people.
    pub message: String,
    /// The family.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The field at fault.
    pub param: Option<String>,
    /// A word for programs.
    pub code: Option<&'static str>,
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::Rejected(rejected) => rejected.into(),
            SubmitError::Stopping => {
                Self::Unavailable { message: error.to_string(), retry_after_s: RETRY_AFTER_S }
            }
        }
    }
}

impl From<Rejected> for ApiError {
    fn from(rejected: Rejected) -> Self {
        match rejected {
            Rejected::EmptyPrompt => Self::invalid("prompt", rejected),
            Rejected::ContextExceeded { .. } | Rejected::TooLong { .. } => Self::Invalid {
                param: None,
                code: Some("context_length_exceeded"),
                message: format!("{rejected}; shorten the prompt or lower max_tokens"),
            },
            Rejected::QueueFull { waiting_requests, waiting_tokens } => {
                Self::QueueFull { waiting_requests, waiting_tokens, retry_after_s: RETRY_AFTER_S }
            }
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status(), axum::Json(self.body())).into_response();
        if let Some(seconds) = self.retry_after_s() {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if matches!(self, Self::Unauthenticated { .. }) {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_is_openais() {
        let error = ApiError::invalid("messages[2].role", "nobody is called \"x\"");
        let body = serde_json::to_value(error.body()).unwrap();
        let expected = serde_json::json!({"error": {
            "message": "messages[2].role: nobody is called \"x\"", "type": "invalid_request_error",
            "param": "messages[2].role", "code": null,
        }});
        assert_eq!(body, expected);
        assert_eq!((error.status(), error.grpc_code() as i32), (StatusCode::BAD_REQUEST, 3));
    }

    #[test]
    fn who_may_come_back_is_told_when() {
        let full = Rejected::QueueFull { waiting_requests: 3, waiting_tokens: 40 };
        let response = ApiError::from(SubmitError::Rejected(full)).into_response();
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers()[header::RETRY_AFTER], "1");
        let stopping = ApiError::from(SubmitError::Stopping).into_response();
        assert_eq!(stopping.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(stopping.headers().contains_key(header::RETRY_AFTER));
    }

    #[test]
    fn what_is_too_long_is_the_clients_to_shorten() {
        let long = Rejected::ContextExceeded { prompt_tokens: 9, max_context_tokens: 8 };
        let body = ApiError::from(long).body().error;
        assert_eq!(body.code, Some("context_length_exceeded"));
    }
}
