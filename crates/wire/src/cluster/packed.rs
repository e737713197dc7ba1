//! Numbers that follow each other closely, as the differences between them. All
//! differences stand for something, so reading them cannot fail.

/// Each number less the one before it, modulo 2^32; close ones take a byte.
pub(super) fn differences(numbers: impl ExactSizeIterator<Item = u32>) -> Vec<i32> {
    let mut last = 0u32;
    numbers
        .map(|number| {
            let difference = number.wrapping_sub(last).cast_signed();
            last = number;
            difference
        })
        .collect()
}

/// The numbers again.
pub(super) fn sums(differences: &[i32]) -> impl ExactSizeIterator<Item = u32> + '_ {
    let mut last = 0u32;
    differences.iter().map(move |difference| {
        last = last.wrapping_add(difference.cast_unsigned());
        last
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_numbers_come_back(numbers: Vec<u32>) {
            let packed = differences(numbers.iter().copied());
            prop_assert_eq!(sums(&packed).collect::<Vec<_>>(), numbers);
        }
    }
}
