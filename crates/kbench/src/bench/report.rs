//! What was found: printed as aligned tables, and written as JSON.

#![expect(clippy::print_stdout, reason = "whoever waits at a GPU wants to see how far it is")]

use chorale_cuda::Facts;
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;

/// All results.
pub struct Report {
    facts: Facts,
    num_kernels: usize,
    opened_in: Duration,
    checks: Vec<Check>,
    measurements: Vec<Measurement>,
    failures: Vec<(String, String)>,
}

struct Check {
    family: String,
    name: String,
    seconds: f64,
    failure: Option<String>,
}

/// One number and what follows from it.
#[derive(Clone, Debug, Default)]
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
    pub share: Option<f64>,
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

impl Report {
    /// Of a GPU that loaded so many kernels in some time.
    pub fn new(facts: &Facts, num_kernels: usize, opened_in: Duration) -> Self {
        Self {
            facts: facts.clone(),
            num_kernels,
            opened_in,
            checks: Vec::new(),
            measurements: Vec::new(),
            failures: Vec::new(),
        }
    }

    /// Adds a check, and prints it at once: a GPU that hangs says where.
    pub fn check(&mut self, family: &str, name: &str, took: Duration, found: Result<(), String>) {
        let verdict = if found.is_ok() { "ok  " } else { "FAIL" };
        println!("{verdict} {:8.3} s  {family:<10} {name}", took.as_secs_f64());
        if let Err(failure) = &found {
            println!("       {failure}");
        }
        self.checks.push(Check {
            family: family.to_owned(),
            name: name.to_owned(),
            seconds: took.as_secs_f64(),
            failure: found.err(),
        });
    }

    /// Adds a measurement, and prints it.
    pub fn measured(&mut self, measurement: Measurement) {
        println!("{}", row(&measurement).join("  "));
        self.measurements.push(measurement);
    }

    /// Something that could not be done at all.
    pub fn fail(&mut self, what: &str, why: String) {
        println!("FAIL {what}: {why}");
        self.failures.push((what.to_owned(), why));
    }

    /// True if nothing failed.
    pub fn is_well(&self) -> bool {
        self.failures.is_empty() && self.checks.iter().all(|check| check.failure.is_none())
    }

    /// The tables, once more and aligned.
    pub fn print(&self) {
        let (major, minor) = self.facts.capability;
        println!();
        println!(
            "{}, sm_{major}{minor}, {} SMs, {:.1} GiB, driver {}; {} kernels loaded in {:.2} s",
            self.facts.name,
            self.facts.num_sms,
            self.facts.memory_bytes as f64 / f64::from(1 << 30),
            self.facts.driver,
            self.num_kernels,
            self.opened_in.as_secs_f64(),
        );
        let failed: Vec<&Check> = self.checks.iter().filter(|check| check.failure.is_some()).collect();
        if !self.checks.is_empty() {
            println!("\n{} checks, {} failed", self.checks.len(), failed.len());
        }
        for check in failed {
            println!("FAIL {} / {}: {}", check.family, check.name, check.failure.as_deref().unwrap_or(""));
        }
        if !self.measurements.is_empty() {
            println!();
            print_aligned(&self.measurements);
        }
        for (what, why) in &self.failures {
            println!("FAIL {what}: {why}");
        }
    }

    /// One file for the machine, the checks and the measurements each.
    pub fn write(&self, folder: &Path) -> std::io::Result<()> {
        std::fs::create_dir_all(folder)?;
        let (major, minor) = self.facts.capability;
        let machine = json!({
            "name": self.facts.name,
            "capability": [major, minor],
            "num_sms": self.facts.num_sms,
            "shared_bytes_max": self.facts.shared_bytes_max,
            "memory_bytes": self.facts.memory_bytes,
            "memory_bytes_per_s": self.facts.memory_bytes_per_s,
            "driver": self.facts.driver,
            "num_kernels": self.num_kernels,
            "opened_in_s": self.opened_in.as_secs_f64(),
            "failures": self.failures,
        });
        let checks = self.checks.iter().map(|check| {
            json!({
                "family": check.family,
                "name": check.name,
                "seconds": check.seconds,
                "failure": check.failure,
            })
        });
        let measurements = self.measurements.iter().map(|measurement| {
            json!({
                "what": measurement.what,
                "of": measurement.of,
                "microseconds": measurement.microseconds,
                "gb_per_s": measurement.gb_per_s,
                "tflop_per_s": measurement.tflop_per_s,
                "share_of_limit": measurement.share,
                "tokens_per_s": measurement.tokens_per_s,
                "gap_microseconds": measurement.gap_microseconds,
                "host_microseconds": measurement.host_microseconds,
                "ratio": measurement.ratio,
                "note": measurement.note,
            })
        });
        let (checks, measurements): (Vec<Value>, Vec<Value>) = (checks.collect(), measurements.collect());
        for (name, value) in
            [("machine", machine), ("checks", checks.into()), ("measurements", measurements.into())]
        {
            std::fs::write(folder.join(format!("{name}.json")), serde_json::to_vec_pretty(&value)?)?;
        }
        Ok(())
    }
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
        measurement.share.map_or(String::new(), |share| format!("{:.0} %", 100.0 * share)),
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
