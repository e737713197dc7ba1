//! Metrics of the SDK as Prometheus' text format, version 0.0.4. It writes what
//! it is given: labels and help are escaped, but nothing is added or dropped.
//!
//! OpenTelemetry allows no colon in names, Prometheus' clients of vLLM expect
//! one: the instrument `vllm.x` becomes `vllm:x`, every other point a `_`.

use opentelemetry::KeyValue;
use opentelemetry_sdk::metrics::data::{AggregatedMetrics, Metric, MetricData, ResourceMetrics};
use std::fmt::{Display, Write};

/// What `content-type` says of the text.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All metrics, in the order of their names.
pub(super) fn encode(collected: &ResourceMetrics) -> String {
    let mut metrics: Vec<&Metric> = collected.scope_metrics().flat_map(|scope| scope.metrics()).collect();
    metrics.sort_by_key(|metric| metric.name());
    let mut text = String::with_capacity(16 * 1024);
    for metric in metrics {
        match metric.data() {
            AggregatedMetrics::F64(data) => family(&mut text, metric, data),
            AggregatedMetrics::U64(data) => family(&mut text, metric, data),
            AggregatedMetrics::I64(data) => family(&mut text, metric, data),
        }
    }
    text
}

/// The name that Prometheus knows an instrument by.
fn name_of(instrument: &str) -> String {
    match instrument.strip_prefix("vllm.") {
        Some(name) => format!("vllm:{}", name.replace('.', "_")),
        None => instrument.replace('.', "_"),
    }
}

fn family<T: Copy + Display>(text: &mut String, metric: &Metric, data: &MetricData<T>) {
    let name = name_of(metric.name());
    match data {
        MetricData::Gauge(gauge) => {
            head(text, &name, metric, "gauge");
            let points = gauge.data_points().map(|point| (labels(point.attributes()), point.value()));
            samples(text, &name, points);
        }
        MetricData::Sum(sum) => {
            let (name, kind) = match sum.is_monotonic() {
                true if name.ends_with("_total") => (name, "counter"),
                true => (format!("{name}_total"), "counter"),
                false => (name, "gauge"),
            };
            head(text, &name, metric, kind);
            let points = sum.data_points().map(|point| (labels(point.attributes()), point.value()));
            samples(text, &name, points);
        }
        MetricData::Histogram(histogram) => {
            head(text, &name, metric, "histogram");
            for point in histogram.data_points() {
                let labels = labels(point.attributes());
                let comma = if labels.is_empty() { "" } else { "," };
                let mut cumulative = 0;
                for (bound, count) in point.bounds().zip(point.bucket_counts()) {
                    cumulative += count;
                    line(
                        text,
                        &format!("{name}_bucket"),
                        &format!("{labels}{comma}le=\"{bound:?}\""),
                        cumulative,
                    );
                }
                let count = point.count();
                line(text, &format!("{name}_bucket"), &format!("{labels}{comma}le=\"+Inf\""), count);
                line(text, &format!("{name}_sum"), &labels, point.sum());
                line(text, &format!("{name}_count"), &labels, count);
            }
        }
        // No instrument of ours asks for it, and the text format has no such thing.
        MetricData::ExponentialHistogram(_) => {}
    }
}

fn head(text: &mut String, name: &str, metric: &Metric, kind: &str) {
    let help = metric.description().replace('\\', "\\\\").replace('\n', "\\n");
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// Sorted by labels: the SDK keeps them in no order, and people read this.
fn samples<T: Display>(text: &mut String, name: &str, points: impl Iterator<Item = (String, T)>) {
    let mut points: Vec<(String, T)> = points.collect();
    points.sort_by(|left, right| left.0.cmp(&right.0));
    for (labels, value) in points {
        line(text, name, &labels, value);
    }
}

fn line(text: &mut String, name: &str, labels: &str, value: impl Display) {
    let _ = match labels {
        "" => writeln!(text, "{name} {value}"),
        labels => writeln!(text, "{name}{{{labels}}} {value}"),
    };
}

fn labels<'a>(attributes: impl Iterator<Item = &'a KeyValue>) -> String {
    let mut labels: Vec<String> = attributes
        .map(|attribute| {
            let key = attribute.key.as_str().replace('.', "_");
            let value = attribute.value.as_str();
            let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            format!("{key}=\"{value}\"")
        })
        .collect();
    labels.sort();
    labels.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::reader::Reader;
    use opentelemetry::metrics::MeterProvider;
    use opentelemetry_sdk::metrics::SdkMeterProvider;

    #[test]
    fn each_kind_of_instrument_is_written_as_prometheus_reads_it() {
        let reader = Reader::default();
        let provider = SdkMeterProvider::builder().with_reader(reader.clone()).build();
        let meter = provider.meter("test");
        let label = [KeyValue::new("model.name", "a\"b\\c\nd")];
        meter.u64_counter("vllm.prompt_tokens").with_description("Tokens.").build().add(3, &label);
        meter.i64_up_down_counter("chorale.open").build().add(2, &[]);
        let histogram = meter.f64_histogram("vllm.iteration_tokens_total").with_boundaries(vec![1.0, 2.5]);
        let histogram = histogram.build();
        histogram.record(2.0, &label);
        histogram.record(9.0, &label);

        let expected = expect_test::expect![[r#"
            # HELP chorale_open 
            # TYPE chorale_open gauge
            chorale_open 2
            # HELP vllm:iteration_tokens_total 
            # TYPE vllm:iteration_tokens_total histogram
            vllm:iteration_tokens_total_bucket{model_name="a\"b\\c\nd",le="1.0"} 0
            vllm:iteration_tokens_total_bucket{model_name="a\"b\\c\nd",le="2.5"} 1
            vllm:iteration_tokens_total_bucket{model_name="a\"b\\c\nd",le="+Inf"} 2
            vllm:iteration_tokens_total_sum{model_name="a\"b\\c\nd"} 11
            vllm:iteration_tokens_total_count{model_name="a\"b\\c\nd"} 2
            # HELP vllm:prompt_tokens_total Tokens.
            # TYPE vllm:prompt_tokens_total counter
            vllm:prompt_tokens_total{model_name="a\"b\\c\nd"} 3
        "#]];
        expected.assert_eq(&encode(&reader.collect()));
    }
}
