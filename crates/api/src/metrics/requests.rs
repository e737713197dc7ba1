//! What requests take, from acceptance to their last token. Latencies are those
//! of this server: the network to the client is not in them.

use super::{Labels, buckets, counts, seconds};
use crate::auth::Caller;
use crate::generation::{Accepted, Finished, FinishedChoice, Outcome};
use chorale_harmony::Repair;
use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Histogram, Meter};
use std::time::Duration;

/// Keys beyond this many share one label: every label is a time series for each
/// scraper, and a server may have thousands of keys.
const MAX_KEY_LABELS: u64 = 100;

#[derive(Debug)]
pub(crate) struct RequestMetrics {
    labels: Labels,
    prompt_tokens: Counter<u64>,
    cached_tokens: Counter<u64>,
    generation_tokens: Counter<u64>,
    key_tokens: Counter<u64>,
    successes: Counter<u64>,
    rejections: Counter<u64>,
    repairs: Counter<u64>,
    time_to_first_token: Histogram<f64>,
    inter_token: Histogram<f64>,
    time_per_output_token: Histogram<f64>,
    end_to_end: Histogram<f64>,
    queue: Histogram<f64>,
    inference: Histogram<f64>,
    prefill: Histogram<f64>,
    decode: Histogram<f64>,
    prompt_lengths: Histogram<u64>,
    computed_prompt_lengths: Histogram<u64>,
    generation_lengths: Histogram<u64>,
    max_tokens: Histogram<u64>,
    choices: Histogram<u64>,
}

impl RequestMetrics {
    pub(super) fn new(meter: &Meter, labels: &Labels, max_model_len: u32) -> Self {
        let counter = |name: &'static str, description: &'static str| {
            meter.u64_counter(name).with_description(description).build()
        };
        let latency = |name, description| seconds(meter, name, buckets::REQUEST_S, description);
        let token_bounds = buckets::tokens(max_model_len);
        let lengths = |name, description| counts(meter, name, &token_bounds, description);
        let metrics = Self {
            labels: labels.clone(),
            prompt_tokens: counter("vllm.prompt_tokens", "Tokens of prompts."),
            cached_tokens: counter(
                "vllm.prompt_tokens_cached",
                "Tokens of prompts found in the prefix cache.",
            ),
            generation_tokens: counter("vllm.generation_tokens", "Tokens sampled."),
            key_tokens: counter("chorale.key_tokens", "Tokens by the key that pays for them."),
            successes: counter("vllm.request_success", "Choices that are over, by why they ended."),
            rejections: counter("vllm.admission_rejections", "Requests that the full queue turned away."),
            repairs: counter("chorale.harmony_repairs", "Mistakes in harmony that were put right, by kind."),
            time_to_first_token: seconds(
                meter,
                "vllm.time_to_first_token_seconds",
                buckets::TIME_TO_FIRST_TOKEN_S,
                "From acceptance to the first token.",
            ),
            inter_token: seconds(
                meter,
                "vllm.inter_token_latency_seconds",
                buckets::TIME_PER_TOKEN_S,
                "From one token to the next.",
            ),
            time_per_output_token: seconds(
                meter,
                "vllm.request_time_per_output_token_seconds",
                buckets::TIME_PER_TOKEN_S,
                "A choice's mean time from one token to the next.",
            ),
            end_to_end: latency("vllm.e2e_request_latency_seconds", "From acceptance to the end."),
            queue: latency("vllm.request_queue_time_seconds", "From acceptance to the first step."),
            inference: latency("vllm.request_inference_time_seconds", "From the first step to the end."),
            prefill: latency("vllm.request_prefill_time_seconds", "From the first step to the first token."),
            decode: latency("vllm.request_decode_time_seconds", "From the first token to the last."),
            prompt_lengths: lengths("vllm.request_prompt_tokens", "Tokens of a request's prompt."),
            computed_prompt_lengths: lengths(
                "vllm.request_prefill_kv_computed_tokens",
                "Tokens of a prompt that were not found in the prefix cache.",
            ),
            generation_lengths: lengths("vllm.request_generation_tokens", "Tokens sampled for a choice."),
            max_tokens: lengths("vllm.request_params_max_tokens", "Tokens that a choice may have."),
            choices: counts(meter, "vllm.request_params_n", buckets::CHOICES, "Choices asked for."),
        };
        metrics.start_from_zero();
        metrics
    }

    /// A series that appears with its first event hides that event from `rate()`.
    fn start_from_zero(&self) {
        let all = &*self.labels.0;
        for counter in [&self.prompt_tokens, &self.cached_tokens, &self.generation_tokens, &self.rejections] {
            counter.add(0, all);
        }
        for reason in ["stop", "length", "abort", "error"] {
            self.successes.add(0, &self.labels.with("finished_reason", reason));
        }
        for repair in Repair::ALL {
            self.repairs.add(0, &self.labels.with("kind", repair_label(repair)));
        }
    }

