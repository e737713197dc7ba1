//! Where histograms are cut. Dashboards compare servers by these, so they are
//! vLLM's for its names, and are not configurable.

/// `vllm:time_to_first_token_seconds`.
pub(super) const TIME_TO_FIRST_TOKEN_S: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
];

/// `vllm:inter_token_latency_seconds` and `vllm:request_time_per_output_token_seconds`.
pub(super) const TIME_PER_TOKEN_S: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];

/// Whole requests and the parts of their time.
pub(super) const REQUEST_S: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
    960.0, 1920.0, 7680.0,
];

/// `vllm:iteration_tokens_total`, a histogram despite its name.
pub(super) const STEP_TOKENS: &[f64] =
    &[1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0];

/// `vllm:request_params_n`.
pub(super) const CHOICES: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0];

/// `http_request_duration_seconds`.
pub(super) const HTTP_S: &[f64] = &[0.1, 0.5, 1.0];

/// `http_request_duration_highr_seconds`.
pub(super) const HTTP_FINE_S: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 7.5, 10.0,
    30.0, 60.0,
];

/// `chorale_step_seconds`: from a GPU's decode to a long prefill on a CPU.
pub(super) const STEP_S: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// 1, 2, 5, 10, 20, 50 … up to the longest context.
pub(super) fn tokens(max_model_len: u32) -> Vec<f64> {
    let max = f64::from(max_model_len);
    let decades = std::iter::successors(Some(1.0), |decade| Some(decade * 10.0));
    let series = decades.flat_map(|decade| [1.0, 2.0, 5.0].map(|digit| digit * decade));
    series.take_while(|bound| *bound <= max).collect()
}

#[cfg(test)]
mod tests {
    use super::tokens;

    #[test]
    fn token_buckets_end_within_the_context() {
        assert_eq!(tokens(100), [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0]);
        assert_eq!(tokens(131_072).last(), Some(&100_000.0));
    }
}
