//! The gRPC door: `chorale.inference.v1.Inference`, beside health and
//! reflection. It reads protobuf and writes events; what happens in between is
//! [`crate::generation`], as for HTTP.
//!
//! A call is authenticated and read ([`service`]), becomes a generation
//! ([`chat`], [`generate`]) and is answered event by event ([`response`]); its
//! deadline is the generation's, and dropping the stream cancels it.

mod access_log;
mod call;
mod chat;
mod config;
mod connection;
mod conversation;
mod deadline;
mod events;
mod generate;
mod health;
mod load;
mod response;
mod sampling;
mod server;
mod service;
mod status;

#[cfg(test)]
mod tests;

pub use config::GrpcConfig;
pub use server::{GrpcServeError, GrpcServer, serve_grpc};
