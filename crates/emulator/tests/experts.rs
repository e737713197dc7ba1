//! The experts on the emulator: every kernel that multiplies them, against plain
//! loops, against the portable device, and against each other.

#![expect(clippy::unwrap_used, reason = "a test stops at its first surprise")]

use chorale_cuda::Cuda;
use chorale_device::Precision::Half;
use chorale_device::{
    BLOCK, BLOCK_BYTES, Choice, Cpu, Device, ExpertOrigin, ExpertsSource, Mxfp4Part, Mxfp4Source,
    decode_block,
};
use chorale_emulator::{Emulator, Options};
use chorale_kbench::reference::{Experts, Random, Rows, to_bf16, to_f32};
use std::num::NonZeroUsize;

const AMPERE: (u32, u32) = (8, 0);
const HOPPER: (u32, u32) = (9, 0);

fn cuda(seed: u64, capability: (u32, u32)) -> Cuda {
    Cuda::new(Emulator::new(Options { seed, capability, ..Options::default() }).unwrap())
}

fn cpu() -> Cpu {
    Cpu::new(NonZeroUsize::new(2)).unwrap()
}

fn round(value: f32) -> f32 {
    let bits = value.to_bits();
    f32::from_bits(bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000)
}

/// Distinct experts for each row, in random order.
fn choose(random: &mut Random, num_rows: usize, top_k: usize, experts: &[u32]) -> Vec<Choice> {
    let row = |row| {
        let order = random.order(experts.len());
        order.into_iter().take(top_k).map(move |place| Choice { row: row as u32, expert: experts[place] })
    };
    (0..num_rows).flat_map(row).collect()
}

fn upload<D: Device>(device: &mut D, rows: &Rows) -> D::Matrix
where
    D::Error: std::fmt::Debug,
{
    let mut matrix = device.matrix(rows.len(), rows[0].len(), Half).unwrap();
    device.write(&to_f32(rows), &mut matrix).unwrap();
    matrix
}

/// The outputs of a list of choices.
fn run<D: Device>(
    device: &mut D,
    source: &ExpertsSource,
    local: &[u32],
    rows: &Rows,
    choices: &[Choice],
) -> Vec<f32>
where
    D::Error: std::fmt::Debug,
{
    let experts = device.experts(source.clone()).unwrap();
    run_on(device, &experts, local, rows, choices)
}

fn run_on<D: Device>(
    device: &mut D,
    experts: &D::Experts,
    local: &[u32],
    rows: &Rows,
    choices: &[Choice],
) -> Vec<f32>
where
    D::Error: std::fmt::Debug,
{
    let input = upload(device, rows);
    let mut groups = device.groups(local).unwrap();
    device.group_choices(choices, &mut groups).unwrap();
    let mut outputs = device.matrix(choices.len(), rows[0].len(), Half).unwrap();
    device.run_experts(&input, &groups, experts, &mut outputs).unwrap();
    device.read(&outputs).unwrap()
}

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |largest, value| largest.max(value.abs()))
}

/// The largest difference, as a share of the largest value.
fn difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    assert!(found.iter().all(|value| value.is_finite()), "all outputs are numbers");
    let differences: Vec<f32> = found.iter().zip(expected).map(|(a, b)| a - b).collect();
    largest(&differences) / largest(expected)
}

#[test]
fn outputs_agree_with_plain_loops_and_with_the_portable_device() {
    // Rows, hidden, intermediate, experts, choices of each row.
    let shapes = [
        (1, 32, 32, 1, 1),
        (1, 2880, 32, 8, 4),
        (1, 64, 2880, 8, 4),
        (8, 608, 576, 5, 4),
        (32, 96, 160, 8, 1),
        (16, 320, 96, 32, 4),
        (60, 96, 160, 5, 2),
        (100, 2880, 32, 32, 3),
        (200, 128, 160, 8, 2),
        (150, 64, 32, 128, 4),
        (130, 96, 96, 2, 2),
        (70, 32, 2880, 1, 1),
        // Rows too long for the kernels that hold them whole.
        (8, 8192, 32, 2, 1),
        (40, 8192, 32, 40, 1),
    ];
    for (seed, (num_rows, hidden, intermediate, num_experts, top_k)) in (1..).zip(shapes) {
        let random = &mut Random(seed);
        let layer = Experts::random(random, num_experts, hidden, intermediate);
        // The model numbers them otherwise than the rank.
        let local: Vec<u32> =
            random.order(num_experts).into_iter().map(|expert| 3 * expert as u32 + 1).collect();
        let rows = random.rows(num_rows, hidden, 1.0);
        let choices = choose(random, num_rows, top_k, &local);
        let exact = |choice: &Choice| {
            let index = local.iter().position(|&expert| expert == choice.expert).unwrap();
            layer.output(index, &rows[choice.row as usize], |value| f64::from(round(value as f32)))
        };
        let exact: Vec<f32> = choices.iter().flat_map(exact).map(|value| value as f32).collect();
        let portable = run(&mut cpu(), &layer.source, &local, &rows, &choices);
        for capability in [AMPERE, HOPPER] {
            let found = run(&mut cuda(seed, capability), &layer.source, &local, &rows, &choices);
            let what = format!("{num_rows} rows, {top_k} of {num_experts}, {hidden} × {intermediate}");
            let (far, further) = (difference(&found, &exact), difference(&found, &portable));
            // Half of the last of 8 bits, and what roundings of activations cost.
            assert!(far < 4.5e-3, "{what}, {capability:?}: {far} from plain loops");
            assert!(further < 1e-2, "{what}, {capability:?}: {further} from the portable device");
        }
    }
}

