//! One process of ours: started, watched by its log, treated badly, and never
//! left behind.

use crate::network::Place;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// A running `chorale`. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts the binary at a place. Both its outputs go to the log.
    pub fn start(binary: &Path, place: &Place, arguments: &[String], log: &Path) -> Self {
        let file = File::options().create(true).append(true).open(log).expect("the log can be written");
        let output = file.try_clone().expect("a file has as many handles as needed");
        let child = place
            .command(binary.to_str().expect("the binary's path is Unicode"))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(file)
            .spawn()
            .expect("the binary starts");
        Self { child, log: log.to_owned() }
    }

    /// Ends it at once.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Sends a signal by its name: `TERM`, `STOP`, `CONT`.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(status.expect("kill is there").success(), "the process is there");
    }

    /// Lets it run for a tenth of the time, by turns of this length.
    pub fn limp(&self, turn: Duration, num_turns: u32) {
        for _ in 0..num_turns {
            self.signal("STOP");
            pause(turn * 9 / 10);
            self.signal("CONT");
            pause(turn / 10);
        }
    }

    /// Waits for its end.
    pub fn wait(&mut self, timeout: Duration) -> Option<ExitStatus> {
        let until = Instant::now() + timeout;
        while Instant::now() < until {
            if let Some(status) = self.child.try_wait().expect("it is our child") {
                return Some(status);
            }
            pause(Duration::from_millis(20));
        }
        None
    }

    /// True if it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("it is our child").is_some()
    }

    /// Memory that it has in RAM, in KiB.
    pub fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
    }

    /// What it has said so far.
    pub fn log(&self) -> String {
        let mut text = String::new();
        if let Ok(mut file) = File::open(&self.log) {
            let _ = file.read_to_string(&mut text);
        }
        text
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Waits. Tests of real processes have nothing better to wait with.
#[expect(clippy::disallowed_methods, reason = "no event of another process could be awaited here")]
pub fn pause(duration: Duration) {
    std::thread::sleep(duration);
}
