//! Slices to columns: the one place where the plan's objects become a device's
//! rows, and where a plan is checked, since it comes from another process.

use chorale_device::{BatchLimits, Columns, Draw, Feed, KvShape, PenaltyTerms, SliceColumns, Table};
use chorale_plan::{BlockTable, SamplingParams, SequenceId, SequenceSlice, SliceTokens, TokenId};
use std::collections::HashMap;

/// What is wrong with a plan; the planner and this rank disagree on the
/// contract, so the rank must refuse rather than compute.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum PlanError {
    /// A slice holds no tokens.
    #[error("sequence {sequence}: the slice is empty")]
    EmptySlice {
        /// Whose slice.
        sequence: u64,
    },
    /// The step is larger than this rank has room for.
    #[error("{what}: the step has {found}, this rank has room for {room}")]
    TooLarge {
        /// Of what.
        what: &'static str,
        /// In the plan.
        found: usize,
        /// At most.
        room: usize,
    },
    /// A token lies outside the vocabulary.
    #[error("sequence {sequence}: token {token} is not in the vocabulary of {vocab_size}")]
    UnknownToken {
        /// Whose token.
        sequence: u64,
        /// Which.
        token: TokenId,
        /// Ids below this are known.
        vocab_size: usize,
    },
    /// A slice reaches beyond the positions that the model may be used at.
    #[error("sequence {sequence}: position {position} is beyond the context of {context}")]
    BeyondContext {
        /// Whose slice.
        sequence: u64,
        /// Its last position.
        position: u64,
        /// The model's context.
        context: usize,
    },
    /// A block table lacks pages, or names pages that are not there.
    #[error("sequence {sequence}: the {pool} block table {fault}")]
    BlockTable {
        /// Whose table.
        sequence: u64,
        /// `full` or `sliding`.
        pool: &'static str,
        /// What is wrong.
        fault: String,
    },
    /// The step before sampled no token for this sequence.
    #[error("sequence {sequence}: the step before sampled no token for it")]
    NothingSampled {
        /// Which sequence.
        sequence: u64,
    },
    /// Halves of a step where there is room for one part only.
    #[error("the step comes in halves, this rank has no room for two")]
    NoHalves,
    /// A sampling parameter is out of its range.
    #[error("sequence {sequence}: sampling parameter {name} is {value}")]
    Sampling {
        /// Whose parameter.
        sequence: u64,
        /// Which.
        name: &'static str,
        /// Its value.
        value: f32,
    },
}

/// Where the token is that the step before sampled for a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sampled {
    /// Among the device's samples.
    At(u32),
    /// Here: a step in halves leaves the samples of its last half on the device.
    Token(TokenId),
}

/// What a plan may ask of this rank.
#[derive(Clone, Debug)]
pub(crate) struct Bounds {
    pub(crate) limits: BatchLimits,
    pub(crate) kv: KvShape,
    /// The window of the sliding layers, if there are any.
    pub(crate) window: Option<u32>,
    pub(crate) vocab_size: usize,
    pub(crate) context: usize,
}

/// The columns of a step.
pub(crate) fn columns(
    slices: &[SequenceSlice],
    sampled_before: &HashMap<SequenceId, Sampled>,
    bounds: &Bounds,
) -> Result<Columns, PlanError> {
    let mut columns = Columns::default();
    at_most("slices", slices.len(), bounds.limits.max_slices)?;
    let num_rows = slices.iter().map(|slice| slice.tokens.len()).sum();
    at_most("rows", num_rows, bounds.limits.max_rows)?;
    let num_samples = slices.iter().filter(|slice| slice.sample.is_some()).count();
    at_most("samples", num_samples, bounds.limits.max_logit_rows)?;
    for slice in slices {
        add_slice(&mut columns, slice, sampled_before, bounds)?;
    }
    Ok(columns)
}

fn at_most(what: &'static str, found: usize, room: usize) -> Result<(), PlanError> {
    if found > room { Err(PlanError::TooLarge { what, found, room }) } else { Ok(()) }
}

