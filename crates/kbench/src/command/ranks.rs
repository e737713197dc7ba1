//! Several worker processes on the one GPU, linked over gRPC: the whole of what
//! serves, with the demo model that the `chorale` binary carries. It must lie
//! beside this one.

use super::Arguments;
use crate::report::{Check, Measurement, Report};
use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// To load, to join, and to be ready.
const READY_WITHIN: Duration = Duration::from_secs(120);
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// Of each log, where something fails.
const LAST_LINES: usize = 12;
const MAX_TOKENS: usize = 200;
/// Of the demo model on one GPU; workers share it.
const DEVICE_MEMORY: &str = "2GiB";

pub(super) fn run(
    count: u32,
    arguments: &Arguments,
    deadline: Instant,
    report: &mut Report,
) -> anyhow::Result<()> {
    let what = format!("{count} ranks on one GPU");
    let binary = std::env::current_exe()?.with_file_name("chorale");
    if !binary.is_file() {
        report.skip(&what, &format!("there is no {}", binary.display()));
        return Ok(());
    }
    let started = Instant::now();
    let by_frames = Cluster { binary: &binary, device: arguments.device, count, nccl: None, deadline };
    let found = Cluster { count: 1, ..by_frames }.answer().and_then(|alone| {
        measured(report, "1 worker process", &alone);
        let together = by_frames.answer()?;
        measured(report, &format!("{count} worker processes"), &together);
        // Rows are rounded on their way in either world, but not added in another order.
        let (one, all) = (&alone.text, &together.text);
        ensure!(one == all, "one rank says {one:?}, {count} say {all:?}");
        Ok(alone)
    });
    report.check(Check {
        family: "ranks".to_owned(),
        name: what.clone(),
        seconds: started.elapsed().as_secs_f64(),
        failure: found.as_ref().err().map(|error| format!("{error:#}")),
    });
    if let (Ok(alone), Some(library)) = (found, &arguments.nccl) {
        let by_nccl = Cluster { nccl: Some(library), ..by_frames }.answer();
        let words = told(report, count, (&alone, by_nccl));
        report.note(&format!("{what}, by NCCL"), words);
    }
    Ok(())
}

fn measured(report: &mut Report, by: &str, answer: &Answer) {
    report.measured(Measurement {
        what: "served tokens".to_owned(),
        of: format!("demo model, {by}"),
        microseconds: answer.seconds * 1e6 / answer.tokens as f64,
        tokens_per_s: Some(answer.tokens as f64 / answer.seconds),
        ..Measurement::default()
    });
}

/// What came of the ranks that were to exchange by NCCL: not all of its versions take
/// several on one GPU, so that they do not is no failure.
fn told(report: &mut Report, count: u32, (alone, found): (&Answer, anyhow::Result<Answer>)) -> String {
    match found {
        Ok(answer) if answer.carrier == "nccl" => {
            measured(report, &format!("{count} worker processes by NCCL"), &answer);
            match answer.text == alone.text {
                true => "it carried, and the answer is that of one rank".to_owned(),
                false => format!("it carried, and one rank says {:?}, all say {:?}", alone.text, answer.text),
            }
        }
        Ok(answer) => format!("it did not carry, {} did: {}", answer.carrier, answer.faults),
        Err(error) => format!("no answer: {error:#}"),
    }
}

/// What was answered to one question.
struct Answer {
    text: String,
    tokens: usize,
    seconds: f64,
    /// By what rows were exchanged.
    carrier: String,
    /// What went wrong before.
    faults: String,
}

/// NCCL takes ranks of one host that have one GPU for a mistake, so each is a host of
/// its own, and all go over the loopback; newer ones are told that it is none.
const NCCL_ON_ONE_GPU: [(&str, &str); 8] = [
    ("NCCL_SOCKET_IFNAME", "lo"),
    ("NCCL_IB_DISABLE", "1"),
    ("NCCL_P2P_DISABLE", "1"),
    ("NCCL_SHM_DISABLE", "1"),
    ("NCCL_NVLS_ENABLE", "0"),
    ("NCCL_MAX_CTAS", "2"),
    ("NCCL_MULTI_RANK_GPU_ENABLE", "1"),
    ("NCCL_DEBUG", "INFO"),
];

/// A coordinator and workers, each a home of its own.
#[derive(Clone, Copy)]
struct Cluster<'a> {
    binary: &'a Path,
    device: usize,
    count: u32,
    /// The library by which rows are to be exchanged; frames if none.
    nccl: Option<&'a Path>,
    /// When nobody waits any more.
    deadline: Instant,
}

/// Processes that end with this one.
struct World {
    processes: Vec<Child>,
    folder: tempfile::TempDir,
}

impl World {
    fn start(&mut self, name: &str, command: &mut Command) -> anyhow::Result<()> {
        let log = File::create(self.log(name))?;
        let binary = PathBuf::from(command.get_program());
        let process = command
            .stdin(Stdio::null())
            // NCCL writes here.
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", binary.display()))?;
        self.processes.push(process);
        Ok(())
    }

