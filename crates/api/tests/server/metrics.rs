//! Metrics as a scraper sees them.

use crate::client::{CHAT, chat, get, post, stream};
use crate::fixture::Setup;
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// Every sample, by name and labels; what is not in the format fails the test.
async fn scrape(address: SocketAddr) -> BTreeMap<String, f64> {
    let reply = get(address, "/metrics").await;
    assert_eq!(reply.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let mut samples = BTreeMap::new();
    let mut family = String::new();
    for line in reply.body.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            let (kind, rest) = comment.split_once(' ').unwrap();
            let name = rest.split(' ').next().unwrap();
            match kind {
                "HELP" => family = name.to_owned(),
                "TYPE" => assert_eq!(family, name),
                _ => panic!("{line}"),
            }
            continue;
        }
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(name.starts_with(&family), "{line} is not of {family}");
        assert!(samples.insert(name.to_owned(), value.parse().unwrap()).is_none(), "{line} twice");
    }
    samples
}

fn value(samples: &BTreeMap<String, f64>, name: &str, label: &str) -> f64 {
    let mut of_name = samples.iter().filter(|(key, _)| {
        key.split_once('{').map_or(key.as_str(), |(bare, _)| bare) == name && key.contains(label)
    });
    let (_, value) = of_name.next().unwrap_or_else(|| panic!("no {name} with {label}"));
    assert!(of_name.next().is_none(), "several {name} with {label}");
    *value
}

#[tokio::test]
async fn everything_moves_as_it_should() {
    let harness = Setup { steps: 8, ..Setup::default() }.start().await;
    let before = scrape(harness.address).await;
    assert_eq!(value(&before, "vllm:num_requests_running", ""), 0.0);
    assert_eq!(value(&before, "vllm:generation_tokens_total", ""), 0.0);
    assert_eq!(value(&before, "vllm:request_success_total", "finished_reason=\"length\""), 0.0);

    let running = stream(harness.address, &[], 20).await;
    harness.eventually("steps are used up", |harness| harness.engine.stats().num_steps == 8).await;
    let during = scrape(harness.address).await;
    assert_eq!(value(&during, "vllm:num_requests_running", "model_name=\"openai/gpt-oss-20b\""), 1.0);
    assert!(value(&during, "vllm:kv_cache_usage_perc", "engine=\"0\"") > 0.0);
    // The scraper's own connection, and the stream.
    assert_eq!(value(&during, "chorale_http_active_requests", ""), 2.0);
    assert!(value(&during, "chorale_http_open_connections", "") >= 2.0);
    assert_eq!(value(&during, "vllm:cache_config_info", "block_size=\"16\""), 1.0);

    harness.allow_steps(1000);
    running.reply().await;
    let usage = post(harness.address, CHAT, &chat(false, 20)).await.json()["usage"].clone();
    let prompt_tokens = usage["prompt_tokens"].as_f64().unwrap();
    harness.eventually("requests are over", |harness| harness.shared.requests().num_active() == 0).await;

    let after = scrape(harness.address).await;
    for (name, label, expected) in [
        ("vllm:num_requests_running", "", 0.0),
        ("vllm:num_requests_waiting", "", 0.0),
        ("vllm:num_requests_waiting_by_reason", "reason=\"capacity\"", 0.0),
        ("vllm:num_requests_waiting_by_reason", "reason=\"deferred\"", 0.0),
        ("vllm:prompt_tokens_total", "", 2.0 * prompt_tokens),
        ("vllm:generation_tokens_total", "", 40.0),
        ("vllm:request_success_total", "finished_reason=\"length\"", 2.0),
        ("vllm:num_preemptions_total", "", 0.0),
        ("vllm:time_to_first_token_seconds_count", "", 2.0),
        ("vllm:inter_token_latency_seconds_count", "", 38.0),
        ("vllm:request_time_per_output_token_seconds_count", "", 2.0),
        ("vllm:e2e_request_latency_seconds_count", "", 2.0),
        ("vllm:request_queue_time_seconds_count", "", 2.0),
        ("vllm:request_inference_time_seconds_count", "", 2.0),
        ("vllm:request_prefill_time_seconds_count", "", 2.0),
        ("vllm:request_decode_time_seconds_count", "", 2.0),
        ("vllm:request_prompt_tokens_sum", "", 2.0 * prompt_tokens),
        ("vllm:request_generation_tokens_bucket", "le=\"20.0\"", 2.0),
        ("vllm:request_generation_tokens_bucket", "le=\"10.0\"", 0.0),
        ("vllm:request_params_n_bucket", "le=\"1.0\"", 2.0),
        ("vllm:request_params_max_tokens_sum", "", 40.0),
        ("chorale_key_tokens_total", "kind=\"generation\"", 40.0),
        ("chorale_http_active_requests", "", 1.0),
    ] {
        assert_eq!(value(&after, name, label), expected, "{name} {label}");
    }
    let hits = value(&after, "vllm:prefix_cache_hits_total", "");
    assert!(hits > 0.0 && hits < value(&after, "vllm:prefix_cache_queries_total", ""));
    assert_eq!(value(&after, "vllm:prompt_tokens_cached_total", ""), hits);

    harness
        .eventually("steps are counted", |harness| {
            let steps = harness.engine.stats().num_steps;
            harness.shared.metrics().encode().contains(&format!(
            "vllm:iteration_tokens_total_count{{engine=\"0\",model_name=\"openai/gpt-oss-20b\"}} {steps}\n"
        ))
        })
        .await;
    let chats = "handler=\"/v1/chat/completions\",method=\"POST\",status=\"2xx\"";
    assert_eq!(value(&after, "http_requests_total", chats), 2.0);
    let chats = "handler=\"/v1/chat/completions\",method=\"POST\"";
    assert_eq!(value(&after, "http_request_duration_seconds_count", chats), 2.0);
    assert!(value(&after, "http_request_duration_highr_seconds_count", "") >= 2.0);
}

#[tokio::test]
async fn labels_do_not_grow_with_what_clients_write() {
    let harness = Setup::default().start().await;
    for index in 0..5 {
        get(harness.address, &format!("/v1/nowhere/{index}")).await;
        get(harness.address, &format!("/v1/models/{index}")).await;
        crate::client::send(harness.address, &format!("METHOD{index}"), "/health", &[], "").await;
    }
    let samples = scrape(harness.address).await;
    assert_eq!(value(&samples, "http_requests_total", "handler=\"none\""), 5.0);
    assert_eq!(value(&samples, "http_requests_total", "handler=\"/v1/models/{*model}\""), 5.0);
    assert_eq!(value(&samples, "http_requests_total", "method=\"other\""), 5.0);
}
