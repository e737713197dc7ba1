//! What a sequence may say next. The engine asks before each of its tokens and
//! tells what was sampled; grammars themselves live elsewhere.

use chorale_plan::{TokenId, TokenMask};

/// Limits what a sequence may say, token by token.
pub trait Constraint: Send {
    /// The tokens that may come next; `None` allows all. The stop tokens of
    /// the sequence are among them where it may end. Asked again before a token is
    /// accepted, the answer is the same: the step it was asked for may be lost.
    fn allowed(&mut self) -> Result<Option<TokenMask>, ConstraintError>;

    /// The sequence goes on with this token.
    fn accept(&mut self, token: TokenId) -> Result<(), ConstraintError>;
}

/// A grammar that cannot go on; the sequence it belongs to ends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("constrained decoding failed: {reason}")]
pub struct ConstraintError {
    /// Why.
    pub reason: String,
}
