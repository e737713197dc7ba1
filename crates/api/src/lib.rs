//! The front doors.

mod auth;
mod error;
pub mod generation;
mod grpc;
mod limits;
mod metrics;
pub mod openai;
mod openapi;
mod server;
mod status;

pub use auth::{Account, Caller, KeyError, KeySettings, Keyring, Secret};
pub use error::{ApiError, ErrorBody, ErrorObject, GrpcCode};
pub use grpc::{GrpcConfig, GrpcServeError, GrpcServer, serve_grpc};
pub use metrics::Metrics;
pub use server::{
    ActiveRequest, Admission, Drained, Phase, RequestGuard, RequestId, RequestView, Requests, ServeError,
    Server, ServerConfig, Shared, SharedConfig, Shutdown, TlsConfig, TlsError, TooManyRequests,
};
pub use status::{EngineStatus, LoadStatus, Served};
