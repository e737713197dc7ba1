//! A cluster of real processes: a coordinator and its workers, each at an
//! address of its own, with mutual TLS between them.

use crate::client::Client;
use crate::network::{Network, Place};
use crate::process::{Process, pause};
use serde_json::Value;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const HTTP_PORT: u16 = 8000;
const CLUSTER_PORT: u16 = 50061;

/// How a cluster is made.
#[derive(Clone, Debug)]
pub struct ClusterSettings {
    /// The binary.
    pub binary: PathBuf,
    /// The model, as the command line takes it.
    pub model: String,
    /// Ranks of a group.
    pub tensor_parallel_size: u32,
    /// Groups.
    pub data_parallel_size: u32,
    /// Workers that take experts alone, beside those of the groups.
    pub num_experts_only: u32,
    /// More arguments for the coordinator.
    pub coordinator_arguments: Vec<String>,
}

/// A running cluster. Dropping it kills every process of it.
#[derive(Debug)]
pub struct TestCluster {
    settings: ClusterSettings,
    /// The cables.
    pub network: Network,
    places: Vec<Place>,
    /// The first is the coordinator.
    processes: Vec<Option<Process>>,
    directory: TempDir,
}

impl TestCluster {
    /// Starts the coordinator and as many workers as it waits for.
    pub fn start(settings: ClusterSettings) -> Self {
        let directory = tempfile::tempdir().expect("there is room for logs");
        let num_workers =
            settings.tensor_parallel_size * settings.data_parallel_size + settings.num_experts_only;
        let certificates = directory.path().join("certs");
        let made = Command::new(&settings.binary).arg("certs").arg(&certificates).output();
        let made = made.expect("the binary can be run");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let mut network = Network::new();
        let places = (0..=num_workers).map(|_| network.place()).collect();
        let mut cluster = Self { settings, network, places, processes: Vec::new(), directory };
        cluster.processes.resize_with(num_workers as usize + 1, || None);
        for index in 0..=num_workers as usize {
            cluster.revive(index);
        }
        cluster
    }

    /// Workers, by their index from 1; the coordinator is 0.
    pub fn workers(&self) -> std::ops::Range<usize> {
        1..self.places.len()
    }

    /// Where a process lives.
    pub fn place(&self, index: usize) -> &Place {
        &self.places[index]
    }

    /// A running process.
    pub fn process(&mut self, index: usize) -> &mut Process {
        self.processes[index].as_mut().expect("the process runs")
    }

    /// Whether a process has been started and not been killed.
    pub fn is_running(&self, index: usize) -> bool {
        self.processes[index].is_some()
    }

    /// Kills a process at once.
    pub fn kill(&mut self, index: usize) {
        self.processes[index] = None;
    }

    /// Starts a process that is not there.
    pub fn revive(&mut self, index: usize) {
        assert!(self.processes[index].is_none(), "one process for each place");
        let arguments = if index == 0 { self.coordinator() } else { self.worker(index) };
        let log = self.log_path(index);
        self.processes[index] =
            Some(Process::start(&self.settings.binary, &self.places[index], &arguments, &log));
    }

    /// Starts a worker that does not fit, and gives what it said until it ended
    /// or the time was up.
    pub fn misfit(&mut self, model: &str, more: &[&str], timeout: Duration) -> String {
        let mut arguments = self.worker(1);
        model.clone_into(&mut arguments[1]);
        arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
        self.try_join(&mut arguments, timeout)
    }

    /// The same for a worker with certificates of its own making.
    pub fn stranger(&mut self, timeout: Duration) -> String {
        let certificates = self.directory.path().join("other-certs");
        let made = Command::new(&self.settings.binary).arg("certs").arg(&certificates).output();
        assert!(made.expect("the binary can be run").status.success());
        let mut arguments = self.worker(1);
        let directory = arguments.last_mut().expect("the directory comes last");
        *directory = certificates.join("worker").display().to_string();
        self.try_join(&mut arguments, timeout)
    }

    fn try_join(&mut self, arguments: &mut [String], timeout: Duration) -> String {
        let place = self.network.place();
        let listen = arguments.iter().position(|argument| argument == "--listen").expect("workers listen");
        arguments[listen + 1] = format!("{}:0", place.address);
        let log = self.directory.path().join(format!("{}.log", place.address));
        let mut process = Process::start(&self.settings.binary, &place, arguments, &log);
        process.wait(timeout);
        process.log()
    }

    /// Asks the coordinator.
    pub fn client(&self) -> Client {
        Client::new(&format!("http://{}:{HTTP_PORT}", self.address(0)))
    }

    /// Waits until requests are served.
    pub fn wait_ready(&mut self, timeout: Duration) {
        let client = self.client();
        self.wait(timeout, "the cluster serves", |_| {
            client.get("/ready").is_ok_and(|(status, _)| status == 200)
        });
    }

    /// Waits until as many workers have a rank.
    pub fn wait_ranks(&mut self, num_ranks: usize, timeout: Duration) {
        let client = self.client();
        self.wait(timeout, &format!("{num_ranks} ranks serve"), |_| {
            client.get("/ready").is_ok_and(|(status, _)| status == 200)
                && client.get("/v1/cluster").is_ok_and(|(_, status)| ranks(&status) == num_ranks)
        });
    }

