//! The cluster's commands: `coordinator`, `worker`, `cluster` and `certs`.

pub(crate) mod certs;
mod coordinator;
mod facts;
pub(crate) mod probe;
mod trust;
pub(crate) mod view;
pub(crate) mod worker;

pub(crate) use coordinator::Coordinator;
