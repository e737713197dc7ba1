//! Connections and responses, under the names of the instrumentation that
//! vLLM's front door has.

use super::{buckets, seconds};
use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Histogram, Meter, UpDownCounter};
use std::time::Duration;

#[derive(Debug)]
pub(crate) struct HttpMetrics {
    requests: Counter<u64>,
    duration: Histogram<f64>,
    fine_duration: Histogram<f64>,
    open_connections: UpDownCounter<i64>,
    active_requests: UpDownCounter<i64>,
}

impl HttpMetrics {
    pub(super) fn new(meter: &Meter) -> Self {
        let open_connections = meter.i64_up_down_counter("chorale.http_open_connections");
        let active_requests = meter.i64_up_down_counter("chorale.http_active_requests");
        let metrics = Self {
            requests: meter.u64_counter("http.requests").with_description("Responses.").build(),
            duration: seconds(
                meter,
                "http.request_duration_seconds",
                buckets::HTTP_S,
                "From a request's head to the end of its response.",
            ),
            fine_duration: seconds(
                meter,
                "http.request_duration_highr_seconds",
                buckets::HTTP_FINE_S,
                "The same over all routes, cut finer.",
            ),
            open_connections: open_connections.with_description("Connections that are open.").build(),
            active_requests: active_requests
                .with_description("Requests whose response is not complete, streams among them.")
                .build(),
        };
        metrics.open_connections.add(0, &[]);
        metrics.active_requests.add(0, &[]);
        metrics
    }

    /// Counts a connection while the value lives.
    pub(crate) fn connection(&self) -> Counted {
        self.open_connections.add(1, &[]);
        Counted(self.open_connections.clone())
    }

    /// Counts a request while the value lives.
    pub(crate) fn request(&self) -> Counted {
        self.active_requests.add(1, &[]);
        Counted(self.active_requests.clone())
    }

    /// `route` is one of ours, never what a client wrote.
    pub(crate) fn responded(&self, route: &str, method: &'static str, status: u16, duration: Duration) {
        let route = KeyValue::new("handler", route.to_owned());
        let method = KeyValue::new("method", method);
        let class = match status / 100 {
            1 => "1xx",
            2 => "2xx",
            3 => "3xx",
            4 => "4xx",
            _ => "5xx",
        };
        self.duration.record(duration.as_secs_f64(), &[route.clone(), method.clone()]);
        self.fine_duration.record(duration.as_secs_f64(), &[]);
        self.requests.add(1, &[route, method, KeyValue::new("status", class)]);
    }
}

/// Something that is counted while it lives.
#[derive(Debug)]
pub(crate) struct Counted(UpDownCounter<i64>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.add(-1, &[]);
    }
}
