//! What a sequence's logits owe to the rows beside it, and to how it is cut.

use crate::failure::{Failure, ensure};
use chorale_device::{BatchLimits, Device, KvDtype};
use chorale_link::Solo;
use chorale_model::checkpoint::Checkpoint;
use chorale_model::offline::{OfflineLimits, OfflineSequence};
use chorale_model::shard::ShardSpec;
use chorale_model::{GptOss, Room};
use chorale_plan::{SamplingParams, SequenceSlice, TokenId};

const LIMITS: OfflineLimits =
    OfflineLimits { num_sequences: 6, max_tokens: 210, max_slice_tokens: 200, max_rows: 210, block_size: 16 };

/// The sequence that is watched: longer than a window, and than a tile of keys.
const LENGTH: usize = 150;

/// Slices of the watched sequence, each with how many rows other sequences have in
/// its step: steps of 1, 3, 17, 64 and 200 rows are among them.
const CUTS: [&[(usize, usize)]; 4] = [
    &[(150, 50)],
    &[(1, 0), (2, 1), (14, 3), (47, 17), (64, 0), (22, 0)],
    &[(64, 0), (1, 2), (1, 16), (1, 63), (1, 199), (65, 0), (17, 0)],
    &[(9, 30), (130, 1), (1, 0), (2, 7), (8, 0)],
];

/// In how many other ways of cutting a sequence, and beside other rows, its logits
/// have other bits: none where the device is batch-invariant.
pub fn differing_cuts<D: Device>(
    mut device: D,
    checkpoint: &Checkpoint,
    kv_dtype: KvDtype,
) -> Result<usize, Failure> {
    let config = checkpoint.config();
    let link = Solo::new(&mut device, config.num_experts as u32)?;
    let room = LIMITS.room(config, kv_dtype);
    let limits = BatchLimits { max_logit_rows: LIMITS.max_rows, ..room.limits };
    let room = Room { limits, ..room };
    let mut engine = GptOss::load(device, link, checkpoint, &ShardSpec::whole(config), &room, &mut |_| ())?;
    let [whole, others @ ..] = CUTS;
    let whole = watched(&mut engine, whole)?;
    ensure(whole.iter().all(|logit| logit.is_finite()), || "logits are no numbers".to_owned())?;
    let mut differing = 0;
    for cut in others {
        let found = watched(&mut engine, cut)?;
        let mut pairs = found.iter().zip(&whole);
        differing += usize::from(
            found.len() != whole.len() || pairs.any(|(found, whole)| found.to_bits() != whole.to_bits()),
        );
    }
    Ok(differing)
}

/// The watched sequence's logits at all positions.
fn watched<D: Device>(engine: &mut GptOss<D, Solo<D>>, cut: &[(usize, usize)]) -> Result<Vec<f32>, Failure> {
    let greedy = SamplingParams::greedy();
    let vocab = engine.config().vocab_size;
    let mut watched = OfflineSequence::new(0, prompt(0, LENGTH), LIMITS, engine.config());
    let mut logits = Vec::with_capacity(LENGTH * vocab);
    for (step, &(count, others)) in cut.iter().enumerate() {
        // Others begin anew in each step: some short ones, then one that has the rest.
        let mut rest = others;
        let mut slices: Vec<SequenceSlice> = Vec::new();
        for index in 1..LIMITS.num_sequences {
            let rows = if index + 1 == LIMITS.num_sequences { rest } else { rest.min(index * 2 - 1) };
            if rows > 0 {
                let tokens = prompt(index + step, rows);
                let mut other = OfflineSequence::new(index, tokens, LIMITS, engine.config());
                slices.push(other.take_slice(rows, &greedy));
                rest -= rows;
            }
        }
        // Now behind the others, now before them.
        let (place, row) = if step % 2 == 0 { (slices.len(), others) } else { (0, 0) };
        slices.insert(place, watched.take_slice(count, &greedy));
        let all = engine.logits(&slices, usize::MAX, &mut ())?;
        logits.extend_from_slice(&all[row * vocab..(row + count) * vocab]);
    }
    Ok(logits)
}

fn prompt(sequence: usize, length: usize) -> Vec<TokenId> {
    (0..length).map(|at| ((at * at + 31 * sequence + at / 7) % 500) as TokenId).collect()
}
