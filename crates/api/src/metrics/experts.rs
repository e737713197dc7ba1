//! Experts that do not all fit the GPUs of this process, in numbers. There are
//! none while all are on GPUs.

use super::Labels;
use crate::status::{EngineStatus, ExpertResidency};
use opentelemetry::metrics::{AsyncInstrument, Meter};
use tokio::sync::watch;

type Status = watch::Receiver<EngineStatus>;

type Read = fn(&ExpertResidency) -> u64;

/// Registers everything.
pub(super) fn register(meter: &Meter, labels: &Labels, status: &Status) {
    let gauges: [(&str, &str, Read); 2] = [
        ("chorale.experts_on_gpu", "Experts that lie on a GPU.", |experts| experts.gpu_experts),
        ("chorale.experts_on_host", "Experts that lie in the host's memory.", |experts| experts.host_experts),
    ];
    for (name, description, read) in gauges {
        let observe = observe(labels, status, read);
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
        let observe = observe(labels, status, read);
        meter.u64_observable_counter(name).with_description(description).with_callback(observe).build();
    }
}

fn observe(
    labels: &Labels,
    status: &Status,
    read: Read,
) -> impl Fn(&dyn AsyncInstrument<u64>) + Send + Sync + 'static {
    let (labels, status) = (labels.clone(), status.clone());
    move |observer| {
        let residency = match &*status.borrow() {
            EngineStatus::Ready(served) => served.experts.as_ref().and_then(|experts| experts.read()),
            EngineStatus::Loading(_) | EngineStatus::Failed { .. } => None,
        };
        if let Some(residency) = residency {
            observer.observe(read(&residency), &*labels.0);
        }
    }
}
