//! NVIDIA's own library, as far as it goes without a GPU, where
//! `.ci/nccl-library` has brought it.

use crate::fake::unbound;
use crate::world::PATIENCE;
use chorale_link::grpc::{LinkPort, Membership, PortConfig};
use chorale_nccl::{Beginning, BringUpError, Library, NcclError, bring_up};
use chorale_plan::{Epoch, Rank, Shape};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// `None`, and a word, where there is none.
pub(crate) fn path() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/nccl/libnccl.so.2");
    if !path.exists() {
        eprintln!("no NCCL at {}: run .ci/nccl-library", path.display());
        return None;
    }
    Some(path)
}

fn library() -> Option<Arc<Library>> {
    Some(Arc::new(Library::open(Some(&path()?)).unwrap()))
}

#[test]
fn it_loads_and_gives_ids() {
    let Some(library) = library() else { return };
    assert_eq!(library.version().to_string(), "2.28.9");
    let (one, other) = (library.unique_id().unwrap(), library.unique_id().unwrap());
    assert_ne!(one, other);
}

/// Ranks find each other over their workers' ports; then there is no GPU.
#[test]
fn ids_are_exchanged_and_a_missing_gpu_is_named() {
    let Some(library) = library() else { return };
    if Path::new("/dev/nvidiactl").exists() {
        eprintln!("there is a GPU here");
        return;
    }
    let shape = Shape { tensor_parallel_size: 2, data_parallel_size: 1, num_ranks: 2 };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let bind = || {
        let address = "127.0.0.1:0".parse().unwrap();
        let config = PortConfig { address, tls: None, max_frame_bytes: 1 << 20 };
        runtime.block_on(LinkPort::bind(config)).unwrap()
    };
    let ports: Vec<LinkPort> = shape.ranks().map(|_| bind()).collect();
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
    std::thread::scope(|scope| {
        for (rank, (mut transport, end, _connecting)) in shape.ranks().zip(joined) {
            let library = &library;
            scope.spawn(move || {
                let beginning = Beginning { epoch: Epoch(3), shape, rank: Rank(rank.0), timeout: PATIENCE };
                let error = bring_up(&mut transport, library, beginning, &unbound()).unwrap_err();
                let BringUpError::Nccl(NcclError::Call { call, communicator, reason }) = error else {
                    panic!("{error}")
                };
                assert_eq!((call, &communicator[..]), ("ncclCommInitRankConfig", "the world of epoch 3"));
                assert!(reason.contains("CUDA"), "{reason}");
                eprintln!("rank {}: {reason}", rank.0);
                drop(end);
            });
        }
    });
}
