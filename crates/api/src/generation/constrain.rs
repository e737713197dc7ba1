//! Harmony's constraint as the engine asks for it. Only names change here.

use chorale_coordinator::{Constraint, ConstraintError};
use chorale_plan::{TokenId, TokenMask};

/// One sequence's constraint.
pub(super) struct Armed(pub(super) chorale_harmony::Constraint);

impl Constraint for Armed {
    fn allowed(&mut self) -> Result<Option<TokenMask>, ConstraintError> {
        self.0.allowed().map_err(failed)
    }

    fn accept(&mut self, token: TokenId) -> Result<(), ConstraintError> {
        self.0.accept(token).map_err(failed)
    }
}

fn failed(error: chorale_harmony::ConstraintError) -> ConstraintError {
    ConstraintError { reason: error.to_string() }
}
