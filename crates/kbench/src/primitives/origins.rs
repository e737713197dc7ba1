//! Where wrong results came from: inputs that are their own places, so that the
//! order in which elements were taken can be read off what came out.

use super::to_bf16;
use crate::failure::Failure;
use std::collections::BTreeSet;
use std::fmt::Write;

/// Values that are told of one by one.
const TOLD_MAX: usize = 6;
/// Different values of a line that are told of.
const MIXED_MAX: usize = 4;

/// A product of `rows` by `cols`, each sum `depth` long.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) depth: usize,
}

/// What multiplies `[rows, depth]` by the transpose of `[cols, depth]`.
type Multiply<'a> = &'a dyn Fn(&[u16], &[u16]) -> Result<Vec<f32>, Failure>;

/// Multiplies numbers that name places, and tells what came of them: of each row or
/// column of the result one number where all of it has the same, which would be its
/// own, counted from 1.
pub(super) fn of_product(shape: Shape, multiply: Multiply<'_>) -> String {
    let Shape { rows, cols, depth } = shape;
    let fill = |rows: usize, value: &dyn Fn(usize, usize) -> usize| -> Vec<u16> {
        let places = (0..rows).flat_map(|row| (0..depth).map(move |k| (row, k)));
        places.map(|(row, k)| to_bf16(value(row, k) as f32)).collect()
    };
    let ones = |_: usize, _: usize| 1;
    let row_first = |row: usize, k: usize| if k == 0 { row + 1 } else { 0 };
    let chosen = |row: usize, k: usize| usize::from(k == row % depth);
    let own = |_: usize, k: usize| k + 1;
    let probes: [(&str, bool, Vec<u16>, Vec<u16>); 4] = [
        ("the left one's rows", true, fill(rows, &row_first), fill(cols, &ones)),
        ("the right one's columns", false, fill(rows, &ones), fill(cols, &row_first)),
        ("the depth that the left one's rows choose", true, fill(rows, &chosen), fill(cols, &own)),
        ("the depth that the right one's columns choose", false, fill(rows, &own), fill(cols, &chosen)),
    ];
    let mut text = String::new();
    for (what, is_by_row, left, right) in probes {
        let (lines, across) = if is_by_row { (rows, cols) } else { (cols, rows) };
        let found = match multiply(&left, &right) {
            Ok(found) => found,
            Err(failure) => {
                let _ = write!(text, "\n{what}: {failure}");
                continue;
            }
        };
        let at = |line: usize, place: usize| {
            if is_by_row { found[line * cols + place] } else { found[place * cols + line] }
        };
        let is_depth = what.starts_with("the depth");
        let expected = |line: usize| if is_depth { line % depth + 1 } else { line + 1 };
        let is_right = |line: usize| (0..across).all(|place| at(line, place) == expected(line) as f32);
        if (0..lines).all(is_right) {
            let _ = write!(text, "\n{what}: all where they belong");
            continue;
        }
        let line = |line: usize| {
            let mut values: Vec<f32> = Vec::new();
            for value in (0..across).map(|place| at(line, place)) {
                if !values.contains(&value) && values.len() <= MIXED_MAX {
                    values.push(value);
                }
            }
            match values[..] {
                [value] => value.to_string(),
                _ => format!(
                    "{:?}{}",
                    &values[..values.len().min(MIXED_MAX)],
                    if values.len() > MIXED_MAX { "…" } else { "" }
                ),
            }
        };
        let all: Vec<String> = (0..lines).map(line).collect();
        let _ = write!(text, "\n{what}: {}", all.join(" "));
    }
    text
}

/// Which values of a matrix are off, as rows and columns, and the first of them.
pub(super) fn differences(found: &[f32], expected: &[f32], cols: usize, tolerance: f32) -> Option<String> {
    let is_off = |place: usize| {
        let error = (found[place] - expected[place]).abs();
        error.is_nan() || error > tolerance
    };
    let off: Vec<usize> = (0..expected.len()).filter(|&place| is_off(place)).collect();
    if off.is_empty() {
        return None;
    }
    let told = off.iter().take(TOLD_MAX).map(|&place| {
        format!("[{}, {}] is {}, not {}", place / cols, place % cols, found[place], expected[place])
    });
    let told: Vec<String> = told.collect();
    let rows = ranges(off.iter().map(|place| place / cols));
    let columns = ranges(off.iter().map(|place| place % cols));
    Some(format!(
        "{} of {} values are off, in rows {rows} and columns {columns}: {}",
        off.len(),
        expected.len(),
        told.join("; ")
    ))
}

/// Numbers as ranges, such as `0-7, 16`.
fn ranges(numbers: impl Iterator<Item = usize>) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for number in numbers.collect::<BTreeSet<usize>>() {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            Some(_) | None => runs.push((number, number)),
        }
    }
    let text = |&(first, last): &(usize, usize)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    runs.iter().map(text).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::super::{from_bf16, product};
    use super::*;

    #[test]
    fn an_order_that_was_turned_can_be_read_off() {
        let shape = Shape { rows: 4, cols: 2, depth: 4 };
        // Rows 1 and 2 of the left are exchanged, and the depth of the right is reversed.
        let multiply = |left: &[u16], right: &[u16]| {
            let left = [&left[..4], &left[8..12], &left[4..8], &left[12..]].concat();
            let right: Vec<u16> = right.chunks(4).flat_map(|row| row.iter().rev().copied()).collect();
            Ok(product(&left, &right, 4))
        };
        let text = of_product(shape, &multiply);
        let lines: Vec<&str> = text.lines().skip(1).collect();
        assert_eq!(
            lines,
            [
                "the left one's rows: 1 3 2 4",
                "the right one's columns: all where they belong",
                "the depth that the left one's rows choose: 4 2 3 1",
                "the depth that the right one's columns choose: 4 3",
            ]
        );
        assert_eq!(from_bf16(to_bf16(256.0)), 256.0);
    }

    #[test]
    fn what_is_off_is_told_by_rows_and_columns() {
        let expected = [0.0; 12];
        let mut found = expected;
        (found[1], found[5], found[7]) = (1.0, f32::NAN, 0.001);
        let text = differences(&found, &expected, 4, 0.01);
        let right =
            "2 of 12 values are off, in rows 0-1 and columns 1: [0, 1] is 1, not 0; [1, 1] is NaN, not 0";
        assert_eq!(text.as_deref(), Some(right));
        assert_eq!(differences(&expected, &expected, 4, 0.0), None);
    }
}
