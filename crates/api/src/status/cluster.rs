//! The cluster as people and `chorale cluster` see it. A server whose ranks are
//! in its own process says so: it has no members to show.

use crate::error::ApiError;
use crate::server::Shared;
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use chorale_coordinator::cluster::{
    BusiestExpert, ClusterState, ClusterStatus, FaultStatus, MemberState, MemberStatus,
};
use chorale_plan::{Carrier, ExpertResidency, KvFormat, OneShot};
use serde_json::{Value, json};

/// `GET /v1/cluster`.
pub(crate) async fn cluster(State(shared): State<Shared>) -> Result<Response, ApiError> {
    match shared.cluster() {
        Some(cluster) => Ok(Json(document(&cluster.borrow())).into_response()),
        None => Err(ApiError::NotFound {
            message: "this server computes in its own process: there is no cluster to show".to_owned(),
        }),
    }
}

fn document(status: &ClusterStatus) -> Value {
    let ago_s = |at_ms: u64| seconds(status.at_ms.saturating_sub(at_ms));
    let (state, since_ms) = match status.state {
        ClusterState::Serving => ("serving", None),
        ClusterState::Lacking { since_ms, .. } => ("lacking", Some(since_ms)),
        ClusterState::Forming { since_ms, .. } => ("forming", Some(since_ms)),
        ClusterState::Inquiring { since_ms, .. } => ("inquiring", Some(since_ms)),
    };
    json!({
        "state": state,
        "reason": status.state.reason(),
        "down_s": since_ms.map(ago_s),
        "epoch": status.epoch.0,
        "placement": status.placement,
        "wanted": {
            "tensor_parallel_size": status.wanted_tensor_parallel_size,
            "data_parallel_size": status.wanted_data_parallel_size,
        },
        "shape": status.shape.map(|shape| json!({
            "tensor_parallel_size": shape.tensor_parallel_size,
            "data_parallel_size": shape.data_parallel_size,
            "num_ranks": shape.num_ranks,
        })),
        "transport": status.transport,
        "carrier": status.carrier.map(|carrier| match carrier {
            Carrier::Frames => "frames",
            Carrier::Nccl => "nccl",
        }),
        "one_shot": one_shot(status.one_shot),
        "dense_dtype": status.dense_dtype.name(),
        "kv_cache_dtype": status.kv_dtype.map(KvFormat::name),
        "nccl_failures": status.num_carrier_failures,
        "imbalance": status.imbalance,
        "rebalances": status.num_rebalances,
        "experts_moved": status.num_moved_experts,
        "experts": {
            "rows": status.experts.rows,
            "busiest": status.experts.busiest.iter().map(busiest).collect::<Vec<_>>(),
        },
        "epochs": status.num_epochs,
        "recoveries": status.num_recoveries,
        "last_pause_s": seconds(status.last_pause_ms),
        "total_pause_s": seconds(status.total_pause_ms),
        "workers": status.members.iter().map(|member| worker(member, &ago_s)).collect::<Vec<_>>(),
        "num_faults": status.num_faults,
        "faults": status.faults.iter().map(|fault| self::fault(fault, &ago_s)).collect::<Vec<_>>(),
    })
}

fn busiest(busiest: &BusiestExpert) -> Value {
    json!({"expert": busiest.expert, "share": busiest.share})
}

fn worker(member: &MemberStatus, ago_s: &impl Fn(u64) -> f64) -> Value {
    let state = match member.state {
        MemberState::Waiting => json!({"state": "waiting"}),
        MemberState::Loading { bytes, total_bytes } => {
            json!({"state": "loading", "bytes": bytes, "total_bytes": total_bytes})
        }
        MemberState::Ready => json!({"state": "ready"}),
        MemberState::Excluded { until_ms } => json!({"state": "excluded", "until_ms": until_ms}),
        MemberState::Leaving => json!({"state": "leaving"}),
    };
    let mut worker = json!({
        "rank": member.rank.map(|rank| rank.0),
        "home": member.home.map(|rank| rank.0),
        "role": match (member.rank, member.home) {
            (None, _) => "spare",
            (Some(_), Some(_)) => "attention",
            (Some(_), None) => "experts",
        },
        "address": member.address,
        "version": member.version,
        "device": member.device,
        "memory_bytes": member.memory_bytes,
        "memory_bytes_per_s": member.memory_bytes_per_s,
        "host_expert_bytes": member.host_expert_bytes,
        "kv_cache_dtype": member.kv_dtype.map(KvFormat::name),
        "offload": member.residency.map(|residency| offload(&residency, member.used_host_bytes)),
        "one_shot": one_shot(member.one_shot),
        "experts": member.num_experts,
        "rows": member.num_rows,
        "heard_s": ago_s(member.heard_ms),
        "step": member.pulse.step,
        "waiting_for": member.pulse.waiting_for.map(|rank| rank.0),
        "stalled_ms": member.pulse.stalled_ms,
        "step_us": member.report.total_us,
        "waited_us": member.report.waited_us,
        "faults": member.num_faults,
    });
    if let (Value::Object(worker), Value::Object(state)) = (&mut worker, state) {
        worker.extend(state);
    }
    worker
}

