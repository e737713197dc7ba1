//! Communicators over the stand-in: what each exchange gives, and how they end.

use crate::fake::{self, Failing, at, at_mut, enqueue, unbound};
use chorale_nccl::{Comm, Id, Kind, Library, Members, NcclError, Operation};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);

fn members(rank: u32, num_ranks: u32, timeout: Duration) -> Members {
    let name = "the world of epoch 3".to_owned();
    Members { name, rank, num_ranks, timeout, is_broken: Arc::default() }
}

fn join(library: Arc<Library>, id: &Id, members: Members) -> Result<Comm, NcclError> {
    Comm::join(library, id, members, unbound(), |_| {})
}

/// Runs each rank on a thread of its own, with its communicator.
fn run<R: Send>(
    library: &Arc<Library>,
    num_ranks: u32,
    timeout: Duration,
    run: impl Fn(u32, &Comm) -> R + Sync,
) -> Vec<R> {
    let id = library.unique_id().unwrap();
    std::thread::scope(|scope| {
        let (run, id) = (&run, &id);
        let ranks = (0..num_ranks).map(|rank| {
            scope.spawn(move || {
                let members = members(rank, num_ranks, timeout);
                run(rank, &join(Arc::clone(library), id, members).unwrap())
            })
        });
        let ranks: Vec<_> = ranks.collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

#[test]
fn every_exchange_gives_what_it_says() {
    let library = fake::open(&[]);
    for num_ranks in [1, 2, 3, 5] {
        // More than one piece, and none at all.
        for count in [0, 1, 7, 40_000] {
            run(&library, num_ranks, PATIENCE, |rank, comm| {
                let n = num_ranks as usize;
                let value = |rank: u32, index: usize| (rank as usize * 1000 + index % 900) as f32;
                let own: Vec<f32> = (0..count).map(|index| value(rank, index)).collect();
                let kind = Kind::Full;
                let all: Vec<f32> =
                    (0..num_ranks).flat_map(|rank| (0..count).map(move |index| value(rank, index))).collect();

                let mut to = vec![0.0f32; n * count];
                let gather = Operation::AllGather { from: at(&own), to: at_mut(&mut to), count, kind };
                enqueue(comm, &[gather]).unwrap();
                assert_eq!(to, all);

                // In place, as bytes.
                let mut to = vec![0.0f32; n * count];
                to[rank as usize * count..][..count].copy_from_slice(&own);
                let to_address = at_mut(&mut to);
                let from = to_address + rank as u64 * count as u64 * 4;
                let (bytes, kind_of) = (count * 4, Kind::Bytes);
                enqueue(comm, &[Operation::AllGather { from, to: to_address, count: bytes, kind: kind_of }])
                    .unwrap();
                assert_eq!(to, all);

                let sum = |index: usize| (0..num_ranks).map(|rank| value(rank, index)).sum::<f32>();
                let mut to = vec![0.0f32; count];
                let reduce = Operation::AllReduce { from: at(&own), to: at_mut(&mut to), count, kind };
                enqueue(comm, &[reduce]).unwrap();
                assert!(to.iter().enumerate().all(|(index, &found)| found == sum(index)));

                // Each rank gives all parts, and gets the sum of its own.
                let parts: Vec<f32> =
                    (0..n).flat_map(|part| own.iter().map(move |v| v + part as f32)).collect();
                let mut to = vec![0.0f32; count];
                let scatter = Operation::ReduceScatter { from: at(&parts), to: at_mut(&mut to), count, kind };
                enqueue(comm, &[scatter]).unwrap();
                let expected = |index| sum(index) + (n * rank as usize) as f32;
                assert!(to.iter().enumerate().all(|(index, &found)| found == expected(index)));

                // Several as one, to and from each.
                let mut sums = vec![-1.0f32; count];
                let mut shares: Vec<Vec<f32>> = vec![vec![0.0; count]; n];
                let to = at_mut(&mut sums);
                let mut together: Vec<Operation> = (0..num_ranks)
                    .map(|root| Operation::Reduce { from: at(&own), to, count, kind, root })
                    .collect();
                for (root, share) in (0..num_ranks).zip(&mut shares) {
                    let to = at_mut(share);
                    together.push(Operation::Broadcast { from: at(&own), to, count, kind, root });
                }
                enqueue(comm, &together).unwrap();
                assert!(sums.iter().enumerate().all(|(index, &found)| found == sum(index)));
                assert_eq!(shares.concat(), all);

                let mut came = vec![0.0f32; count];
                let (next, last) = ((rank + 1) % num_ranks, (rank + num_ranks - 1) % num_ranks);
                let send = Operation::Send { from: at(&own), count, kind, rank: next };
                let receive = Operation::Receive { to: at_mut(&mut came), count, kind, rank: last };
                enqueue(comm, &[send, receive]).unwrap();
                assert!(came.iter().enumerate().all(|(index, &found)| found == value(last, index)));
                comm.check().unwrap();
            });
        }
    }
}

#[test]
fn adding_zeros_changes_no_bf16() {
    let library = fake::open(&[]);
    let values: Vec<u16> = (0..=0x7f7f).step_by(37).flat_map(|bits: u16| [bits, bits | 0x8000]).collect();
    run(&library, 3, PATIENCE, |rank, comm| {
        let own = if rank == 1 { values.clone() } else { vec![0; values.len()] };
        let mut to = vec![0u16; values.len()];
        let (count, kind) = (values.len(), Kind::Half);
        enqueue(comm, &[Operation::AllReduce { from: at(&own), to: at_mut(&mut to), count, kind }]).unwrap();
        for (found, value) in to.iter().zip(&values) {
            // The sign of a zero is the one thing that is lost.
            assert!(found == value || (found | value) == 0x8000, "{found:x} for {value:x}");
        }
    });
}

#[test]
fn ranks_that_do_not_come_are_waited_for_until_a_deadline() {
    let library = fake::open(&[]);
    let id = library.unique_id().unwrap();
    let started = Instant::now();
    let joined = join(Arc::clone(&library), &id, members(0, 2, Duration::from_millis(200)));
    let error = joined.unwrap_err().to_string();
    assert_eq!(error, "the world of epoch 3 waited 200ms for its 2 ranks to find each other");
    assert!(started.elapsed() < Duration::from_secs(10));
    std::fs::remove_file(std::str::from_utf8(&id.0).unwrap().trim_end_matches('\0')).unwrap();
}

#[test]
fn a_library_that_refuses_is_quoted() {
    let library = fake::open(&["-DREFUSING"]);
    let id = library.unique_id().unwrap();
    let error = join(library, &id, members(0, 1, PATIENCE)).unwrap_err().to_string();
    assert!(error.contains("ncclCommInitRankConfig failed for the world of epoch 3"), "{error}");
    assert!(error.contains("there is no GPU"), "{error}");
}

fn gather(comm: &Comm) -> Result<(), NcclError> {
    let (own, mut all) = ([1.0f32], [0.0f32; 2]);
    let (from, to) = (at(&own), at_mut(&mut all));
    enqueue(comm, &[Operation::AllGather { from, to, count: 1, kind: Kind::Full }])
}

#[test]
fn a_rank_that_goes_is_missed_until_the_deadline() {
    let library = fake::open(&[]);
    let errors = run(&library, 2, Duration::from_millis(300), |rank, comm| {
        gather(comm).unwrap();
        (rank == 0).then(|| gather(comm).unwrap_err())
    });
    assert!(matches!(errors[0], Some(NcclError::Timeout { .. })), "{errors:?}");
}

#[test]
fn an_abort_ends_what_waits_and_what_comes_later() {
    let library = fake::open(&[]);
    let barrier = Barrier::new(2);
    run(&library, 2, PATIENCE, |rank, comm| {
        barrier.wait();
        if rank == 0 {
            let handle = comm.abort_handle();
            let started = Instant::now();
            std::thread::scope(|scope| {
                let waiting = scope.spawn(|| gather(comm));
                std::thread::park_timeout(Duration::from_millis(50));
                handle.abort();
                let error = waiting.join().unwrap().unwrap_err();
                assert!(matches!(error, NcclError::Aborted { .. }), "{error}");
            });
            assert!(matches!(gather(comm).unwrap_err(), NcclError::Aborted { .. }));
            assert!(matches!(comm.check().unwrap_err(), NcclError::Aborted { .. }));
            handle.abort();
            assert!(started.elapsed() < Duration::from_secs(10));
        }
        barrier.wait();
    });
}

#[test]
fn a_call_that_does_not_return_is_aborted_all_the_same() {
    let library = fake::open(&["-DSTICKING"]);
    let id = library.unique_id().unwrap();
    let comm = join(library, &id, members(0, 1, PATIENCE)).unwrap();
    std::thread::scope(|scope| {
        let stuck = scope.spawn(|| gather(&comm));
        std::thread::park_timeout(Duration::from_millis(50));
        comm.abort_handle().abort();
        assert!(matches!(stuck.join().unwrap(), Err(NcclError::Aborted { .. })));
    });
}

#[test]
fn whoever_aborts_is_bound_to_the_gpu_first() {
    let library = fake::open(&[]);
    let id = library.unique_id().unwrap();
    let (told, bound) = std::sync::mpsc::channel();
    let bind = move || told.send(std::thread::current().name().map(str::to_owned)).unwrap();
    let comm = Comm::join(library, &id, members(0, 1, PATIENCE), Arc::new(bind), |_| {}).unwrap();
    assert!(bound.try_recv().is_err(), "whoever joins is bound already");
    comm.abort_handle().abort();
    assert_eq!(bound.try_recv(), Ok(Some("nccl-abort".to_owned())));
    drop(comm);
    assert!(bound.try_recv().is_err(), "it is aborted once");
}

#[test]
fn a_network_that_fails_is_found_and_ends_the_communicator() {
    let failing = Failing::open();
    run(&failing.library, 2, Duration::from_secs(2), |rank, comm| {
        gather(comm).unwrap();
        if rank == 1 {
            failing.fail(1);
            let error = comm.check().unwrap_err().to_string();
            assert!(error.contains("unhandled system error: the network of this rank failed"), "{error}");
            assert!(matches!(gather(comm).unwrap_err(), NcclError::Aborted { .. }));
        } else {
            assert!(matches!(gather(comm).unwrap_err(), NcclError::Timeout { .. }));
        }
    });
}

#[test]
fn ranks_that_exchange_different_things_are_told() {
    let library = fake::open(&[]);
    run(&library, 2, Duration::from_secs(2), |rank, comm| {
        let (own, mut all) = ([1.0f32; 4], [0.0f32; 8]);
        let (from, to, count) = (at(&own), at_mut(&mut all), 1 + rank as usize);
        let gathered = enqueue(comm, &[Operation::AllGather { from, to, count, kind: Kind::Full }]);
        assert!(gathered.unwrap_err().to_string().contains("different things"));
    });
}
