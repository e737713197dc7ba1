//! Several worker processes on the one GPU, linked over gRPC: the whole of what
//! serves, with the demo model that the `chorale` binary carries. It must lie
//! beside this one.

use crate::Arguments;
use anyhow::{Context, bail, ensure};
use chorale_kbench::bench::{Measurement, Report};
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
const MAX_TOKENS: usize = 200;
/// Of the demo model on one GPU; workers share it.
const DEVICE_MEMORY: &str = "2GiB";

pub(crate) fn run(count: u32, arguments: &Arguments, report: &mut Report) -> anyhow::Result<()> {
    let what = format!("{count} ranks on one GPU");
    let binary = std::env::current_exe()?.with_file_name("chorale");
    if !binary.is_file() {
        println!("{what}: not available, there is no {}", binary.display());
        return Ok(());
    }
    let started = Instant::now();
    let alone = answer(&binary, 1, arguments.device);
    let found = alone.and_then(|alone| Ok((alone, answer(&binary, count, arguments.device)?)));
    match found {
        Ok((alone, together)) => {
            for (ranks, answer) in [(1, &alone), (count, &together)] {
                report.measured(Measurement {
                    what: "served tokens".to_owned(),
                    of: format!("demo model, {ranks} worker processes"),
                    microseconds: answer.seconds * 1e6 / answer.tokens as f64,
                    tokens_per_s: Some(answer.tokens as f64 / answer.seconds),
                    ..Measurement::default()
                });
            }
            // Rows are rounded on their way in either world, but not added in another order.
            let same = alone.text == together.text;
            let found = if same {
                Ok(())
            } else {
                Err(format!("one rank says {:?}, {count} say {:?}", alone.text, together.text))
            };
            report.check("ranks", &what, started.elapsed(), found);
        }
        Err(error) => report.check("ranks", &what, started.elapsed(), Err(format!("{error:#}"))),
    }
    Ok(())
}

/// What was answered to one question.
struct Answer {
    text: String,
    tokens: usize,
    seconds: f64,
}

/// Processes that end with this one.
struct World {
    processes: Vec<Child>,
    folder: tempfile::TempDir,
}

impl World {
    fn start(&mut self, name: &str, binary: &Path, arguments: &[String]) -> anyhow::Result<()> {
        let log = File::create(self.log(name))?;
        let process = Command::new(binary)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
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
            let lines: Vec<&str> = text.lines().rev().take(3).collect();
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

/// Starts a coordinator and workers, each a home of its own, and asks them.
fn answer(binary: &Path, count: u32, device: usize) -> anyhow::Result<Answer> {
    let mut world = World { processes: Vec::new(), folder: tempfile::tempdir()? };
    let (door, cluster) = (free_port()?, free_port()?);
    let words = |text: String| text.split_whitespace().map(str::to_owned).collect::<Vec<String>>();
    world.start(
        "coordinator",
        binary,
        &words(format!(
            "coordinator demo --offline --insecure --host 127.0.0.1 --port {door} \
             --cluster-listen 127.0.0.1:{cluster} --data-parallel-size {count} --max-model-len 1024"
        )),
    )?;
    for rank in 0..count {
        world.start(
            &format!("worker-{rank}"),
            binary,
            &words(format!(
                "worker demo --offline --insecure --coordinator 127.0.0.1:{cluster} --device cuda:{device} \
                 --device-memory {DEVICE_MEMORY}"
            )),
        )?;
    }
    wait_until_ready(&world, door)?;
    let body = json!({
        "model": "demo",
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "max_tokens": MAX_TOKENS,
        "temperature": 0
    });
    let ask = || post(door, "/v1/chat/completions", &body);
    // The first answer makes graphs.
    ask().with_context(|| world.last_words())?;
    let started = Instant::now();
    let answer = ask().with_context(|| world.last_words())?;
    let seconds = started.elapsed().as_secs_f64();
    let tokens = answer["usage"]["completion_tokens"].as_u64().unwrap_or(0) as usize;
    ensure!(tokens > 0, "no tokens: {answer}");
    Ok(Answer { text: answer["choices"][0]["message"].to_string(), tokens, seconds })
}

fn wait_until_ready(world: &World, door: u16) -> anyhow::Result<()> {
    // Nobody ever sends: waiting on it is the pause between two questions.
    let (_alive, pause): (_, Receiver<()>) = channel();
    let started = Instant::now();
    loop {
        let status = request(door, "GET", "/ready", "").map(|(status, _)| status);
        if matches!(status, Ok(200)) {
            return Ok(());
        }
        if started.elapsed() > READY_WITHIN {
            bail!("not ready after {} s:{}", READY_WITHIN.as_secs(), world.last_words());
        }
        match pause.recv_timeout(Duration::from_millis(100)) {
            Ok(()) | Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
        }
    }
}

fn post(door: u16, path: &str, body: &Value) -> anyhow::Result<Value> {
    let (status, text) = request(door, "POST", path, &body.to_string())?;
    ensure!(status == 200, "status {status}: {text}");
    Ok(serde_json::from_str(&text)?)
}

/// One request over a connection of its own, by hand: a client's library would
/// be most of this binary.
fn request(door: u16, method: &str, path: &str, body: &str) -> anyhow::Result<(u16, String)> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, door))?;
    stream.set_read_timeout(Some(ANSWER_WITHIN))?;
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
