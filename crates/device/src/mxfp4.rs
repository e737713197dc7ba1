//! MXFP4: blocks of 32 four-bit floats that share an eight-bit exponent (OCP
//! Microscaling Formats 1.0). The table here is the readable reference; the
//! kernels decode arithmetically and are tested against it.

/// Elements that share a scale.
pub const BLOCK: usize = 32;
/// Bytes of a block's elements, two in each byte.
pub const BLOCK_BYTES: usize = BLOCK / 2;
/// The E8M0 exponent that stands for NaN; a checkpoint that holds it is refused.
pub const NAN_SCALE: u8 = 255;

/// What each E2M1 code stands for; bit 3 is the sign.
const VALUES: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// Decodes one block. Byte `b` holds element `2b` in its low nibble.
pub fn decode_block(packed: &[u8; BLOCK_BYTES], scale: u8) -> [f32; BLOCK] {
    let scale = decode_scale(scale);
    std::array::from_fn(|i| {
        let byte = packed[i / 2];
        let code = if i % 2 == 0 { byte & 0x0f } else { byte >> 4 };
        VALUES[usize::from(code)] * scale
    })
}

/// `2^(scale - 127)`. Exponent 0 is the subnormal `2^-127`, not 0.
#[inline(always)]
pub(crate) fn decode_scale(scale: u8) -> f32 {
    match scale {
        0 => f32::from_bits(1 << 22),
        NAN_SCALE => f32::NAN,
        normal => f32::from_bits(u32::from(normal) << 23),
    }
}

/// One E2M1 code as bf16 bits, which hold it exactly. There is no table in it,
/// so that loops vectorise, and 16 bits are enough, so that they are short.
///
/// The magnitude's three bits are the low exponent bits and the high mantissa
/// bit of a bf16; only 0 and 0.5, E2M1's subnormals, need another way.
#[inline(always)]
pub(crate) fn element_bits(code: u8) -> u16 {
    const HALF: u16 = 126 << 7;
    let code = u16::from(code);
    let magnitude = code & 7;
    let normal = HALF + (magnitude << 6);
    let subnormal = (magnitude & 1).wrapping_neg() & HALF;
    let bits = if magnitude < 2 { subnormal } else { normal };
    bits | ((code & 8) << 12)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_decoding_equals_the_table() {
        for (code, value) in (0u8..).zip(VALUES) {
            assert_eq!(u32::from(element_bits(code)) << 16, value.to_bits(), "code {code}");
        }
    }

    #[test]
    fn scales_are_powers_of_two() {
        for scale in 0..NAN_SCALE {
            assert_eq!(f64::from(decode_scale(scale)), f64::exp2(f64::from(scale) - 127.0), "scale {scale}");
        }
        assert!(decode_scale(NAN_SCALE).is_nan());
    }
}
