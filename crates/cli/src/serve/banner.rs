//! What a person sees when the server is ready: where, what, and something to
//! paste.

use crate::setup::Setup;
use chorale_api::Shared;
use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use tokio::task::JoinHandle;

/// Where the doors are.
pub(crate) struct Addresses {
    pub(crate) http: String,
    pub(crate) grpc: SocketAddr,
}

/// What is served.
pub(crate) struct Ready {
    pub(crate) max_model_len: usize,
    pub(crate) max_num_seqs: usize,
    pub(crate) kv_tokens: usize,
    /// What computes, for people.
    pub(crate) device: String,
    /// Ends with the engine, and tells whether nobody had asked for that.
    pub(crate) ended: JoinHandle<bool>,
}

/// Prints to standard error where a person reads it; elsewhere a line of log says the same.
pub(crate) fn print(setup: &Setup, shared: &Shared, addresses: &Addresses, ready: &Ready) {
    let Addresses { http, grpc } = addresses;
    let Ready { max_model_len, max_num_seqs, kv_tokens, device, .. } = ready;
    let model = shared.served_model_names().first().map_or("", String::as_str);
    tracing::info!(model, http, %grpc, max_model_len, max_num_seqs, kv_tokens, device, "ready");
    if !std::io::stderr().is_terminal() {
        return;
    }
    let key = if shared.keyring().is_required() { " -H 'authorization: Bearer YOUR-KEY'" } else { "" };
    let (bold, plain) = if setup.is_coloured { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
    // A terminal that is gone reads nothing.
    let _ = writeln!(
        std::io::stderr(),
        "\n{bold}{model}{plain} is ready on {device}: {max_num_seqs} sequences at once, \
         {max_model_len} tokens each, {kv_tokens} in the cache\n\
         \n  OpenAI API  {http}/v1\n  gRPC        {grpc}\n\n  \
         curl {http}/v1/chat/completions{key} -H 'content-type: application/json' \\\n    \
         -d '{{\"messages\": [{{\"role\": \"user\", \"content\": \"What is the capital of France?\"}}]}}'\n"
    );
}
