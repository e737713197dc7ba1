//! Ranks agree on what goes by kernels of their own, all or none; and a kernel that
//! waits in vain says for whom.

use crate::fake;
use crate::world::{Bench, By, EXACT, HIDDEN, Model, PATIENCE, Random, Work, gpu, join_by, place};
use chorale_cuda::Cuda;
use chorale_emulator::{Emulator, Options};
use chorale_link::{Fault, Frame, LinkError, Member, Transport};
use chorale_nccl::{Circles, NcclLinks, SMALL_BYTES, small_exchange_bytes};
use chorale_plan::{Epoch, ExchangeOptions, Rank, Shape};
use std::time::Duration;

const fn shape(tensor_parallel_size: u32, data_parallel_size: u32, num_ranks: u32) -> Shape {
    Shape { tensor_parallel_size, data_parallel_size, num_ranks }
}

/// A rank that agrees with the others.
#[derive(Clone, Copy, PartialEq)]
enum Will {
    Yes,
    SwitchedOff,
    /// Its GPU reaches no other.
    Alone,
}

/// Whether kernels carry what is small in the world, and in the rank's group.
fn agreed(shape: Shape, wills: &[Will]) -> Vec<(bool, bool)> {
    let library = &fake::open(&[]);
    let transports = chorale_link::local(shape.num_ranks, PATIENCE);
    std::thread::scope(|scope| {
        let ranks = shape.ranks().zip(transports).zip(wills);
        let ranks: Vec<_> = ranks
            .map(|((rank, mut transport), &will)| {
                scope.spawn(move || {
                    let options = Options { has_peers: will != Will::Alone, ..Options::default() };
                    let device = &mut Cuda::new(Emulator::new(options).unwrap());
                    let mut links = NcclLinks::new(library.clone());
                    links = links.with_small_exchanges(will != Will::SwitchedOff).with_small_bytes(4096);
                    let place = place(shape, rank, EXACT, 1);
                    let circles = links.circles(device, &mut transport, &place).unwrap();
                    (circles.has_world(), circles.has_group())
                })
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

#[test]
fn all_ranks_do_it_or_none() {
    use Will::{Alone, SwitchedOff, Yes};
    assert_eq!(agreed(shape(1, 1, 1), &[Yes]), [(false, false)]);
    assert_eq!(agreed(shape(1, 3, 3), &[Yes; 3]), [(true, false); 3]);
    assert_eq!(agreed(shape(1, 3, 3), &[Yes, SwitchedOff, Yes]), [(false, false); 3]);
    assert_eq!(agreed(shape(1, 1, 3), &[Yes, Yes, Alone]), [(false, false); 3]);
    assert_eq!(agreed(shape(2, 2, 4), &[Yes; 4]), [(true, true); 4]);
    // A group whose ranks can does it where the world cannot.
    let found = agreed(shape(2, 2, 4), &[Yes, Yes, Yes, Alone]);
    assert_eq!(found, [(false, true), (false, true), (false, false), (false, false)]);
}

#[test]
fn what_another_rank_says_of_memory_is_checked() {
    let library = fake::open(&[]);
    let shape = shape(1, 2, 2);
    let frame =
        |exchange, payload: Vec<u8>| Frame { epoch: Epoch(3), step: 0, exchange, payload: payload.into() };
    let said = |payload| frame(u32::MAX - 1, payload);
    for (sent, expected) in [
        (said(Vec::new()), "neither yes nor no"),
        (said(vec![7, 7]), "neither yes nor no"),
        (said(vec![0; 9]), "8 bytes that offer no memory"),
        (said(vec![0; 4096]), "4096 bytes about memory"),
        (frame(5, vec![0]), "belongs to exchange 5 of step 0 of epoch 3"),
    ] {
        let mut transports = chorale_link::local(2, PATIENCE);
        for _ in 0..2 {
            transports[0].send(Rank(1), sent.clone()).unwrap();
        }
        let mut links = NcclLinks::new(library.clone()).with_small_bytes(4096);
        let found: Result<Circles, Fault> =
            links.circles(&mut gpu(1), &mut transports[1], &place(shape, Rank(1), EXACT, 1));
        let error = found.err().unwrap();
        assert!(error.to_string().contains(expected) && error.rank() == Some(Rank(0)), "{error}");
    }
}

#[test]
fn a_rank_that_computes_nothing_is_named_by_the_kernel_that_waits() {
    let library = &fake::open(&[]);
    let model = &Model::random(1, 1);
    let placement = &Random(3).placement(2, 1);
    let exchange = ExchangeOptions { timeout_ms: 2000, ..EXACT };
    let mut transports = chorale_link::local(2, PATIENCE).into_iter();
    let (own, others) = (transports.next().unwrap(), transports.next().unwrap());
    std::thread::scope(|scope| {
        let join = move |rank, device: &mut Cuda, transport| {
            let place = place(shape(1, 2, 2), rank, exchange, 1);
            join_by(By::KERNELS, device, library, transport, place, placement)
        };
        scope.spawn(move || {
            let device = &mut gpu(2);
            let link = join(Rank(1), device, others);
            std::thread::park_timeout(Duration::from_secs(4));
            drop(link);
        });
        let device = &mut gpu(1);
        let mut link = join(Rank(0), device, own);
        let health = link.health();
        assert_eq!(health.fault(), None);
        let mut bench = Bench::new(device, shape(1, 2, 2), true);
        let experts_of = |layer| placement.experts_of(Rank(0), layer);
        let mut step = |number| {
            let work = Work { number, in_halves: false, rows: vec![vec![0.5; HIDDEN]; 2] };
            bench.step(device, &mut link, (model, &experts_of), (&work, Some(0)))
        };
        // All is enqueued, and nothing of it is right.
        assert!(step(7).is_ok());
        let fault = Fault::Timeout { rank: Rank(1), waited: Duration::from_secs(2) };
        assert_eq!(health.fault(), Some(fault.clone()));
        match step(8).unwrap_err() {
            LinkError::Peer { step: 8, fault: found, .. } => assert_eq!(found, fault),
            error => panic!("{error}"),
        }
    });
}

#[test]
fn memory_for_it_is_known_beforehand() {
    let bytes = |shape, rank| small_exchange_bytes(&place(shape, Rank(rank), EXACT, 1));
    assert_eq!(bytes(shape(1, 1, 1), 0), 0);
    let one = bytes(shape(1, 2, 3), 0);
    assert!((8 * SMALL_BYTES..12 * SMALL_BYTES).contains(&one), "{one}");
    assert_eq!(bytes(shape(2, 2, 5), 1), 2 * one);
    assert_eq!(bytes(shape(2, 2, 5), 4), one, "experts only");
}
