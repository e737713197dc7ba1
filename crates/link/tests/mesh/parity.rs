//! What comes home does not depend on the world: bit for bit where rows travel
//! as they are, closely where an option gives that up.

use crate::world::{
    EXACT, HIDDEN, MAX_ROWS, Model, NUM_EXPERTS, Random, TOP_K, alone, cpu, mesh, place, run, transports,
};
use chorale_device::{Device, Precision};
use chorale_link::{Half, Link};
use chorale_plan::{ExchangeOptions, Placement, Rank, RowFormat, Shape};

const fn shape(tensor_parallel_size: u32, data_parallel_size: u32, num_ranks: u32) -> Shape {
    Shape { tensor_parallel_size, data_parallel_size, num_ranks }
}

/// With ranks that have experts only, and more groups than some steps have rows for.
const SHAPES: [Shape; 9] = [
    shape(1, 1, 1),
    shape(2, 1, 2),
    shape(1, 2, 2),
    shape(1, 1, 2),
    shape(3, 1, 3),
    shape(1, 3, 3),
    shape(2, 2, 5),
    shape(1, 4, 5),
    shape(1, 1, 5),
];

/// Rows of each group, none for some.
fn rows(random: &mut Random, shape: Shape) -> Vec<Vec<f32>> {
    let mut group = || {
        let num_rows = [0, 1, 2, MAX_ROWS][random.below(4)];
        random.values(num_rows * HIDDEN)
    };
    (0..shape.data_parallel_size).map(|_| group()).collect()
}

#[test]
fn answers_come_home_as_if_there_were_one_rank() {
    let model = Model::random(1, 2);
    for shape in SHAPES {
        for seed in 0..6 {
            let random = &mut Random(seed);
            let placement = random.placement(shape.num_ranks, 2);
            let rows = rows(random, shape);
            let ranks = run(&model, shape, EXACT, &placement, &rows);
            for (rank, (homed, _)) in shape.ranks().zip(&ranks) {
                let group = shape.group(rank).map(|group| group.start / shape.tensor_parallel_size);
                let expected = alone(&model, group.map_or(&[], |group| &rows[group as usize]));
                assert_eq!(homed, &expected, "{rank:?} of {shape:?}, seed {seed}");
            }
            let num_run: u64 = ranks.iter().flat_map(|(_, loads)| loads.concat()).sum();
            let num_rows: usize = rows.iter().map(|rows| rows.len() / HIDDEN).sum();
            assert_eq!(num_run as usize, 2 * num_rows * TOP_K, "each choice runs once");
            for (rank, (_, loads)) in shape.ranks().zip(&ranks) {
                for (layer, experts) in loads.iter().enumerate() {
                    let held = placement.experts_of(rank, layer);
                    let is_held = |(_, expert): &(&u64, u32)| held.contains(expert);
                    assert!(experts.iter().zip(0..).all(|load| *load.0 == 0 || is_held(&load)));
                }
            }
        }
    }
}

#[test]
fn one_rank_may_hold_everything_and_another_nothing() {
    let model = Model::random(2, 1);
    let shape = shape(1, 2, 3);
    let layer = vec![vec![Rank(2)]; NUM_EXPERTS];
    let placement = Placement { version: 0, layers: vec![layer] };
    let random = &mut Random(9);
    let rows = vec![random.values(3 * HIDDEN), random.values(2 * HIDDEN)];
    let ranks = run(&model, shape, EXACT, &placement, &rows);
    assert_eq!(ranks[0].0, alone(&model, &rows[0]));
    assert_eq!(ranks[1].0, alone(&model, &rows[1]));
    assert_eq!(ranks[2].1[0].iter().sum::<u64>() as usize, 5 * TOP_K);
}

/// The largest difference from what one rank gets, relative to the largest value.
fn check_close(exchange: ExchangeOptions, tolerance: f32) {
    let model = Model::random(3, 1);
    for shape in SHAPES {
        let random = &mut Random(17);
        let placement = random.placement(shape.num_ranks, 1);
        let rows = rows(random, shape);
        let ranks = run(&model, shape, exchange, &placement, &rows);
        for (rank, (homed, _)) in shape.ranks().zip(&ranks) {
            let Some(group) = shape.group(rank) else { continue };
            let expected = alone(&model, &rows[(group.start / shape.tensor_parallel_size) as usize]);
            let mut answers = expected.answers[0].clone();
            if exchange.fast_combine {
                answers = vec![0.0; answers.len() / TOP_K];
                let choices = expected.answers[0].chunks(HIDDEN).zip(&expected.weights[0]);
                for (slot, (output, weight)) in choices.enumerate() {
                    let sum = &mut answers[slot / TOP_K * HIDDEN..][..HIDDEN];
                    sum.iter_mut().zip(output).for_each(|(sum, value)| *sum += weight * value);
                }
            }
            let found = &homed.answers[0];
            assert_eq!(found.len(), answers.len(), "{rank:?} of {shape:?}");
            let largest = answers.iter().fold(1.0f32, |largest, value| largest.max(value.abs()));
            for (found, value) in found.iter().zip(&answers) {
                let error = (found - value).abs() / largest;
                assert!(error <= tolerance, "{rank:?} of {shape:?}: {found} for {value}");
            }
        }
    }
}

#[test]
fn sums_come_home_where_that_is_asked_for() {
    check_close(ExchangeOptions { fast_combine: true, ..EXACT }, 1e-5);
}

