//! Experts that do not all fit their GPUs, in numbers: those of this process, or
//! those of each worker of a cluster. There are none while all are on GPUs.

use super::Labels;
use crate::status::EngineStatus;
use chorale_coordinator::cluster::ClusterStatus;
use chorale_plan::ExpertResidency;
use opentelemetry::metrics::{AsyncInstrument, Meter};
use std::sync::Arc;
use tokio::sync::watch;

type Read = fn(&ExpertResidency) -> u64;

/// Workers with series of their own, ranks first; all others are one more together.
const MAX_WORKERS: usize = 256;

/// What those others are called.
const OTHERS: &str = "others";

/// Where the numbers are.
#[derive(Clone)]
pub(super) struct Source {
    engine: watch::Receiver<EngineStatus>,
    cluster: Option<watch::Receiver<Arc<ClusterStatus>>>,
}

impl Source {
    pub(super) fn new(
        engine: &watch::Receiver<EngineStatus>,
        cluster: Option<&watch::Receiver<Arc<ClusterStatus>>>,
    ) -> Self {
        Self { engine: engine.clone(), cluster: cluster.cloned() }
    }

    /// Each worker's, by its address; this process's has none.
    fn read(&self) -> Vec<(Option<String>, ExpertResidency)> {
        if let Some(cluster) = &self.cluster {
            return of_workers(&cluster.borrow());
        }
        let residency = match &*self.engine.borrow() {
            EngineStatus::Ready(served) => served.experts.as_ref().and_then(|experts| experts.read()),
            EngineStatus::Loading(_) | EngineStatus::Failed { .. } => None,
        };
        residency.map(|residency| (None, residency)).into_iter().collect()
    }
}

fn of_workers(status: &ClusterStatus) -> Vec<(Option<String>, ExpertResidency)> {
    let known = status.members.iter().filter_map(|member| Some((member, member.residency?)));
    let mut read: Vec<_> =
        known.map(|(member, residency)| (Some(member.address.clone()), residency)).collect();
    if read.len() > MAX_WORKERS {
        let others = read.split_off(MAX_WORKERS - 1).into_iter().map(|(_, residency)| residency);
        read.extend(others.reduce(|sum, one| sum + one).map(|sum| (Some(OTHERS.to_owned()), sum)));
    }
    read
}

/// Registers everything.
pub(super) fn register(meter: &Meter, labels: &Labels, source: &Source) {
    let gauges: [(&str, &str, Read); 2] = [
        ("chorale.experts_on_gpu", "Experts that lie on a GPU.", |experts| experts.gpu_experts),
        ("chorale.experts_on_host", "Experts that lie in the host's memory.", |experts| experts.host_experts),
    ];
    for (name, description, read) in gauges {
        let observe = observe(labels, source, read);
        meter.u64_observable_gauge(name).with_description(description).with_callback(observe).build();
    }
    let counters: [(&str, &str, Read); 4] = [
        ("chorale.expert_hits", "Times that a step's layer read an expert on its GPU.", |experts| {
            experts.hits
        }),
        ("chorale.expert_misses", "Times that a step's layer read an expert over the bus.", |experts| {
            experts.misses
        }),
        (
            "chorale.expert_streams",
            "Times that an expert was copied to the GPU for one layer of one step of many rows, and read there.",
            |experts| experts.streamed,
        ),
        ("chorale.expert_moves", "Times that experts changed places between GPU and host.", |experts| {
            experts.moves
        }),
    ];
    for (name, description, read) in counters {
        let observe = observe(labels, source, read);
        meter.u64_observable_counter(name).with_description(description).with_callback(observe).build();
    }
}

fn observe(
    labels: &Labels,
    source: &Source,
    read: Read,
) -> impl Fn(&dyn AsyncInstrument<u64>) + Send + Sync + 'static {
    let (labels, source) = (labels.clone(), source.clone());
    move |observer| {
        for (worker, residency) in source.read() {
            match worker {
                None => observer.observe(read(&residency), &*labels.0),
                Some(worker) => observer.observe(read(&residency), &labels.with("worker", worker)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::exposition;
    use crate::metrics::reader::Reader;
    use crate::status::LoadStatus;
    use crate::status::cluster::tests::{EXPERTS, serving, worker};
    use opentelemetry::KeyValue;
    use opentelemetry::metrics::MeterProvider;
    use opentelemetry_sdk::metrics::SdkMeterProvider;

    /// Registers the metrics of a cluster, and reads them as a scraper does.
    fn scraped(
        cluster: watch::Receiver<Arc<ClusterStatus>>,
    ) -> (impl Fn() -> Vec<String>, watch::Sender<EngineStatus>) {
        let reader = Reader::default();
        let provider = SdkMeterProvider::builder().with_reader(reader.clone()).build();
        let labels = Labels(Arc::new([KeyValue::new("model_name", "m"), KeyValue::new("engine", "0")]));
        let (tell, engine) = watch::channel(EngineStatus::Loading(LoadStatus::new(1)));
        register(&provider.meter("test"), &labels, &Source::new(&engine, Some(&cluster)));
        let read = move || {
            let _provider = &provider;
            let text = exposition::encode(&reader.collect());
            let samples = text.lines().filter(|line| !line.starts_with('#'));
            samples.map(|line| line.replace("engine=\"0\",model_name=\"m\",", "")).collect()
        };
        (read, tell)
    }

    #[test]
    fn a_cluster_says_of_each_worker_how_its_experts_were_read() {
        let status = serving(vec![
            worker("a:1", Some(EXPERTS)),
            worker("b:1", None),
            worker("c:1", Some(ExpertResidency { hits: 5, ..EXPERTS })),
        ]);
        let (tell, cluster) = watch::channel(Arc::new(status));
        let (samples, _engine) = scraped(cluster);
        let found = samples();
        assert_eq!(found.len(), 12, "six of each worker that has any: {found:?}");
        for line in [
            "chorale_expert_hits_total{worker=\"a:1\"} 900",
            "chorale_expert_hits_total{worker=\"c:1\"} 5",
            "chorale_expert_misses_total{worker=\"a:1\"} 80",
            "chorale_expert_streams_total{worker=\"a:1\"} 7",
            "chorale_expert_moves_total{worker=\"a:1\"} 6",
            "chorale_experts_on_gpu{worker=\"a:1\"} 30",
            "chorale_experts_on_host{worker=\"a:1\"} 10",
        ] {
            assert!(found.iter().any(|found| found == line), "{line} in {found:?}");
        }
        tell.send_replace(Arc::new(serving(vec![worker("d:1", Some(EXPERTS))])));
        let found = samples();
        assert!(found.len() == 6 && found.iter().all(|line| line.contains("d:1")), "who is gone: {found:?}");
    }

    #[test]
    fn a_bounded_number_of_workers_has_series_of_its_own() {
        let one = ExpertResidency { hits: 1, ..ExpertResidency::default() };
        let workers = (0..1000).map(|number| worker(&format!("w{number}:1"), Some(one))).collect();
        let (_tell, cluster) = watch::channel(Arc::new(serving(workers)));
        let (samples, _engine) = scraped(cluster);
        let hits: Vec<String> =
            samples().into_iter().filter(|line| line.starts_with("chorale_expert_hits")).collect();
        assert_eq!(hits.len(), MAX_WORKERS);
        assert!(hits.contains(&"chorale_expert_hits_total{worker=\"others\"} 745".to_owned()), "{hits:?}");
    }
}