    pub(crate) fn accepted(&self, request: &Accepted<'_>) {
        let all = &*self.labels.0;
        self.prompt_tokens.add(request.prompt_tokens.into(), all);
        self.prompt_lengths.record(request.prompt_tokens.into(), all);
        self.max_tokens.record(request.max_tokens.into(), all);
        self.choices.record(request.n.into(), all);
    }

    pub(crate) fn first_token(&self, latency: Duration) {
        self.generation_tokens.add(1, &*self.labels.0);
        self.time_to_first_token.record(latency.as_secs_f64(), &*self.labels.0);
    }

    pub(crate) fn next_token(&self, latency: Duration) {
        self.generation_tokens.add(1, &*self.labels.0);
        self.inter_token.record(latency.as_secs_f64(), &*self.labels.0);
    }

    pub(crate) fn choice_finished(&self, choice: &FinishedChoice<'_>) {
        let all = &*self.labels.0;
        let usage = choice.usage;
        self.successes.add(1, &self.labels.with("finished_reason", reason(choice.outcome)));
        self.cached_tokens.add(usage.cached_tokens.into(), all);
        self.generation_lengths.record(usage.output_tokens.into(), all);
        let num_computed = usage.prompt_tokens.saturating_sub(usage.cached_tokens);
        self.computed_prompt_lengths.record(num_computed.into(), all);
        for (repair, count) in choice.repairs.iter() {
            self.repairs.add(count.into(), &self.labels.with("kind", repair_label(repair)));
        }
        self.times(choice);
    }

    fn times(&self, choice: &FinishedChoice<'_>) {
        let all = &*self.labels.0;
        let latency = choice.latency.as_secs_f64();
        let Some(queue_ms) = choice.usage.queue_ms else { return };
        let queue = queue_ms as f64 / 1000.0;
        let inference = (latency - queue).max(0.0);
        self.queue.record(queue, all);
        self.inference.record(inference, all);
        let Some(decode) = choice.decode else { return };
        let decode = decode.as_secs_f64();
        self.prefill.record((inference - decode).max(0.0), all);
        self.decode.record(decode, all);
        if choice.usage.output_tokens > 1 {
            let num_gaps = f64::from(choice.usage.output_tokens - 1);
            self.time_per_output_token.record(decode / num_gaps, all);
        }
    }

    pub(crate) fn finished(&self, request: &Finished<'_>) {
        self.end_to_end.record(request.latency.as_secs_f64(), &*self.labels.0);
    }

    /// What a request that is over has cost its key.
    pub(crate) fn paid(&self, caller: &Caller, prompt_tokens: u32, output_tokens: u32) {
        self.key_tokens.add(prompt_tokens.into(), &key_labels(caller, "prompt"));
        self.key_tokens.add(output_tokens.into(), &key_labels(caller, "generation"));
    }

    pub(crate) fn rejected(&self) {
        self.rejections.add(1, &*self.labels.0);
    }
}

fn key_labels(caller: &Caller, kind: &'static str) -> [KeyValue; 2] {
    let name = match &caller.name {
        None => KeyValue::new("key", "none"),
        Some(_) if caller.key > MAX_KEY_LABELS => KeyValue::new("key", "other"),
        Some(name) => KeyValue::new("key", name.clone()),
    };
    [name, KeyValue::new("kind", kind)]
}

/// The engine of vLLM knows nothing of calls: a turn that ends in one has stopped.
fn reason(outcome: Outcome<'_>) -> &'static str {
    match outcome.label() {
        "tool_calls" => "stop",
        label => label,
    }
}

fn repair_label(repair: Repair) -> &'static str {
    match repair {
        Repair::MissingStart => "missing_start",
        Repair::RepeatedStart => "repeated_start",
        Repair::UnknownAuthor => "unknown_author",
        Repair::MissingChannel => "missing_channel",
        Repair::UnknownChannel => "unknown_channel",
        Repair::RepeatedChannel => "repeated_channel",
        Repair::RepeatedRecipient => "repeated_recipient",
        Repair::CallOffCommentary => "call_off_commentary",
        Repair::MissingConstrain => "missing_constrain",
        Repair::StrayHeaderText => "stray_header_text",
        Repair::MissingMessage => "missing_message",
        Repair::EmptyHeader => "empty_header",
        Repair::MissingEnd => "missing_end",
        Repair::WrongEnd => "wrong_end",
        Repair::StraySpecial => "stray_special",
        Repair::UnknownToken => "unknown_token",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thousand_keys_are_not_a_thousand_series() {
        let label = |key: u64| {
            let name = (key > 0).then(|| format!("team-{key}").into());
            key_labels(&Caller { name, key, ..Caller::anonymous() }, "prompt")[0].value.to_string()
        };
        assert_eq!((label(0), label(1), label(100)), ("none".into(), "team-1".into(), "team-100".into()));
        assert_eq!((label(101), label(1000)), ("other".into(), "other".into()));
    }
}
