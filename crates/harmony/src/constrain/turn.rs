//! The assistant's turn as a state machine over harmony's tokens: which message
//! may come, which body it gets, when the turn may end. Grammars are its parts.

use std::sync::Arc;

use chorale_plan::{TokenId, TokenMask};

use super::compile::{Answer, Bodies, compile};
use super::grammar::Grammar;
use super::literals::Cursor;
use super::mask::{FreeEnd, MaskBuilder, free_text};
use super::opening::{Opening, Openings};
use super::spec::{ConstraintError, ConstraintSpec, SpecError, ToolChoice};
use crate::tokenizer::special;

/// How many messages of thinking and preamble may come before the turn must do
/// something: a model that is kept from what it wants could go on forever.
const FREE_MESSAGES_MAX: u32 = 8;

#[derive(Clone, Debug)]
pub(super) struct Turn {
    openings: Arc<Openings>,
    bodies: Bodies,
    /// No answer before a call.
    must_call: bool,
    /// Another call may follow a call.
    may_call_again: bool,
    num_free: u32,
    num_calls: u32,
    state: State,
}

#[derive(Clone, Debug)]
enum State {
    /// A header is being said, from `<|start|>` on if it is not the first.
    Header(Cursor<Opening>),
    /// The text is free.
    Free(FreeEnd),
    /// One of several answers is being said.
    Choice(Cursor<()>),
    /// The text follows a grammar and ends in this token.
    Grammar(Grammar, TokenId),
    /// Nothing more is to be said.
    Over,
}

impl Turn {
    pub(super) fn new(spec: &ConstraintSpec) -> Result<Self, SpecError> {
        let openings = Openings::new(&spec.tools, &spec.tool_choice, &spec.response)?;
        let is_named = matches!(spec.tool_choice, ToolChoice::Named(_));
        let mut turn = Self {
            openings: Arc::new(openings),
            bodies: compile(spec)?,
            must_call: is_named || spec.tool_choice == ToolChoice::Required,
            may_call_again: spec.parallel_tool_calls && !is_named,
            num_free: 0,
            num_calls: 0,
            state: State::Over,
        };
        turn.state = turn.header(true);
        Ok(turn)
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(self.state, State::Over)
    }

    pub(super) fn allowed(&mut self) -> Result<TokenMask, ConstraintError> {
        let mut mask = MaskBuilder::empty();
        match &mut self.state {
            State::Header(cursor) => {
                cursor.allow_next(&mut mask);
                // After a call the model may leave it at that.
                if self.num_calls > 0 && cursor.is_new() {
                    mask.allow(special::RETURN);
                }
            }
            State::Free(end) => return Ok(free_text(*end)),
            State::Choice(cursor) => {
                cursor.allow_next(&mut mask);
                if cursor.complete().is_some() {
                    mask.allow(special::RETURN);
                }
            }
            State::Grammar(grammar, end) => return grammar.allowed(*end),
            State::Over => mask.allow(special::RETURN),
        }
        Ok(mask.finish())
    }

    pub(super) fn accept(&mut self, token: TokenId) -> Result<(), ConstraintError> {
        let is_text = token < special::FIRST;
        let next = match &mut self.state {
            State::Header(cursor) => {
                if self.num_calls > 0 && cursor.is_new() && token == special::RETURN {
                    Some(State::Over)
                } else if !cursor.advance(token) {
                    None
                } else if let Some(opening) = cursor.complete().copied() {
                    Some(self.body(opening))
                } else {
                    return Ok(());
                }
            }
            State::Free(_) if is_text => return Ok(()),
            State::Free(end) if end.token() == token => Some(match end {
                FreeEnd::End => self.header(false),
                FreeEnd::Return => State::Over,
            }),
            State::Free(_) => None,
            State::Choice(cursor) if token == special::RETURN => cursor.complete().map(|()| State::Over),
            State::Choice(cursor) => match cursor.advance(token) {
                true => return Ok(()),
                false => None,
            },
            State::Grammar(grammar, _) if is_text => match grammar.accept(token)? {
                true => return Ok(()),
                false => None,
            },
            State::Grammar(grammar, end) if *end == token => match grammar.is_complete()? {
                true => Some(self.after_grammar(token)),
                false => None,
            },
            State::Grammar(..) => None,
            State::Over => (token == special::RETURN).then_some(State::Over),
        };
        self.state = next.ok_or(ConstraintError::NotAllowed { token })?;
        Ok(())
    }

    /// A header of any message that may come now.
    fn header(&self, is_first: bool) -> State {
        State::Header(self.openings.cursor(is_first, |opening| match opening {
            Opening::Analysis | Opening::Preamble => self.num_calls == 0 && self.num_free < FREE_MESSAGES_MAX,
            Opening::Answer => self.num_calls == 0 && !self.must_call,
            Opening::Call(_) => true,
        }))
    }

    /// What follows a complete header.
    fn body(&mut self, opening: Opening) -> State {
        match opening {
            Opening::Analysis | Opening::Preamble => {
                self.num_free += 1;
                State::Free(FreeEnd::End)
            }
            Opening::Answer => match &self.bodies.answer {
                Answer::Free => State::Free(FreeEnd::Return),
                Answer::Literals(cursor) => State::Choice(cursor.clone()),
                Answer::Grammar(grammar) => State::Grammar(grammar.begin(), special::RETURN),
            },
            Opening::Call(index) => match self.bodies.arguments.get(index) {
                Some(Some(grammar)) => State::Grammar(grammar.begin(), special::CALL),
                // Only headers of callable tools are spelt.
                Some(None) | None => State::Over,
            },
        }
    }

    fn after_grammar(&mut self, end: TokenId) -> State {
        if end != special::CALL {
            return State::Over;
        }
        self.num_calls += 1;
        if self.may_call_again { self.header(false) } else { State::Over }
    }
}
