//! What FP8 keys and values need: numbers made codes and back, and copies of
//! single words.

use super::{Bench, Words, from_bf16, noise};
use crate::failure::{Outcome, ensure};
use chorale_cuda::Kernel;
use chorale_device::{decode_fp8_row, encode_fp8_row};

pub(super) fn words(bench: &Bench<'_>) -> Outcome {
    let words: Vec<u32> = (1..33).collect();
    let out = bench.words("selftest_words", 0, &words, 32)?;
    for (lane, &found) in out.iter().enumerate() {
        let from = (lane + 1) % 32;
        let expected = if from % 3 == 2 { 0 } else { words[from] };
        ensure(found == expected, || format!("lane {lane} found {found}, not {expected}"))?;
    }
    Ok(())
}

pub(super) fn codes(bench: &Bench<'_>) -> Outcome {
    // All codes, what lies around and half way between their values, and ends.
    let mut floats: Vec<f32> = (0..0x7f).flat_map(|code| [decoded(code), decoded(code | 0x80)]).collect();
    for code in 0..0x7e {
        let middle = (decoded(code) + decoded(code + 1)) / 2.0;
        floats.extend([middle, middle.next_up(), -middle.next_down()]);
    }
    floats.extend([448.1, -464.0, 480.0, f32::MAX, -f32::INFINITY, f32::MIN_POSITIVE, 1e-40, 0.0, -0.0]);
    let mut next = noise(3);
    let finite = std::iter::repeat_with(&mut next).map(f32::from_bits).filter(|value| value.is_finite());
    floats.extend(finite.take(400));
    // So that each number is first of a pair, too.
    let bits: Vec<u32> = floats.iter().rev().chain(&floats).map(|value| value.to_bits()).collect();
    let count = bits.len() / 2;
    let args =
        Words { input: bench.put(&bits)?, output: bench.room(count * 4)?, count: count as u32, pad: 0 };
    bench.launch(Kernel { name: "selftest_fp8", threads: 64 }, [1, 1, 1], 0, &args)?;
    let found: Vec<u32> = bench.get(args.output, count * 4)?;
    for (pair, out) in bits.chunks_exact(2).zip(found.chunks_exact(4)) {
        let [x, y] = [f32::from_bits(pair[0]), f32::from_bits(pair[1])];
        let expected = u32::from(encoded(x)) | u32::from(encoded(y)) << 8;
        ensure(out[0] == expected, || format!("{x:e} and {y:e} are {:04x}, not {expected:04x}", out[0]))?;
        let exponent = encode_fp8_row(&[x], &mut [0]);
        ensure(out[1] == u32::from(exponent), || format!("exponent of {x:e}: {}, not {exponent}", out[1]))?;
        let codes = pair[0].to_le_bytes();
        let order = [(0, out[2]), (2, out[2] >> 16), (1, out[3]), (3, out[3] >> 16)];
        for (code, half) in order.map(|(place, half)| (codes[place], from_bf16(half as u16))) {
            // What is no number comes out as what would be the next larger one.
            let is_nan = code & 0x7f == 0x7f;
            let expected = if is_nan { 480f32.copysign(decoded(code & 0x80)) } else { decoded(code) };
            ensure(half.to_bits() == expected.to_bits(), || {
                format!("code {code:02x} is {half}, not {expected}")
            })?;
        }
    }
    Ok(())
}

/// A code's number.
fn decoded(code: u8) -> f32 {
    let mut value = [0.0];
    decode_fp8_row(&[code], 127, &mut value);
    value[0]
}

/// A number's code, beside one that makes the row's exponent 0.
fn encoded(value: f32) -> u8 {
    let mut codes = [0; 2];
    encode_fp8_row(&[448.0, value.clamp(-448.0, 448.0)], &mut codes);
    codes[1]
}
