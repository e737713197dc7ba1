//! Logits of a world of ranks: at every position the same bits as one rank's.

use crate::MODELS;
use crate::engine::{Bench, limits};
use crate::tensors::{Goldens, fixtures};
use chorale_device::{Cpu, KvDtype};
use chorale_link::{Mesh, Place, Transport, local};
use chorale_model::checkpoint::Checkpoint;
use chorale_model::offline::{OfflineLimits, OfflineSequence};
use chorale_model::shard::{ShardSpec, split};
use chorale_model::{GptOss, Room};
use chorale_plan::{
    Carrier, Epoch, ExchangeOptions, Placement, Rank, SamplingParams, SequenceSlice, Shape, TokenId,
};
use std::num::NonZeroUsize;
use std::time::Duration;

/// Experts in even runs, but the first ones on all ranks.
fn placement(checkpoint: &Checkpoint, num_ranks: usize) -> Placement {
    let config = checkpoint.config();
    let holders = |expert: usize| {
        let holds =
            |&rank: &usize| expert < 2 || split(config.num_experts, num_ranks, rank).contains(&expert);
        (0..num_ranks).filter(holds).map(|rank| Rank(rank as u32)).collect()
    };
    let layer: Vec<Vec<Rank>> = (0..config.num_experts).map(holders).collect();
    Placement { version: 0, layers: vec![layer; config.num_layers()] }
}

fn engine<T: Transport>(
    checkpoint: &Checkpoint,
    (shape, rank): (Shape, Rank),
    room: Room,
    transport: T,
) -> GptOss<Cpu, Mesh<Cpu, T>> {
    let config = checkpoint.config();
    let placement = placement(checkpoint, shape.num_ranks as usize);
    let spec = ShardSpec::of(shape, rank, &placement);
    let place = Place {
        epoch: Epoch(1),
        shape,
        rank,
        exchange: ExchangeOptions::exact(10_000),
        carrier: Carrier::Frames,
        num_layers: config.num_layers(),
        num_experts: config.num_experts,
        top_k: config.experts_per_token,
        hidden_size: config.hidden_size,
        max_rows: room.limits.max_rows,
    };
    let mut device = Cpu::new(NonZeroUsize::new(1)).unwrap();
    let link = Mesh::new(&mut device, transport, place, placement).unwrap();
    let room = Room { num_homes: shape.data_parallel_size as usize, ..room };
    GptOss::load(device, link, checkpoint, &spec, &room, &mut |_| ()).unwrap()
}

/// A prompt's slices, one a step.
fn slices(checkpoint: &Checkpoint, prompt: &[TokenId], limits: OfflineLimits) -> Vec<SequenceSlice> {
    let mut sequence = OfflineSequence::new(0, prompt.to_vec(), limits, checkpoint.config());
    let mut slices = Vec::new();
    while sequence.num_pending() > 0 {
        slices.push(sequence.take_slice(limits.max_slice_tokens, &SamplingParams::greedy()));
    }
    slices
}

/// Each home's logits, from each of its ranks.
fn logits(checkpoint: &Checkpoint, shape: Shape, prompts: &[Vec<TokenId>]) -> Vec<Vec<f32>> {
    let limits = OfflineLimits { max_rows: 64, ..limits(1, 50, 16) };
    let home = |home: usize| slices(checkpoint, &prompts[home], limits);
    let homes: Vec<Vec<SequenceSlice>> = (0..shape.data_parallel_size as usize).map(home).collect();
    let num_steps = homes.iter().map(Vec::len).max().unwrap();
    let room = limits.room(checkpoint.config(), KvDtype::F32);
    let transports = local(shape.num_ranks, Duration::from_secs(10));
    std::thread::scope(|scope| {
        let ranks: Vec<_> = shape.ranks().zip(transports).collect();
        let ranks: Vec<_> = ranks
            .into_iter()
            .map(|(rank, transport)| {
                let home = shape.group(rank).map(|group| group.start / shape.tensor_parallel_size);
                let slices = home.map_or(&[][..], |home| &homes[home as usize]);
                scope.spawn(move || {
                    let mut engine = engine(checkpoint, (shape, rank), room, transport);
                    let mut logits = Vec::new();
                    for step in 0..num_steps {
                        let slice = slices.get(step).map_or(&[][..], std::slice::from_ref);
                        logits.extend(engine.logits(slice, usize::MAX, &mut ()).unwrap());
                    }
                    logits
                })
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

#[test]
fn logits_are_those_of_one_rank() {
    for model in MODELS {
        let checkpoint = Checkpoint::open(&fixtures().join("models").join(model)).unwrap();
        let goldens = Goldens::open(model, "logits");
        let prompts = ["p130", "p17"].map(|name| -> Vec<TokenId> {
            goldens.i64s(&format!("{name}.input_ids")).iter().map(|&id| id as TokenId).collect()
        });
        let expected = prompts
            .each_ref()
            .map(|prompt| Bench::new(model, limits(1, 1200, 64)).logits(prompt, 1200, prompt.len()));
        for (tensor_parallel_size, data_parallel_size, num_ranks) in
            [(1, 1, 2), (2, 1, 2), (1, 2, 2), (2, 2, 5), (3, 1, 4)]
        {
            let shape = Shape { tensor_parallel_size, data_parallel_size, num_ranks };
            if tensor_parallel_size as usize > checkpoint.config().num_key_value_heads {
                continue;
            }
            let found = logits(&checkpoint, shape, &prompts);
            for (rank, found) in shape.ranks().zip(found) {
                let home = shape.group(rank).map(|group| group.start / tensor_parallel_size);
                let expected = home.map_or(&[][..], |home| &expected[home as usize]);
                assert!(found == expected, "{model}, {rank:?} of {shape:?}");
            }
        }
    }
}
