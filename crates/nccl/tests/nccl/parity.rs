//! What comes home over NCCL is what one GPU alone computes, and what frames
//! would bring.

use crate::fake;
use crate::world::{
    By, EXACT, HIDDEN, MAX_ROWS, Model, NUM_EXPERTS, PATIENCE, Random, TOP_K, Work, alone, gpu, home_of,
    join, join_by, place, run,
};
use chorale_device::{Device, Precision};
use chorale_link::{Half, Link, Member};
use chorale_plan::{ExchangeOptions, Placement, Rank, Shape, StepPlan};

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
    shape(2, 2, 4),
    shape(2, 2, 5),
    shape(1, 2, 4),
];

/// NCCL alone, kernels alone, and now one and now the other, with memory that is
/// cleared in the midst of it.
const WAYS: [By; 3] = [By::Nccl, By::KERNELS, By::Kernels { max_bytes: 2048, renewal: 5 }];

/// Steps of a world; in some a home has no rows, in one nobody has.
fn steps(random: &mut Random, shape: Shape) -> Vec<Work> {
    let mut step = |number, in_halves, sizes: [usize; 4]| {
        let mut home = || {
            let num_rows = sizes[random.below(4)];
            random.values(num_rows * HIDDEN)
        };
        Work { number, in_halves, rows: (0..shape.data_parallel_size).map(|_| home()).collect() }
    };
    vec![
        step(1, false, [0, 1, 2, MAX_ROWS]),
        step(2, true, [0, 1, 5, MAX_ROWS]),
        step(3, false, [1, 2, 3, 7]),
        step(4, true, [0, 0, 0, 0]),
        step(5, false, [MAX_ROWS; 4]),
    ]
}

