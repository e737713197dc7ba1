//! Requests through the real engine loop, with an executor that samples what a
//! script says. What the model itself would say is tested elsewhere.

mod bad_input;
mod chat;
mod completions;
mod demo;
mod ends;
mod fold;
mod scripted;
mod structured;
