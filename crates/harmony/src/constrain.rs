//! Which tokens the assistant may say next. It knows demands and masks, neither
//! requests nor logits.
//!
//! A turn is a sequence of messages, and each message a header and a body. The
//! headers are a handful of known texts; thinking and preambles are free; only
//! an answer's body and a call's arguments follow a grammar, armed when their
//! header is complete.

mod bounded;
mod bounds;
mod compile;
mod grammar;
mod literals;
mod mask;
mod opening;
mod spec;
mod turn;
mod unions;
mod vocabulary;

use chorale_plan::{TokenId, TokenMask};

pub use spec::{ConstraintError, ConstraintSpec, ResponseConstraint, SpecError, ToolChoice, ToolConstraint};

use turn::Turn;

/// What the assistant may say in one turn, token by token.
///
/// It begins after a prompt that ends in `<|start|>assistant`, and is over with
/// `<|return|>` or a `<|call|>` that no other may follow. A clone goes on
/// independently from where the original stands.
///
/// Everything but one thing is decided before the first token: a client's Lark
/// grammar may lead where nothing can follow, and any grammar can come to need
/// more work for a mask than a step may cost. Both are [`ConstraintError`]s.
///
/// ```
/// use chorale_harmony::{Constraint, ConstraintSpec, ResponseConstraint, special};
///
/// let spec = ConstraintSpec { response: ResponseConstraint::JsonObject, ..ConstraintSpec::default() };
/// let mut constraint = Constraint::new(&spec)?.expect("an object is demanded");
/// let allowed = constraint.allowed()?.expect("headers are never free");
/// assert!(allowed.contains(special::CHANNEL) && !allowed.contains(special::RETURN));
/// constraint.accept(special::CHANNEL)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Constraint {
    turn: Turn,
    /// The last answer of [`Self::allowed`], until a token is accepted.
    mask: Option<TokenMask>,
}

impl Constraint {
    /// The constraint that enforces `spec`, or `None` if it demands nothing:
    /// then nothing need be asked of each token.
    ///
    /// Compiling takes a millisecond for what people write and five seconds at
    /// most; the caller waits. Schemas, expressions, names and numbers of tools
    /// have bounds, so that few bytes cannot buy much work or memory.
    ///
    /// # Errors
    ///
    /// [`SpecError`] names the field at fault.
    pub fn new(spec: &ConstraintSpec) -> Result<Option<Self>, SpecError> {
        let is_free = spec.response == ResponseConstraint::None && spec.tools.is_empty();
        if is_free && matches!(spec.tool_choice, ToolChoice::None | ToolChoice::Auto) {
            return Ok(None);
        }
        Ok(Some(Self { turn: Turn::new(spec)?, mask: None }))
    }

    /// Builds what all constraints share, which takes some tenths of a second;
    /// otherwise the first one does. For a server before it says that it is ready.
    ///
    /// # Errors
    ///
    /// If the vocabulary cannot be used, which no request can change.
    pub fn prepare() -> Result<(), ConstraintError> {
        compile::prepare().map_err(|reason| ConstraintError::Grammar { reason })
    }

    /// The tokens that may come next; `None` allows all. Free text is always
    /// the same mask, shared.
    ///
    /// # Errors
    ///
    /// [`ConstraintError::Grammar`]; the turn cannot go on.
    pub fn allowed(&mut self) -> Result<Option<TokenMask>, ConstraintError> {
        if self.mask.is_none() {
            self.mask = Some(self.turn.allowed()?);
        }
        Ok(self.mask.clone())
    }

    /// The turn goes on with this token.
    ///
    /// # Errors
    ///
    /// [`ConstraintError::NotAllowed`] if it is none of [`Self::allowed`]; the
    /// turn stays where it was.
    pub fn accept(&mut self, token: TokenId) -> Result<(), ConstraintError> {
        self.turn.accept(token)?;
        self.mask = None;
        Ok(())
    }

    /// Whether the turn is over: all that may follow is `<|return|>`, for
    /// engines that go on after it.
    pub fn is_over(&self) -> bool {
        self.turn.is_over()
    }
}
