//! What a cluster is to be: the shape that is wanted, the model in numbers, the
//! room that is left for keys and values, and every deadline.

use chorale_plan::{DenseFormat, Epoch, ExchangeOptions, KvFormat, Room};

/// Everything that decides how ranks come together. Nothing here changes while
/// the cluster runs.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterConfig {
    /// Ranks that split a sequence's attention, if there are as many.
    pub tensor_parallel_size: u32,
    /// Groups, if there are ranks for as many.
    pub data_parallel_size: u32,
    /// The first epoch. One that no earlier coordinator can have reached, such
    /// as the time in milliseconds: workers of its epochs may still be there.
    pub first_epoch: Epoch,
    /// The model.
    pub model: ModelFacts,
    /// The room for keys and values.
    pub rooms: RoomRules,
    /// How all ranks keep dense weights; `model` counts them so.
    pub dense_dtype: DenseFormat,
    /// How all ranks keep keys and values; if `None`, each group as its devices would.
    pub kv_dtype: Option<KvFormat>,
    /// How ranks exchange rows.
    pub exchange: ExchangeOptions,
    /// How rows travel, for people: `grpc, tls`.
    pub transport: String,
    /// Deadlines.
    pub timeouts: Timeouts,
    /// When and how far experts move to where there is less to do.
    pub balance: BalanceRule,
    /// Workers at once. More are turned away.
    pub max_members: u32,
}

/// The model in numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelFacts {
    /// The checkpoint's digest. `None` takes the first worker's for it.
    pub checkpoint: Option<String>,
    /// Layers.
    pub num_layers: u32,
    /// Experts of a layer.
    pub num_experts: u32,
    /// Bytes of one expert of one layer.
    pub expert_bytes: u64,
    /// What a rank holds beside its experts, for each size that a group may
    /// have, from 1 on: as many entries as there are key-value heads.
    pub splits: Vec<SplitFacts>,
    /// What a rank without attention needs beside its experts.
    pub experts_only_bytes: u64,
}

/// What one rank of a group holds beside its experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SplitFacts {
    /// Dense weights, and the buffers of a step.
    pub dense_bytes: u64,
    /// A page of all full-attention layers together.
    pub full_page_bytes: PageBytes,
    /// A page of all sliding layers together.
    pub sliding_page_bytes: PageBytes,
}

/// Bytes of a page, by how it holds keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageBytes {
    /// See [`KvFormat::F32`].
    pub f32: u64,
    /// See [`KvFormat::Bf16`].
    pub bf16: u64,
    /// See [`KvFormat::Fp8`].
    pub fp8: u64,
}

impl PageBytes {
    /// Bytes of a page of that kind.
    pub fn of(&self, format: KvFormat) -> u64 {
        match format {
            KvFormat::F32 => self.f32,
            KvFormat::Bf16 => self.bf16,
            KvFormat::Fp8 => self.fp8,
        }
    }
}

/// The room for keys and values, by how they are kept: narrower ones leave room for
/// longer sequences, where nobody says how long they may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoomRules {
    /// See [`KvFormat::F32`].
    pub f32: RoomRule,
    /// See [`KvFormat::Bf16`].
    pub bf16: RoomRule,
    /// See [`KvFormat::Fp8`].
    pub fp8: RoomRule,
}

impl RoomRules {
    /// The same however they are kept.
    pub fn same(rule: RoomRule) -> Self {
        Self { f32: rule, bf16: rule, fp8: rule }
    }

    /// Of ranks that keep them so.
    pub fn of(&self, kv: KvFormat) -> &RoomRule {
        match kv {
            KvFormat::F32 => &self.f32,
            KvFormat::Bf16 => &self.bf16,
            KvFormat::Fp8 => &self.fp8,
        }
    }

    #[cfg(test)]
    pub(super) fn of_mut(&mut self, kv: KvFormat) -> &mut RoomRule {
        match kv {
            KvFormat::F32 => &mut self.f32,
            KvFormat::Bf16 => &mut self.bf16,
            KvFormat::Fp8 => &mut self.fp8,
        }
    }

    /// What a rank that keeps them so leaves free of experts.
    pub(super) fn reserved_bytes(&self, split: &SplitFacts, kv: KvFormat) -> u64 {
        self.of(kv).reserved_bytes(split, kv)
    }
}

