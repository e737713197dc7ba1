//! Log-probabilities in the two shapes that OpenAI has for them. The numbers
//! are the model's own, before temperature and penalties.

use chorale_harmony::{TokenId, Tokenizer};
use chorale_plan::Sample;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// What stands for minus infinity, which JSON lacks.
const MIN_LOGPROB: f32 = -9999.0;

/// Chat's: `choices[].logprobs`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ChatLogprobs {
    /// One entry for each token of the content.
    pub content: Vec<TokenLogprobs>,
}

/// One token, and what else it might have been.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprobs {
    /// Its text; what is not UTF-8 is replaced.
    pub token: String,
    /// Natural logarithm.
    pub logprob: f32,
    /// Its exact bytes.
    pub bytes: Vec<u8>,
    /// The likeliest ones, best first.
    pub top_logprobs: Vec<TopLogprob>,
}

/// A token that might have been.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TopLogprob {
    /// Its text.
    pub token: String,
    /// Natural logarithm.
    pub logprob: f32,
    /// Its exact bytes.
    pub bytes: Vec<u8>,
}

impl ChatLogprobs {
    /// The shape for these samples.
    pub fn of(samples: &[Sample]) -> Self {
        let entry = |sample: &Sample| {
            let TopLogprob { token, logprob, bytes } = top(sample.token, sampled(sample));
            let top_logprobs =
                sample.top_logprobs.iter().map(|other| top(other.token, other.logprob)).collect();
            TokenLogprobs { token, logprob, bytes, top_logprobs }
        };
        Self { content: samples.iter().map(entry).collect() }
    }
}

fn top(token: TokenId, logprob: f32) -> TopLogprob {
    let tokenizer = Tokenizer::shared();
    TopLogprob {
        token: tokenizer.decode(&[token]),
        logprob: finite(logprob),
        bytes: tokenizer.decode_bytes(&[token]),
    }
}

fn sampled(sample: &Sample) -> f32 {
    sample.logprob.unwrap_or(MIN_LOGPROB)
}

fn finite(logprob: f32) -> f32 {
    if logprob.is_nan() { MIN_LOGPROB } else { logprob.max(MIN_LOGPROB) }
}

/// The older shape of `/v1/completions`: four lists of equal length.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TextLogprobs {
    /// Each token's text.
    pub tokens: Vec<String>,
    /// Each token's natural logarithm.
    pub token_logprobs: Vec<f32>,
    /// For each token, the likeliest ones and itself.
    pub top_logprobs: Vec<Map<String, Value>>,
    /// Where each token's text begins, in characters.
    pub text_offset: Vec<usize>,
}

impl TextLogprobs {
    /// The shape for these samples, whose text begins at `offset` characters;
    /// moves `offset` behind them.
    pub fn of(samples: &[Sample], offset: &mut usize) -> Self {
        let mut logprobs = Self::default();
        for sample in samples {
            let text = Tokenizer::shared().decode(&[sample.token]);
            let own = finite(sampled(sample));
            let mut map: Map<String, Value> = sample
                .top_logprobs
                .iter()
                .map(|other| (Tokenizer::shared().decode(&[other.token]), finite(other.logprob).into()))
                .collect();
            map.entry(text.as_str()).or_insert(own.into());
            logprobs.text_offset.push(*offset);
            *offset += text.chars().count();
            logprobs.tokens.push(text);
            logprobs.token_logprobs.push(own);
            logprobs.top_logprobs.push(map);
        }
        logprobs
    }
}
