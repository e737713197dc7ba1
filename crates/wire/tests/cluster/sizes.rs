//! What is said for every step, or to everybody, is short.

use chorale_plan::{
    BlockId, BlockTable, Epoch, Placement, Rank, SamplingParams, SequenceId, SequenceSlice, SliceTokens,
    StepPlan, ToWorker,
};
use chorale_wire::cluster::v1;
use prost::Message;

fn size(said: ToWorker) -> usize {
    v1::CoordinatorMessage::from(said).encoded_len()
}

/// 256 sequences that decode, with pages as a pool gives them out: a prompt's
/// together, those of the output one by one among everybody's.
fn decode_plan(prompt_tokens: u32, output_tokens: u32) -> ToWorker {
    const NUM_SEQUENCES: u32 = 256;
    const PAGE: u32 = 16;
    let prompt_pages = prompt_tokens.div_ceil(PAGE);
    let slice = |index: u32| {
        let prompt = (0..prompt_pages).map(|page| index * prompt_pages + page);
        let output =
            (0..output_tokens / PAGE).map(|page| NUM_SEQUENCES * (prompt_pages + page) + index * 7 % 256);
        let full_blocks: Vec<BlockId> = prompt.chain(output).map(BlockId).collect();
        let first = full_blocks.len() as u32 - 9;
        let sliding_blocks = full_blocks[first as usize..].to_vec();
        SequenceSlice {
            sequence: SequenceId(1_000_000 + u64::from(index)),
            home: Rank(0),
            tokens: SliceTokens::SampledBefore,
            num_computed: prompt_tokens + output_tokens,
            full_blocks: BlockTable { first: 0, blocks: full_blocks },
            sliding_blocks: BlockTable { first, blocks: sliding_blocks },
            sample: Some(SamplingParams { temperature: 0.7, seed: u64::MAX / 3, ..SamplingParams::greedy() }),
        }
    };
    let plan = StepPlan {
        step: 100_000,
        in_halves: false,
        home_rows: Vec::new(),
        slices: (0..NUM_SEQUENCES).map(slice).collect(),
    };
    ToWorker::Step { epoch: Epoch(5), placement: 1, plan }
}

#[test]
fn a_decode_step_of_256_sequences() {
    let short = size(decode_plan(1024, 256));
    let long = size(decode_plan(8192, 512));
    assert!((30_000..45_000).contains(&short), "{short}");
    assert!((150_000..180_000).contains(&long), "{long}");
}

#[test]
fn the_placement_of_the_largest_model() {
    let mut placement = Placement::solo(36, 128);
    placement.layers.iter_mut().flatten().enumerate().for_each(|(index, ranks)| {
        *ranks = vec![Rank(index as u32 % 64)];
    });
    let without = size(ToWorker::Prepare { epoch: Epoch(1), placement: placement.clone() });
    placement.layers.iter_mut().for_each(|experts| experts[0] = vec![Rank(0), Rank(1)]);
    let with = size(ToWorker::Prepare { epoch: Epoch(1), placement });
    assert!(without < 36 * 128 * 105 / 100, "{without}");
    assert!(with < 2 * without, "{with}");
}
