//! A rank among others that fall silent, are out of step, or send what cannot
//! be: it says who and in which exchange, and never panics.

use crate::world::{EXACT, HIDDEN, Model, NUM_EXPERTS, Random, TOP_K, cpu, mesh, place, step, transports};
use bytes::Bytes;
use chorale_link::{Fault, Frame, LinkError, LocalTransport, Transport};
use chorale_plan::{Epoch, Placement, Rank, Shape};

const SHAPE: Shape = Shape { tensor_parallel_size: 1, data_parallel_size: 2, num_ranks: 2 };
const DISPATCH: u32 = 2;
const COMBINE: u32 = 3;

/// Rank 0 holds the first experts, rank 1 the last.
fn placement() -> Placement {
    let layer = (0..NUM_EXPERTS).map(|expert| vec![Rank(u32::from(expert > 4))]).collect();
    Placement { version: 0, layers: vec![layer] }
}

fn frame(exchange: u32, payload: Vec<u8>) -> Frame {
    Frame { epoch: Epoch(3), step: 4, exchange, payload: Bytes::from(payload) }
}

/// A dispatch of rows of ones, each to some experts.
fn dispatch(choices: &[&[u32]]) -> Vec<u8> {
    let list = choices.iter().zip(0u32..).flat_map(|(experts, row)| experts.iter().map(move |e| [row, *e]));
    let list: Vec<u32> = list.flatten().collect();
    let mut words = vec![choices.len() as u32, list.len() as u32 / 2];
    words.extend(list);
    let ones = vec![1.0f32.to_bits(); choices.len() * HIDDEN];
    words.into_iter().chain(ones).flat_map(u32::to_le_bytes).collect()
}

/// What rank 0 says of a rank 1 that does this.
fn meet(timeout_ms: u64, peer: impl FnOnce(LocalTransport) -> Option<LocalTransport>) -> (String, Fault) {
    let model = Model::random(1, 1);
    let mut both = transports(SHAPE, timeout_ms);
    let kept = peer(both.remove(1));
    let device = &mut cpu();
    let placement = placement();
    let mut link = mesh(device, both.remove(0), place(SHAPE, Rank(0), EXACT, 1), &placement);
    let rows = Random(1).values(2 * HIDDEN);
    let error = step(device, &mut link, &model, |layer| placement.experts_of(Rank(0), layer), &rows);
    drop(kept);
    match error.unwrap_err() {
        LinkError::Peer { step: 4, exchange, fault } => (exchange, fault),
        other => panic!("{other}"),
    }
}

/// The same, for a peer that sends frames and then waits.
fn meet_frames(frames: Vec<Frame>) -> (String, Fault) {
    meet(200, |mut transport| {
        frames.into_iter().for_each(|frame| transport.send(Rank(0), frame).unwrap());
        Some(transport)
    })
}

#[test]
fn silence_names_the_rank_and_the_exchange() {
    let (exchange, fault) = meet(20, Some);
    assert_eq!(exchange, "layer 0, dispatch");
    assert!(matches!(fault, Fault::Timeout { rank: Rank(1), .. }), "{fault}");
    let (exchange, fault) = meet_frames(vec![frame(DISPATCH, dispatch(&[&[0, 4]]))]);
    assert_eq!(exchange, "layer 0, combine");
    assert!(matches!(fault, Fault::Timeout { rank: Rank(1), .. }), "{fault}");
}

#[test]
fn a_rank_that_goes_is_named() {
    let (_, fault) = meet(10_000, |transport| {
        drop(transport);
        None
    });
    assert!(matches!(fault, Fault::Broken { rank: Rank(1), .. }), "{fault}");
}

#[test]
fn the_end_of_the_epoch_blames_nobody() {
    let (_, fault) = meet(10_000, |transport| {
        transport.abort_handle().abort();
        Some(transport)
    });
    assert_eq!((fault.rank(), fault), (None, Fault::Over));
}

#[test]
fn frames_of_another_epoch_step_or_exchange_are_astray() {
    let good = frame(DISPATCH, dispatch(&[]));
    for frame in [
        Frame { epoch: Epoch(2), ..good.clone() },
        Frame { step: 3, ..good.clone() },
        Frame { step: 5, ..good.clone() },
        Frame { exchange: COMBINE, ..good },
    ] {
        let (_, fault) = meet_frames(vec![frame]);
        assert!(matches!(&fault, Fault::Astray { rank: Rank(1), .. }), "{fault}");
    }
}

#[test]
fn dispatches_that_cannot_be_are_refused() {
    let too_many: Vec<&[u32]> = vec![&[0]; 9];
    let mut long = dispatch(&[&[0]]);
    long.push(0);
    for (payload, says) in [
        (Vec::new(), "cut off"),
        (dispatch(&[&[5]]), "expert 5, which is not here"),
        (dispatch(&[&[u32::MAX]]), "which is not here"),
        (dispatch(&[&[0], &[]]), "1 of 2 rows"),
        (dispatch(&[&[0, 1, 2, 3]]), "there is room for"),
        (dispatch(&too_many), "there is room for"),
        (long, "bytes for 1 rows"),
        ([u32::MAX.to_le_bytes(), u32::MAX.to_le_bytes()].concat(), "there is room for"),
    ] {
        let (exchange, fault) = meet_frames(vec![frame(DISPATCH, payload)]);
        assert_eq!(exchange, "layer 0, dispatch");
        assert!(matches!(&fault, Fault::Malformed { rank: Rank(1), .. }), "{fault}");
        assert!(fault.to_string().contains(says), "{fault}");
    }
}

#[test]
fn combines_that_answer_something_else_are_refused() {
    for payload in [Vec::new(), vec![0; 8], vec![0; 8 + 4 * HIDDEN * TOP_K]] {
        let (exchange, fault) = meet_frames(vec![frame(DISPATCH, dispatch(&[])), frame(COMBINE, payload)]);
        assert_eq!(exchange, "layer 0, combine");
        assert!(matches!(&fault, Fault::Malformed { rank: Rank(1), .. }), "{fault}");
    }
}

#[test]
fn random_bytes_never_panic() {
    let model = Model::random(1, 1);
    let placement = placement();
    for seed in 0..300 {
        let random = &mut Random(seed);
        let mut both = transports(SHAPE, 2);
        let mut payload = dispatch(&[&[0, 2], &[4]]);
        for _ in 0..=random.below(4) {
            let index = random.below(payload.len());
            payload[index] = random.next() as u8;
        }
        payload.truncate(if random.below(3) == 0 { random.below(payload.len()) } else { payload.len() });
        both[1].send(Rank(0), frame(DISPATCH, payload)).unwrap();
        let device = &mut cpu();
        let mut link = mesh(device, both.remove(0), place(SHAPE, Rank(0), EXACT, 1), &placement);
        let rows = random.values(HIDDEN);
        let experts_of = |layer| placement.experts_of(Rank(0), layer);
        let error = step(device, &mut link, &model, experts_of, &rows).unwrap_err();
        assert!(matches!(error, LinkError::Peer { fault, .. } if fault.rank() == Some(Rank(1))));
    }
}