#[test]
fn rows_in_eight_bits_come_near() {
    check_close(ExchangeOptions { dispatch: RowFormat::Int8, ..EXACT }, 0.03);
    check_close(ExchangeOptions { dispatch: RowFormat::Int8, fast_combine: true, ..EXACT }, 0.03);
}

#[test]
fn columns_are_joined_in_rank_order_whatever_their_widths() {
    let shape = shape(3, 2, 7);
    let cols = [3usize, 1, 2];
    for num_rows in [0, 1, 4] {
        let transports = transports(shape, 10_000);
        let placement = Random(1).placement(shape.num_ranks, 1);
        std::thread::scope(|scope| {
            // Ranks with experts only take no part.
            for (rank, transport) in shape.ranks().zip(transports).take(6) {
                let placement = &placement;
                scope.spawn(move || {
                    let device = &mut cpu();
                    let mut link = mesh(device, transport, place(shape, rank, EXACT, 1), placement);
                    let group = rank.0 / 3;
                    let value = |row: usize, col: usize| (100 * group as usize + 10 * row + col) as f32;
                    let member = (rank.0 % 3) as usize;
                    let first: usize = cols[..member].iter().sum();
                    let own = first..first + cols[member];
                    let values: Vec<f32> =
                        (0..num_rows).flat_map(|row| own.clone().map(move |col| value(row, col))).collect();
                    let mut part = device.matrix(4, cols[member], Precision::Half).unwrap();
                    let mut whole = device.matrix(4, 6, Precision::Half).unwrap();
                    device.write(&values, &mut part).unwrap();
                    link.begin(0);
                    link.begin_gather(device, Half::First, &cols, &part).unwrap();
                    link.end_gather(device, Half::First, &cols, &mut part, &mut whole).unwrap();
                    let expected: Vec<f32> =
                        (0..num_rows).flat_map(|row| (0..6).map(move |col| value(row, col))).collect();
                    assert_eq!(device.read(&whole).unwrap(), expected, "{rank:?}");
                });
            }
        });
    }
}

#[test]
fn a_mesh_goes_over_to_another_placement() {
    let model = Model::random(4, 1);
    let shape = shape(1, 1, 1);
    let device = &mut cpu();
    let placement = Placement::solo(1, NUM_EXPERTS);
    let transport = transports(shape, 1000).remove(0);
    let mut link = mesh(device, transport, place(shape, Rank(0), EXACT, 1), &placement);
    let next = Placement { version: 1, ..placement.clone() };
    link.go_over(device, next).unwrap();
    assert_eq!(link.placement().version, 1);
    let rows = Random(1).values(2 * HIDDEN);
    let homed = crate::world::step(device, &mut link, &model, |_| (0..7).collect(), &rows).unwrap();
    assert_eq!(homed, alone(&model, &rows));
    let none = Placement { version: 2, layers: Vec::new() };
    assert!(link.go_over(device, none).is_err());
    assert_eq!(link.placement().version, 1, "what does not fit changes nothing");
}

/// Columns of one half are on their way while the other's are sent.
#[test]
fn halves_do_not_mix() {
    let shape = shape(2, 1, 2);
    let placement = Random(1).placement(shape.num_ranks, 1);
    std::thread::scope(|scope| {
        for (rank, transport) in shape.ranks().zip(transports(shape, 10_000)) {
            let placement = &placement;
            scope.spawn(move || {
                let device = &mut cpu();
                let mut link = mesh(device, transport, place(shape, rank, EXACT, 1), placement);
                link.begin(0);
                let mut parts = Vec::new();
                for half in Half::BOTH {
                    let mut part = device.matrix(1, 1, Precision::Half).unwrap();
                    device.write(&[(10 * rank.0 + half as u32) as f32], &mut part).unwrap();
                    link.begin_gather(device, half, &[1, 1], &part).unwrap();
                    parts.push(part);
                }
                // Each goes on as it likes, all ranks alike.
                for half in [Half::First, Half::Second] {
                    let mut whole = device.matrix(1, 2, Precision::Half).unwrap();
                    link.end_gather(device, half, &[1, 1], &mut parts[half as usize], &mut whole).unwrap();
                    let first = half as u32 as f32;
                    assert_eq!(device.read(&whole).unwrap(), [first, 10.0 + first], "{half:?}");
                }
            });
        }
    });
}

#[test]
fn a_frame_of_the_other_half_is_astray() {
    let shape = shape(2, 1, 2);
    let placement = Random(1).placement(shape.num_ranks, 1);
    let errors: Vec<String> = std::thread::scope(|scope| {
        let ranks = shape.ranks().zip(transports(shape, 10_000)).map(|(rank, transport)| {
            let placement = &placement;
            scope.spawn(move || {
                let device = &mut cpu();
                let mut link = mesh(device, transport, place(shape, rank, EXACT, 1), placement);
                link.begin(0);
                let (mut part, mut whole) = (
                    device.matrix(1, 1, Precision::Half).unwrap(),
                    device.matrix(1, 2, Precision::Half).unwrap(),
                );
                device.write(&[1.0], &mut part).unwrap();
                let half = Half::BOTH[rank.0 as usize];
                link.begin_gather(device, half, &[1, 1], &part).unwrap();
                let ended = link.end_gather(device, half, &[1, 1], &mut part, &mut whole);
                ended.unwrap_err().to_string()
            })
        });
        let ranks: Vec<_> = ranks.collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    });
    assert!(errors[0].contains("layer 0, gather 0 of step 0: rank 1 sent what belongs to"), "{errors:?}");
    assert!(errors[1].contains("layer 0, gather 0 of the second half of step 0"), "{errors:?}");
}
