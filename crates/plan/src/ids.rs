//! The numbers that name things in a plan.

/// An entry of the model's vocabulary.
pub type TokenId = u32;

/// A request inside the engine; never reused while the engine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// A worker's number in the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Rank(pub u32);

/// A KV page. Full and sliding layers have a pool each, so the same number
/// names two different pages, one in each pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub u32);
