//! What a link through the host needs: rows written by the host, choices in an
//! explicit list, and experts that change while others stay.

use super::experts::route;
use super::upload;
use crate::demands::Demands;
use crate::failure::{Outcome, Tolerance, close, ensure, same};
use crate::reference::{Experts, Random};
use chorale_device::Precision::{Full, Half};
use chorale_device::{Choice, Device, ExpertOrigin};

pub(super) fn writes_and_reads<D: Device>(device: &mut D, demands: &Demands) -> Outcome {
    for precision in [Half, Full] {
        let mut matrix = device.matrix(3, 2, precision)?;
        for values in [&[1.0, 2.0, 3.0, 4.0][..], &[], &[5.0, 6.0, 7.0, 8.0, 9.0, -0.0]] {
            device.write(values, &mut matrix)?;
            same(&device.read(&matrix)?, values, || format!("{values:?}"))?;
        }
    }
    let random = &mut Random(demands.seed);
    for (rows, cols) in [(5, 1), (4, 7), (9, 32), (3, 777)] {
        let values: Vec<f64> = (0..rows * cols).map(|_| random.bf16(1.0) * 1.001 + 1e-3).collect();
        let given: Vec<f32> = values.iter().map(|&value| value as f32).collect();
        let mut full = device.matrix(rows, cols, Full)?;
        device.write(&given, &mut full)?;
        same(&device.read(&full)?, &given, || format!("{rows} × {cols} in full"))?;
        let mut half = device.matrix(rows, cols, Half)?;
        device.write(&given, &mut half)?;
        let rounded: Vec<f64> = given.iter().map(|&value| demands.round(f64::from(value))).collect();
        let exactly = Tolerance { of_each: 0.0, of_largest: 0.0 };
        close(&device.read(&half)?, &rounded, exactly, || format!("{rows} × {cols} in half"))?;
    }
    Ok(())
}

/// Rows in another order and some of them twice: each slot gets what the
/// routed row's choice got.
pub(super) fn lists_of_choices<D: Device>(device: &mut D, demands: &Demands) -> Outcome {
    let random = &mut Random(demands.seed + 5);
    let (num_rows, hidden, top_k) = (9, 32, 2);
    let layer = Experts::random(random, 5, hidden, 64);
    let experts = device.experts(layer.source)?;
    let rows = random.rows(num_rows, hidden, 1.0);
    let rows = upload(device, &rows, Half)?;
    let routing = route(device, random, &rows, (num_rows, hidden), (5, top_k))?;
    let routes = device.read_routing(&routing)?;
    let mut groups = device.groups(&[0, 1, 2, 3, 4])?;
    let mut outputs = device.matrix(2 * num_rows * top_k, hidden, Half)?;
    device.group(&routing, &mut groups)?;
    device.run_experts(&rows, &groups, &experts, &mut outputs)?;
    let routed = device.read(&outputs)?;

    let slots: Vec<usize> = (0..30).map(|_| random.below(num_rows * top_k)).collect();
    let choice = |&slot: &usize| {
        let row = slot / top_k;
        Choice { row: row as u32, expert: routes[row][slot % top_k].expert }
    };
    let choices: Vec<Choice> = slots.iter().map(choice).collect();
    device.group_choices(&choices, &mut groups)?;
    device.run_experts(&rows, &groups, &experts, &mut outputs)?;
    let found = device.read(&outputs)?;
    ensure(found.len() == slots.len() * hidden, || format!("{} values for 30 slots", found.len()))?;
    for (found, slot) in found.chunks(hidden).zip(slots) {
        alike(demands, found, &routed[slot * hidden..][..hidden], || format!("slot {slot}"))?;
    }
    Ok(())
}

/// The same bits of a steady device, else what another order of additions may
/// make of them.
pub(super) fn alike(demands: &Demands, found: &[f32], other: &[f32], what: impl Fn() -> String) -> Outcome {
    if demands.is_steady {
        return same(found, other, what);
    }
    let other: Vec<f64> = other.iter().map(|&value| f64::from(value)).collect();
    let tolerance = Tolerance { of_each: 2.0 * demands.rounding(), of_largest: demands.share(2e-6, 2e-3) };
    close(found, &other, tolerance, what)
}

pub(super) fn regroups<D: Device>(device: &mut D, demands: &Demands) -> Outcome {
    let random = &mut Random(demands.seed + 6);
    let hidden = 32;
    let layer = Experts::random(random, 4, hidden, 64);
    let rows = vec![random.row(hidden, 1.0)];
    let rows = upload(device, &rows, Half)?;
    let mut outputs = device.matrix(4, hidden, Half)?;
    let mut run = |device: &mut D, experts: &D::Experts, numbers: &[u32]| -> Result<Vec<f32>, D::Error> {
        let mut groups = device.groups(numbers)?;
        let choices: Vec<Choice> = numbers.iter().map(|&expert| Choice { row: 0, expert }).collect();
        device.group_choices(&choices, &mut groups)?;
        device.run_experts(&rows, &groups, experts, &mut outputs)?;
        device.read(&outputs)
    };
    let held = device.experts(layer.pick(&[2, 0]))?;
    let before = run(device, &held, &[2, 0])?;
    let order = [ExpertOrigin::Added(1), ExpertOrigin::Held(1), ExpertOrigin::Added(0)];
    let other = device.regroup_experts(&held, &order, layer.pick(&[1, 3]))?;
    let anew = device.experts(layer.pick(&[3, 0, 1]))?;
    let (regrouped, anew) = (run(device, &other, &[3, 0, 1])?, run(device, &anew, &[3, 0, 1])?);
    same(&regrouped, &anew, || "regrouped experts".to_owned())?;
    same(&run(device, &held, &[2, 0])?, &before, || "what was held stays usable".to_owned())?;
    drop(held);
    same(&run(device, &other, &[3, 0, 1])?, &anew, || "what was taken over stays".to_owned())?;
    let none = device.regroup_experts(&other, &[], layer.pick(&[]))?;
    ensure(run(device, &none, &[])?.is_empty(), || "nobody's outputs have rows".to_owned())
}
