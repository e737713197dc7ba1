//! An answer as a whole: the fold of a generation's updates. What streams and
//! what does not are the same updates, so they cannot say different things.

use chorale_plan::Sample;

use super::{Finish, GenerationStream, Part, TokenCounts, Update};
use crate::error::ApiError;

/// Everything that a request brought.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// In the order of their indices.
    pub choices: Vec<AnswerChoice>,
    /// What all of them took.
    pub usage: TokenCounts,
}

/// One continuation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AnswerChoice {
    /// All samples, those of markup too.
    pub samples: Vec<Sample>,
    /// The hidden thinking.
    pub reasoning: String,
    /// What the user reads.
    pub content: String,
    /// The tokens of the content, if log-probabilities are wanted.
    pub logprobs: Vec<Sample>,
    /// What the client is to do.
    pub tool_calls: Vec<ToolCall>,
    /// Why it ended; `None` while it goes on.
    pub finish: Option<Finish>,
}

/// A call of a function.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ToolCall {
    /// For the tool's answer to refer to.
    pub id: String,
    /// As the client defined it.
    pub name: String,
    /// JSON, if the model kept to it.
    pub arguments: String,
}

impl Answer {
    /// Reads a stream to its end.
    ///
    /// # Errors
    ///
    /// As [`GenerationStream::next`].
    pub async fn collect(stream: &mut GenerationStream) -> Result<Self, ApiError> {
        let mut answer =
            Self { choices: vec![AnswerChoice::default(); stream.num_choices() as usize], ..Self::default() };
        while let Some(update) = stream.next().await {
            answer.push(update?);
        }
        answer.usage = stream.usage();
        Ok(answer)
    }

    /// Takes the next update.
    pub fn push(&mut self, update: Update) {
        let index = update.choice as usize;
        if self.choices.len() <= index {
            self.choices.resize(index + 1, AnswerChoice::default());
        }
        let choice = &mut self.choices[index];
        choice.samples.extend(update.samples);
        for part in update.parts {
            choice.push(part);
        }
    }
}

impl AnswerChoice {
    fn push(&mut self, part: Part) {
        match part {
            Part::Reasoning(text) => self.reasoning.push_str(&text),
            Part::Content { text, logprobs } => {
                self.content.push_str(&text);
                self.logprobs.extend(logprobs);
            }
            Part::CallStarted { id, name, .. } => {
                self.tool_calls.push(ToolCall { id, name, arguments: String::new() });
            }
            Part::CallArguments { index, text } => {
                if let Some(call) = self.tool_calls.get_mut(index as usize) {
                    call.arguments.push_str(&text);
                }
            }
            Part::Finished { finish, .. } => self.finish = Some(finish),
        }
    }
}