fn add_slice(
    columns: &mut Columns,
    slice: &SequenceSlice,
    sampled_before: &HashMap<SequenceId, Sampled>,
    bounds: &Bounds,
) -> Result<(), PlanError> {
    let sequence = slice.sequence.0;
    if slice.tokens.is_empty() {
        return Err(PlanError::EmptySlice { sequence });
    }
    let end = u64::from(slice.num_computed) + slice.tokens.len() as u64;
    if end > bounds.context as u64 {
        return Err(PlanError::BeyondContext { sequence, position: end - 1, context: bounds.context });
    }
    let positions = slice.num_computed..end as u32;
    let first_row = columns.num_rows() as u32;
    match &slice.tokens {
        SliceTokens::Known(tokens) => {
            for &token in tokens {
                known(token, sequence, bounds)?;
            }
            columns.tokens.extend(tokens);
        }
        SliceTokens::SampledBefore => {
            let sample = sampled_before.get(&slice.sequence).copied();
            match sample.ok_or(PlanError::NothingSampled { sequence })? {
                Sampled::At(sample) => {
                    columns.feeds.push(Feed { row: first_row, sample });
                    columns.tokens.push(0);
                }
                Sampled::Token(token) => columns.tokens.push(token),
            }
        }
    }
    columns.positions.extend(positions.clone());

    let kv = &bounds.kv;
    let span = |window| BlockTable::span(positions.clone(), window, kv.block_size as u32);
    let table = |pool, table: &BlockTable, span, num_blocks| {
        check_table(table, span, num_blocks).map_err(|fault| PlanError::BlockTable { sequence, pool, fault })
    };
    let has_full = kv.windows.iter().any(Option::is_none);
    let full = if has_full {
        table("full", &slice.full_blocks, span(None), kv.num_full_blocks)?
    } else {
        Table::default()
    };
    let sliding = match bounds.window {
        Some(window) => table("sliding", &slice.sliding_blocks, span(Some(window)), kv.num_sliding_blocks)?,
        None => Table::default(),
    };
    columns.slices.push(SliceColumns { rows: first_row..columns.num_rows() as u32, full, sliding });

    if let Some(sampling) = &slice.sample {
        columns.logit_rows.push(columns.num_rows() as u32 - 1);
        columns.draws.push(draw(sampling, positions.end, sequence, bounds)?);
    }
    Ok(())
}

/// Cuts a step in two by rows, the first half having the odd one. A slice that
/// is cut goes on in the second half: its keys are there when they are read,
/// since in each layer the first half comes first.
pub(crate) fn halves(mut columns: Columns) -> [Columns; 2] {
    let middle = columns.num_rows().div_ceil(2);
    let mut second = Columns {
        tokens: columns.tokens.split_off(middle),
        positions: columns.positions.split_off(middle),
        ..Columns::default()
    };
    let middle = middle as u32;
    let feeds = columns.feeds.iter().filter(|feed| feed.row >= middle);
    second.feeds = feeds.map(|feed| Feed { row: feed.row - middle, ..*feed }).collect();
    columns.feeds.retain(|feed| feed.row < middle);
    let rests = columns.slices.iter().filter(|slice| slice.rows.end > middle);
    let rest = |slice: &SliceColumns| SliceColumns {
        rows: slice.rows.start.saturating_sub(middle)..slice.rows.end - middle,
        ..slice.clone()
    };
    second.slices = rests.map(rest).collect();
    columns.slices.retain(|slice| slice.rows.start < middle);
    if let Some(cut) = columns.slices.last_mut() {
        cut.rows.end = cut.rows.end.min(middle);
    }
    // In the order of their rows, and so are the draws.
    let num_first = columns.logit_rows.partition_point(|&row| row < middle);
    second.logit_rows = columns.logit_rows.drain(num_first..).map(|row| row - middle).collect();
    second.draws = columns.draws.drain(num_first..).collect();
    [columns, second]
}

fn known(token: TokenId, sequence: u64, bounds: &Bounds) -> Result<(), PlanError> {
    if (token as usize) < bounds.vocab_size {
        return Ok(());
    }
    Err(PlanError::UnknownToken { sequence, token, vocab_size: bounds.vocab_size })
}

fn check_table(table: &BlockTable, span: std::ops::Range<u32>, num_blocks: usize) -> Result<Table, String> {
    let held = u64::from(table.first)..u64::from(table.first) + table.blocks.len() as u64;
    if held.start > u64::from(span.start) || held.end < u64::from(span.end) {
        return Err(format!("holds pages {held:?}, the slice needs {span:?}"));
    }
    if let Some(block) = table.blocks.iter().find(|block| block.0 as usize >= num_blocks) {
        return Err(format!("names page {} of a pool of {num_blocks}", block.0));
    }
    Ok(Table { first: table.first, pages: table.blocks.iter().map(|block| block.0).collect() })
}

