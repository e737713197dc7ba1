//! What the server says of itself: alive, ready, how far loading is, which
//! models, which version, which requests. It answers from what it was told and
//! changes nothing, but for cancelling a request by its id.

pub(crate) mod cluster;
mod engine;
mod models;
mod probes;
mod requests;
mod tokenize;

pub use engine::{EngineStatus, ExpertReader, LoadStatus, Served};

pub(crate) use cluster::cluster;
pub(crate) use models::{list as list_models, retrieve as retrieve_model};
pub(crate) use probes::{health, load_status, ready, version};
pub(crate) use requests::{cancel as cancel_request, list as list_requests};
pub(crate) use tokenize::{detokenize, tokenize};
