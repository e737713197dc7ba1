//! The engine in numbers: gauges that are read when somebody asks, and the
//! steps, which are followed as they come.

use super::{Labels, buckets, counts, seconds};
use crate::status::{EngineStatus, Served};
use chorale_coordinator::EngineStats;
use opentelemetry::KeyValue;
use opentelemetry::metrics::{Histogram, Meter};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use tokio::sync::watch;

/// The share that the newest step has in the measured speed.
const NEWEST_SHARE: f64 = 0.2;

/// A client that is told to wait is not told to go away.
const MAX_RETRY_AFTER_S: u64 = 120;

#[derive(Debug)]
pub(super) struct EngineMetrics {
    status: watch::Receiver<EngineStatus>,
    labels: Labels,
    step_tokens: Histogram<u64>,
    step_seconds: Histogram<f64>,
    /// Rows in a second while the engine is busy, as the bits of an `f64`.
    rows_per_s: AtomicU64,
}

impl EngineMetrics {
    pub(super) fn new(meter: &Meter, labels: &Labels, status: watch::Receiver<EngineStatus>) -> Self {
        let source = Source { status: status.clone(), labels: labels.clone() };
        register_gauges(meter, &source);
        register_counters(meter, &source);
        register_cache_config(meter, &source);
        let step_tokens = counts(
            meter,
            "vllm.iteration_tokens_total",
            buckets::STEP_TOKENS,
            "Tokens computed in one step.",
        );
        let step_seconds = seconds(meter, "chorale.step_seconds", buckets::STEP_S, "How long one step took.");
        Self { status, labels: labels.clone(), step_tokens, step_seconds, rows_per_s: AtomicU64::new(0) }
    }

    /// Follows the steps of each engine that there is, until whoever speaks for
    /// them is gone.
    pub(super) async fn follow(&self) {
        let mut status = self.status.clone();
        loop {
            let engine = match &*status.borrow_and_update() {
                EngineStatus::Ready(served) => Some(served.engine.watch()),
                EngineStatus::Loading(_) | EngineStatus::Failed { .. } => None,
            };
            if let Some(stats) = engine {
                self.follow_steps(stats).await;
            }
            if status.changed().await.is_err() {
                return;
            }
        }
    }

    async fn follow_steps(&self, mut stats: watch::Receiver<Arc<EngineStats>>) {
        let mut seen = EngineStats::clone(&stats.borrow_and_update());
        let mut seen_at = Instant::now();
        while stats.changed().await.is_ok() {
            let now = stats.borrow_and_update().clone();
            self.record(&seen, &now, seen_at.elapsed().as_secs_f64());
            seen = EngineStats::clone(&now);
            seen_at = Instant::now();
        }
    }

    /// Several steps may have passed since the last look; they are counted as
    /// equals, so that sums and counts are exact.
    fn record(&self, before: &EngineStats, now: &EngineStats, elapsed_s: f64) {
        let num_steps = now.num_steps.saturating_sub(before.num_steps);
        let num_rows = now.num_rows.saturating_sub(before.num_rows);
        let Some(rows_of_each) = num_rows.checked_div(num_steps) else { return };
        let num_longer = num_rows % num_steps;
        for index in 0..num_steps {
            self.step_tokens.record(rows_of_each + u64::from(index < num_longer), &*self.labels.0);
            self.step_seconds.record(now.last_step.as_secs_f64(), &*self.labels.0);
        }
        // An engine that had nothing to do was not slow.
        let busy_s = elapsed_s.min(now.last_step.as_secs_f64() * num_steps as f64).max(1e-6);
        let newest = num_rows as f64 / busy_s;
        let known = f64::from_bits(self.rows_per_s.load(Ordering::Relaxed));
        let speed = if known == 0.0 { newest } else { known + NEWEST_SHARE * (newest - known) };
        self.rows_per_s.store(speed.to_bits(), Ordering::Relaxed);
    }

    /// The backlog over the measured speed.
    pub(super) fn retry_after_s(&self) -> u64 {
        let status = self.status.borrow();
        let EngineStatus::Ready(served) = &*status else { return 1 };
        let speed = f64::from_bits(self.rows_per_s.load(Ordering::Relaxed));
        retry_after_s(served.engine.stats().scheduler.waiting_tokens, speed)
    }
}

fn retry_after_s(waiting_tokens: u64, tokens_per_s: f64) -> u64 {
    if tokens_per_s <= 0.0 {
        return 1;
    }
    ((waiting_tokens as f64 / tokens_per_s).ceil() as u64).clamp(1, MAX_RETRY_AFTER_S)
}

/// Where gauges look when somebody asks.
#[derive(Clone)]
struct Source {
    status: watch::Receiver<EngineStatus>,
    labels: Labels,
}