#[test]
fn a_row_gets_the_same_bits_beside_any_others() {
    let random = &mut Random(3);
    let (hidden, num_experts) = (704, 3);
    let layer = Experts::random(random, num_experts, hidden, 608);
    let rows = random.rows(192, hidden, 1.0);
    let local = [0, 1, 2];
    let choice = |row: usize| Choice { row: row as u32, expert: (row % 3) as u32 };
    let device = &mut cuda(5, AMPERE);
    let experts = device.experts(layer.source).unwrap();
    let all: Vec<Choice> = (0..rows.len()).map(choice).collect();
    let whole = run_on(device, &experts, &local, &rows, &all);
    for count in [1, 7, 32, 33, 48, 96, 97] {
        let part = run_on(device, &experts, &local, &rows, &all[..count]);
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<u32>>();
        assert_eq!(bits(&part), bits(&whole[..part.len()]), "{count} rows");
    }
}

#[test]
fn one_expert_may_get_all_rows_and_a_row_may_come_twice() {
    let random = &mut Random(4);
    let layer = Experts::random(random, 6, 96, 64);
    let rows = random.rows(150, 96, 1.0);
    let local: Vec<u32> = (0..6).collect();
    for count in [1, 9, 32, 40, 150] {
        let choices: Vec<Choice> = (0..count).map(|row| Choice { row: row as u32 / 2, expert: 4 }).collect();
        let portable = run(&mut cpu(), &layer.source, &local, &rows, &choices);
        for capability in [AMPERE, HOPPER] {
            let found = run(&mut cuda(6, capability), &layer.source, &local, &rows, &choices);
            assert!(difference(&found, &portable) < 1e-2, "{count} rows");
        }
    }
}

#[test]
fn slots_that_several_blocks_sort_come_out_right() {
    let random = &mut Random(11);
    let local: Vec<u32> = (0..40).collect();
    let layer = Experts::random(random, local.len(), 32, 32);
    let rows = random.rows(2100, 32, 1.0);
    let choices = choose(random, rows.len(), 2, &local);
    let portable = run(&mut cpu(), &layer.source, &local, &rows, &choices);
    let found = run(&mut cuda(2, HOPPER), &layer.source, &local, &rows, &choices);
    assert!(difference(&found, &portable) < 1e-2);
}

#[test]
fn nothing_to_do_is_done() {
    let random = &mut Random(5);
    let layer = Experts::random(random, 2, 64, 32);
    let rows = random.rows(3, 64, 1.0);
    let device = &mut cuda(1, AMPERE);
    assert!(run(device, &layer.source, &[0, 1], &rows, &[]).is_empty());
    let nobody = layer.pick(&[]);
    assert!(run(device, &nobody, &[], &rows, &[]).is_empty());
}

/// A layer of one expert, whose activations are `values` whatever comes in, and
/// whose down matrix is given.
fn fixed(values: &[f32], down: Mxfp4Part, hidden: usize) -> ExpertsSource {
    let intermediate = values.len();
    // Gates of 64 make the sigmoid 1; ups are what makes 64 * (up + 1) the value.
    let bias = values.iter().flat_map(|&value| [64.0, f64::from(value) / 64.0 - 1.0]);
    let gate_up = Mxfp4Part {
        blocks: vec![0; 2 * intermediate * hidden / 2].into(),
        scales: vec![127; 2 * intermediate * hidden / BLOCK].into(),
        bias: Some(to_bf16(&bias.collect::<Vec<f64>>())),
    };
    ExpertsSource {
        gate_up: Mxfp4Source { rows: 2 * intermediate, cols: hidden, experts: vec![gate_up] },
        down: Mxfp4Source { rows: hidden, cols: intermediate, experts: vec![down] },
        swiglu_limit: 64.0,
    }
}

/// The down matrix of such a layer, column by column, as the kernels decode it.
fn assert_decodes(blocks: Vec<u8>, scales: Vec<u8>, (hidden, intermediate): (usize, usize), col: usize) {
    let down = Mxfp4Part { blocks: blocks.clone().into(), scales: scales.clone().into(), bias: None };
    let mut values = vec![0.0; intermediate];
    values[col] = 1.0;
    let source = fixed(&values, down, hidden);
    // One row, and as many as other kernels take.
    for count in [1, 40] {
        let rows = vec![vec![0.0; hidden]; count];
        let choices: Vec<Choice> = (0..count as u32).map(|row| Choice { row, expert: 0 }).collect();
        let found = run(&mut cuda(7, AMPERE), &source, &[0], &rows, &choices);
        for (row, found) in found[..hidden].iter().enumerate() {
            let block = row * (intermediate / BLOCK) + col / BLOCK;
            let packed = blocks.as_chunks::<BLOCK_BYTES>().0[block];
            let exact = decode_block(&packed, scales[block])[col % BLOCK];
            assert_eq!(*found, round(exact), "row {row}, column {col}, scale {}", scales[block]);
        }
    }
}

