//! Worlds of emulated GPUs that exchange rows with layers of experts over the stand-in.

pub(crate) use crate::layers::{HIDDEN, Model, NUM_EXPERTS, Random, TOP_K};

use crate::fake::unbound;
use chorale_cuda::{Cuda, GpuError};
use chorale_device::{DenseDtype, Device, Precision};
use chorale_emulator::{Emulator, Options};
use chorale_link::{Half, Home, Link, LinkError, LocalTransport, Member, Place, Solo};
use chorale_nccl::{Beginning, Library, NcclLink, NcclLinks, bring_up};
use chorale_plan::{Carrier, Epoch, ExchangeOptions, Placement, Rank, Shape};
use std::sync::Arc;
use std::time::Duration;

/// A multiple of every group's size.
pub(crate) const MAX_ROWS: usize = 12;
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) const EXACT: ExchangeOptions =
    ExchangeOptions { overlap_min_rows: Some(1), ..ExchangeOptions::exact(60_000) };

/// What came home, layer by layer, and the weights of each row's choices.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Homed {
    pub(crate) answers: Vec<Vec<f32>>,
    pub(crate) weights: Vec<Vec<f32>>,
}

/// What a world does in a step.
#[derive(Clone, Debug)]
pub(crate) struct Work {
    pub(crate) number: u64,
    /// Of each home.
    pub(crate) rows: Vec<Vec<f32>>,
    pub(crate) in_halves: bool,
}

impl Work {
    fn home_rows(&self) -> Vec<u32> {
        self.rows.iter().map(|rows| (rows.len() / HIDDEN) as u32).collect()
    }
}

/// What a rank computes in: one of each for each half.
pub(crate) struct Bench {
    normed: Vec<<Cuda as Device>::Matrix>,
    routing: Vec<<Cuda as Device>::Routing>,
    home: Vec<<Cuda as Device>::Matrix>,
    outputs: <Cuda as Device>::Matrix,
}

impl Bench {
    /// As much room as the layers have for a rank.
    pub(crate) fn new(device: &mut Cuda, shape: Shape, has_rows: bool) -> Self {
        let slots = MAX_ROWS * shape.data_parallel_size as usize * TOP_K;
        let mut rows = |rows: usize| {
            let rows = if has_rows { rows } else { 0 };
            let normed = device.matrix(rows, HIDDEN, Precision::Half).unwrap();
            let routing = device.routing(rows, TOP_K).unwrap();
            (normed, routing, device.matrix(slots, HIDDEN, Precision::Half).unwrap())
        };
        let (first, second) = (rows(MAX_ROWS), rows(MAX_ROWS.div_ceil(2)));
        Self {
            normed: vec![first.0, second.0],
            routing: vec![first.1, second.1],
            home: vec![first.2, second.2],
            outputs: device.matrix(slots, HIDDEN, Precision::Half).unwrap(),
        }
    }

    /// One step of a rank: its rows through all layers, as the layers' loop does
    /// it. The rows themselves stay as they are.
    pub(crate) fn step<L: Link<Cuda>>(
        &mut self,
        device: &mut Cuda,
        link: &mut L,
        (model, experts_of): (&Model, &dyn Fn(usize) -> Vec<u32>),
        (work, home): (&Work, Option<usize>),
    ) -> Result<Homed, LinkError<GpuError>> {
        let rows = home.map_or(&[][..], |home| &work.rows[home]);
        let middle = if work.in_halves { (rows.len() / HIDDEN).div_ceil(2) * HIDDEN } else { rows.len() };
        let halves: &[Half] = if work.in_halves { &Half::BOTH } else { &[Half::First] };
        for (half, rows) in [&rows[..middle], &rows[middle..]].into_iter().enumerate() {
            device.write(rows, &mut self.normed[half])?;
        }
        link.begin(work.number);
        link.expect(&work.home_rows(), work.in_halves);
        let mut homed = Homed::default();
        for layer in 0..model.num_layers() {
            let experts = device.experts(model.pick(layer, &experts_of(layer)))?;
            let router = device.linear(model.routers[layer].clone(), DenseDtype::Bf16)?;
            for &half in halves {
                let at = half as usize;
                if home.is_some() {
                    device.route(&self.normed[at], &router, &mut self.routing[at])?;
                }
                link.begin_dispatch(device, half, &self.normed[at], &self.routing[at])?;
            }
            for &half in halves {
                let at = half as usize;
                let arrived = link.end_dispatch(device, half, &self.normed[at], &self.routing[at])?;
                device.run_experts(arrived.rows, arrived.groups, &experts, &mut self.outputs)?;
                link.begin_combine(device, half, &mut self.outputs, &mut self.home[at])?;
            }
            let (mut answers, mut weights) = (Vec::new(), Vec::new());
            for &half in halves {
                let at = half as usize;
                let form = link.end_combine(device, half, &mut self.home[at])?;
                if home.is_none() {
                    continue;
                }
                let routes = device.read_routing(&self.routing[at])?.concat();
                weights.extend(routes.iter().map(|choice| choice.weight));
                answers.extend(device.read(&self.home[at])?);
                if form == Home::Sums {
                    assert_eq!(device.read(&self.home[at])?.len(), device.read(&self.normed[at])?.len());
                }
            }
            homed.answers.push(answers);
            homed.weights.push(weights);
        }
        Ok(homed)
    }
}

