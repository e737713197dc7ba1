//! Sizes and rates as people write them: `80GiB`, `80GB`, `3.35TB/s`. Powers
//! of 1000 and of 1024 are told apart, and a bare number is refused, for it
//! leaves open which was meant.

/// Why a text is no size or rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UnitError {
    /// What stands before the unit.
    #[error("it does not start with a number")]
    NotANumber,
    /// What stands behind the number.
    #[error("its unit is unknown")]
    UnknownUnit,
    /// The unit is missing.
    #[error("it has no unit")]
    NoUnit,
    /// Zero, negative, or beyond any machine.
    #[error("it is out of range")]
    OutOfRange,
}

/// Units and their bytes, the small first.
const UNITS: [(&str, u64); 9] = [
    ("B", 1),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

/// Largest size, 8 PiB: whole numbers up to it are exact in an f64.
const BYTES_MAX: f64 = (1_u64 << 53) as f64;

/// Parses a size. Capital and small letters are the same.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, UnitError> {
    let bytes = scaled(text.trim())?;
    Ok(bytes.round() as u64)
}

/// Parses a rate, a size and `/s`.
pub(crate) fn parse_rate(text: &str) -> Result<f64, UnitError> {
    let text = text.trim();
    let size = text.strip_suffix("/s").ok_or(UnitError::UnknownUnit)?;
    scaled(size.trim_end())
}

fn scaled(text: &str) -> Result<f64, UnitError> {
    let is_of_number = |character: char| character.is_ascii_digit() || "+-.".contains(character);
    let end = text.find(|character| !is_of_number(character)).unwrap_or(text.len());
    let (number, unit) = (&text[..end], text[end..].trim_start());
    let number: f64 = number.parse().map_err(|_| UnitError::NotANumber)?;
    if unit.is_empty() {
        return Err(UnitError::NoUnit);
    }
    let known = UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit));
    let (_, scale) = known.ok_or(UnitError::UnknownUnit)?;
    let bytes = number * *scale as f64;
    if (1.0..=BYTES_MAX).contains(&bytes) { Ok(bytes) } else { Err(UnitError::OutOfRange) }
}

/// A size in powers of 1000, as memory bandwidth and file sizes are counted.
pub(crate) fn show_bytes(bytes: f64) -> String {
    let decimal = &UNITS[..5];
    let fits = |(_, scale): &&(&str, u64)| bytes >= *scale as f64;
    match decimal.iter().rev().find(fits) {
        Some((unit, scale)) if *scale > 1 => format!("{:.3} {unit}", bytes / *scale as f64),
        Some(_) | None => format!("{bytes:.0} B"),
    }
}

/// A number of things in thousands, millions and billions.
pub(crate) fn show_count(count: u64) -> String {
    let count = count as f64;
    match count {
        _ if count >= 1e9 => format!("{:.3} B", count / 1e9),
        _ if count >= 1e6 => format!("{:.3} M", count / 1e6),
        _ if count >= 1e4 => format!("{:.1} K", count / 1e3),
        _ => format!("{count:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_read_as_written() {
        assert_eq!(parse_bytes("80GiB"), Ok(80 << 30));
        assert_eq!(parse_bytes("80GB"), Ok(80_000_000_000));
        assert_eq!(parse_bytes("512MiB"), Ok(512 << 20));
        assert_eq!(parse_bytes(" 1.5 kib "), Ok(1536));
        assert_eq!(parse_bytes("7b"), Ok(7));
        assert_eq!(parse_rate("3.35TB/s"), Ok(3.35e12));
        assert_eq!(parse_rate("24 GB/s"), Ok(24e9));
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for (text, error) in [
            ("", UnitError::NotANumber),
            ("GiB", UnitError::NotANumber),
            ("80", UnitError::NoUnit),
            ("80 gibibytes", UnitError::UnknownUnit),
            ("1e3GB", UnitError::UnknownUnit),
            ("0GB", UnitError::OutOfRange),
            ("-1GB", UnitError::OutOfRange),
            ("99999999999TB", UnitError::OutOfRange),
            ("1.2.3GB", UnitError::NotANumber),
        ] {
            assert_eq!(parse_bytes(text), Err(error), "{text}");
        }
        assert_eq!(parse_rate("3.35TB"), Err(UnitError::UnknownUnit));
    }

    #[test]
    fn sizes_are_shown_in_decimal_units() {
        assert_eq!(show_bytes(65_249_000_000.0), "65.249 GB");
        assert_eq!(show_bytes(999.0), "999 B");
        assert_eq!(show_bytes(0.0), "0 B");
        assert_eq!(show_count(116_829_000_000), "116.829 B");
        assert_eq!(show_count(4096), "4096");
    }

    proptest! {
        #[test]
        fn whole_sizes_round_trip(number in 1_u64..8000, unit in 0_usize..UNITS.len(), space in " ?") {
            let (name, scale) = UNITS[unit];
            let parsed = parse_bytes(&format!("{number}{space}{name}"));
            if (number * scale) as f64 <= BYTES_MAX {
                prop_assert_eq!(parsed, Ok(number * scale));
            } else {
                prop_assert_eq!(parsed, Err(UnitError::OutOfRange));
            }
        }

        #[test]
        fn any_text_is_parsed_or_refused(text in ".{0,20}") {
            let _ = parse_bytes(&text);
            let _ = parse_rate(&text);
        }

        #[test]
        fn what_is_shown_parses_to_nearly_the_same(bytes in 1_u64..1 << 50) {
            let parsed = parse_bytes(&show_bytes(bytes as f64)).unwrap() as f64;
            prop_assert!((parsed / bytes as f64 - 1.0).abs() <= 1e-3);
        }
    }
}
