//! One line for each call, as the HTTP door writes one for each request: when its
//! answer is complete or its client gone. Numbers and names; neither methods as
//! clients wrote them nor any text.

use crate::server::{Notes, Onlooker, Polled, RequestId, look_on};
use axum::extract::Request;
use axum::http::HeaderMap;
use axum::middleware::Next;
use axum::response::Response;
use std::task::Poll;
use std::time::Instant;
use tonic::Code;

/// All methods there are; clients may invent others.
const METHODS: [&str; 13] = [
    "/chorale.inference.v1.Inference/Chat",
    "/chorale.inference.v1.Inference/Generate",
    "/chorale.inference.v1.Inference/Cancel",
    "/chorale.inference.v1.Inference/ListRequests",
    "/chorale.inference.v1.Inference/ListModels",
    "/chorale.inference.v1.Inference/GetLoadStatus",
    "/chorale.inference.v1.Inference/WatchLoadStatus",
    "/chorale.inference.v1.Inference/Tokenize",
    "/chorale.inference.v1.Inference/Detokenize",
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

/// Asked every few seconds by machines.
const PROBES: &str = "/grpc.health.v1.Health/";

/// Where a call's code stands: in the trailers, or in the head if there is no more.
const STATUS: &str = "grpc-status";

/// A call and its answer, until both are over.
struct Exchange {
    arrived: Instant,
    id: Option<RequestId>,
    method: &'static str,
    /// The answer is complete when it is known.
    code: Option<Code>,
    notes: Notes,
}

pub(super) async fn log_calls(mut request: Request, next: Next) -> Response {
    let mut exchange = Exchange {
        arrived: Instant::now(),
        id: request.extensions().get().cloned(),
        method: name_of(request.uri().path()),
        code: None,
        notes: Notes::default(),
    };
    request.extensions_mut().insert(exchange.notes.clone());
    let response = next.run(request).await;
    exchange.read(response.headers());
    response.map(|body| look_on(body, exchange))
}

fn name_of(path: &str) -> &'static str {
    METHODS.into_iter().find(|method| *method == path).unwrap_or("none")
}

impl Exchange {
    fn read(&mut self, headers: &HeaderMap) {
        if let Some(code) = headers.get(STATUS) {
            self.code = Some(Code::from_bytes(code.as_bytes()));
        }
    }
}

impl Onlooker for Exchange {
    fn asked(&mut self, polled: &Polled) {
        if let Poll::Ready(Some(Ok(frame))) = polled
            && let Some(trailers) = frame.trailers_ref()
        {
            self.read(trailers);
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let Self { method, code, .. } = *self;
        let is_complete = code.is_some();
        // What gRPC calls it when a client leaves.
        let code = code.unwrap_or(Code::Cancelled);
        let ms = self.arrived.elapsed().as_millis() as u64;
        let request_id = self.id.as_ref().map(|id| &*id.0);
        let key = self.notes.key();
        let (prompt_tokens, output_tokens) = self.notes.tokens().unzip();
        if method.starts_with(PROBES) {
            tracing::debug!(method, ?code, ms, is_complete, request_id, key, "request");
        } else {
            tracing::info!(
                method,
                ?code,
                ms,
                is_complete,
                request_id,
                key,
                prompt_tokens,
                output_tokens,
                "request"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chorale_wire::inference::SERVICE_NAME;

    #[test]
    fn no_method_is_missing() {
        let proto = include_str!("../../../../proto/chorale/inference/v1/service.proto");
        let methods = proto.lines().filter_map(|line| line.trim().strip_prefix("rpc ")?.split_once('('));
        let mut num_methods = 0;
        for (method, _) in methods {
            let path = format!("/{SERVICE_NAME}/{method}");
            assert_eq!(name_of(&path), path);
            num_methods += 1;
        }
        assert!(num_methods > 0);
        assert_eq!(name_of("/chorale.inference.v1.Inference/Made%20up"), "none");
    }
}