#[test]
fn answers_come_home_as_if_there_were_one_rank() {
    let library = fake::open(&[]);
    let model = Model::random(1, 2);
    for (shape, seed) in SHAPES.into_iter().zip(0..) {
        let random = &mut Random(seed);
        let placement = random.placement(shape.num_ranks, 2);
        let steps = steps(random, shape);
        let alone = |work: &Work| work.rows.iter().map(|rows| alone(&model, rows)).collect();
        let expected: Vec<Vec<_>> = steps.iter().map(alone).collect();
        let rows = steps.iter().flat_map(|work| &work.rows);
        let num_rows: usize = rows.map(|rows| rows.len() / HIDDEN).sum();
        for by in WAYS {
            let ranks = run((&library, by), &model, shape, EXACT, &placement, &steps);
            for (rank, (homed, _)) in shape.ranks().zip(&ranks) {
                let Some(home) = home_of(shape, rank) else { continue };
                for (index, (found, expected)) in homed.iter().zip(&expected).enumerate() {
                    assert_eq!(found, &expected[home], "{rank:?} of {shape:?}, step {index}, {by:?}");
                }
            }
            let num_run: u64 = ranks.iter().flat_map(|(_, loads)| loads.concat()).sum();
            assert_eq!(num_run as usize, 2 * num_rows * TOP_K, "each choice runs once, on {shape:?}");
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
fn sums_come_home_where_that_is_asked_for() {
    let library = fake::open(&[]);
    let model = Model::random(3, 1);
    let exchange = ExchangeOptions { fast_combine: true, ..EXACT };
    for shape in SHAPES {
        let random = &mut Random(17);
        let placement = random.placement(shape.num_ranks, 1);
        let steps = steps(random, shape);
        let sums = |rows: &Vec<f32>| {
            let alone = alone(&model, rows);
            let mut sums = vec![0.0f32; rows.len()];
            let choices = alone.answers[0].chunks(HIDDEN).zip(&alone.weights[0]);
            for (slot, (output, weight)) in choices.enumerate() {
                let sum = &mut sums[slot / TOP_K * HIDDEN..][..HIDDEN];
                sum.iter_mut().zip(output).for_each(|(sum, value)| *sum += weight * value);
            }
            sums
        };
        let expected: Vec<Vec<_>> = steps.iter().map(|work| work.rows.iter().map(sums).collect()).collect();
        for by in WAYS {
            let ranks = run((&library, by), &model, shape, exchange, &placement, &steps);
            for (rank, (homed, _)) in shape.ranks().zip(&ranks) {
                let Some(home) = home_of(shape, rank) else { continue };
                for (index, (found, expected)) in homed.iter().zip(&expected).enumerate() {
                    let (found, expected) = (&found.answers[0], &expected[home]);
                    assert_eq!(found.len(), expected.len(), "{rank:?} of {shape:?}, step {index}, {by:?}");
                    for (found, value) in found.iter().zip(expected) {
                        // Half a step of bf16, and what the order of additions does.
                        let error = (found - value).abs();
                        assert!(
                            error <= value.abs() / 255.0 + 1e-5,
                            "{rank:?} of {shape:?}, {by:?}: {found} for {value}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn columns_are_joined_in_rank_order_whatever_their_widths() {
    for by in WAYS {
        check_columns(by);
    }
}

fn check_columns(by: By) {
    let library = fake::open(&[]);
    let shape = shape(3, 2, 7);
    let placement = Random(1).placement(shape.num_ranks, 1);
    let transports = chorale_link::local(shape.num_ranks, PATIENCE);
    std::thread::scope(|scope| {
        for (rank, transport) in shape.ranks().zip(transports) {
            let (placement, library) = (&placement, &library);
            scope.spawn(move || {
                let device = &mut gpu(u64::from(rank.0));
                let place = place(shape, rank, EXACT, 1);
                let mut link = join_by(by, device, library, transport, place, placement);
                // Ranks with experts only take no part.
                let Some(home) = home_of(shape, rank) else { return };
                for (cols, precision) in [
                    ([3usize, 1, 2], Precision::Half),
                    ([3, 1, 2], Precision::Full),
                    ([64, 64, 64], Precision::Half),
                    ([4100, 4100, 4100], Precision::Full),
                    ([40, 8, 96], Precision::Half),
                    ([258, 259, 259], Precision::Full),
                ] {
                    for num_rows in [0, 1, 4] {
                        let value = |row: usize, col: usize| (home * 7 + row * 3 + col % 120) as f32;
                        let member = rank.0 as usize % 3;
                        let first: usize = cols[..member].iter().sum();
                        let own = first..first + cols[member];
                        let all: usize = cols.iter().sum();
                        let values: Vec<f32> = (0..num_rows)
                            .flat_map(|row| own.clone().map(move |col| value(row, col)))
                            .collect();
                        let mut part = device.matrix(4, cols[member], precision).unwrap();
                        let mut whole = device.matrix(4, all, precision).unwrap();
                        device.write(&values, &mut part).unwrap();
                        link.begin(0);
                        link.begin_gather(device, Half::First, &cols, &part).unwrap();
                        link.end_gather(device, Half::First, &cols, &mut part, &mut whole).unwrap();
                        let expected: Vec<f32> =
                            (0..num_rows).flat_map(|row| (0..all).map(move |col| value(row, col))).collect();
                        assert_eq!(device.read(&whole).unwrap(), expected, "{rank:?}, {cols:?}");
                    }
                }
            });
        }
    });
}

#[test]
fn a_world_goes_over_to_another_placement() {
    let library = fake::open(&[]);
    let model = Model::random(4, 1);
    let shape = shape(1, 2, 2);
    let random = &mut Random(5);
    let before = random.placement(2, 1);
    let after = Placement { version: 1, ..random.placement(2, 1) };
    assert_ne!(before.layers, after.layers);
    let work = Work {
        number: 1,
        in_halves: false,
        rows: vec![random.values(3 * HIDDEN), random.values(5 * HIDDEN)],
    };
    let transports = chorale_link::local(shape.num_ranks, PATIENCE);
    std::thread::scope(|scope| {
        for (rank, transport) in shape.ranks().zip(transports) {
            let (library, before, after, model, work) = (&library, &before, &after, &model, &work);
            scope.spawn(move || {
                let device = &mut gpu(1);
                let mut link =
                    join(device, library, transport, place(shape, rank, EXACT, 1), before, PATIENCE);
                let none = Placement { version: 2, layers: Vec::new() };
                assert!(link.go_over(device, none).is_err());
                assert_eq!(link.placement().version, 0, "what does not fit changes nothing");
                link.go_over(device, after.clone()).unwrap();
                assert_eq!(link.placement().version, 1);
                let experts_of = |layer| after.experts_of(rank, layer);
                let mut bench = crate::world::Bench::new(device, shape, true);
                let home = Some(rank.0 as usize);
                let homed = bench.step(device, &mut link, (model, &experts_of), (work, home)).unwrap();
                assert_eq!(homed, alone(model, &work.rows[rank.0 as usize]));
            });
        }
    });
}

#[test]
fn plans_are_held_against_the_place_before_they_are_computed() {
    let library = fake::open(&[]);
    let transport = chorale_link::local(1, PATIENCE).remove(0);
    let device = &mut gpu(1);
    let exchange = ExchangeOptions { overlap_min_rows: None, ..EXACT };
    let placement = Placement::solo(1, NUM_EXPERTS);
    let place = place(Shape::SOLO, Rank(0), exchange, 1);
    let link = join(device, &library, transport, place, &placement, PATIENCE);
    let plan = |home_rows: &[u32], in_halves| StepPlan {
        step: 1,
        in_halves,
        home_rows: home_rows.to_vec(),
        slices: Vec::new(),
    };
    assert_eq!(link.check_plan(&plan(&[0], false)), Ok(()));
    assert!(link.check_plan(&plan(&[], false)).is_err());
    assert!(link.check_plan(&plan(&[0, 0], false)).is_err());
    assert!(link.check_plan(&plan(&[1], false)).is_err(), "its slices have none");
    assert!(link.check_plan(&plan(&[MAX_ROWS as u32 + 1], false)).is_err());
    assert!(link.check_plan(&plan(&[0], true)).is_err(), "no room for two");
}
