//! What a check finds wrong, as a sentence.

use std::any::Any;
use std::fmt;

/// What is wrong.
#[derive(Clone, Debug)]
pub struct Failure(pub String);

/// What a check found.
pub type Outcome = Result<(), Failure>;

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Failure {
    /// What somebody said who panicked.
    pub(crate) fn of_panic(panic: &(dyn Any + Send)) -> Self {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        Self(format!("panicked: {}", text.unwrap_or("without a word")))
    }
}

/// Whatever a device refuses fails a check.
impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

/// How far values may lie from what is expected.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tolerance {
    /// Halves of the last place of a bf16 of each value's size.
    pub(crate) of_each: f64,
    /// A share of the largest value, or of 1 if that is more.
    pub(crate) of_largest: f64,
}

impl Tolerance {
    fn at(&self, expected: f64, largest: f64) -> f64 {
        // 8 bits: half of the last is 2^-8 of the power of two below the value.
        let last_place = if expected == 0.0 { 0.0 } else { expected.abs().log2().floor().exp2() / 256.0 };
        self.of_each * last_place + self.of_largest * largest
    }
}

/// Wrong values that are told of beside the worst.
const FIRSTS_MAX: usize = 4;

/// Fails unless something holds.
pub(crate) fn ensure(holds: bool, what: impl FnOnce() -> String) -> Outcome {
    if holds { Ok(()) } else { Err(Failure(what())) }
}

/// Compares values, and names the worst.
pub(crate) fn close(
    found: &[f32],
    expected: &[f64],
    tolerance: Tolerance,
    what: impl Fn() -> String,
) -> Outcome {
    ensure(found.len() == expected.len(), || {
        format!("{}: {} values, not {}", what(), found.len(), expected.len())
    })?;
    let largest = expected.iter().fold(1.0f64, |largest, value| largest.max(value.abs()));
    let excess = |(&found, &expected): (&f32, &f64)| {
        let error = (f64::from(found) - expected).abs();
        // What is not a number is further off than all else.
        if error.is_nan() { f64::INFINITY } else { error - tolerance.at(expected, largest) }
    };
    let excesses = found.iter().zip(expected).map(excess).enumerate();
    let worst = excesses.max_by(|a, b| a.1.total_cmp(&b.1));
    match worst {
        Some((index, by)) if by > 0.0 => {
            let is_wrong = |&place: &usize| excess((&found[place], &expected[place])) > 0.0;
            let wrong: Vec<usize> = (0..found.len()).filter(is_wrong).collect();
            let firsts = wrong.iter().take(FIRSTS_MAX);
            let firsts = firsts.map(|&place| format!("{place}: {}, not {}", found[place], expected[place]));
            Err(Failure(format!(
                "{}: value {index} is {}, not {} ({} of {} values are off, from {} to {}, the largest is \
                 {largest}; the first are {})",
                what(),
                found[index],
                expected[index],
                wrong.len(),
                found.len(),
                wrong.first().unwrap_or(&index),
                wrong.last().unwrap_or(&index),
                firsts.collect::<Vec<_>>().join("; "),
            )))
        }
        _ => Ok(()),
    }
}

/// Compares bits.
pub(crate) fn same(found: &[f32], expected: &[f32], what: impl Fn() -> String) -> Outcome {
    ensure(found.len() == expected.len(), || {
        format!("{}: {} values, not {}", what(), found.len(), expected.len())
    })?;
    let differs = |(found, expected): (&f32, &f32)| found.to_bits() != expected.to_bits();
    match found.iter().zip(expected).position(differs) {
        None => Ok(()),
        Some(index) => Err(Failure(format!(
            "{}: value {index} is {}, not bit for bit {} ({} of {} differ)",
            what(),
            found[index],
            expected[index],
            found.iter().zip(expected).filter(|&pair| differs(pair)).count(),
            found.len(),
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_a_number_is_never_close() {
        let tolerance = Tolerance { of_each: 1.0, of_largest: 1.0 };
        let what = || "it".to_owned();
        assert!(close(&[f32::NAN, 1.0], &[0.0, 1.0], tolerance, what).is_err());
        assert!(close(&[0.5, 1.0], &[0.0, 1.0], tolerance, what).is_ok());
        assert!(close(&[0.5], &[0.0, 1.0], tolerance, what).is_err());
    }

    #[test]
    fn a_value_that_was_rounded_once_is_close() {
        let once = Tolerance { of_each: 1.0, of_largest: 0.0 };
        let what = || "it".to_owned();
        // Between 1 and 2 the places of a bf16 are 1/128 apart.
        assert!(close(&[1.0], &[1.0 + 1.0 / 256.0], once, what).is_ok());
        assert!(close(&[1.0], &[1.0 + 1.1 / 256.0], once, what).is_err());
        assert!(close(&[1.99], &[1.99 + 1.0 / 256.0], once, what).is_ok());
        assert!(close(&[1.99], &[1.99 + 1.1 / 256.0], once, what).is_err());
    }

    #[test]
    fn the_worst_value_is_named() {
        let tolerance = Tolerance { of_each: 0.0, of_largest: 0.1 };
        let failure = close(&[1.1, 3.0], &[1.0, 2.0], tolerance, || "sums".to_owned()).err();
        let text = failure.map(|failure| failure.to_string());
        assert_eq!(
            text.as_deref(),
            Some(
                "sums: value 1 is 3, not 2 (1 of 2 values are off, from 1 to 1, the largest is 2; the first \
                 are 1: 3, not 2)"
            )
        );
    }
}