impl Source {
    fn served(&self) -> Option<Arc<Served>> {
        match &*self.status.borrow() {
            EngineStatus::Ready(served) => Some(served.clone()),
            EngineStatus::Loading(_) | EngineStatus::Failed { .. } => None,
        }
    }

    /// All zero before there is an engine.
    fn stats(&self) -> Arc<EngineStats> {
        self.served().map(|served| served.engine.stats()).unwrap_or_default()
    }
}

fn register_gauges(meter: &Meter, source: &Source) {
    type Read = fn(&EngineStats) -> f64;
    let gauges: [(&str, &str, Read); 3] = [
        ("vllm.num_requests_running", "Sequences that hold KV pages.", |stats| {
            f64::from(stats.scheduler.num_running)
        }),
        ("vllm.num_requests_waiting", "Sequences that wait to be computed.", |stats| {
            f64::from(stats.scheduler.num_waiting())
        }),
        ("vllm.kv_cache_usage_perc", "The share of KV pages in use, from 0 to 1.", |stats| {
            stats.scheduler.kv_usage()
        }),
    ];
    for (name, description, read) in gauges {
        let source = source.clone();
        let observe = move |observer: &dyn opentelemetry::metrics::AsyncInstrument<f64>| {
            observer.observe(read(&source.stats()), &*source.labels.0);
        };
        meter.f64_observable_gauge(name).with_description(description).with_callback(observe).build();
    }
    let source = source.clone();
    meter
        .u64_observable_gauge("vllm.num_requests_waiting_by_reason")
        .with_description("Sequences that wait: for their first step, or to be computed again.")
        .with_callback(move |observer| {
            let stats = source.stats();
            let scheduler = &stats.scheduler;
            let reasons =
                [("capacity", scheduler.num_waiting_capacity), ("deferred", scheduler.num_waiting_deferred)];
            for (reason, waiting) in reasons {
                observer.observe(u64::from(waiting), &source.labels.with("reason", reason));
            }
        })
        .build();
}

fn register_counters(meter: &Meter, source: &Source) {
    type Read = fn(&EngineStats) -> u64;
    let counters: [(&str, &str, Read); 5] = [
        ("vllm.prefix_cache_queries", "Tokens looked up in the prefix cache.", |stats| {
            stats.scheduler.prefix_cache_queries_tokens
        }),
        ("vllm.prefix_cache_hits", "Tokens found in the prefix cache.", |stats| {
            stats.scheduler.prefix_cache_hits_tokens
        }),
        ("vllm.num_preemptions", "Times that a sequence lost its KV pages to another.", |stats| {
            stats.scheduler.num_preemptions
        }),
        ("chorale.steps", "Steps computed.", |stats| stats.num_steps),
        ("chorale.lost_steps", "Steps that were lost with a rank and planned again.", |stats| {
            stats.num_lost_steps
        }),
    ];
    for (name, description, read) in counters {
        let source = source.clone();
        let observe = move |observer: &dyn opentelemetry::metrics::AsyncInstrument<u64>| {
            observer.observe(read(&source.stats()), &*source.labels.0);
        };
        meter.u64_observable_counter(name).with_description(description).with_callback(observe).build();
    }
}

fn register_cache_config(meter: &Meter, source: &Source) {
    let source = source.clone();
    meter
        .u64_observable_gauge("vllm.cache_config_info")
        .with_description("The KV cache, in labels.")
        .with_callback(move |observer| {
            let Some(served) = source.served() else { return };
            let stats = served.engine.stats();
            let homes = &stats.scheduler.homes;
            let num_full: u64 = homes.iter().map(|home| u64::from(home.full.num_blocks)).sum();
            let num_sliding: u64 = homes.iter().map(|home| u64::from(home.sliding.num_blocks)).sum();
            let [model, engine] = &*source.labels.0;
            let is_caching = if served.prefix_caching { "True" } else { "False" };
            observer.observe(
                1,
                &[
                    model.clone(),
                    engine.clone(),
                    KeyValue::new("block_size", served.block_size_tokens.to_string()),
                    // vLLM's name, which dashboards read, whatever the device is.
                    KeyValue::new("num_gpu_blocks", num_full.to_string()),
                    KeyValue::new("num_sliding_blocks", num_sliding.to_string()),
                    KeyValue::new("enable_prefix_caching", is_caching),
                ],
            );
        })
        .build();
}

#[cfg(test)]
mod tests {
    use super::retry_after_s;

    #[test]
    fn a_full_queue_is_worth_another_try_when_its_backlog_is_computed() {
        assert_eq!(retry_after_s(1000, 100.0), 10);
        assert_eq!(retry_after_s(1, 100.0), 1);
        assert_eq!(retry_after_s(1000, 0.0), 1);
        assert_eq!(retry_after_s(1_000_000, 1.0), 120);
    }
}
