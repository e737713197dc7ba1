//! Lets children do the items: each child as many as it comes through.

#![expect(clippy::print_stdout, reason = "hands on what children print")]

use super::Arguments;
use super::events::{Event, Order};
use super::items::Item;
use crate::bench::Limits;
use crate::report::{Check, Report};
use chorale_cuda::GpuError;
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

/// To start, and to open the GPU.
const OPEN_WITHIN: Duration = Duration::from_secs(120);
/// For a process that was ended, or has told all, to be gone.
const GONE_WITHIN: Duration = Duration::from_secs(20);
/// From one that comes to no item to the next.
const REST: Duration = Duration::from_secs(2);
/// Children in a row that come to no item.
const VAIN_MAX: usize = 2;
/// Failures that are looked at kernel by kernel.
const AGAIN_MAX: usize = 8;
/// Lines that wait to be read.
const LINES_MAX: usize = 1024;

/// A process that does items.
struct Worker {
    process: Child,
    lines: Receiver<String>,
    /// It ends itself when this is closed.
    _input: Option<ChildStdin>,
}

impl Worker {
    fn start(order: &Order) -> std::io::Result<Self> {
        let mut process = Command::new(std::env::current_exe()?)
            .args(std::env::args_os().skip(1))
            .arg("--child")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut input = process.stdin.take();
        if let Some(input) = &mut input {
            let mut line = serde_json::to_vec(order)?;
            line.push(b'\n');
            // One that ends before it reads says why by its status.
            let _ = input.write_all(&line);
        }
        let (sender, lines) = sync_channel(LINES_MAX);
        if let Some(output) = process.stdout.take() {
            std::thread::spawn(move || {
                let mut output = BufReader::new(output);
                let mut bytes = Vec::new();
                while matches!(output.read_until(b'\n', &mut bytes), Ok(1..)) {
                    let line = String::from_utf8_lossy(&bytes).trim_end().to_owned();
                    if sender.send(line).is_err() {
                        return;
                    }
                    bytes.clear();
                }
            });
        }
        Ok(Self { process, lines, _input: input })
    }

    fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
    }

    /// How it ended, once it did.
    fn end(mut self) -> String {
        // The input stays open: it ends by itself, or was killed.
        let started = Instant::now();
        while started.elapsed() < GONE_WITHIN {
            match self.process.try_wait() {
                Ok(None) => {}
                Ok(Some(status)) => return format!("its process ended with {status}"),
                Err(error) => return format!("its process cannot be waited for: {error}"),
            }
            std::thread::park_timeout(Duration::from_millis(20));
        }
        self.kill();
        format!("its process is not gone after {} s", GONE_WITHIN.as_secs())
    }
}

/// What came of a child.
struct Ended<'a> {
    /// The item that it did not come to the end of, and why.
    broken: Option<(&'a Item, String)>,
    /// Whether the time was up.
    is_late: bool,
    /// Why the GPU could not be opened.
    refused: Option<(String, bool)>,
}

/// Does all items; what becomes of them is in the report.
pub(super) fn run(
    items: &[Item],
    arguments: &Arguments,
    deadline: Instant,
    report: &mut Report,
) -> anyhow::Result<()> {
    let mut run = Run { deadline, report, limits: None, failed: Vec::new(), vain: 0 };
    let mut left: VecDeque<&Item> = items.iter().collect();
    while !left.is_empty() {
        if Instant::now() >= deadline {
            run.skip(left, "no time was left");
            break;
        }
        let before = left.len();
        let ended = run.child(&mut left, arguments.one_by_one)?;
        if let Some((item, why)) = ended.broken {
            run.broke(item, &why);
        }
        if ended.is_late {
            continue;
        }
        if let Some((reason, true)) = ended.refused {
            return Err(GpuError::Absent { reason }.into());
        }
        run.vain = if left.len() == before { run.vain + 1 } else { 0 };
        if run.vain == VAIN_MAX {
            let reason = ended.refused.map_or("children end at once".to_owned(), |(reason, _)| reason);
            run.report.fail("opening the GPU", reason);
            run.skip(left, "the GPU could not be opened");
            break;
        }
        if run.vain > 0 {
            // What an ended process held may take a moment to be free.
            std::thread::park_timeout(REST);
        }
    }
    if !arguments.one_by_one {
        run.look_again()?;
    }
    Ok(())
}

struct Run<'a, 'r> {
    deadline: Instant,
    report: &'r mut Report,
    limits: Option<Limits>,
    /// Checks that failed.
    failed: Vec<&'a Item>,
    /// Children in a row that came to no item.
    vain: usize,
}

