//! Models that know no language: each picks one of the allowed tokens, by a rule
//! and a seed. What they say is what a constraint lets a hostile model say.

use chorale_harmony::{
    Constraint, ConstraintError, ConstraintSpec, TokenId, Tokenizer, VOCABULARY_SIZE, special,
};
use chorale_plan::TokenMask;

/// How a token is picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// Any, with a liking for what closes things.
    Random,
    /// A special one if there is one, else the highest id.
    Highest,
    /// The lowest id.
    Lowest,
}

/// What was said, and whether the turn is over.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) tokens: Vec<TokenId>,
    pub(crate) is_over: bool,
}

/// After so many tokens every model wants to be done.
const PATIENCE: usize = 160;
const TOKENS_MAX: usize = 1_200;
/// What brings JSON, and most else, to its end.
const CLOSERS: [&str; 12] = ["\"", "}", "]", "\"}", "\":", ":", "0", "Z", ",", "{", "[", "-"];

/// A small generator with good bits (splitmix64).
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// One turn under the constraint of `spec`.
pub(crate) fn generate(spec: &ConstraintSpec, style: Style, seed: u64) -> Said {
    let constraint = Constraint::new(spec).unwrap().expect("it demands something");
    go_on(constraint, style, seed)
}

/// The rest of a turn.
pub(crate) fn go_on(mut constraint: Constraint, style: Style, seed: u64) -> Said {
    let mut rng = Rng(seed);
    let mut tokens = Vec::new();
    while tokens.len() < TOKENS_MAX && !constraint.is_over() {
        let mask = constraint.allowed().unwrap().expect("a mask");
        let token = pick(&mask, style, tokens.len() > PATIENCE, &mut rng);
        assert!(mask.contains(token));
        constraint.accept(token).unwrap();
        tokens.push(token);
    }
    Said { tokens, is_over: constraint.is_over() }
}

fn pick(mask: &TokenMask, style: Style, is_impatient: bool, rng: &mut Rng) -> TokenId {
    let ends = [special::RETURN, special::CALL, special::END];
    let end = ends.into_iter().find(|&end| mask.contains(end));
    let mut closers = CLOSERS
        .into_iter()
        .map(|text| Tokenizer::shared().encode_text(text)[0])
        .filter(|&token| mask.contains(token));
    match style {
        _ if is_impatient => end.or(closers.next()).unwrap_or_else(|| any(mask, rng)),
        Style::Random => match (rng.below(6), end) {
            (0..2, Some(end)) => end,
            (2..4, _) => {
                let closers: Vec<TokenId> = closers.collect();
                if closers.is_empty() { any(mask, rng) } else { closers[rng.below(closers.len())] }
            }
            _ => any(mask, rng),
        },
        Style::Highest => highest(mask),
        Style::Lowest => (0..VOCABULARY_SIZE).find(|&token| mask.contains(token)).unwrap(),
    }
}

fn highest(mask: &TokenMask) -> TokenId {
    (0..VOCABULARY_SIZE + 32).rev().find(|&token| mask.contains(token)).unwrap()
}

fn any(mask: &TokenMask, rng: &mut Rng) -> TokenId {
    let num: u32 = mask.0.iter().map(|word| word.count_ones()).sum();
    let mut nth = rng.below(num as usize) as u32;
    for (index, word) in mask.0.iter().enumerate() {
        if nth < word.count_ones() {
            let bit = (0..32).filter(|bit| word >> bit & 1 == 1).nth(nth as usize).unwrap();
            return index as u32 * 32 + bit;
        }
        nth -= word.count_ones();
    }
    unreachable!("the mask is not empty");
}

/// Says up to so many tokens, and whether the constraint went along.
pub(crate) fn probe(mut constraint: Constraint, num_tokens: usize) -> Result<(), ConstraintError> {
    let mut rng = Rng(3);
    for token in Tokenizer::shared().encode_with_specials("<|channel|>final<|message|>") {
        constraint.accept(token)?;
    }
    for _ in 0..num_tokens {
        let mask = constraint.allowed()?.expect("a mask");
        constraint.accept(pick(&mask, Style::Random, false, &mut rng))?;
    }
    Ok(())
}
