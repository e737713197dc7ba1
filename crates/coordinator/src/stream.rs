//! The tokens of one sequence, as they are sampled. Dropping the stream cancels
//! the sequence before the next step is planned.

use chorale_plan::{Sample, SequenceId};
use chorale_scheduler::{FinishReason, Usage};
use std::task::{Context, Poll};
use tokio::sync::mpsc;

/// What happens to one sequence. Ends after `Finished` or `Failed`.
#[derive(Debug)]
pub struct TokenStream {
    pub(crate) sequence: SequenceId,
    pub(crate) events: mpsc::Receiver<TokenEvent>,
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq)]
pub enum TokenEvent {
    /// A token was sampled.
    Token(Sample),
    /// The sequence is over.
    Finished {
        /// Why.
        reason: FinishReason,
        /// What it took.
        usage: Usage,
    },
    /// The engine cannot go on with it: a grammar failed, or the engine ended.
    Failed {
        /// Why.
        reason: String,
    },
}

impl TokenStream {
    /// The sequence's number.
    pub fn sequence(&self) -> SequenceId {
        self.sequence
    }

    /// [`Self::next`] for those who wait for several streams at once.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<TokenEvent>> {
        self.events.poll_recv(cx)
    }

    /// The next event; `None` after the last.
    pub async fn next(&mut self) -> Option<TokenEvent> {
        self.events.recv().await
    }
}
