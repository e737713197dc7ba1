//! Worlds that exchange rows with layers of experts.

pub(crate) use crate::layers::{HIDDEN, Model, NUM_EXPERTS, Random, TOP_K};

use chorale_device::{Cpu, CpuError, DenseDtype, Device, Precision};
use chorale_link::{Half, Home, Link, LinkError, LocalTransport, Mesh, Place, Solo, Transport, local};
use chorale_plan::{Carrier, Epoch, ExchangeOptions, Placement, Rank, Shape};
use std::num::NonZeroUsize;
use std::time::Duration;

pub(crate) const MAX_ROWS: usize = 8;

pub(crate) const EXACT: ExchangeOptions = ExchangeOptions::exact(10_000);

/// What came home, layer by layer, and the weights of each row's choices.
#[derive(Debug, PartialEq)]
pub(crate) struct Homed {
    pub(crate) answers: Vec<Vec<f32>>,
    pub(crate) weights: Vec<Vec<f32>>,
}

/// One step of a rank: its rows through all layers. The rows themselves stay as they are.
pub(crate) fn step<L: Link<Cpu>>(
    device: &mut Cpu,
    link: &mut L,
    model: &Model,
    experts_of: impl Fn(usize) -> Vec<u32>,
    rows: &[f32],
) -> Result<Homed, LinkError<CpuError>> {
    let mut homed = Homed { answers: Vec::new(), weights: Vec::new() };
    let mut normed = device.matrix(MAX_ROWS, HIDDEN, Precision::Half)?;
    let mut routing = device.routing(MAX_ROWS, TOP_K)?;
    let (mut outputs, mut home) = (
        device.matrix(8 * MAX_ROWS * TOP_K, HIDDEN, Precision::Half)?,
        device.matrix(8 * MAX_ROWS * TOP_K, HIDDEN, Precision::Half)?,
    );
    device.write(rows, &mut normed)?;
    link.begin(4);
    for layer in 0..model.num_layers() {
        let experts = device.experts(model.pick(layer, &experts_of(layer)))?;
        let router = device.linear(model.routers[layer].clone(), DenseDtype::Bf16)?;
        device.route(&normed, &router, &mut routing)?;
        link.begin_dispatch(device, Half::First, &normed, &routing)?;
        let arrived = link.end_dispatch(device, Half::First, &normed, &routing)?;
        device.run_experts(arrived.rows, arrived.groups, &experts, &mut outputs)?;
        link.begin_combine(device, Half::First, &mut outputs, &mut home)?;
        let form = link.end_combine(device, Half::First, &mut home)?;
        let weights = device.read_routing(&routing)?.concat().iter().map(|choice| choice.weight).collect();
        homed.weights.push(weights);
        let answers = device.read(&home)?;
        if form == Home::Sums {
            assert_eq!(answers.len(), rows.len());
        }
        homed.answers.push(answers);
    }
    Ok(homed)
}

pub(crate) fn cpu() -> Cpu {
    Cpu::new(NonZeroUsize::new(1)).unwrap()
}

/// What one rank that holds everything gets for these rows.
pub(crate) fn alone(model: &Model, rows: &[f32]) -> Homed {
    let device = &mut cpu();
    let mut link = Solo::new(device, NUM_EXPERTS as u32).unwrap();
    step(device, &mut link, model, |_| (0..NUM_EXPERTS as u32).collect(), rows).unwrap()
}

pub(crate) fn place(shape: Shape, rank: Rank, exchange: ExchangeOptions, num_layers: usize) -> Place {
    Place {
        epoch: Epoch(3),
        shape,
        rank,
        exchange,
        carrier: Carrier::Frames,
        num_layers,
        num_experts: NUM_EXPERTS,
        top_k: TOP_K,
        hidden_size: HIDDEN,
        max_rows: MAX_ROWS,
    }
}

/// One rank of a world, with its device.
pub(crate) fn mesh<T: Transport>(
    device: &mut Cpu,
    transport: T,
    place: Place,
    placement: &Placement,
) -> Mesh<Cpu, T> {
    Mesh::new(device, transport, place, placement.clone()).unwrap()
}

pub(crate) fn transports(shape: Shape, timeout_ms: u64) -> Vec<LocalTransport> {
    local(shape.num_ranks, Duration::from_millis(timeout_ms))
}

/// Runs a world in which group `g` has the rows `rows[g]`; gives what came home
/// to each rank, and the rows that each ran by layer and expert.
pub(crate) fn run(
    model: &Model,
    shape: Shape,
    exchange: ExchangeOptions,
    placement: &Placement,
    rows: &[Vec<f32>],
) -> Vec<(Homed, Vec<Vec<u64>>)> {
    let transports = transports(shape, 10_000);
    std::thread::scope(|scope| {
        let ranks: Vec<_> = shape
            .ranks()
            .zip(transports)
            .map(|(rank, transport)| {
                let group = shape.group(rank).map(|group| group.start / shape.tensor_parallel_size);
                let rows = group.map_or(&[][..], |group| &rows[group as usize]);
                scope.spawn(move || {
                    let device = &mut cpu();
                    let place = place(shape, rank, exchange, model.num_layers());
                    let mut link = mesh(device, transport, place, placement);
                    let experts_of = |layer| placement.experts_of(rank, layer);
                    let homed = step(device, &mut link, model, experts_of, rows).unwrap();
                    (homed, link.loads().rows())
                })
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}
