//! What a child tells the process that started it, a line each; and what it is
//! asked for.

#![expect(clippy::print_stdout, reason = "a child talks through its output")]

use crate::bench::Limits;
use crate::report::{Check, MachineFacts, Measurement, Remark};
use serde::{Deserialize, Serialize};

/// Before what is told; other lines are what somebody printed.
const MARK: &str = "@kbench ";

/// What a child has to tell.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The GPU is open.
    Machine(MachineFacts),
    /// An item began, by its name.
    Began(String),
    /// Something holds, or does not.
    Check(Check),
    /// A number.
    Measured(Measurement),
    /// Limits that other children are to use, too.
    Limits(Limits),
    /// Something could not be done.
    Failed(Remark),
    /// Something is worth knowing.
    Noted(Remark),
    /// An item is done, by its name, and the context is well.
    Done(String),
    /// A GPU that does not come back: the child is to be ended.
    Hung(String),
    /// The context is lost: the child ends itself.
    Lost(String),
    /// The GPU could not be opened.
    Refused {
        /// Why.
        reason: String,
        /// Whether there is none, so that nobody needs to try again.
        is_absent: bool,
    },
}

impl Event {
    pub(crate) fn tell(&self) {
        match serde_json::to_string(self) {
            // One call: a line of another thread must not stand in its middle.
            Ok(text) => println!("{MARK}{text}"),
            Err(error) => println!("{error}"),
        }
    }

    /// What a line tells, if it is such.
    pub(crate) fn told(line: &str) -> Option<Self> {
        serde_json::from_str(line.strip_prefix(MARK)?).ok()
    }
}

/// What a child is asked for: by its first line of input.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Order {
    /// Names of items, in order.
    pub(crate) items: Vec<String>,
    /// Of this GPU, if they were measured.
    pub(crate) limits: Option<Limits>,
    /// Whether kernels are launched one by one.
    pub(crate) one_by_one: bool,
}