impl<'a> Run<'a, '_> {
    fn skip(&mut self, items: impl IntoIterator<Item = &'a Item>, why: &str) {
        items.into_iter().for_each(|item| self.report.skip(&item.full_name(), why));
    }

    /// Starts a child, and follows it to its end.
    fn child(&mut self, left: &mut VecDeque<&'a Item>, one_by_one: bool) -> anyhow::Result<Ended<'a>> {
        let items = left.iter().map(|item| item.full_name()).collect();
        let mut worker = Worker::start(&Order { items, limits: self.limits, one_by_one })?;
        let mut ended = Ended { broken: None, is_late: false, refused: None };
        let mut current: Option<(&Item, Instant)> = None;
        let started = Instant::now();
        let mut why = None;
        loop {
            let until = current.map_or(started + OPEN_WITHIN, |(item, since)| since + item.within);
            let timeout = until.min(self.deadline).saturating_duration_since(Instant::now());
            let line = match worker.lines.recv_timeout(timeout) {
                Ok(line) => line,
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    ended.is_late = Instant::now() >= self.deadline;
                    let within = current.map_or(OPEN_WITHIN, |(item, _)| item.within);
                    why = Some(format!("it took longer than {} s", within.as_secs()));
                    worker.kill();
                    break;
                }
            };
            match Event::told(&line) {
                None => println!("{line}"),
                Some(Event::Machine(machine)) => self.report.machine(machine),
                Some(Event::Began(name)) => {
                    // All before it are unknown to the child, which cannot be.
                    while let Some(item) = left.pop_front() {
                        if item.full_name() == name {
                            current = Some((item, Instant::now()));
                            break;
                        }
                        self.report.skip(&item.full_name(), "it is unknown");
                    }
                }
                Some(Event::Check(check)) => {
                    if let (Some((item, _)), true) = (current, check.failure.is_some()) {
                        self.failed.push(item);
                    }
                    self.report.check(check);
                }
                Some(Event::Measured(measurement)) => self.report.measured(measurement),
                Some(Event::Limits(limits)) => self.limits = Some(limits),
                Some(Event::Failed(remark)) => self.report.fail(&remark.what, remark.why),
                Some(Event::Noted(remark)) => self.report.note(&remark.what, remark.why),
                Some(Event::Done(_)) => current = None,
                Some(Event::Lost(reason)) => why = Some(format!("the context is lost: {reason}")),
                Some(Event::Refused { reason, is_absent }) => ended.refused = Some((reason, is_absent)),
                Some(Event::Hung(text)) => {
                    why = Some(text);
                    worker.kill();
                    break;
                }
            }
        }
        let end = worker.end();
        match current {
            Some((item, _)) if ended.is_late => {
                self.report.skip(&item.full_name(), "the time was up in the midst of it");
            }
            Some((item, _)) => ended.broken = Some((item, why.unwrap_or(end))),
            None if !left.is_empty() && !ended.is_late => {
                let (reason, is_absent) = ended.refused.take().unwrap_or((why.unwrap_or(end), false));
                ended.refused = Some((reason, is_absent));
            }
            None => {}
        }
        Ok(ended)
    }

    /// An item that its child did not come to the end of.
    fn broke(&mut self, item: &'a Item, why: &str) {
        if !item.is_check() {
            return self.report.fail(&item.full_name(), why.to_owned());
        }
        if self.failed.last().is_some_and(|last| last.full_name() == item.full_name()) {
            return self.report.add_to_failure((item.family, &item.name), why);
        }
        self.failed.push(item);
        self.report.check(Check {
            family: item.family.to_owned(),
            name: item.name.clone(),
            seconds: 0.0,
            failure: Some(why.to_owned()),
        });
    }

    /// What failed once more, kernel by kernel: which kernel breaks the context or
    /// hangs, and whether the fault lies between kernels rather than in one.
    fn look_again(&mut self) -> anyhow::Result<()> {
        let failed = std::mem::take(&mut self.failed);
        for item in failed.into_iter().take(AGAIN_MAX) {
            if Instant::now() >= self.deadline || self.vain > 0 {
                break;
            }
            println!("  again, kernel by kernel: {}", item.full_name());
            let mut quiet = Report::to_terminal(None);
            let mut again = Run {
                deadline: self.deadline,
                report: &mut quiet,
                limits: None,
                failed: Vec::new(),
                vain: 0,
            };
            let ended = again.child(&mut VecDeque::from([item]), true)?;
            let check = quiet.results().checks.first().map(|check| check.failure.clone());
            let found = match (check, ended.broken, ended.refused) {
                (Some(Some(failure)), ..) => failure,
                (_, Some((_, why)), _) | (_, _, Some((why, _))) => why,
                (Some(None), None, None) => "it holds; so look at what kernels leave to each other, at \
                                             graphs, and at launches that overlap"
                    .to_owned(),
                (None, None, None) => "no time was left".to_owned(),
            };
            self.report.add_to_failure((item.family, &item.name), &format!("kernel by kernel: {found}"));
        }
        Ok(())
    }
}
