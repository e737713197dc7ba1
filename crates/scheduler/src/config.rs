//! What a scheduler is given once: homes, budgets and bounds, each with its
//! unit. Nothing here changes while it runs, and nothing here is a default:
//! those are written where configuration is read.

use chorale_plan::{Rank, Room, TokenId};

/// Everything that bounds a scheduler's decisions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The groups that sequences can live on. Kept in the order of their ranks.
    pub homes: Vec<HomeConfig>,
    /// Positions of a KV page, in both pools.
    pub block_size_tokens: u32,
    /// Keys that a query of the sliding layers sees, itself included; `None`
    /// for a model without sliding layers, whose pools may then be empty.
    pub window_tokens: Option<u32>,
    /// Prompt and output of a sequence together. An output stops here.
    pub max_context_tokens: u32,
    /// Steps that may be planned before the first of them is committed. 1 is
    /// plan, wait, commit; 2 hides the planning behind the device's work.
    pub max_steps_in_flight: u32,
    /// Requests that wait for their first slice; one more is rejected. All that
    /// arrives between two steps waits, so this is also the largest burst.
    pub max_waiting_requests: u32,
    /// Prompt tokens of the requests that wait for their first slice. A single
    /// request is let in whatever its length if none waits.
    pub max_waiting_tokens: u64,
    /// How long a request may wait for its first slice.
    pub max_waiting_ms: Option<u64>,
    /// A home that holds more sequences than the emptiest by more than this is
    /// passed over, whatever prefix it has cached: all ranks wait for the
    /// slowest in every layer, so a crowd costs everyone.
    pub max_home_imbalance_sequences: u32,
    /// Keep computed pages, and find them again by the tokens before them.
    pub prefix_caching: bool,
    /// What a computed prompt token costs its share; cached ones are free.
    pub prompt_token_cost: u32,
    /// What a sampled token costs its share.
    pub output_token_cost: u32,
    /// Tokens that end any sequence that does not ignore them.
    pub eos_tokens: Vec<TokenId>,
}

/// A group of ranks that keeps the KV cache of the sequences homed on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HomeConfig {
    /// The group's first rank, its name in a plan.
    pub rank: Rank,
    /// Pages of the full-attention layers; 0 for a home that takes no sequences.
    pub num_full_blocks: u32,
    /// Pages of the sliding layers.
    pub num_sliding_blocks: u32,
    /// Rows of this home in one step.
    pub max_step_tokens: u32,
    /// Sequences at this home, and so its slices in one step. Each may be
    /// sampled: the workers need as many rows of logits.
    pub max_step_slices: u32,
}

impl HomeConfig {
    /// The home of a group whose first rank is `rank` and has this room.
    pub fn new(rank: Rank, room: &Room) -> Self {
        Self {
            rank,
            num_full_blocks: room.num_full_blocks,
            num_sliding_blocks: room.num_sliding_blocks,
            max_step_tokens: room.max_step_tokens,
            max_step_slices: room.max_step_slices,
        }
    }
}

/// Why a configuration is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// There is nowhere to keep a sequence.
    #[error("no home is named")]
    NoHome,
    /// Two homes have the same name.
    #[error("rank {rank} is named as a home twice")]
    HomeTwice {
        /// The rank.
        rank: u32,
    },
    /// A bound that lets nothing through.
    #[error("{field} must be at least 1")]
    Zero {
        /// Its name.
        field: &'static str,
    },
    /// Every sequence takes at least one row of each step.
    #[error("home {rank}: a step of {max_step_tokens} tokens cannot hold {max_step_slices} slices")]
    SlicesExceedTokens {
        /// Which home.
        rank: u32,
        /// Its rows.
        max_step_tokens: u32,
        /// Its slices.
        max_step_slices: u32,
    },
}

impl Config {
    /// Says what cannot work.
    pub fn check(&self) -> Result<(), ConfigError> {
        for (field, value) in [
            ("block_size_tokens", self.block_size_tokens),
            ("window_tokens", self.window_tokens.unwrap_or(1)),
            ("max_context_tokens", self.max_context_tokens),
            ("max_steps_in_flight", self.max_steps_in_flight),
            ("max_waiting_requests", self.max_waiting_requests),
        ] {
            if value == 0 {
                return Err(ConfigError::Zero { field });
            }
        }
        check_homes(&self.homes)
    }
}

pub(crate) fn check_homes(homes: &[HomeConfig]) -> Result<(), ConfigError> {
    if homes.is_empty() {
        return Err(ConfigError::NoHome);
    }
    for (index, home) in homes.iter().enumerate() {
        let rank = home.rank.0;
        if homes[..index].iter().any(|other| other.rank == home.rank) {
            return Err(ConfigError::HomeTwice { rank });
        }
        let HomeConfig { max_step_tokens, max_step_slices, .. } = *home;
        if max_step_slices > max_step_tokens {
            return Err(ConfigError::SlicesExceedTokens { rank, max_step_tokens, max_step_slices });
        }
    }
    Ok(())
}
