//! What matters most of results, in few words: the end of a long output is often
//! all that is seen of it.

use super::{Check, Measurement, Remark, Results};
use std::fmt::Write;

/// Characters of a failure; the file of results has all of it.
const FAILURE_MAX: usize = 420;
/// Characters of all failures together.
const FAILURES_MAX: usize = 6000;
/// Lines of measurements.
const LINES_MAX: usize = 60;

/// What is told of, by how its names begin, in this order.
const TOLD: [&str; 5] = ["limit", "load", "decode step", "prompt", "served"];

/// What failed, primitives first; what was not done; then the figures that count most.
pub fn digest(all: &[(&str, &Results)]) -> String {
    let mut text = String::new();
    for (name, results) in all {
        let failed = results.checks.iter().filter(|check| check.failure.is_some()).count();
        let _ = writeln!(
            text,
            "== {name}{}{} checks, {failed} failed; {} measurements, {} failures, {} skipped{}",
            if name.is_empty() { "" } else { ": " },
            results.checks.len(),
            results.measurements.len(),
            results.failures.len(),
            results.skipped.len(),
            if results.is_whole { "" } else { "; CUT OFF before its end" },
        );
    }
    if let Some(machine) = all.iter().find_map(|(_, results)| results.machine.as_ref()) {
        let _ = writeln!(text, "{}", machine.text());
    }
    let results = || all.iter().map(|(_, results)| *results);
    let mut failures = String::new();
    let mut failed: Vec<&Check> =
        results().flat_map(|one| &one.checks).filter(|check| check.failure.is_some()).collect();
    // All else is made of them.
    failed.sort_by_key(|check| check.family != "primitives");
    for Check { family, name, failure, .. } in failed {
        let failure = failure.as_deref().unwrap_or("");
        let _ = writeln!(failures, "FAIL {family} / {name}: {}", shortened(failure, FAILURE_MAX));
    }
    for Remark { what, why } in results().flat_map(|one| &one.failures) {
        let _ = writeln!(failures, "FAIL {what}: {}", shortened(why, FAILURE_MAX));
    }
    text.push_str(&shortened(&failures, FAILURES_MAX));
    let skipped: Vec<&Remark> = results().flat_map(|one| &one.skipped).collect();
    for why in reasons(&skipped) {
        let those = skipped.iter().filter(|one| one.why == why).map(|one| one.what.as_str());
        let those: Vec<&str> = those.collect();
        let _ = writeln!(text, "not done, {why}: {}", shortened(&those.join("; "), 1000));
    }
    for Remark { what, why } in results().flat_map(|one| &one.notes) {
        let _ = writeln!(text, "{what}: {}", shortened(why, 200));
    }
    let measurements: Vec<&Measurement> = results().flat_map(|one| &one.measurements).collect();
    let told = TOLD.iter().flat_map(|word| measurements.iter().filter(move |m| m.what.starts_with(word)));
    for measurement in told.take(LINES_MAX) {
        let _ = writeln!(text, "{}", line(measurement));
    }
    text
}

/// Why things were skipped, each reason once.
fn reasons<'a>(skipped: &[&'a Remark]) -> Vec<&'a str> {
    let mut reasons: Vec<&str> = Vec::new();
    for remark in skipped {
        if !reasons.contains(&remark.why.as_str()) {
            reasons.push(&remark.why);
        }
    }
    reasons
}

fn line(measurement: &Measurement) -> String {
    let Measurement { what, of, microseconds, .. } = measurement;
    let mut text = format!("{what} | {of} | {:.3} ms", microseconds / 1e3);
    let mut add = |value: Option<f64>, unit: &str| {
        if let Some(value) = value {
            let _ = write!(text, " | {value:.*} {unit}", usize::from(value < 10.0) * 2);
        }
    };
    add(measurement.gb_per_s, "GB/s");
    add(measurement.tflop_per_s, "TFLOP/s");
    add(measurement.share_of_limit.map(|share| 100.0 * share), "% of limit");
    add(measurement.tokens_per_s, "tokens/s");
    add(measurement.gap_microseconds, "µs gap");
    add(measurement.ratio, "× as long");
    text
}

fn shortened(text: &str, max: usize) -> String {
    match text.char_indices().nth(max) {
        None => text.to_owned(),
        Some((end, _)) => format!("{} …\n", &text[..end]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_stands_before_what_was_measured_and_primitives_before_all() {
        let check = |family: &str, failure: Option<&str>| Check {
            family: family.to_owned(),
            name: "it holds".to_owned(),
            seconds: 1.0,
            failure: failure.map(str::to_owned),
        };
        let skipped = |what: &str| Remark { what: what.to_owned(), why: "no time was left".to_owned() };
        let results = Results {
            checks: vec![
                check("rows", Some("3, not 4")),
                check("primitives", Some("x".repeat(2000).as_str())),
            ],
            measurements: vec![Measurement { what: "decode step".to_owned(), ..Measurement::default() }],
            skipped: vec![skipped("b"), skipped("c")],
            ..Results::default()
        };
        let text = digest(&[("check", &results)]);
        let at = |word: &str| text.find(word).unwrap_or(usize::MAX);
        assert!(at("CUT OFF") < at("FAIL primitives"), "{text}");
        assert!(at("FAIL primitives") < at("FAIL rows / it holds: 3, not 4"), "{text}");
        assert!(at("FAIL rows") < at("not done, no time was left: b; c"), "{text}");
        assert!(at("not done") < at("decode step"), "{text}");
        assert!(text.len() < 1500, "{}", text.len());
    }
}