/// The draw of the token at `position`.
fn draw(params: &SamplingParams, position: u32, sequence: u64, bounds: &Bounds) -> Result<Draw, PlanError> {
    let within = |name, value: f32, inside: bool| {
        if inside && value.is_finite() { Ok(()) } else { Err(PlanError::Sampling { sequence, name, value }) }
    };
    within("temperature", params.temperature, params.temperature >= 0.0)?;
    within("top_p", params.top_p, params.top_p > 0.0 && params.top_p <= 1.0)?;
    within("min_p", params.min_p, (0.0..=1.0).contains(&params.min_p))?;
    for &(token, bias) in &params.logit_bias {
        known(token, sequence, bounds)?;
        within("logit_bias", bias, true)?;
    }
    let penalties = params.penalties.as_ref().map(|penalties| {
        within("repetition_penalty", penalties.repetition, penalties.repetition > 0.0)?;
        within("presence_penalty", penalties.presence, true)?;
        within("frequency_penalty", penalties.frequency, true)?;
        for count in &penalties.history {
            known(count.token, sequence, bounds)?;
        }
        Ok(PenaltyTerms {
            repetition: penalties.repetition,
            presence: penalties.presence,
            frequency: penalties.frequency,
            history: penalties.history.iter().map(|count| (count.token, count.num_in_output)).collect(),
        })
    });
    Ok(Draw {
        temperature: params.temperature,
        top_k: params.top_k.unwrap_or(0),
        top_p: params.top_p,
        min_p: params.min_p,
        allowed: params.allowed.as_ref().map(|mask| mask.0.clone()),
        bias: params.logit_bias.clone(),
        penalties: penalties.transpose()?,
        seed: params.seed,
        position,
        num_logprobs: params.num_logprobs,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use chorale_device::KvDtype;
    use chorale_plan::{BlockId, Rank};

    fn bounds() -> Bounds {
        let kv = KvShape {
            windows: vec![Some(8), None],
            num_query_heads: 1,
            num_kv_heads: 1,
            head_dim: 2,
            dtype: KvDtype::Bf16,
            block_size: 4,
            num_full_blocks: 10,
            num_sliding_blocks: 5,
        };
        let limits = BatchLimits { max_rows: 16, max_slices: 2, max_logit_rows: 2 };
        Bounds { limits, kv, window: Some(8), vocab_size: 100, context: 64 }
    }

    fn slice(num_computed: u32, tokens: &[TokenId]) -> SequenceSlice {
        let blocks = |range: std::ops::Range<u32>| range.map(BlockId).collect();
        SequenceSlice {
            sequence: SequenceId(7),
            home: Rank(0),
            tokens: SliceTokens::Known(tokens.to_vec()),
            num_computed,
            full_blocks: BlockTable { first: 0, blocks: blocks(0..10) },
            sliding_blocks: BlockTable { first: num_computed / 4, blocks: blocks(0..5) },
            sample: None,
        }
    }

    fn check(slice: SequenceSlice) -> Result<Columns, PlanError> {
        columns(&[slice], &HashMap::new(), &bounds())
    }

    #[test]
    fn rows_are_tokens_at_consecutive_positions() {
        let columns = check(slice(0, &[5, 6, 7])).unwrap();
        assert_eq!(columns.tokens, [5, 6, 7]);
        assert_eq!(columns.positions, [0, 1, 2]);
        assert!(columns.logit_rows.is_empty());
    }

    #[test]
    fn a_sampled_slice_wants_the_logits_of_its_last_row() {
        let sampled = SequenceSlice { sample: Some(SamplingParams::greedy()), ..slice(0, &[5, 6]) };
        let columns = columns(&[slice(0, &[1]), sampled], &HashMap::new(), &bounds()).unwrap();
        assert_eq!(columns.logit_rows, [2]);
        assert_eq!(columns.draws[0].position, 2);
    }

    #[test]
    fn a_fed_row_names_the_sample_of_the_step_before() {
        let fed = SequenceSlice { tokens: SliceTokens::SampledBefore, ..slice(0, &[]) };
        assert_eq!(check(fed.clone()), Err(PlanError::NothingSampled { sequence: 7 }));
        let fed = |before| {
            let before = HashMap::from([(SequenceId(7), before)]);
            columns(std::slice::from_ref(&fed), &before, &bounds()).unwrap()
        };
        assert_eq!(fed(Sampled::At(3)).feeds, [Feed { row: 0, sample: 3 }]);
        let known = fed(Sampled::Token(9));
        assert!(known.feeds.is_empty() && known.tokens == [9]);
    }

    #[test]
    fn halves_are_cut_by_rows() {
        let sampled = |slice| SequenceSlice { sample: Some(SamplingParams::greedy()), ..slice };
        let fed = sampled(SequenceSlice { tokens: SliceTokens::SampledBefore, ..slice(0, &[]) });
        let before = HashMap::from([(SequenceId(7), Sampled::At(1))]);
        let whole = |slices: &[SequenceSlice]| columns(slices, &before, &bounds()).unwrap();

        let [first, second] = halves(whole(&[sampled(slice(0, &[1, 2, 3, 4, 5, 6])), fed.clone()]));
        assert_eq!((first.tokens, second.tokens), (vec![1, 2, 3, 4], vec![5, 6, 0]));
        assert_eq!((first.positions, second.positions), (vec![0, 1, 2, 3], vec![4, 5, 0]));
        let rows = |slices: &[SliceColumns]| -> Vec<_> {
            slices.iter().map(|slice| (slice.rows.start, slice.rows.end)).collect()
        };
        assert_eq!((rows(&first.slices), rows(&second.slices)), (vec![(0, 4)], vec![(0, 2), (2, 3)]));
        assert_eq!(first.slices[0].full, second.slices[0].full);
        assert!(first.feeds.is_empty() && first.logit_rows.is_empty() && first.draws.is_empty());
        assert_eq!(second.feeds, [Feed { row: 2, sample: 1 }]);
        assert_eq!((second.logit_rows, second.draws.len()), (vec![1, 2], 2));

        let [first, second] = halves(whole(&[fed.clone(), fed.clone()]));
        assert_eq!((first.logit_rows, second.logit_rows), (vec![0], vec![0]));
        let [first, second] = halves(whole(&[fed]));
        assert_eq!((first.num_rows(), first.draws.len()), (1, 1));
        assert_eq!(second, Columns::default(), "a row has no halves");
        assert_eq!(halves(whole(&[])), [Columns::default(), Columns::default()]);
    }

    #[test]
    fn what_breaks_the_contract_is_refused() {
        assert_eq!(check(slice(0, &[])), Err(PlanError::EmptySlice { sequence: 7 }));
        assert!(matches!(check(slice(0, &[100])), Err(PlanError::UnknownToken { token: 100, .. })));
        assert!(matches!(check(slice(0, &[1; 17])), Err(PlanError::TooLarge { what: "rows", .. })));
        assert!(matches!(check(slice(63, &[1, 1])), Err(PlanError::BeyondContext { position: 64, .. })));
        assert!(matches!(check(slice(u32::MAX, &[1])), Err(PlanError::BeyondContext { .. })));
        let greedy = || SequenceSlice { sample: Some(SamplingParams::greedy()), ..slice(0, &[1]) };
        let many = columns(&[greedy(), greedy(), greedy()], &HashMap::new(), &bounds());
        assert!(matches!(many, Err(PlanError::TooLarge { what: "slices", .. })));
    }

    #[test]
    fn a_table_must_hold_the_window_and_the_slice() {
        let mut short = slice(8, &[1]);
        short.full_blocks.blocks.truncate(2);
        assert!(matches!(check(short), Err(PlanError::BlockTable { pool: "full", .. })));
        let mut late = slice(8, &[1]);
        late.sliding_blocks.first = 1;
        assert!(matches!(check(late), Err(PlanError::BlockTable { pool: "sliding", .. })));
        let mut beyond = slice(0, &[1]);
        beyond.sliding_blocks.blocks[0] = BlockId(5);
        assert!(matches!(check(beyond), Err(PlanError::BlockTable { pool: "sliding", .. })));
    }

    #[test]
    fn sampling_parameters_are_checked() {
        let with = |params: SamplingParams| check(SequenceSlice { sample: Some(params), ..slice(0, &[1]) });
        let greedy = SamplingParams::greedy;
        for params in [
            SamplingParams { temperature: -1.0, ..greedy() },
            SamplingParams { temperature: f32::NAN, ..greedy() },
            SamplingParams { top_p: 0.0, ..greedy() },
            SamplingParams { min_p: 1.5, ..greedy() },
            SamplingParams { logit_bias: vec![(1, f32::INFINITY)], ..greedy() },
        ] {
            assert!(matches!(with(params), Err(PlanError::Sampling { .. })));
        }
        let unknown = SamplingParams { logit_bias: vec![(100, 1.0)], ..greedy() };
        assert!(matches!(with(unknown), Err(PlanError::UnknownToken { .. })));
    }
}
