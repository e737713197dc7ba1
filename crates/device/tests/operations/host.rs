//! What a link through the host needs: rows written by the host, choices in an
//! explicit list, and experts that change while others stay.

use crate::cpu;
use crate::experts::{Layer, route};
use crate::reference::Random;
use chorale_device::{Choice, Device, ExpertOrigin, ExpertsSource, Mxfp4Source};

/// Some experts of a layer's source.
fn pick(source: &ExpertsSource, experts: &[usize]) -> ExpertsSource {
    let pick = |source: &Mxfp4Source| Mxfp4Source {
        experts: experts.iter().map(|&expert| source.experts[expert].clone()).collect(),
        ..source.clone()
    };
    ExpertsSource { gate_up: pick(&source.gate_up), down: pick(&source.down), ..source.clone() }
}

fn check_write<D: Device>(device: &mut D) {
    let mut matrix = device.matrix(3, 2).unwrap();
    for values in [&[1.0, 2.0, 3.0, 4.0][..], &[], &[5.0, 6.0, 7.0, 8.0, 9.0, -0.0]] {
        device.write(values, &mut matrix).unwrap();
        assert_eq!(device.read(&matrix).unwrap(), values);
    }
}

#[test]
fn what_the_host_writes_reads_back() {
    check_write(&mut cpu());
}

/// Rows in another order and some of them twice: each slot gets what the
/// routed row's choice got.
fn check_choices<D: Device>(device: &mut D) {
    let random = &mut Random(5);
    let (num_rows, hidden, top_k) = (9, 32, 2);
    let layer = Layer::random(random, &[0, 1, 2, 3, 4], hidden, 64);
    let experts = device.experts(layer.source.clone()).unwrap();
    let values: Vec<f32> = random.rows(num_rows, hidden, 1.0).concat().iter().map(|&v| v as f32).collect();
    let mut rows = device.matrix(num_rows, hidden).unwrap();
    device.write(&values, &mut rows).unwrap();
    let routing = route(device, random, &rows, (num_rows, hidden), (5, top_k));
    let routes = device.read_routing(&routing).unwrap();
    let mut groups = device.groups(&[0, 1, 2, 3, 4]).unwrap();
    let mut outputs = device.matrix(2 * num_rows * top_k, hidden).unwrap();
    device.group(&routing, &mut groups).unwrap();
    device.run_experts(&rows, &groups, &experts, &mut outputs).unwrap();
    let routed = device.read(&outputs).unwrap();

    let slots: Vec<usize> = (0..30).map(|_| random.below(num_rows * top_k)).collect();
    let choice = |&slot: &usize| {
        let row = slot / top_k;
        Choice { row: row as u32, expert: routes[row][slot % top_k].expert }
    };
    let choices: Vec<Choice> = slots.iter().map(choice).collect();
    device.group_choices(&choices, &mut groups).unwrap();
    device.run_experts(&rows, &groups, &experts, &mut outputs).unwrap();
    let found = device.read(&outputs).unwrap();
    assert_eq!(found.len(), slots.len() * hidden);
    for (found, slot) in found.chunks(hidden).zip(slots) {
        assert_eq!(found, &routed[slot * hidden..][..hidden], "slot {slot}");
    }
}

#[test]
fn a_list_of_choices_gives_the_same_bits_as_a_routing() {
    check_choices(&mut cpu());
}

fn check_regroup<D: Device>(device: &mut D) {
    let random = &mut Random(6);
    let hidden = 32;
    let layer = Layer::random(random, &[0, 1, 2, 3], hidden, 64);
    let mut rows = device.matrix(1, hidden).unwrap();
    let values: Vec<f32> = random.row(hidden, 1.0).iter().map(|&v| v as f32).collect();
    device.write(&values, &mut rows).unwrap();
    let mut outputs = device.matrix(4, hidden).unwrap();
    let mut run = |device: &mut D, experts: &D::Experts, numbers: &[u32]| {
        let mut groups = device.groups(numbers).unwrap();
        let choices: Vec<Choice> = numbers.iter().map(|&expert| Choice { row: 0, expert }).collect();
        device.group_choices(&choices, &mut groups).unwrap();
        device.run_experts(&rows, &groups, experts, &mut outputs).unwrap();
        device.read(&outputs).unwrap()
    };
    let held = device.experts(pick(&layer.source, &[2, 0])).unwrap();
    let before = run(device, &held, &[2, 0]);
    let order = [ExpertOrigin::Added(1), ExpertOrigin::Held(1), ExpertOrigin::Added(0)];
    let other = device.regroup_experts(&held, &order, pick(&layer.source, &[1, 3])).unwrap();
    let anew = device.experts(pick(&layer.source, &[3, 0, 1])).unwrap();
    assert_eq!(run(device, &other, &[3, 0, 1]), run(device, &anew, &[3, 0, 1]));
    assert_eq!(run(device, &held, &[2, 0]), before, "what was held stays usable");
    let none = device.regroup_experts(&held, &[], pick(&layer.source, &[])).unwrap();
    assert!(run(device, &none, &[]).is_empty());
}

#[test]
fn experts_that_stay_are_not_packed_again_and_others_join_them() {
    check_regroup(&mut cpu());
}