/// Experts that do not all fit a GPU.
fn offload(experts: &ExpertResidency, host_bytes: u64) -> Value {
    json!({
        "gpu_experts": experts.gpu_experts,
        "host_experts": experts.host_experts,
        "host_bytes": host_bytes,
        "hits": experts.hits,
        "misses": experts.misses,
        "streams": experts.streamed,
        "moves": experts.moves,
    })
}

/// Among whom small exchanges take one launch.
fn one_shot(OneShot { world, group }: OneShot) -> Vec<&'static str> {
    [world.then_some("world"), group.then_some("group")].into_iter().flatten().collect()
}

fn fault(fault: &FaultStatus, ago_s: &impl Fn(u64) -> f64) -> Value {
    json!({
        "ago_s": ago_s(fault.at_ms),
        "epoch": fault.epoch.0,
        "rank": fault.rank.map(|rank| rank.0),
        "address": fault.address,
        "reason": fault.reason,
    })
}

fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use chorale_plan::{DenseFormat, Epoch, Pulse, Rank, Shape, StepReport};
    use std::collections::BTreeSet;
    use std::sync::Arc;

    /// A worker's that do not all fit its GPU.
    pub(crate) const EXPERTS: ExpertResidency =
        ExpertResidency { gpu_experts: 30, host_experts: 10, hits: 900, misses: 80, streamed: 7, moves: 6 };

    /// A cluster that serves on these workers, in groups of one.
    pub(crate) fn serving(members: Vec<MemberStatus>) -> ClusterStatus {
        let num_ranks = members.len() as u32;
        let rank = |(rank, member): (u32, MemberStatus)| MemberStatus {
            rank: Some(Rank(rank)),
            home: Some(Rank(rank)),
            ..member
        };
        ClusterStatus {
            at_ms: 1000,
            epoch: Epoch(7),
            state: ClusterState::Serving,
            wanted_tensor_parallel_size: 1,
            wanted_data_parallel_size: num_ranks,
            shape: Some(Shape { tensor_parallel_size: 1, data_parallel_size: num_ranks, num_ranks }),
            transport: "grpc, mutual tls".to_owned(),
            carrier: Some(Carrier::Nccl),
            one_shot: OneShot { world: true, group: false },
            dense_dtype: DenseFormat::Int8,
            kv_dtype: None,
            num_carrier_failures: 0,
            placement: 0,
            num_rebalances: 0,
            num_moved_experts: 0,
            imbalance: None,
            experts: Arc::default(),
            members: (0..).zip(members).map(rank).collect(),
            faults: Vec::new(),
            num_faults: 0,
            num_epochs: 1,
            num_recoveries: 0,
            last_pause_ms: 0,
            total_pause_ms: 0,
        }
    }

    /// One of them.
    pub(crate) fn worker(address: &str, residency: Option<ExpertResidency>) -> MemberStatus {
        MemberStatus {
            rank: None,
            home: None,
            state: MemberState::Ready,
            address: address.to_owned(),
            version: "0".to_owned(),
            device: "NVIDIA H100".to_owned(),
            memory_bytes: 80 << 30,
            memory_bytes_per_s: 3_350_000_000_000,
            host_expert_bytes: 64 << 30,
            kv_dtype: Some(KvFormat::Fp8),
            residency,
            used_host_bytes: residency.map_or(0, |residency| residency.host_experts * 100),
            one_shot: OneShot { world: true, group: true },
            num_experts: 40,
            num_rows: 0,
            heard_ms: 900,
            pulse: Pulse::default(),
            report: StepReport::default(),
            num_faults: 0,
        }
    }

    #[test]
    fn a_cluster_shows_what_weights_pages_and_experts_are_kept_in_and_how_rows_travel() {
        let shown = document(&serving(vec![worker("a:1", Some(EXPERTS)), worker("b:1", None)]));
        assert_eq!(shown["dense_dtype"], "int8");
        assert_eq!(shown["kv_cache_dtype"], Value::Null, "each group as its devices would");
        assert_eq!((&shown["carrier"], &shown["one_shot"]), (&json!("nccl"), &json!(["world"])));
        let [first, second] = [&shown["workers"][0], &shown["workers"][1]];
        assert_eq!((&first["device"], &first["kv_cache_dtype"]), (&json!("NVIDIA H100"), &json!("fp8")));
        assert_eq!(first["host_expert_bytes"], 64_u64 << 30);
        assert_eq!(first["one_shot"], json!(["world", "group"]));
        assert_eq!(
            first["offload"],
            json!({
                "gpu_experts": 30, "host_experts": 10, "host_bytes": 1000,
                "hits": 900, "misses": 80, "streams": 7, "moves": 6
            })
        );
        assert_eq!(second["offload"], Value::Null, "all its experts are on its GPU");
    }

    #[test]
    fn what_is_shown_is_what_the_description_says() {
        let described: Value = serde_json::from_str(include_str!("../openapi/openapi.json")).unwrap();
        let described = |name: &str| keys(&described["components"]["schemas"][name]["properties"]);
        let shown = document(&serving(vec![worker("a:1", Some(ExpertResidency::default()))]));
        assert_eq!(keys(&shown), described("Cluster"));
        assert_eq!(keys(&shown["workers"][0]), described("ClusterWorker"));
        assert_eq!(keys(&shown["workers"][0]["offload"]), described("ClusterOffload"));
    }

    fn keys(object: &Value) -> BTreeSet<String> {
        object.as_object().unwrap().keys().cloned().collect()
    }
}