    /// Waits until something is so.
    pub fn wait(&mut self, timeout: Duration, what: &str, is_so: impl Fn(&Self) -> bool) {
        let until = Instant::now() + timeout;
        while !is_so(self) {
            assert!(Instant::now() < until, "{what} within {timeout:?}:\n{}", self.logs());
            pause(Duration::from_millis(20));
        }
    }

    /// What all processes have said, the end of it.
    pub fn logs(&self) -> String {
        let last = |text: String| text[text.ceil_char_boundary(text.len().saturating_sub(4000))..].to_owned();
        let logs = (0..self.places.len()).map(|index| {
            let text = std::fs::read_to_string(self.log_path(index)).unwrap_or_default();
            format!("== process {index} at {}\n{}\n", self.address(index), last(text))
        });
        let status = self.client().get("/v1/cluster").map(|(_, status)| format!("{status:#}"));
        logs.chain([format!("== /v1/cluster\n{}\n", status.unwrap_or_else(|error| error))]).collect()
    }

    fn coordinator(&self) -> Vec<String> {
        let address = self.address(0);
        let ClusterSettings { tensor_parallel_size, data_parallel_size, .. } = self.settings;
        let arguments = format!(
            "coordinator --host {address} --port {HTTP_PORT} --grpc-port 0 --cluster-listen {address}:{CLUSTER_PORT} \
             --tensor-parallel-size {tensor_parallel_size} --data-parallel-size {data_parallel_size}"
        );
        let mut arguments = self.with_trust(&arguments, "coordinator");
        arguments.extend(self.settings.coordinator_arguments.iter().cloned());
        arguments
    }

    fn worker(&self, index: usize) -> Vec<String> {
        let coordinator = self.address(0);
        let num_attention = self.settings.tensor_parallel_size * self.settings.data_parallel_size;
        // Measured beside all that starts here, one could seem too slow for any expert.
        let arguments = format!(
            "worker --coordinator {coordinator}:{CLUSTER_PORT} --listen {}:0 --threads 1 \
             --memory-bandwidth 20GB/s --experts-only={}",
            self.address(index),
            index > num_attention as usize,
        );
        self.with_trust(&arguments, "worker")
    }

    fn with_trust(&self, arguments: &str, name: &str) -> Vec<String> {
        let (command, rest) = arguments.split_once(' ').expect("a command has arguments");
        let mut arguments = vec![command.to_owned(), self.settings.model.clone()];
        arguments.extend(rest.split_whitespace().map(str::to_owned));
        arguments.push("--tls-dir".to_owned());
        arguments.push(self.directory.path().join("certs").join(name).display().to_string());
        arguments
    }

    fn address(&self, index: usize) -> Ipv4Addr {
        self.places[index].address
    }

    fn log_path(&self, index: usize) -> PathBuf {
        self.directory.path().join(format!("{index}.log"))
    }
}

impl ClusterSettings {
    /// The demo model in a shape.
    pub fn demo(binary: &Path, tensor_parallel_size: u32, data_parallel_size: u32) -> Self {
        Self {
            binary: binary.to_owned(),
            model: "demo".to_owned(),
            tensor_parallel_size,
            data_parallel_size,
            num_experts_only: 0,
            coordinator_arguments: Vec::new(),
        }
    }
}

/// `chorale serve` as one process.
#[derive(Debug)]
pub struct Server {
    url: String,
    process: Process,
    _directory: TempDir,
}

impl Server {
    /// Starts it on a free port of the loopback, and waits until it serves.
    pub fn start(binary: &Path, model: &str, more: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("there is room for logs");
        let log = directory.path().join("log");
        let mut arguments = vec!["serve", model, "--port", "0", "--grpc-port", "0"];
        arguments.extend(more);
        let arguments: Vec<String> = arguments.into_iter().map(str::to_owned).collect();
        let mut process = Process::start(binary, &Place::loopback(), &arguments, &log);
        let until = Instant::now() + Duration::from_secs(60);
        let url = loop {
            let log = process.log();
            if let Some(url) = log.lines().find(|line| line.contains(" ready ")).and_then(url_in) {
                break url;
            }
            assert!(Instant::now() < until && !process.has_ended(), "the server serves:\n{log}");
            pause(Duration::from_millis(20));
        };
        Self { url, process, _directory: directory }
    }

    /// Asks it.
    pub fn client(&self) -> Client {
        Client::new(&self.url)
    }

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

/// `http="http://127.0.0.1:8000"` in a line of log.
fn url_in(line: &str) -> Option<String> {
    let (_, rest) = line.split_once("http=\"")?;
    Some(rest.split_once('"')?.0.to_owned())
}

/// Workers that have a rank.
fn ranks(status: &Value) -> usize {
    let members = status["workers"].as_array().map_or(&[][..], Vec::as_slice);
    members.iter().filter(|member| !member["rank"].is_null()).count()
}
