//! Draws among others, and from one step to the next.

use crate::{batch, cuda, draw, drawing, logits, mask, plain};
use chorale_device::Precision::Full;
use chorale_device::{Columns, Device, Draw, Feed, PenaltyTerms, SliceColumns, Table};
use chorale_kbench::reference::{Random, dense};

fn kinds(vocab: usize) -> Vec<Draw> {
    let penalties =
        PenaltyTerms { repetition: 1.3, presence: 0.5, frequency: 0.2, history: vec![(3, 2), (90, 0)] };
    vec![
        plain(0.0),
        Draw { num_logprobs: Some(4), ..plain(1.0) },
        Draw { top_k: 30, num_logprobs: Some(0), ..plain(1.0) },
        Draw { top_p: 0.9, bias: vec![(5, 3.0)], ..plain(1.0) },
        Draw { top_p: 0.95, ..plain(20.0) },
        Draw { min_p: 0.05, penalties: Some(penalties), ..plain(1.0) },
        Draw { allowed: mask(vocab, |token| token % 5 == 0), num_logprobs: Some(20), ..plain(0.7) },
    ]
}

#[test]
fn a_draw_is_the_same_bits_in_any_company() {
    let vocab = 5000;
    let random = &mut Random(8);
    let draws: Vec<Draw> =
        kinds(vocab).into_iter().zip(0..).map(|(draw, position)| Draw { position, ..draw }).collect();
    let rows: Vec<Vec<f32>> = draws.iter().map(|_| logits(random, vocab)).collect();
    let alone: Vec<_> = rows
        .iter()
        .zip(&draws)
        .map(|(row, one)| draw(&mut cuda(1), std::slice::from_ref(row), std::slice::from_ref(one)).remove(0))
        .collect();
    for seed in 2..6 {
        let order = random.order(draws.len());
        let company: Vec<Vec<f32>> = order.iter().map(|&place| rows[place].clone()).collect();
        let together: Vec<Draw> = order.iter().map(|&place| draws[place].clone()).collect();
        for (drawn, place) in draw(&mut cuda(seed), &company, &together).into_iter().zip(order) {
            assert_eq!(drawn, alone[place], "draw {place}");
        }
    }
}

/// Room that was used for one step is used for the next, which may be larger,
/// smaller, or of other kinds.
#[test]
fn steps_follow_each_other_in_the_same_room() {
    let vocab = 5000;
    let random = &mut Random(4);
    let device = &mut cuda(7);
    let mut batch = batch(device, 16);
    let mut samples = device.samples(16).unwrap();
    let mut matrix = device.matrix(16, vocab, Full).unwrap();
    for step in 0..12 {
        let count = [7, 1, 16, 0, 3, 2][step % 6];
        let rows: Vec<Vec<f32>> = (0..count).map(|_| logits(random, vocab)).collect();
        let all = kinds(vocab);
        let draws: Vec<Draw> = (0..count)
            .map(|row| {
                let num_logprobs = random.pick(&[None, Some(1), Some(300)]);
                Draw { position: row as u32, num_logprobs, ..all[(row + step) % all.len()].clone() }
            })
            .collect();
        device.begin(&drawing(&draws), &samples, &mut batch).unwrap();
        device.write(&rows.concat(), &mut matrix).unwrap();
        device.sample(&matrix, &batch, &mut samples).unwrap();
        let found = device.fetch_samples(&samples).unwrap().wait().unwrap();
        let expected = if count == 0 { Vec::new() } else { draw(&mut cuda(1), &rows, &draws) };
        assert_eq!(found, expected, "step {step}");
    }
}

#[test]
fn rows_take_their_tokens_from_the_step_before() {
    let (vocab, cols) = (777, 96);
    let random = &mut Random(6);
    let device = &mut cuda(3);
    let table_rows = random.rows(vocab, cols, 2.0);
    let table = device.embedding(dense(&[(&table_rows, None)])).unwrap();
    let mut batch = batch(device, 8);
    let mut samples = device.samples(8).unwrap();
    let draws: Vec<Draw> = (0..5).map(|position| Draw { position, ..plain(1.0) }).collect();
    let rows: Vec<Vec<f32>> = draws.iter().map(|_| logits(random, vocab)).collect();
    device.begin(&drawing(&draws), &samples, &mut batch).unwrap();
    let mut matrix = device.matrix(5, vocab, Full).unwrap();
    device.write(&rows.concat(), &mut matrix).unwrap();
    device.sample(&matrix, &batch, &mut samples).unwrap();
    let drawn = device.fetch_samples(&samples).unwrap().wait().unwrap();

    let feeds = vec![Feed { row: 1, sample: 4 }, Feed { row: 2, sample: 0 }];
    let slices = (0..4).map(|row| SliceColumns {
        rows: row..row + 1,
        full: Table { first: 0, pages: vec![0] },
        sliding: Table { first: 0, pages: vec![0] },
    });
    let columns = Columns {
        tokens: vec![9, 0, 0, 700],
        feeds,
        positions: vec![0; 4],
        slices: slices.collect(),
        ..Columns::default()
    };
    device.begin(&columns, &samples, &mut batch).unwrap();
    let mut hidden = device.matrix(4, cols, Full).unwrap();
    device.embed(&table, &batch, &mut hidden).unwrap();
    let found = device.read(&hidden).unwrap();
    for (row, token) in [9, drawn[4].token, drawn[0].token, 700].into_iter().enumerate() {
        let expected: Vec<f32> = table_rows[token as usize].iter().map(|&value| value as f32).collect();
        assert_eq!(found[row * cols..][..cols], expected, "row {row} is token {token}");
    }
}
