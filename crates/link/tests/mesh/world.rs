//! Random layers of experts, and worlds that exchange rows with them.

use chorale_device::{
    Cpu, CpuError, DenseDtype, DensePart, DenseSource, Device, ExpertsSource, Mxfp4Part, Mxfp4Source,
    Precision,
};
use chorale_link::{Half, Home, Link, LinkError, LocalTransport, Mesh, Place, Solo, Transport, local};
use chorale_plan::{Carrier, Epoch, ExchangeOptions, Placement, Rank, RowFormat, Shape};
use std::num::NonZeroUsize;
use std::time::Duration;

pub(crate) const HIDDEN: usize = 32;
pub(crate) const NUM_EXPERTS: usize = 7;
pub(crate) const TOP_K: usize = 3;
pub(crate) const MAX_ROWS: usize = 8;

pub(crate) const EXACT: ExchangeOptions = ExchangeOptions {
    timeout_ms: 10_000,
    dispatch: RowFormat::F32,
    fast_combine: false,
    overlap_min_rows: None,
};

/// SplitMix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub(crate) fn values(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0).collect()
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }

    /// Each expert of each layer on one rank or some.
    pub(crate) fn placement(&mut self, num_ranks: u32, num_layers: usize) -> Placement {
        let mut expert = || {
            let mut ranks = vec![Rank(self.below(num_ranks as usize) as u32)];
            if self.below(3) == 0 {
                ranks.extend((0..num_ranks).filter(|_| self.below(2) == 0).map(Rank));
            }
            ranks.sort();
            ranks.dedup();
            ranks
        };
        let mut layer = || (0..NUM_EXPERTS).map(|_| expert()).collect();
        Placement { version: 0, layers: (0..num_layers).map(|_| layer()).collect() }
    }
}

/// Layers of experts with their routers, the same for every rank.
pub(crate) struct Model {
    routers: Vec<DenseSource>,
    experts: Vec<ExpertsSource>,
}

impl Model {
    pub(crate) fn random(seed: u64, num_layers: usize) -> Self {
        let random = &mut Random(seed);
        let matrix = |random: &mut Random, rows: usize| {
            let mut part = || Mxfp4Part {
                blocks: random.bytes(rows * HIDDEN / 2).into(),
                scales: vec![125; rows * HIDDEN / 32].into(),
                bias: None,
            };
            let experts = (0..NUM_EXPERTS).map(|_| part()).collect();
            Mxfp4Source { rows, cols: HIDDEN, experts }
        };
        let experts = (0..num_layers).map(|_| ExpertsSource {
            gate_up: matrix(random, 2 * HIDDEN),
            down: matrix(random, HIDDEN),
            swiglu_limit: 7.0,
        });
        let experts = experts.collect();
        let routers = (0..num_layers).map(|_| {
            let bf16 = |value: f32| ((value.to_bits() >> 16) as u16).to_le_bytes();
            let weight: Vec<u8> = random.values(NUM_EXPERTS * HIDDEN).into_iter().flat_map(bf16).collect();
            let part = DensePart { rows: NUM_EXPERTS, weight: weight.into(), bias: None };
            DenseSource { cols: HIDDEN, parts: vec![part] }
        });
        Self { routers: routers.collect(), experts }
    }

    pub(crate) fn num_layers(&self) -> usize {
        self.routers.len()
    }

    fn pick(&self, layer: usize, experts: &[u32]) -> ExpertsSource {
        let pick = |source: &Mxfp4Source| Mxfp4Source {
            experts: experts.iter().map(|&expert| source.experts[expert as usize].clone()).collect(),
            ..source.clone()
        };
        let source = &self.experts[layer];
        ExpertsSource { gate_up: pick(&source.gate_up), down: pick(&source.down), ..source.clone() }
    }
}

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
