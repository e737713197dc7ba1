//! The HTTP server around the generation endpoints: the port, connections, TLS,
//! routes, and the end. What is answered to a prompt is not decided here.

mod access_log;
mod activity;
mod config;
mod connection;
mod drain;
mod generations;
mod listener;
mod onlooker;
mod request_id;
mod requests;
mod route;
mod router;
mod state;
mod tls;

pub use config::{ServerConfig, TlsConfig};
pub use drain::{Phase, Shutdown};
pub use listener::{Drained, ServeError, Server};
pub use request_id::RequestId;
pub use requests::{ActiveRequest, RequestGuard, RequestView, Requests, TooManyRequests};
pub use state::{Admission, Shared, SharedConfig};
pub use tls::TlsError;

pub(crate) use access_log::Notes;
pub(crate) use onlooker::{Onlooker, Polled, look_on};
pub(crate) use request_id::identify;
pub(crate) use route::Route;
pub(crate) use tls::{Protocols, Tls};
