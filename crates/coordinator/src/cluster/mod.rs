//! Ranks in other processes: who is there, who has which place, and what
//! becomes of a step when one of them fails.
//!
//! [`Membership`] decides and does nothing: no clock, no I/O, no chance; the same
//! events at the same times give the same actions. [`Cluster`] runs it over
//! connections, and [`ClusterExecutor`] is what the engine computes on.
//!
//! Invariant: epochs only count up, and in an epoch each rank is one worker's.
//! What is said for another epoch than the present one is ignored.

mod blame;
mod carrier;
mod config;
mod draft;
#[cfg(test)]
mod draw;
mod driver;
mod executor;
mod member;
mod membership;
mod placement;
mod service;
mod status;

pub use config::{
    BalanceRule, ClusterConfig, ClusterConfigError, ModelFacts, PageBytes, RoomRule, RoomRules, SplitFacts,
    Timeouts,
};
pub use draft::Lack;
pub use driver::{Cluster, Connection};
pub use executor::ClusterExecutor;
pub use member::MemberId;
pub use membership::{Action, Event, Membership, World};
pub use service::{JoinPort, JoinPortConfig, JoinPortError};
pub use status::{
    BusiestExpert, ClusterState, ClusterStatus, ExpertLoads, FaultStatus, MemberState, MemberStatus,
};

/// A small cluster for tests: 2 layers of 8 experts of 10 bytes; dense weights of
/// 100 bytes alone and 60 in a group of two.
#[cfg(test)]
pub(crate) fn test_config(tensor_parallel_size: u32, data_parallel_size: u32) -> ClusterConfig {
    let page = |bytes| PageBytes { f32: bytes, bf16: bytes, fp8: bytes };
    let split =
        |dense_bytes| SplitFacts { dense_bytes, full_page_bytes: page(2), sliding_page_bytes: page(1) };
    ClusterConfig {
        tensor_parallel_size,
        data_parallel_size,
        first_epoch: chorale_plan::Epoch(1),
        model: ModelFacts {
            checkpoint: None,
            num_layers: 2,
            num_experts: 8,
            expert_bytes: 10,
            splits: vec![split(100), split(60)],
            experts_only_bytes: 0,
        },
        rooms: RoomRules::same(RoomRule {
            max_sequence_tokens: 32,
            block_size_tokens: 4,
            max_step_tokens: 64,
            max_step_slices: 16,
            num_sliding_blocks: 4,
            min_full_blocks: 8,
            max_full_blocks: 64,
            kv_cache_bytes: None,
            max_bytes_by_default: u64::MAX,
        }),
        dense_dtype: chorale_plan::DenseFormat::Bf16,
        kv_dtype: None,
        exchange: chorale_plan::ExchangeOptions::exact(2000),
        transport: "channels".to_owned(),
        timeouts: Timeouts { loading_ms: 5000, hang_ms: 4000, step_ms: 20_000, ..Timeouts::default() },
        balance: BalanceRule { min_rows: 100, ..BalanceRule::default() },
        max_members: 16,
    }
}
