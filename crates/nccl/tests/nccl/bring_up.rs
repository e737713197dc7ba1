//! How ranks find each other's communicators, and what they say when they do not.

use crate::fake::{self, at, at_mut, enqueue, unbound};
use chorale_link::grpc::{LinkPort, Membership, PortConfig};
use chorale_link::{Fault, Frame, Transport, local};
use chorale_nccl::{Beginning, BringUpError, Comms, Kind, Library, NcclError, Operation, bring_up};
use chorale_plan::{Epoch, Rank, Shape};
use std::sync::Arc;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);

const fn shape(tensor_parallel_size: u32, data_parallel_size: u32, num_ranks: u32) -> Shape {
    Shape { tensor_parallel_size, data_parallel_size, num_ranks }
}

fn beginning(shape: Shape, rank: Rank, timeout: Duration) -> Beginning {
    Beginning { epoch: Epoch(3), shape, rank, timeout }
}

/// Brings all ranks up that have a library, each on a thread of its own.
fn bring_all_up(
    shape: Shape,
    transports: Vec<Box<dyn Transport>>,
    libraries: &[Option<Arc<Library>>],
) -> Vec<Option<Result<Comms, BringUpError>>> {
    std::thread::scope(|scope| {
        let ranks = shape.ranks().zip(transports).zip(libraries).map(|((rank, mut transport), library)| {
            scope.spawn(move || {
                let library = library.as_ref()?;
                Some(bring_up(&mut *transport, library, beginning(shape, rank, PATIENCE), &unbound()))
            })
        });
        let ranks: Vec<_> = ranks.collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

fn local_transports(shape: Shape, timeout: Duration) -> Vec<Box<dyn Transport>> {
    let transports = local(shape.num_ranks, timeout).into_iter();
    transports.map(|transport| Box::new(transport) as Box<dyn Transport>).collect()
}

/// What each gets when all give their number.
fn numbers(comm: &chorale_nccl::Comm, own: u32) -> Vec<u32> {
    let mut all = vec![u32::MAX; comm.members().num_ranks as usize];
    let (own, kind) = ([own], Kind::Bytes);
    enqueue(comm, &[Operation::AllGather { from: at(&own), to: at_mut(&mut all), count: 4, kind }]).unwrap();
    all
}

fn check_numbers(shape: Shape, comms: Vec<Option<Result<Comms, BringUpError>>>) {
    std::thread::scope(|scope| {
        for (rank, comms) in shape.ranks().zip(comms) {
            let comms = comms.unwrap().unwrap();
            scope.spawn(move || {
                let all: Vec<u32> = (0..shape.num_ranks).collect();
                assert_eq!(numbers(&comms.world, rank.0), all);
                let group = shape.group(rank).filter(|group| group.len() > 1);
                let found = comms.group.as_ref().map(|group| numbers(group, rank.0));
                assert_eq!(found, group.map(Vec::from_iter), "{rank:?} of {shape:?}");
            });
        }
    });
}

#[test]
fn every_rank_gets_the_world_and_its_group() {
    let library = fake::open(&[]);
    for shape in [shape(1, 1, 1), shape(2, 1, 2), shape(1, 2, 3), shape(2, 2, 5)] {
        let libraries = vec![Some(Arc::clone(&library)); shape.num_ranks as usize];
        let comms = bring_all_up(shape, local_transports(shape, PATIENCE), &libraries);
        check_numbers(shape, comms);
    }
}

#[test]
fn communicators_that_hold_each_other_up_end_together() {
    let library = fake::open(&["-DENTANGLED"]);
    let shape = shape(2, 1, 2);
    let timeout = Duration::from_millis(300);
    let started = Instant::now();
    std::thread::scope(|scope| {
        for (rank, mut transport) in shape.ranks().zip(local_transports(shape, PATIENCE)) {
            let library = &library;
            scope.spawn(move || {
                let beginning = beginning(shape, rank, timeout);
                let comms = bring_up(&mut *transport, library, beginning, &unbound()).unwrap();
                if rank == Rank(0) {
                    // Alone: what failed is told while its end is still held up.
                    let (own, mut all, kind) = ([0u32], [0u32; 2], Kind::Bytes);
                    let gather =
                        Operation::AllGather { from: at(&own), to: at_mut(&mut all), count: 4, kind };
                    let error = enqueue(&comms.world, &[gather]).unwrap_err();
                    assert!(matches!(error, NcclError::Timeout { .. }), "{error}");
                }
                drop(comms);
            });
        }
    });
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[test]
fn libraries_that_differ_are_refused_by_name() {
    let (one, other) = (fake::open(&[]), fake::open(&["-DVERSION=22703"]));
    let shape = shape(1, 3, 3);
    let libraries = [Some(Arc::clone(&one)), Some(one), Some(other)];
    for (rank, outcome) in
        bring_all_up(shape, local_transports(shape, PATIENCE), &libraries).into_iter().enumerate()
    {
        let error = outcome.unwrap().unwrap_err();
        let said = error.to_string();
        assert!(said.contains("rank 2 has 2.27.3, rank 0 has 2.28.9"), "{rank}: {said}");
        assert!(error.rank().is_none() && error.is_of_nccl(), "nobody is to blame, as rank {rank} sees it");
    }
}

#[test]
fn a_rank_that_does_not_come_is_blamed_by_those_that_wait_for_it() {
    let library = fake::open(&[]);
    let shape = shape(1, 3, 3);
    for missing in [0, 2] {
        let libraries: Vec<_> = (0..3).map(|rank| (rank != missing).then(|| Arc::clone(&library))).collect();
        let transports = local_transports(shape, Duration::from_millis(200));
        // Kept: a connection that breaks is another story.
        let outcomes = std::thread::scope(|scope| {
            let ranks =
                shape.ranks().zip(transports).zip(libraries).map(|((rank, mut transport), library)| {
                    scope.spawn(move || {
                        let beginning = beginning(shape, rank, Duration::from_millis(200));
                        let outcome =
                            library.map(|library| bring_up(&mut *transport, &library, beginning, &unbound()));
                        (transport, outcome)
                    })
                });
            let ranks: Vec<_> = ranks.collect();
            let outcomes: Vec<_> = ranks.into_iter().map(|rank| rank.join().unwrap()).collect();
            outcomes
        });
        let blamed = outcomes
            .iter()
            .filter_map(|(_, outcome)| outcome.as_ref())
            .map(|outcome| outcome.as_ref().unwrap_err().rank());
        let blamed: Vec<_> = blamed.collect();
        match missing {
            0 => assert_eq!(blamed, [Some(Rank(0)); 2]),
            _ => assert_eq!(blamed[0], Some(Rank(2))),
        }
    }
}

#[test]
fn what_another_rank_sends_is_checked() {
    let library = fake::open(&[]);
    let shape = shape(1, 2, 2);
    let frame = |exchange, payload: &'static [u8]| Frame {
        epoch: Epoch(3),
        step: 0,
        exchange,
        payload: payload.into(),
    };
    let cases: [(Frame, &str); 5] = [
        (frame(u32::MAX, b""), "neither an id nor"),
        (frame(u32::MAX, b"\x00short"), "an id of 5 bytes"),
        (frame(u32::MAX, b"\x07what"), "neither an id nor"),
        (frame(u32::MAX, b"\x01there is none"), "there is none"),
        (frame(7, b"\x00"), "belongs to exchange 7 of step 0 of epoch 3"),
    ];
    for (sent, expected) in cases {
        let mut transports = local_transports(shape, PATIENCE);
        transports[0].send(Rank(1), sent).unwrap();
        let outcome =
            bring_up(&mut *transports[1], &library, beginning(shape, Rank(1), PATIENCE), &unbound());
        let error = outcome.unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        // Who says that it could not has done what it should.
        let blamed = (expected != "there is none").then_some(Rank(0));
        assert_eq!(error.rank(), blamed, "{error}");
    }
    let mut transports = local_transports(shape, PATIENCE);
    transports[1].send(Rank(0), frame(u32::MAX, b"22809")).unwrap();
    let outcome = bring_up(&mut *transports[0], &library, beginning(shape, Rank(0), PATIENCE), &unbound());
    assert!(outcome.unwrap_err().to_string().contains("a version of 5 bytes"));
}

#[test]
fn the_end_of_the_epoch_ends_the_wait_for_others() {
    let library = fake::open(&[]);
    let shape = shape(1, 2, 2);
    let mut transports = local(2, PATIENCE).into_iter();
    let (mut first, mut second) = (transports.next().unwrap(), transports.next().unwrap());
    let abort = second.abort_handle();
    // The second says that it has the library, and never joins.
    let version = Frame {
        epoch: Epoch(3),
        step: 0,
        exchange: u32::MAX,
        payload: library.version().code().to_le_bytes().to_vec().into(),
    };
    second.send(Rank(0), version).unwrap();
    std::thread::scope(|scope| {
        let library = &library;
        let waiting = scope
            .spawn(move || bring_up(&mut first, library, beginning(shape, Rank(0), PATIENCE), &unbound()));
        let id = second.receive(Rank(0)).unwrap().payload;
        std::thread::park_timeout(Duration::from_millis(50));
        abort.abort();
        let error = waiting.join().unwrap().unwrap_err();
        assert!(matches!(error, BringUpError::Nccl(NcclError::Aborted { .. })), "{error}");
        std::fs::remove_file(std::str::from_utf8(&id[1..]).unwrap().trim_end_matches('\0')).unwrap();
    });
    assert_eq!(second.receive(Rank(0)).unwrap_err(), Fault::Over);
}

/// As workers do it: over their ports, which find each other while they wait.
#[test]
fn ids_travel_over_the_ports_of_workers() {
    let library = fake::open(&[]);
    let shape = shape(2, 1, 3);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let ports: Vec<LinkPort> = shape
        .ranks()
        .map(|_| {
            let address = "127.0.0.1:0".parse().unwrap();
            let config = PortConfig { address, tls: None, max_frame_bytes: 1 << 20 };
            runtime.block_on(LinkPort::bind(config)).unwrap()
        })
        .collect();
    let addresses: Vec<String> = ports.iter().map(|port| port.address().to_string()).collect();
    let guard = runtime.enter();
    let joined: Vec<_> = shape
        .ranks()
        .zip(&ports)
        .map(|(rank, port)| {
            port.join(Membership {
                epoch: Epoch(3),
                rank,
                addresses: addresses.clone(),
                exchange_timeout: PATIENCE,
                connect_timeout: PATIENCE,
            })
        })
        .collect();
    drop(guard);
    let mut ends = Vec::new();
    let transports = joined.into_iter().map(|(transport, end, _)| {
        ends.push(end);
        Box::new(transport) as Box<dyn Transport>
    });
    let transports: Vec<_> = transports.collect();
    let libraries = vec![Some(library); 3];
    check_numbers(shape, bring_all_up(shape, transports, &libraries));
}
