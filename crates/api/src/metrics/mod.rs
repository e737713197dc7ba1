//! What can be measured from outside, under vLLM's names where vLLM has one, so
//! that dashboards, autoscalers and gateways work unchanged. It measures and
//! writes; nothing decides by these numbers.

mod buckets;
mod cluster;
mod engine;
mod experts;
mod exposition;
mod http;
mod reader;
mod requests;

use crate::generation::{Accepted, Finished, FinishedChoice, Observer};
use crate::status::EngineStatus;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use chorale_coordinator::cluster::ClusterStatus;
use opentelemetry::KeyValue;
use opentelemetry::metrics::{Meter, MeterProvider};
use opentelemetry_sdk::metrics::SdkMeterProvider;
use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

pub(crate) use http::{Counted, HttpMetrics};
pub(crate) use requests::RequestMetrics;

/// All instruments. Clones write to the same ones.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Instruments>);

#[derive(Debug)]
struct Instruments {
    reader: reader::Reader,
    engine: engine::EngineMetrics,
    requests: RequestMetrics,
    http: HttpMetrics,
    /// Instruments write to nothing once it is gone.
    _provider: SdkMeterProvider,
}

impl Metrics {
    /// Instruments for one model, and for its cluster where there is one. Token
    /// histograms end at `max_model_len`.
    pub fn new(
        model_name: &str,
        max_model_len: u32,
        status: watch::Receiver<EngineStatus>,
        cluster: Option<&watch::Receiver<Arc<ClusterStatus>>>,
    ) -> Self {
        let reader = reader::Reader::default();
        let provider = SdkMeterProvider::builder().with_reader(reader.clone()).build();
        // vLLM numbers its engines; this server has one.
        let labels = Labels(Arc::new([
            KeyValue::new("model_name", model_name.to_owned()),
            KeyValue::new("engine", "0"),
        ]));
        let meter = provider.meter("chorale");
        if let Some(cluster) = cluster {
            cluster::register(&meter, &labels, cluster);
        }
        experts::register(&meter, &labels, &experts::Source::new(&status, cluster));
        Self(Arc::new(Instruments {
            engine: engine::EngineMetrics::new(&meter, &labels, status),
            requests: RequestMetrics::new(&meter, &labels, max_model_len),
            http: HttpMetrics::new(&meter),
            reader,
            _provider: provider,
        }))
    }

    /// What a request to a generation endpoint takes.
    pub(crate) fn requests(&self) -> &RequestMetrics {
        &self.0.requests
    }

    /// Connections and responses.
    pub(crate) fn http(&self) -> &HttpMetrics {
        &self.0.http
    }

    /// Follows the engine's steps until the sender of the status is gone.
    pub(crate) async fn follow_engine(&self) {
        self.0.engine.follow().await;
    }

    /// When a full queue is worth another try.
    pub(crate) fn retry_after_s(&self) -> u64 {
        self.0.engine.retry_after_s()
    }

    /// Everything as it is now, as Prometheus reads it.
    pub fn encode(&self) -> String {
        exposition::encode(&self.0.reader.collect())
    }

    /// The response of `GET /metrics`.
    pub(crate) fn response(&self) -> Response {
        ([(header::CONTENT_TYPE, exposition::CONTENT_TYPE)], self.encode()).into_response()
    }
}

impl Observer for Metrics {
    fn accepted(&self, request: &Accepted<'_>) {
        self.0.requests.accepted(request);
    }

    fn first_token(&self, latency: Duration) {
        self.0.requests.first_token(latency);
    }

    fn next_token(&self, latency: Duration) {
        self.0.requests.next_token(latency);
    }

    fn choice_finished(&self, choice: &FinishedChoice<'_>) {
        self.0.requests.choice_finished(choice);
    }

    fn finished(&self, request: &Finished<'_>) {
        self.0.requests.finished(request);
    }
}

/// The labels that every metric of an engine has.
#[derive(Clone, Debug)]
struct Labels(Arc<[KeyValue; 2]>);

impl Labels {
    fn with(&self, key: &'static str, value: impl Into<Cow<'static, str>>) -> [KeyValue; 3] {
        let [model, engine] = &*self.0;
        [model.clone(), engine.clone(), KeyValue::new(key, value.into())]
    }
}

fn seconds(
    meter: &Meter,
    name: &'static str,
    bounds: &[f64],
    description: &'static str,
) -> opentelemetry::metrics::Histogram<f64> {
    let builder = meter.f64_histogram(name).with_description(description).with_unit("s");
    builder.with_boundaries(bounds.to_vec()).build()
}

fn counts(
    meter: &Meter,
    name: &'static str,
    bounds: &[f64],
    description: &'static str,
) -> opentelemetry::metrics::Histogram<u64> {
    let builder = meter.u64_histogram(name).with_description(description);
    builder.with_boundaries(bounds.to_vec()).build()
}
