//! The cluster in numbers, read when somebody asks. Nothing here is labelled by
//! rank, expert or address: how many series there are does not depend on the cluster.

use super::Labels;
use chorale_coordinator::cluster::{ClusterState, ClusterStatus};
use chorale_plan::Carrier;
use opentelemetry::metrics::{AsyncInstrument, Meter};
use std::sync::Arc;
use tokio::sync::watch;

type Status = watch::Receiver<Arc<ClusterStatus>>;

/// Nothing is observed where this gives nothing.
type Read = fn(&ClusterStatus) -> Option<f64>;

/// Registers everything for a server whose ranks are a cluster.
pub(super) fn register(meter: &Meter, labels: &Labels, status: &Status) {
    let gauges: [(&str, &str, Read); 6] = [
        ("chorale.cluster_serving", "1 while steps can run, else 0.", |status| {
            Some(f64::from(u8::from(status.state == ClusterState::Serving)))
        }),
        ("chorale.cluster_ranks", "Ranks of the present epoch.", |status| {
            Some(status.shape.map_or(0.0, |shape| f64::from(shape.num_ranks)))
        }),
        ("chorale.cluster_members", "Workers that are connected, with a rank or without.", |status| {
            Some(status.members.len() as f64)
        }),
        (
            "chorale.cluster_nccl",
            "1 while ranks exchange rows by NCCL, 0 while they do by frames.",
            |status| Some(f64::from(u8::from(status.carrier == Some(Carrier::Nccl)))),
        ),
        ("chorale.cluster_last_pause_seconds", "How long no step could run, the last time.", |status| {
            Some(seconds(status.last_pause_ms))
        }),
        (
            "chorale.cluster_imbalance",
            "The time of the busiest ranks as a multiple of what it would be if all were equally busy.",
            |status| status.imbalance,
        ),
    ];
    for (name, description, read) in gauges {
        let observe = observe(labels, status, read);
        meter.f64_observable_gauge(name).with_description(description).with_callback(observe).build();
    }
    let counters: [(&str, &str, Read); 6] = [
        ("chorale.cluster_epochs", "Memberships that were formed.", |status| Some(status.num_epochs as f64)),
        (
            "chorale.cluster_faults",
            "Workers that were lost or left out, and steps that nobody is blamed for.",
            |status| Some(status.num_faults as f64),
        ),
        ("chorale.cluster_nccl_failures", "Times that NCCL failed, where no rank did.", |status| {
            Some(status.num_carrier_failures as f64)
        }),
        ("chorale.cluster_recoveries", "Times that steps could run again after they could not.", |status| {
            Some(status.num_recoveries as f64)
        }),
        ("chorale.cluster_pause_seconds", "How long no step could run, all times together.", |status| {
            Some(seconds(status.total_pause_ms))
        }),
        ("chorale.cluster_experts_moved", "Experts that were moved or copied to balance loads.", |status| {
            Some(status.num_moved_experts as f64)
        }),
    ];
    for (name, description, read) in counters {
        let observe = observe(labels, status, read);
        meter.f64_observable_counter(name).with_description(description).with_callback(observe).build();
    }
}

fn observe(
    labels: &Labels,
    status: &Status,
    read: Read,
) -> impl Fn(&dyn AsyncInstrument<f64>) + Send + Sync + 'static {
    let (labels, status) = (labels.clone(), status.clone());
    move |observer| {
        if let Some(value) = read(&status.borrow()) {
            observer.observe(value, &*labels.0);
        }
    }
}

fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::exposition;
    use crate::metrics::reader::Reader;
    use crate::status::cluster::tests::serving;
    use chorale_coordinator::cluster::Lack;
    use chorale_plan::{Epoch, Shape};
    use opentelemetry::KeyValue;
    use opentelemetry::metrics::MeterProvider;
    use opentelemetry_sdk::metrics::SdkMeterProvider;

    fn at_first() -> ClusterStatus {
        let lack = Lack { reason: "no worker is here".to_owned(), num_workers: 1, bytes: 0 };
        ClusterStatus {
            at_ms: 0,
            epoch: Epoch(0),
            state: ClusterState::Lacking { lack, since_ms: 0 },
            wanted_data_parallel_size: 1,
            shape: None,
            carrier: None,
            num_epochs: 0,
            ..serving(Vec::new())
        }
    }

    #[test]
    fn a_cluster_is_measured_without_a_series_for_each_of_its_parts() {
        let reader = Reader::default();
        let provider = SdkMeterProvider::builder().with_reader(reader.clone()).build();
        let labels = Labels(Arc::new([KeyValue::new("model_name", "m"), KeyValue::new("engine", "0")]));
        let (tell, status) = watch::channel(Arc::new(at_first()));
        register(&provider.meter("test"), &labels, &status);
        let samples = || {
            let text = exposition::encode(&reader.collect());
            let samples = text.lines().filter(|line| !line.starts_with('#'));
            samples.map(|line| line.replace("{engine=\"0\",model_name=\"m\"}", "")).collect::<Vec<_>>()
        };
        let first = samples();
        assert_eq!(first.len(), 11, "nothing is known of loads: {first:?}");
        assert!(first.iter().all(|line| line.ends_with(" 0")), "{first:?}");
        tell.send_replace(Arc::new(ClusterStatus {
            state: ClusterState::Serving,
            shape: Some(Shape { tensor_parallel_size: 2, data_parallel_size: 2, num_ranks: 5 }),
            imbalance: Some(1.5),
            num_moved_experts: 7,
            carrier: Some(Carrier::Nccl),
            num_carrier_failures: 1,
            num_epochs: 4,
            num_faults: 3,
            num_recoveries: 2,
            last_pause_ms: 250,
            total_pause_ms: 1750,
            ..at_first()
        }));
        assert_eq!(
            samples(),
            [
                "chorale_cluster_epochs_total 4",
                "chorale_cluster_experts_moved_total 7",
                "chorale_cluster_faults_total 3",
                "chorale_cluster_imbalance 1.5",
                "chorale_cluster_last_pause_seconds 0.25",
                "chorale_cluster_members 0",
                "chorale_cluster_nccl 1",
                "chorale_cluster_nccl_failures_total 1",
                "chorale_cluster_pause_seconds_total 1.75",
                "chorale_cluster_ranks 5",
                "chorale_cluster_recoveries_total 2",
                "chorale_cluster_serving 1",
            ]
        );
    }
}
