//! Calls over a real port, through the real engine loop, with an executor that
//! samples what a script says. What the model would say is tested elsewhere.

mod around;
mod bad_input;
mod chat;
mod ends;
mod generate;
mod health;
mod logs;
mod parity;
mod tls;
mod world;
