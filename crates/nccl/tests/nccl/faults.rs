//! What goes wrong while a world computes: nobody waits for ever, and who is
//! known to be gone is named.

use crate::fake::{self, Failing};
use crate::world::{Bench, EXACT, HIDDEN, Model, PATIENCE, Random, Work, gpu, join, place};
use chorale_cuda::GpuError;
use chorale_link::{Fault, JoinError, Joining, LinkError, LocalAbort, Member};
use chorale_nccl::{Library, NcclLink, NcclLinks};
use chorale_plan::{Carrier, ExchangeOptions, Placement, Rank, RowFormat, Shape};
use std::sync::Arc;
use std::time::{Duration, Instant};

const SHAPE: Shape = Shape { tensor_parallel_size: 1, data_parallel_size: 2, num_ranks: 2 };

/// Rank 0 computes a step while rank 1 does something else, with what ends the
/// epoch at hand; gives why the step failed, and whether what it computed is
/// known to be wrong.
fn fails(
    library: &Arc<Library>,
    timeout: Duration,
    other: impl FnOnce(NcclLink, LocalAbort) + Send,
) -> (LinkError<GpuError>, bool) {
    let model = Model::random(1, 1);
    let placement = Random(3).placement(2, 1);
    let mut transports = chorale_link::local(2, PATIENCE).into_iter();
    let (own, others) = (transports.next().unwrap(), transports.next().unwrap());
    let abort = own.abort_handle();
    std::thread::scope(|scope| {
        let (placement, model) = (&placement, &model);
        scope.spawn(move || {
            let device = &mut gpu(2);
            other(join(device, library, others, place(SHAPE, Rank(1), EXACT, 1), placement, timeout), abort);
        });
        let device = &mut gpu(1);
        let mut link = join(device, library, own, place(SHAPE, Rank(0), EXACT, 1), placement, timeout);
        let health = link.health();
        assert_eq!(health.fault(), None);
        let work = Work { number: 7, in_halves: false, rows: vec![vec![0.5; HIDDEN]; 2] };
        let experts_of = |layer| placement.experts_of(Rank(0), layer);
        let mut bench = Bench::new(device, SHAPE, true);
        let error = bench.step(device, &mut link, (model, &experts_of), (&work, Some(0))).unwrap_err();
        (error, health.fault().is_some())
    })
}

fn fault(error: LinkError<GpuError>) -> (String, Fault) {
    match error {
        LinkError::Peer { step, exchange, fault } => {
            assert_eq!(step, 7);
            (exchange, fault)
        }
        LinkError::Device(error) => panic!("the device is well: {error}"),
    }
}

#[test]
fn a_rank_whose_connection_broke_is_named() {
    let library = fake::open(&[]);
    let (error, is_broken) = fails(&library, Duration::from_millis(300), |link, _| drop(link));
    let (exchange, fault) = fault(error);
    assert_eq!(exchange, "layer 0, dispatch");
    assert_eq!(fault, Fault::Broken { rank: Rank(1), reason: "it has gone".to_owned() });
    assert!(is_broken);
}

#[test]
fn a_rank_that_computes_nothing_is_missed_until_the_deadline() {
    let library = fake::open(&[]);
    let timeout = Duration::from_millis(300);
    let (error, is_broken) = fails(&library, timeout, |link, _| {
        std::thread::park_timeout(Duration::from_secs(2));
        drop(link);
    });
    let (_, fault) = fault(error);
    assert_eq!(fault.rank(), None);
    assert_eq!(fault.to_string(), "the world of epoch 3 waited 300ms for an exchange to begin");
    assert!(is_broken);
}

#[test]
fn the_end_of_the_epoch_ends_a_step_at_once() {
    let library = fake::open(&[]);
    let started = Instant::now();
    let (error, is_broken) = fails(&library, PATIENCE, |link, abort| {
        std::thread::park_timeout(Duration::from_millis(300));
        abort.abort();
        assert!(started.elapsed() < PATIENCE / 2);
        drop(link);
    });
    assert_eq!(fault(error).1, Fault::Over);
    assert!(is_broken && started.elapsed() < PATIENCE / 2);
}

#[test]
fn a_network_that_fails_is_quoted() {
    let failing = Failing::open();
    let (error, is_broken) = fails(&failing.library, PATIENCE, |link, _| {
        std::thread::park_timeout(Duration::from_millis(300));
        failing.fail(0);
        // Still there: it is rank 0's own network.
        std::thread::park_timeout(Duration::from_secs(2));
        drop(link);
    });
    let said = fault(error).1.to_string();
    assert!(said.contains("unhandled system error: the network of this rank failed"), "{said}");
    assert!(is_broken);
}

/// Joins both ranks of a world as a worker's rank does.
fn joined(
    library: &Arc<Library>,
    exchange: ExchangeOptions,
    carrier: Carrier,
) -> Vec<Result<Box<dyn Member<chorale_cuda::Cuda>>, JoinError>> {
    let placement = Random(3).placement(2, 1);
    let transports = chorale_link::local(2, PATIENCE);
    std::thread::scope(|scope| {
        let ranks = SHAPE.ranks().zip(transports).map(|(rank, transport)| {
            let placement = placement.clone();
            scope.spawn(move || {
                let place = chorale_link::Place { carrier, ..place(SHAPE, rank, exchange, 1) };
                let mut links = NcclLinks::new(Arc::clone(library));
                links.join(&mut gpu(1), Box::new(transport), place, placement)
            })
        });
        let ranks: Vec<_> = ranks.collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

#[test]
fn worlds_are_joined_by_what_their_coordinator_chose() {
    // A library that refuses is not asked where frames are enough.
    let refusing = fake::open(&["-DREFUSING"]);
    for link in joined(&refusing, EXACT, Carrier::Frames) {
        assert_eq!(link.unwrap().placement().version, 0);
    }
    for link in joined(&refusing, EXACT, Carrier::Nccl) {
        let error = link.err().unwrap();
        assert!(error.reason.contains("there is no GPU"), "{error}");
    }
    let library = fake::open(&[]);
    for link in joined(&library, EXACT, Carrier::Nccl) {
        assert_eq!(link.unwrap().place().carrier, Carrier::Nccl);
    }
    let int8 = ExchangeOptions { dispatch: RowFormat::Int8, ..EXACT };
    for link in joined(&library, int8, Carrier::Nccl) {
        let error = link.err().unwrap();
        assert!(error.reason.contains("not as 8-bit integers"), "{error}");
    }
}

#[test]
fn placements_that_are_none_are_refused() {
    let library = fake::open(&[]);
    let transport = chorale_link::local(1, PATIENCE).remove(0);
    let none = Placement { version: 0, layers: Vec::new() };
    let mut links = NcclLinks::new(library);
    let place = place(Shape::SOLO, Rank(0), EXACT, 1);
    let error = links.join(&mut gpu(1), Box::new(transport), place, none).err().unwrap();
    assert!(error.reason.contains("it has 0 layers, the model 1"), "{error}");
}
