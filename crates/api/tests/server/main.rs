//! The whole server on a port of its own, over an engine that says what a script
//! says. What is asked over the wire is answered over the wire; time limits are
//! short, and no test waits without a deadline.

#![expect(clippy::unwrap_used, reason = "a test stops at its first surprise")]

mod client;
mod fixture;
mod lines;

mod cancel;
mod drain;
mod keys;
mod limits;
mod logs;
mod metrics;
mod readers;
mod routes;
mod tls;