#[test]
fn every_code_decodes_exactly_under_every_scale() {
    let hidden = 16 * 256;
    // Row r has scale r / 16, and in column i code (r + i) % 16.
    let byte = |row: usize, b: usize| ((row + 2 * b) % 16 + (row + 2 * b + 1) % 16 * 16) as u8;
    let blocks = (0..hidden).flat_map(|row| (0..BLOCK_BYTES).map(move |b| byte(row, b))).collect::<Vec<u8>>();
    let scales: Vec<u8> = (0..hidden).map(|row| (row / 16).min(254) as u8).collect();
    for col in [0, 1, 6, 9, 16, 31] {
        assert_decodes(blocks.clone(), scales.clone(), (hidden, BLOCK), col);
    }
}

#[test]
fn scales_that_differ_within_a_row_decode_exactly() {
    let random = &mut Random(9);
    let (hidden, intermediate) = (512, 96);
    let blocks: Vec<u8> = (0..hidden * intermediate / 2).map(|_| random.word() as u8).collect();
    let mut scales = Vec::new();
    for _ in 0..hidden {
        // A row's scales lie within 2^130 of each other.
        let lowest = random.below(125);
        scales.extend((0..intermediate / BLOCK).map(|_| (lowest + random.below(131)).min(254) as u8));
    }
    for col in [2, 40, 95] {
        assert_decodes(blocks.clone(), scales.clone(), (hidden, intermediate), col);
    }
}

#[test]
fn regrouping_shares_what_stays_and_fills_what_is_free() {
    let random = &mut Random(10);
    let (hidden, intermediate) = (64, 96);
    let layer = Experts::random(random, 8, hidden, intermediate);
    let rows = random.rows(20, hidden, 1.0);
    let gpu = Emulator::new(Options::default()).unwrap();
    let device = &mut Cuda::new(gpu);
    let cpu = &mut cpu();
    let mut held_numbers = vec![0, 1, 2, 3];
    let mut held = device.experts(layer.pick(&held_numbers)).unwrap();
    let mut free = Vec::new();
    for round in 0..6 {
        // The first is given up; a stranger comes in the middle.
        let stranger = (0..8).find(|expert| !held_numbers.contains(expert)).unwrap();
        let order =
            [ExpertOrigin::Held(3), ExpertOrigin::Added(0), ExpertOrigin::Held(1), ExpertOrigin::Held(2)];
        let numbers = vec![held_numbers[3], stranger, held_numbers[1], held_numbers[2]];
        let next = device.regroup_experts(&held, &order, layer.pick(&[stranger])).unwrap();
        held = next;
        held_numbers = numbers;
        let local: Vec<u32> = held_numbers.iter().map(|&expert| expert as u32).collect();
        let choices = choose(random, rows.len(), 2, &local);
        let found = run_on(device, &held, &local, &rows, &choices);
        let source = layer.pick(&held_numbers);
        let expected = run(cpu, &source, &local, &rows, &choices);
        assert!(difference(&found, &expected) < 1e-2, "round {round}");
        device.wait().unwrap();
        free.push(device.free_bytes().unwrap());
    }
    // The first exchange takes a slab of one slot; from then on a slot is free.
    assert!(free.iter().all(|&bytes| bytes >= free[0]), "{free:?}");
}

#[test]
fn gates_and_ups_are_clamped() {
    let (hidden, intermediate, limit) = (32, 32, 7.0f64);
    let biases = [-1000.0, -8.0, -7.0, -1.0, 0.0, 3.0, 7.0, 8.0, 1000.0];
    // Down is the identity: code 2 is 1.
    let mut blocks = vec![0u8; hidden * intermediate / 2];
    for row in 0..hidden {
        blocks[(row * intermediate + row) / 2] = if row % 2 == 0 { 2 } else { 2 << 4 };
    }
    for (gate, up) in biases.iter().flat_map(|&gate| biases.map(|up| (gate, up))) {
        let down = Mxfp4Part { blocks: blocks.clone().into(), scales: vec![127; hidden].into(), bias: None };
        let mut source = fixed(&vec![0.0; intermediate], down, hidden);
        source.swiglu_limit = limit as f32;
        source.gate_up.experts[0].bias = Some(to_bf16(&[gate, up].repeat(intermediate)));
        let found = run(
            &mut cuda(1, AMPERE),
            &source,
            &[0],
            &vec![vec![0.0; hidden]],
            &[Choice { row: 0, expert: 0 }],
        );
        let (gate, up) = (gate.min(limit), up.clamp(-limit, limit));
        let exact = gate / (1.0 + (-1.702 * gate).exp()) * (up + 1.0);
        for value in found {
            let far = (f64::from(value) - exact).abs();
            assert!(far <= 2.0f64.powi(-8) * exact.abs(), "gate {gate}, up {up}: {value}, not {exact}");
        }
    }
}