/// How many pages a rank gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoomRule {
    /// The longest sequence.
    pub max_sequence_tokens: u32,
    /// Positions of a page.
    pub block_size_tokens: u32,
    /// Rows of one home in a step.
    pub max_step_tokens: u32,
    /// Sequences of one home in a step.
    pub max_step_slices: u32,
    /// Pages of the sliding layers.
    pub num_sliding_blocks: u32,
    /// Pages of the full layers without which it is not worth while: one
    /// sequence of the longest context.
    pub min_full_blocks: u32,
    /// Pages of the full layers that all sequences can take together.
    pub max_full_blocks: u32,
    /// Memory of a rank for all pages. `None` takes a half of what weights leave.
    pub kv_cache_bytes: Option<u64>,
    /// `None` never takes more than this, or than the least.
    pub max_bytes_by_default: u64,
}

impl RoomRule {
    /// What a rank keeps free of experts: what was asked for, or the least.
    pub(super) fn reserved_bytes(&self, split: &SplitFacts, kv: KvFormat) -> u64 {
        let least = self.bytes(split, kv, self.min_full_blocks);
        self.kv_cache_bytes.map_or(least, |bytes| bytes.max(least))
    }

    /// The room of a rank that has so much memory beside its weights, which is
    /// at least what was reserved.
    pub(super) fn room(&self, split: &SplitFacts, kv: KvFormat, left_bytes: u64) -> Room {
        let budget = self.kv_cache_bytes.unwrap_or((left_bytes / 2).min(self.max_bytes_by_default));
        let budget = budget.max(self.bytes(split, kv, self.min_full_blocks)).min(left_bytes);
        let for_full = budget.saturating_sub(self.bytes(split, kv, 0));
        let num_full = match split.full_page_bytes.of(kv) {
            0 => u64::from(self.max_full_blocks),
            bytes => for_full / bytes,
        };
        Room {
            num_full_blocks: num_full.min(u64::from(self.max_full_blocks)) as u32,
            num_sliding_blocks: self.num_sliding_blocks,
            ..self.without_pages(kv)
        }
    }

    /// The room of a rank without attention.
    pub(super) fn without_pages(&self, kv: KvFormat) -> Room {
        Room {
            max_step_tokens: self.max_step_tokens,
            max_step_slices: self.max_step_slices,
            block_size_tokens: self.block_size_tokens,
            num_full_blocks: 0,
            num_sliding_blocks: 0,
            kv_dtype: kv,
        }
    }

    /// Memory of so many full pages beside the sliding ones.
    pub(super) fn bytes(&self, split: &SplitFacts, kv: KvFormat, num_full_blocks: u32) -> u64 {
        u64::from(self.num_sliding_blocks) * split.sliding_page_bytes.of(kv)
            + u64::from(num_full_blocks) * split.full_page_bytes.of(kv)
    }
}

/// Every deadline, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// The interval of pulses, both ways.
    pub pulse_ms: u32,
    /// A worker that says nothing for so long is lost.
    pub silence_ms: u64,
    /// A rank whose loading does not go on for so long is lost.
    pub loading_ms: u64,
    /// A rank that computes for so long without anything new, and waits for
    /// nobody, hangs.
    pub hang_ms: u64,
    /// A step that takes longer is given up.
    pub step_ms: u64,
    /// After the first word of a failure: how long others may say whom they blame.
    pub inquest_ms: u64,
    /// Workers that join while others serve wait so long for more to join, so
    /// that several cost one pause.
    pub settle_ms: u64,
    /// A rank that failed is left out for so long, twice as long each time.
    pub backoff_ms: u64,
    /// Never longer than this.
    pub max_backoff_ms: u64,
    /// How long the first epoch waits for all ranks that are wanted; after that
    /// it does with less. `None` waits for ever.
    pub first_epoch_ms: Option<u64>,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            pulse_ms: 250,
            silence_ms: 1500,
            loading_ms: 60_000,
            hang_ms: 30_000,
            step_ms: 300_000,
            inquest_ms: 300,
            settle_ms: 1000,
            backoff_ms: 1000,
            max_backoff_ms: 300_000,
            first_epoch_ms: None,
        }
    }
}

/// When experts move, and how far.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BalanceRule {
    /// How often loads are looked at; 0 never moves an expert.
    pub interval_ms: u64,
    /// The time of the busiest ranks, as a multiple of what it would be if all
    /// were equally busy, from which it pays to move experts.
    pub min_imbalance: f64,
    /// Times in a row that it must be exceeded.
    pub min_intervals: u32,
    /// Rows to experts in an interval below which loads say nothing.
    pub min_rows: u64,
    /// Experts that move or are copied at once.
    pub max_changes: u32,
}

impl BalanceRule {
    /// Looks at loads so often, 0 for never: a shorter look is content with less.
    pub fn every(interval_ms: u64) -> Self {
        Self { interval_ms, min_rows: interval_ms, ..Self::default() }
    }
}

