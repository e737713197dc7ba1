//! Keys and values in eight bits: E4M3 (OCP 8-bit Floating Point 1.0: no
//! infinities, largest 448) with a power of two for each head's row, so that a
//! row's largest value always finds room and its small ones stay normal.

/// The bias of a row's exponent.
const ROW_BIAS: i32 = 127;
/// Rows' exponents stay where both `2^e` and `2^-e` are normal numbers.
const ROW_EXPONENTS: std::ops::RangeInclusive<i32> = -100..=100;
/// E4M3's largest value.
const LARGEST: f32 = 448.0;
/// E4M3's one NaN, but for its sign.
const NAN: u8 = 0x7f;

/// Encodes one head's key or value: `value ≈ code * 2^(exponent - 127)`. Returns
/// the biased exponent: the least by which the row's largest value fits. What is
/// larger than any exponent allows becomes the largest code.
pub fn encode_fp8_row(values: &[f32], codes: &mut [u8]) -> u8 {
    assert_eq!(values.len(), codes.len());
    let largest = values.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    let exponent = row_exponent(largest);
    let scale = power(-exponent);
    for (code, value) in codes.iter_mut().zip(values) {
        *code = encode(value * scale);
    }
    (exponent + ROW_BIAS) as u8
}

/// Decodes what [`encode_fp8_row`] gave.
#[inline(always)]
pub fn decode_fp8_row(codes: &[u8], exponent: u8, values: &mut [f32]) {
    let scale = power(i32::from(exponent) - ROW_BIAS);
    for (value, code) in values.iter_mut().zip(codes) {
        *value = decode(*code) * scale;
    }
}

/// The least `e` of the range with `largest <= 448 * 2^e`; 0 for a row of zeros.
fn row_exponent(largest: f32) -> i32 {
    if largest == 0.0 {
        return 0;
    }
    // 448 is 1.75 * 2^8.
    let bits = largest.to_bits();
    let above = i32::from(bits & 0x007f_ffff > 0x0060_0000);
    let exponent = (bits >> 23) as i32 - 127 - 8 + above;
    exponent.clamp(*ROW_EXPONENTS.start(), *ROW_EXPONENTS.end())
}

/// `2^exponent`, a normal number.
#[inline(always)]
fn power(exponent: i32) -> f32 {
    f32::from_bits(((exponent + 127) as u32) << 23)
}

/// The nearest E4M3, ties to even; beyond the largest, the largest.
fn encode(value: f32) -> u8 {
    let sign = ((value.to_bits() >> 24) & 0x80) as u8;
    if value.is_nan() {
        return sign | NAN;
    }
    let magnitude = value.abs().min(LARGEST);
    // Subnormals are multiples of 2^-9, and so are the steps of the least normals.
    const LEAST_NORMAL: f32 = 0.015_625;
    if magnitude < LEAST_NORMAL {
        return sign | (magnitude * 512.0).round_ties_even() as u8;
    }
    let bits = magnitude.to_bits();
    let rounded = bits + 0x0007_ffff + (bits >> 20 & 1);
    let exponent = (rounded >> 23) - 120;
    sign | ((exponent << 3) | (rounded >> 20 & 7)) as u8
}

/// What a code stands for: its bits, as those of a much smaller f32, scaled.
#[inline(always)]
fn decode(code: u8) -> f32 {
    let magnitude = u32::from(code & 0x7f) << 20;
    let scaled = f32::from_bits(magnitude) * f32::from_bits((120 + 127) << 23);
    let value = if code & 0x7f == NAN { f32::NAN } else { scaled };
    f32::from_bits(value.to_bits() | u32::from(code & 0x80) << 24)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By the words of the standard.
    fn by_definition(code: u8) -> f32 {
        let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
        let magnitude = match (exponent, code & 7) {
            (15, 7) => f32::NAN,
            (0, _) => mantissa / 8.0 * 2f32.powi(-6),
            _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
        };
        if code & 0x80 == 0 { magnitude } else { -magnitude }
    }

    #[test]
    fn codes_stand_for_what_the_standard_says() {
        for code in 0..=255u8 {
            let (value, defined) = (decode(code), by_definition(code));
            assert!(value == defined || value.is_nan() && defined.is_nan(), "code {code:#x}: {value}");
        }
    }

    #[test]
    fn every_code_encodes_back_and_halfway_goes_to_even() {
        for code in 0..NAN {
            assert_eq!(encode(decode(code)), code);
            assert_eq!(encode(-decode(code)), code | 0x80);
            if code + 1 < NAN {
                let (low, high) = (decode(code), decode(code + 1));
                let even = code + (code & 1);
                assert_eq!(encode((low + high) / 2.0), even, "between {low} and {high}");
                assert_eq!(encode(low + (high - low) * 0.49), code);
                assert_eq!(encode(low + (high - low) * 0.51), code + 1);
            }
        }
        assert_eq!(encode(1e9), 0x7e);
        assert_eq!(encode(f32::NAN) & NAN, NAN);
    }

    #[test]
    fn rows_of_any_size_keep_four_bits() {
        for exponent in -60..60 {
            let unit = 2f32.powi(exponent);
            let row = [1.0, -0.99, 0.51, 0.013, -1.76, 0.0].map(|value| value * unit);
            let (mut codes, mut decoded) = ([0u8; 6], [0f32; 6]);
            let scale = encode_fp8_row(&row, &mut codes);
            decode_fp8_row(&codes, scale, &mut decoded);
            for (value, decoded) in row.iter().zip(decoded) {
                assert!((value - decoded).abs() <= value.abs() / 16.0, "{value} came back as {decoded}");
            }
            assert!(codes.iter().any(|code| code & 0x7f >= 0x70), "the largest fills the range: {codes:x?}");
        }
    }

    #[test]
    fn what_no_exponent_reaches_saturates() {
        let mut codes = [0u8; 3];
        encode_fp8_row(&[f32::INFINITY, -f32::MAX, 0.0], &mut codes);
        assert_eq!(codes, [0x7e, 0xfe, 0]);
        assert_eq!(encode_fp8_row(&[0.0, -0.0, 0.0], &mut codes), 127);
        encode_fp8_row(&[1e-40, 0.0, 0.0], &mut codes);
        assert_eq!(codes, [0; 3]);
    }
}
