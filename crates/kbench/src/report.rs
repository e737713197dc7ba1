//! What was found: printed as it comes, and kept in a file that is whole after
//! each line, so that whoever ends the process loses nothing.

#![expect(clippy::print_stdout, reason = "whoever waits at a GPU wants to see how far it is")]

mod digest;

pub use digest::digest;

use crate::command::Event;
use chorale_cuda::Facts;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// All results.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Results {
    /// What they are of, where a GPU could be opened.
    pub machine: Option<MachineFacts>,
    /// What must hold, and whether it does.
    pub checks: Vec<Check>,
    /// What was measured.
    pub measurements: Vec<Measurement>,
    /// What could not be done at all.
    pub failures: Vec<Remark>,
    /// What was not done, and why.
    pub skipped: Vec<Remark>,
    /// What else is worth knowing, and is no failure.
    pub notes: Vec<Remark>,
    /// False in the file of a process that was ended before its time.
    pub is_whole: bool,
}

/// A GPU, and what it took to open it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MachineFacts {
    name: String,
    capability: (u32, u32),
    num_sms: u32,
    shared_bytes_max: u32,
    memory_bytes: usize,
    memory_bytes_per_s: u64,
    driver: i32,
    num_kernels: usize,
    /// Of these, such as may begin while what they follow still runs.
    num_dependent_kernels: usize,
    opened_in_s: f64,
}

impl MachineFacts {
    /// Of a GPU that loaded so many kernels, and so many dependent ones among them, in some time.
    pub fn new(
        facts: &Facts,
        (num_kernels, num_dependent_kernels): (usize, usize),
        opened_in: Duration,
    ) -> Self {
        Self {
            name: facts.name.clone(),
            capability: facts.capability,
            num_sms: facts.num_sms,
            shared_bytes_max: facts.shared_bytes_max,
            memory_bytes: facts.memory_bytes,
            memory_bytes_per_s: facts.memory_bytes_per_s,
            driver: facts.driver,
            num_kernels,
            num_dependent_kernels,
            opened_in_s: opened_in.as_secs_f64(),
        }
    }

    fn text(&self) -> String {
        let Self { name, capability: (major, minor), num_sms, driver, .. } = self;
        format!(
            "{name}, sm_{major}{minor}, {num_sms} SMs, {:.1} GiB, driver {driver}; {} kernels, {} of them \
             dependent, loaded in {:.2} s",
            self.memory_bytes as f64 / f64::from(1 << 30),
            self.num_kernels,
            self.num_dependent_kernels,
            self.opened_in_s,
        )
    }
}

/// Something that must hold.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Check {
    /// Of which kind.
    pub family: String,
    /// What must hold.
    pub name: String,
    /// How long it took.
    pub seconds: f64,
    /// Why it does not hold, if it does not.
    pub failure: Option<String>,
}

/// Something, and what is to be said of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Remark {
    /// Of what.
    pub what: String,
    /// What.
    pub why: String,
}

/// One number and what follows from it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Measurement {
    /// What was measured: an operation, a step, a limit.
    pub what: String,
    /// Under which circumstances.
    pub of: String,
    /// Each.
    pub microseconds: f64,
    /// Billions of bytes that had to be moved, each second.
    pub gb_per_s: Option<f64>,
    /// Trillions of operations each second.
    pub tflop_per_s: Option<f64>,
    /// Of the limit that is nearer, as it was measured in the same run.
    pub share_of_limit: Option<f64>,
    /// Of all sequences together.
    pub tokens_per_s: Option<f64>,
    /// Of a step, in which the GPU had nothing to do, in the mean.
    pub gap_microseconds: Option<f64>,
    /// To plan a step and to hand it over.
    pub host_microseconds: Option<f64>,
    /// How many times as long as the same in the usual way, measured just before.
    pub ratio: Option<f64>,
    /// What else is worth knowing.
    pub note: String,
}

/// Where results go.
enum Outlet {
    /// To whoever looks on, and to a file.
    Terminal(Option<PathBuf>),
    /// To the process that started this one.
    Parent,
}

/// Results as they come.
pub struct Report {
    results: Results,
    outlet: Outlet,
}

impl Report {
    /// For whoever looks on, and kept in a file if one is named.
    pub fn to_terminal(file: Option<&Path>) -> Self {
        Self { results: Results::default(), outlet: Outlet::Terminal(file.map(Path::to_owned)) }
    }

    /// For the process that started this one.
    pub(crate) fn to_parent() -> Self {
        Self { results: Results::default(), outlet: Outlet::Parent }
    }

    /// All so far.
    pub fn results(&self) -> &Results {
        &self.results
    }

    /// Says what the results are of.
    pub fn machine(&mut self, machine: MachineFacts) {
        if self.results.machine.is_none() {
            let text = machine.text();
            self.tell(&text, || Event::Machine(machine.clone()));
            self.results.machine = Some(machine);
            self.keep();
        }
    }

