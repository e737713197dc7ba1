//! The front doors: OpenAI's API over HTTP, `chorale.inference.v1` over gRPC, and
//! what both need: keys, limits, metrics, status, an orderly end.
//!
//! Deliberately absent: what the scheduler decides, and workers; the engine is a
//! handle that prompts go into and streams come out of.
//!
//! Invariant: both doors build the same [`generation::Generation`]; a response is
//! the fold of one token stream, whether it is streamed or not.

mod auth;
mod error;
pub mod generation;
mod grpc;
mod limits;
mod metrics;
pub mod openai;
mod openapi;
#[cfg(test)]
mod scripted;
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
pub use status::{EngineStatus, ExpertReader, LoadStatus, Served};