pub(crate) fn gpu(seed: u64) -> Cuda {
    let options = Options { seed, memory_bytes: 256 << 20, ..Options::default() };
    Cuda::new(Emulator::new(options).unwrap())
}

/// What one rank that holds everything gets for these rows.
pub(crate) fn alone(model: &Model, rows: &[f32]) -> Homed {
    let device = &mut gpu(99);
    let mut link = Solo::new(device, NUM_EXPERTS as u32).unwrap();
    let work = Work { number: 4, rows: vec![rows.to_vec()], in_halves: false };
    let all = |_| (0..NUM_EXPERTS as u32).collect();
    Bench::new(device, Shape::SOLO, true).step(device, &mut link, (model, &all), (&work, Some(0))).unwrap()
}

pub(crate) fn place(shape: Shape, rank: Rank, exchange: ExchangeOptions, num_layers: usize) -> Place {
    Place {
        epoch: Epoch(3),
        shape,
        rank,
        exchange,
        carrier: Carrier::Nccl,
        num_layers,
        num_experts: NUM_EXPERTS,
        top_k: TOP_K,
        hidden_size: HIDDEN,
        max_rows: MAX_ROWS,
    }
}

/// What carries rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    /// NCCL alone.
    Nccl,
    /// Kernels of our own where so many bytes come to a rank at most, with memory that
    /// is cleared after so many exchanges.
    Kernels { max_bytes: usize, renewal: u32 },
}

impl By {
    /// Everything that tests exchange.
    pub(crate) const KERNELS: Self = Self::Kernels { max_bytes: 1 << 16, renewal: u32::MAX };

    pub(crate) fn links(self, library: &Arc<Library>) -> NcclLinks {
        let links = NcclLinks::new(Arc::clone(library));
        match self {
            Self::Nccl => links.with_small_exchanges(false),
            Self::Kernels { max_bytes, renewal } => {
                links.with_small_bytes(max_bytes).with_renewal_after(renewal)
            }
        }
    }
}

/// A rank of a world, joined with the others, and what carries small exchanges.
pub(crate) fn join_by(
    by: By,
    device: &mut Cuda,
    library: &Arc<Library>,
    mut transport: LocalTransport,
    place: Place,
    placement: &Placement,
) -> NcclLink {
    let Place { epoch, shape, rank, exchange, .. } = place;
    let timeout = Duration::from_millis(exchange.timeout_ms.into());
    let comms =
        bring_up(&mut transport, library, Beginning { epoch, shape, rank, timeout }, &unbound()).unwrap();
    let circles = by.links(library).circles(device, &mut transport, &place).unwrap();
    let link = NcclLink::new(device, comms, Box::new(transport), place, placement.clone()).unwrap();
    link.with_circles(circles)
}

/// A rank of a world, joined with the others, by NCCL alone.
pub(crate) fn join(
    device: &mut Cuda,
    library: &Arc<Library>,
    mut transport: LocalTransport,
    place: Place,
    placement: &Placement,
    timeout: Duration,
) -> NcclLink {
    let Place { epoch, shape, rank, .. } = place;
    let beginning = Beginning { epoch, shape, rank, timeout };
    let comms = bring_up(&mut transport, library, beginning, &unbound()).unwrap();
    NcclLink::new(device, comms, Box::new(transport), place, placement.clone()).unwrap()
}

/// The group of a rank, counted.
pub(crate) fn home_of(shape: Shape, rank: Rank) -> Option<usize> {
    shape.group(rank).map(|group| (group.start / shape.tensor_parallel_size) as usize)
}

/// Runs a world through steps; gives what came home to each rank in each of them,
/// and the rows that each ran by layer and expert.
pub(crate) fn run(
    (library, by): (&Arc<Library>, By),
    model: &Model,
    shape: Shape,
    exchange: ExchangeOptions,
    placement: &Placement,
    steps: &[Work],
) -> Vec<(Vec<Homed>, Vec<Vec<u64>>)> {
    let transports = chorale_link::local(shape.num_ranks, PATIENCE);
    std::thread::scope(|scope| {
        let ranks = shape.ranks().zip(transports).map(|(rank, transport)| {
            scope.spawn(move || {
                let device = &mut gpu(u64::from(rank.0));
                let place = place(shape, rank, exchange, model.num_layers());
                let mut link = join_by(by, device, library, transport, place, placement);
                let experts_of = |layer| placement.experts_of(rank, layer);
                let home = home_of(shape, rank);
                let mut bench = Bench::new(device, shape, home.is_some());
                let steps = steps
                    .iter()
                    .map(|work| bench.step(device, &mut link, (model, &experts_of), (work, home)).unwrap());
                let homed = steps.collect();
                link.fetch_loads(device).unwrap();
                (homed, link.loads().rows())
            })
        });
        let ranks: Vec<_> = ranks.collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}