    fn log(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}.log"))
    }

    /// What the processes said last.
    fn last_words(&self) -> String {
        let mut words = String::new();
        for entry in self.folder.path().read_dir().into_iter().flatten().flatten() {
            let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
            let lines: Vec<&str> = text.lines().rev().take(LAST_LINES).collect();
            for line in lines.into_iter().rev() {
                words.push_str(&format!("\n  {}: {line}", entry.file_name().to_string_lossy()));
            }
        }
        words
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for process in &mut self.processes {
            // It may have ended by itself.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// A free port of the loopback address, for now.
fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

impl Cluster<'_> {
    fn command(&self, words: &str) -> Command {
        let mut command = Command::new(self.binary);
        command.args(words.split_whitespace());
        command
    }

    fn worker(&self, rank: u32, cluster: u16) -> Command {
        let device = self.device;
        let mut command = self.command(&format!(
            "worker demo --offline --insecure --coordinator 127.0.0.1:{cluster} --device cuda:{device} \
             --device-memory {DEVICE_MEMORY} --nccl"
        ));
        match self.nccl {
            Some(library) => {
                command.arg(library).envs(NCCL_ON_ONE_GPU).env("NCCL_HOSTID", format!("rank-{rank}"))
            }
            None => command.arg("off"),
        };
        command
    }

    /// Starts all, and asks them.
    fn answer(&self) -> anyhow::Result<Answer> {
        let mut world = World { processes: Vec::new(), folder: tempfile::tempdir()? };
        let (door, cluster, count) = (free_port()?, free_port()?, self.count);
        // NCCL that does not come to an end is given up before others wait too long.
        let mut coordinator = self.command(&format!(
            "coordinator demo --offline --insecure --host 127.0.0.1 --port {door} \
             --cluster-listen 127.0.0.1:{cluster} --data-parallel-size {count} --max-model-len 1024 \
             --hang-timeout 10"
        ));
        world.start("coordinator", &mut coordinator)?;
        for rank in 0..count {
            world.start(&format!("worker-{rank}"), &mut self.worker(rank, cluster))?;
        }
        wait_until_ready(&world, door, self.deadline)?;
        let body = json!({
            "model": "demo",
            "messages": [{"role": "user", "content": "What is the capital of France?"}],
            "max_tokens": MAX_TOKENS,
            "temperature": 0
        });
        let ask = || post(door, "/v1/chat/completions", &body, self.deadline);
        // The first answer makes graphs.
        ask().with_context(|| world.last_words())?;
        let started = Instant::now();
        let answer = ask().with_context(|| world.last_words())?;
        let seconds = started.elapsed().as_secs_f64();
        let tokens = answer["usage"]["completion_tokens"].as_u64().unwrap_or(0) as usize;
        ensure!(tokens > 0, "no tokens: {answer}");
        let status: Value = serde_json::from_str(&request(door, "GET", "/v1/cluster", "", self.deadline)?.1)?;
        let faults = status["faults"].as_array().into_iter().flatten();
        let faults: Vec<&str> = faults.filter_map(|fault| fault["reason"].as_str()).collect();
        Ok(Answer {
            text: answer["choices"][0]["message"].to_string(),
            tokens,
            seconds,
            carrier: status["carrier"].as_str().unwrap_or("?").to_owned(),
            faults: faults.join("; "),
        })
    }
}

fn wait_until_ready(world: &World, door: u16, deadline: Instant) -> anyhow::Result<()> {
    // Nobody ever sends: waiting on it is the pause between two questions.
    let (_alive, pause): (_, Receiver<()>) = channel();
    let started = Instant::now();
    loop {
        let status = request(door, "GET", "/ready", "", deadline).map(|(status, _)| status);
        if matches!(status, Ok(200)) {
            return Ok(());
        }
        if started.elapsed() > READY_WITHIN || Instant::now() >= deadline {
            bail!("not ready after {} s:{}", started.elapsed().as_secs(), world.last_words());
        }
        match pause.recv_timeout(Duration::from_millis(100)) {
            Ok(()) | Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
        }
    }
}

fn post(door: u16, path: &str, body: &Value, deadline: Instant) -> anyhow::Result<Value> {
    let (status, text) = request(door, "POST", path, &body.to_string(), deadline)?;
    ensure!(status == 200, "status {status}: {text}");
    Ok(serde_json::from_str(&text)?)
}

/// One request over a connection of its own, by hand: a client's library would
/// be most of this binary.
fn request(
    door: u16,
    method: &str,
    path: &str,
    body: &str,
    deadline: Instant,
) -> anyhow::Result<(u16, String)> {
    let left = deadline.saturating_duration_since(Instant::now());
    ensure!(!left.is_zero(), "no time was left");
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, door))?;
    stream.set_read_timeout(Some(ANSWER_WITHIN.min(left)))?;
    let head = format!(
        "{method} {path} HTTP/1.0\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").context("no whole answer")?;
    let status = head.split_whitespace().nth(1).and_then(|word| word.parse().ok());
    Ok((status.context("no status")?, body.to_owned()))
}
