//! Two processes that come to communicators by the library's loader and over
//! their workers' ports, as far as it goes without a GPU.

use crate::fake::{self, unbound};
use crate::real;
use crate::world::PATIENCE;
use chorale_link::grpc::{LinkPort, Membership, PortConfig};
use chorale_nccl::{Beginning, Library, bring_up};
use chorale_plan::{Epoch, Rank, Shape};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

const SHAPE: Shape = Shape { tensor_parallel_size: 2, data_parallel_size: 1, num_ranks: 2 };

/// What a rank's process begins its last line with.
const MET: &str = "rank met: ";
const UNMET: &str = "rank unmet: ";
/// And the one before.
const AT: &str = "rank at: ";

/// One rank of the pair, in a process of its own: it is told the library and its
/// number, tells its address, and is told all.
#[test]
#[ignore = "a rank of the pair that another test starts"]
fn a_rank_of_the_pair() {
    let mut told = std::io::stdin().lock().lines().map(|line| line.unwrap());
    let (path, rank) = (told.next().unwrap(), Rank(told.next().unwrap().parse().unwrap()));
    let library = Arc::new(Library::open(Some(Path::new(&path))).unwrap());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let address = "127.0.0.1:0".parse().unwrap();
    let config = PortConfig { address, tls: None, max_frame_bytes: 1 << 20 };
    let port = runtime.block_on(LinkPort::bind(config)).unwrap();
    println!("\n{AT}{}", port.address());
    let addresses = told.next().unwrap().split(' ').map(str::to_owned).collect();
    let guard = runtime.enter();
    let (mut transport, _end, _connecting) = port.join(Membership {
        epoch: Epoch(5),
        rank,
        addresses,
        exchange_timeout: PATIENCE,
        connect_timeout: PATIENCE,
    });
    drop(guard);
    let beginning = Beginning { epoch: Epoch(5), shape: SHAPE, rank, timeout: PATIENCE };
    match bring_up(&mut transport, &library, beginning, &unbound()) {
        Ok(comms) => println!("\n{MET}{} and {}", comms.world.members().name, comms.group.is_some()),
        Err(error) => println!("\n{UNMET}{error}"),
    }
    // The other one may still wait for frames of this one.
    assert_eq!(told.next().as_deref(), Some("end"));
}

/// A rank's process, which ends with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the ranks of a pair say that have this library.
fn pair(library: &Path) -> Vec<String> {
    let mut processes: Vec<Process> = SHAPE
        .ranks()
        .map(|_| {
            let child = Command::new(std::env::current_exe().unwrap())
                .args(["pair::a_rank_of_the_pair", "--exact", "--ignored", "--nocapture"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn();
            Process(child.unwrap())
        })
        .collect();
    let mut said: Vec<_> = Vec::new();
    for (process, rank) in processes.iter_mut().zip(SHAPE.ranks()) {
        let told = process.0.stdin.as_mut().unwrap();
        writeln!(told, "{}\n{}", library.display(), rank.0).unwrap();
        said.push(BufReader::new(process.0.stdout.take().unwrap()).lines().map(|line| line.unwrap()));
    }
    let addresses: Vec<String> = said
        .iter_mut()
        .map(|lines| lines.find_map(|line| line.strip_prefix(AT).map(str::to_owned)).unwrap())
        .collect();
    let mut tell = |line: &str| {
        for process in &mut processes {
            writeln!(process.0.stdin.as_mut().unwrap(), "{line}").unwrap();
        }
    };
    tell(&addresses.join(" "));
    let is_last = |line: &String| line.starts_with(MET) || line.starts_with(UNMET);
    let outcomes = said.iter_mut().map(|lines| lines.find(is_last).unwrap()).collect();
    tell("end");
    outcomes
}

#[test]
fn two_processes_come_to_communicators() {
    let path = fake::build(&[]);
    let outcomes = pair(&path);
    std::fs::remove_file(path).unwrap();
    assert!(outcomes.iter().all(|said| said == "rank met: the world of epoch 5 and true"), "{outcomes:?}");
}

#[test]
fn two_processes_with_nvidia_s_library_say_that_there_is_no_gpu() {
    let Some(path) = real::path().filter(|_| !Path::new("/dev/nvidiactl").exists()) else { return };
    for said in pair(&path) {
        let expected = "rank unmet: ncclCommInitRankConfig failed for the world of epoch 5: ";
        assert!(said.starts_with(expected) && said.contains("CUDA"), "{said}");
    }
}