impl Default for BalanceRule {
    fn default() -> Self {
        Self { interval_ms: 10_000, min_imbalance: 1.25, min_intervals: 2, min_rows: 10_000, max_changes: 64 }
    }
}

/// Why a cluster cannot be as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClusterConfigError {
    /// More ranks than can split the attention.
    #[error(
        "--tensor-parallel-size is {asked}: attention is split by whole key-value heads, of which the model \
         has {limit}; use at most {limit}, and --data-parallel-size for more ranks"
    )]
    SplitTooFar {
        /// What was asked for.
        asked: u32,
        /// What can be.
        limit: u32,
    },
    /// A number that lets nothing through.
    #[error("{field} must be at least 1")]
    Zero {
        /// Its name.
        field: &'static str,
    },
    /// More ranks than members.
    #[error("{ranks} ranks are wanted, and only {limit} workers let in")]
    TooManyRanks {
        /// What was asked for.
        ranks: u64,
        /// What can be.
        limit: u32,
    },
}

impl ClusterConfig {
    /// Says what cannot work.
    pub fn check(&self) -> Result<(), ClusterConfigError> {
        let model = &self.model;
        for (field, value) in [
            ("tensor_parallel_size", self.tensor_parallel_size),
            ("data_parallel_size", self.data_parallel_size),
            ("num_layers", model.num_layers),
            ("num_experts", model.num_experts),
            ("expert_bytes", model.expert_bytes.min(1) as u32),
            ("block_size_tokens", self.rooms.f32.block_size_tokens),
            ("pulse_ms", self.timeouts.pulse_ms),
            ("silence_ms", self.timeouts.silence_ms.min(1) as u32),
        ] {
            if value == 0 {
                return Err(ClusterConfigError::Zero { field });
            }
        }
        let (asked, limit) = (self.tensor_parallel_size, model.splits.len() as u32);
        if asked > limit {
            return Err(ClusterConfigError::SplitTooFar { asked, limit });
        }
        let ranks = u64::from(asked) * u64::from(self.data_parallel_size);
        if ranks > u64::from(self.max_members) {
            return Err(ClusterConfigError::TooManyRanks { ranks, limit: self.max_members });
        }
        Ok(())
    }

    pub(super) fn split(&self, tensor_parallel_size: u32) -> &SplitFacts {
        &self.model.splits[tensor_parallel_size as usize - 1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPLIT: SplitFacts = SplitFacts {
        dense_bytes: 1000,
        full_page_bytes: PageBytes { f32: 10, bf16: 5, fp8: 3 },
        sliding_page_bytes: PageBytes { f32: 5, bf16: 2, fp8: 1 },
    };

    fn rule(kv_cache_bytes: Option<u64>) -> RoomRule {
        RoomRule {
            max_sequence_tokens: 160,
            block_size_tokens: 16,
            max_step_tokens: 64,
            max_step_slices: 8,
            num_sliding_blocks: 4,
            min_full_blocks: 10,
            max_full_blocks: 100,
            kv_cache_bytes,
            max_bytes_by_default: 1 << 20,
        }
    }

    #[test]
    fn pages_take_half_of_what_is_left_and_never_less_than_the_least() {
        let room = |left_bytes| rule(None).room(&SPLIT, KvFormat::F32, left_bytes).num_full_blocks;
        assert_eq!(rule(None).reserved_bytes(&SPLIT, KvFormat::F32), 120);
        assert_eq!([1000, 130, 1_000_000].map(room), [48, 10, 100]);
        let room = |max_bytes_by_default| {
            let rule = RoomRule { max_bytes_by_default, ..rule(None) };
            rule.room(&SPLIT, KvFormat::F32, 10_000).num_full_blocks
        };
        assert_eq!([1, 320].map(room), [10, 30], "a trial does not take all there is");
    }

    #[test]
    fn narrower_pages_are_more_pages() {
        let room = |kv| rule(None).room(&SPLIT, kv, 420);
        assert_eq!(KvFormat::ALL.map(|kv| room(kv).num_full_blocks), [68, 40, 19]);
        assert_eq!(KvFormat::ALL.map(|kv| room(kv).kv_dtype), KvFormat::ALL);
        assert_eq!(KvFormat::ALL.map(|kv| rule(None).reserved_bytes(&SPLIT, kv)), [34, 58, 120]);
    }

    #[test]
    fn pages_take_what_was_asked_for() {
        assert_eq!(rule(Some(500)).reserved_bytes(&SPLIT, KvFormat::F32), 500);
        assert_eq!(rule(Some(500)).room(&SPLIT, KvFormat::F32, 1000).num_full_blocks, 48);
        assert_eq!(rule(Some(1)).reserved_bytes(&SPLIT, KvFormat::F32), 120, "one sequence must fit");
    }
}
