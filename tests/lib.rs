//! What tests of the whole need: a cluster of real processes, each with an
//! address of its own, clients that stream from it, and faults to put it through.

pub mod chaos;
pub mod client;
pub mod cluster;
pub mod models;
pub mod network;
pub mod process;