    /// Adds a check.
    pub fn check(&mut self, check: Check) {
        let verdict = if check.failure.is_none() { "ok  " } else { "FAIL" };
        let mut text = format!("{verdict} {:8.3} s  {:<10} {}", check.seconds, check.family, check.name);
        if let Some(failure) = &check.failure {
            text.push_str(&format!("\n       {}", failure.replace('\n', "\n       ")));
        }
        self.tell(&text, || Event::Check(check.clone()));
        self.results.checks.push(check);
        self.keep();
    }

    /// Adds a measurement.
    pub fn measured(&mut self, measurement: Measurement) {
        self.tell(&row(&measurement).join("  "), || Event::Measured(measurement.clone()));
        self.results.measurements.push(measurement);
        self.keep();
    }

    /// Something that could not be done at all.
    pub fn fail(&mut self, what: &str, why: String) {
        let remark = Remark { what: what.to_owned(), why };
        self.tell(&format!("FAIL {what}: {}", remark.why), || Event::Failed(remark.clone()));
        self.results.failures.push(remark);
        self.keep();
    }

    /// Something that was not done.
    pub fn skip(&mut self, what: &str, why: &str) {
        self.results.skipped.push(Remark { what: what.to_owned(), why: why.to_owned() });
        self.keep();
    }

    /// Something worth knowing that is no failure.
    pub fn note(&mut self, what: &str, why: String) {
        let remark = Remark { what: what.to_owned(), why };
        self.tell(&format!("     {what}: {}", remark.why), || Event::Noted(remark.clone()));
        self.results.notes.push(remark);
        self.keep();
    }

    /// Adds to what the last failure of a check says.
    pub(crate) fn add_to_failure(&mut self, (family, name): (&str, &str), words: &str) {
        println!("       {}", words.replace('\n', "\n       "));
        let is_it = |check: &&mut Check| check.family == family && check.name == name;
        let check = self.results.checks.iter_mut().rfind(is_it);
        if let Some(failure) = check.and_then(|check| check.failure.as_mut()) {
            failure.push_str(&format!("\n{words}"));
        }
        self.keep();
    }

    /// True if nothing failed.
    pub fn is_well(&self) -> bool {
        self.results.failures.is_empty() && self.results.checks.iter().all(|check| check.failure.is_none())
    }

    /// Prints the table of all measurements and what matters most, and closes the file.
    pub fn end(&mut self) {
        self.results.is_whole = true;
        self.keep();
        if !self.results.measurements.is_empty() {
            println!();
            print_aligned(&self.results.measurements);
        }
        println!("\n{}", digest(&[("", &self.results)]));
    }

    fn tell(&self, text: &str, event: impl FnOnce() -> Event) {
        match &self.outlet {
            Outlet::Terminal(_) => println!("{text}"),
            Outlet::Parent => event().tell(),
        }
    }

    /// Writes the file anew, under its name only when it is whole.
    fn keep(&mut self) {
        let Outlet::Terminal(Some(file)) = &self.outlet else { return };
        if let Err(error) = write(file, &self.results) {
            println!("results are not kept: {}: {error}", file.display());
            // Said once; the terminal has them all.
            self.outlet = Outlet::Terminal(None);
        }
    }
}

fn write(file: &Path, results: &Results) -> std::io::Result<()> {
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let unfinished = file.with_extension("unfinished");
    std::fs::write(&unfinished, serde_json::to_vec_pretty(results)?)?;
    std::fs::rename(&unfinished, file)
}

const COLUMNS: usize = 11;

const TITLES: [&str; COLUMNS] =
    ["what", "of", "µs", "GB/s", "TFLOP/s", "of limit", "tokens/s", "gap µs", "host µs", "ratio", "note"];

fn row(measurement: &Measurement) -> [String; COLUMNS] {
    let or_blank =
        |value: Option<f64>, digits: usize| value.map_or(String::new(), |value| format!("{value:.digits$}"));
    [
        measurement.what.clone(),
        measurement.of.clone(),
        format!("{:.1}", measurement.microseconds),
        or_blank(measurement.gb_per_s, 0),
        or_blank(measurement.tflop_per_s, 1),
        measurement.share_of_limit.map_or(String::new(), |share| format!("{:.0} %", 100.0 * share)),
        or_blank(measurement.tokens_per_s, 0),
        or_blank(measurement.gap_microseconds, 1),
        or_blank(measurement.host_microseconds, 0),
        or_blank(measurement.ratio, 3),
        measurement.note.clone(),
    ]
}

fn print_aligned(measurements: &[Measurement]) {
    let rows: Vec<[String; COLUMNS]> =
        std::iter::once(TITLES.map(str::to_owned)).chain(measurements.iter().map(row)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; COLUMNS] = std::array::from_fn(width);
    for row in &rows {
        let cells = row.iter().zip(widths).enumerate().map(|(column, (cell, width))| {
            // Numbers stand at the right.
            if (2..COLUMNS - 1).contains(&column) {
                format!("{cell:>width$}")
            } else {
                format!("{cell:<width$}")
            }
        });
        println!("{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
}
