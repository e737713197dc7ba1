//! Dense weights in eight bits: symmetric, with one scale for each output row,
//! so that a product is corrected once, after its sum. Every device quantizes
//! by the arithmetic here, in f32 with each operation rounded, and so to the
//! same integers.

/// Quantizes one row of weights: `weight ≈ scale * integer`, integers from -127
/// to 127, rounded to the nearest (ties to even). Returns the scale. A row whose
/// weights are all zero, or too small for an inverse, becomes zeros with scale 0.
pub fn quantize_row(weights: &[f32], integers: &mut [i8]) -> f32 {
    assert_eq!(weights.len(), integers.len());
    let largest = weights.iter().fold(0.0f32, |largest, weight| largest.max(weight.abs()));
    let inverse = 127.0 / largest;
    if !inverse.is_finite() || inverse == 0.0 {
        integers.fill(0);
        return 0.0;
    }
    for (integer, weight) in integers.iter_mut().zip(weights) {
        *integer = (weight * inverse).round_ties_even() as i8;
    }
    largest / 127.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_weight_is_exact_and_others_are_half_a_step_off_at_most() {
        let weights = [0.75f32, -3.0, 0.011, 0.0, 1.499, -0.0118];
        let mut integers = [0i8; 6];
        let scale = quantize_row(&weights, &mut integers);
        assert_eq!(integers[1], -127);
        for (weight, integer) in weights.iter().zip(integers) {
            let error = (weight - scale * f32::from(integer)).abs();
            assert!(error <= scale * 0.5001, "{weight} is {integer}");
        }
    }

    #[test]
    fn rows_without_a_scale_are_zeros() {
        let mut integers = [1i8; 3];
        for row in [[0.0; 3], [1e-40, 0.0, -1e-40]] {
            assert_eq!(quantize_row(&row, &mut integers), 0.0);
            assert_eq!(integers, [0; 3]);
        }
    }

    #[test]
    fn rows_with_what_is_no_number_do_not_panic() {
        let mut integers = [0i8; 2];
        quantize_row(&[f32::NAN, 1.0], &mut integers);
        assert_eq!(integers, [0, 127]);
        assert_eq!(quantize_row(&[f32::INFINITY, 1.0], &mut integers), 0.0);
    }
}
