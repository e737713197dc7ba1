//! From what the user typed to the tokens of a prompt.

use crate::args::GenerateArgs;
use crate::config::ReasoningEffort;
use crate::engine;
use crate::exit::UsageError;
use crate::setup::Setup;
use anyhow::Context;
use chorale_harmony::{
    Conversation, DeveloperContent, Message, RenderOptions, SystemContent, Tokenizer, render_for_completion,
    special,
};
use chorale_model::config::ModelConfig;
use chorale_plan::TokenId;
use std::io::Read;

/// More text than any context holds.
const STDIN_BYTES_MAX: u64 = 64 << 20;

/// The prompt itself; `-` stands for standard input, whose last line's end is
/// the editor's and not the user's, unless the prompt is raw.
pub(super) fn read(args: &GenerateArgs) -> anyhow::Result<String> {
    if args.prompt() != "-" {
        return Ok(args.prompt().to_owned());
    }
    let mut bytes = Vec::new();
    let mut stdin = std::io::stdin().lock().take(STDIN_BYTES_MAX + 1);
    stdin.read_to_end(&mut bytes).context("cannot read the prompt from standard input")?;
    if bytes.len() as u64 > STDIN_BYTES_MAX {
        return Err(UsageError(format!(
            "the prompt on standard input is longer than {STDIN_BYTES_MAX} bytes"
        ))
        .into());
    }
    let mut text = String::from_utf8(bytes)
        .map_err(|error| UsageError(format!("the prompt on standard input is not UTF-8: {error}")))?;
    if !args.raw {
        let end = text.strip_suffix('\n').map(|text| text.strip_suffix('\r').unwrap_or(text).len());
        text.truncate(end.unwrap_or(text.len()));
    }
    Ok(text)
}

/// The tokens of a prompt: as it is, or as a conversation for the assistant to go on.
pub(super) fn tokens(
    text: &str,
    args: &GenerateArgs,
    setup: &Setup,
    config: &ModelConfig,
) -> anyhow::Result<Vec<TokenId>> {
    let tokens = if args.raw {
        Tokenizer::shared().encode_with_specials(text)
    } else {
        render_for_completion(&conversation(text, args, setup), &RenderOptions::default())?
    };
    if tokens.is_empty() {
        return Err(UsageError("the prompt is empty; a raw prompt needs a token at least".to_owned()).into());
    }
    engine::check_tokens(&tokens, config, "the prompt")?;
    Ok(tokens)
}

fn conversation(text: &str, args: &GenerateArgs, setup: &Setup) -> Conversation {
    let date = args.system_date.as_ref().map_or_else(today, |date| date.as_str().to_owned());
    let effort = match setup.config.reasoning_effort {
        ReasoningEffort::Low => chorale_harmony::ReasoningEffort::Low,
        ReasoningEffort::Medium => chorale_harmony::ReasoningEffort::Medium,
        ReasoningEffort::High => chorale_harmony::ReasoningEffort::High,
    };
    let system = SystemContent {
        current_date: Some(date),
        reasoning_effort: Some(effort),
        ..SystemContent::default()
    };
    let developer = args.system.clone().map(|instructions| {
        Message::developer(DeveloperContent {
            instructions: Some(instructions),
            ..DeveloperContent::default()
        })
    });
    let messages = [Some(Message::system(system)), developer, Some(Message::user(text))];
    Conversation::new(messages.into_iter().flatten())
}

/// The tokens that end an answer: the model's own, and harmony's where the
/// prompt is a conversation.
pub(super) fn stops(args: &GenerateArgs, config: &ModelConfig) -> Vec<TokenId> {
    let mut stops = config.eos_token_ids.clone();
    if !args.raw {
        stops.extend([special::RETURN, special::CALL]);
    }
    stops
}

/// The day in UTC, so that it does not depend on where a machine stands.
fn today() -> String {
    let today = time::OffsetDateTime::now_utc().date();
    format!("{:04}-{:02}-{:02}", today.year(), u8::from(today.month()), today.day())
}
