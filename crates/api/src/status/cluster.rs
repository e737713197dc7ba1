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
use chorale_plan::Carrier;
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
