//! What the threads of a warp and of a block do together.

use super::origins::{Shape, of_product};
use super::{Bench, Words, matrix, noise, pairs, product};
use crate::failure::{Failure, Outcome, ensure};
use chorale_cuda::{Kernel, Launches};

/// Products that begin with nothing, not with sums.
pub(super) fn mma_from_zero(bench: &Bench<'_>) -> Outcome {
    mma(bench, "selftest_mma_from_zero", 0.0)
}

/// Products that begin with a number.
pub(super) fn mma(bench: &Bench<'_>, name: &'static str, start: f32) -> Outcome {
    let multiply = |left: &[u16], right: &[u16]| {
        let halves: Vec<u16> = left.iter().chain(right).copied().collect();
        let out = bench.words(name, 0, &pairs(&halves), 128)?;
        Ok(out.into_iter().map(|bits| f32::from_bits(bits) - start).collect::<Vec<f32>>())
    };
    let (left, right) = (matrix(1, 16, 16), matrix(2, 8, 16));
    let near = bench.near(&multiply(&left, &right)?, &product(&left, &right, 16), 8, "the product");
    near.map_err(|Failure(text)| {
        Failure(text + &of_product(Shape { rows: 16, cols: 8, depth: 16 }, &multiply))
    })
}

/// What is divided by a number that has no reciprocal is 0.
pub(super) fn quotients(bench: &Bench<'_>) -> Outcome {
    let pairs: [(f32, f32, f32); 5] = [
        (1.0, 3.0, 1.0 / 3.0),
        (-7.5, 0.5, -15.0),
        (2.0, 3.0e38, 0.0),
        (1.0, f32::INFINITY, 0.0),
        (-40.0, 1.0e-3, -4.0e4),
    ];
    let words: Vec<u32> = pairs.iter().flat_map(|(a, b, _)| [a.to_bits(), b.to_bits()]).collect();
    let args = Words {
        input: bench.put(&words)?,
        output: bench.room(pairs.len())?,
        count: pairs.len() as u32,
        pad: 0,
    };
    bench.launch(Kernel { name: "selftest_quotients", threads: 32 }, [1, 1, 1], 0, &args)?;
    let found: Vec<f32> = bench.get(args.output, pairs.len())?;
    for ((a, b, expected), found) in pairs.into_iter().zip(found) {
        let is_close = found == expected || (found / expected - 1.0).abs() < 2e-6;
        ensure(is_close, || format!("{a} / {b} is {found}, not {expected}"))?;
    }
    Ok(())
}

pub(super) fn warps(bench: &Bench<'_>) -> Outcome {
    let mut next = noise(3);
    let values: Vec<u32> = (0..32).map(|_| next()).collect();
    let ballot =
        |hit: &dyn Fn(u32) -> bool| (0..32).fold(0, |all, lane| all | u32::from(hit(values[lane])) << lane);
    let largest = |of: &dyn Fn(u32) -> u32| values.iter().map(|&value| of(value)).max().unwrap_or(0);
    let out = bench.words("selftest_warps", 0, &values, 13 * 32)?;
    for lane in 0..32 {
        let value = values[lane];
        let expected = [
            values[value as usize % 32],
            values[lane ^ 5],
            *values.get(lane + 3).unwrap_or(&value),
            lane.checked_sub(3).map_or(value, |from| values[from]),
            values[lane ^ 1],
            ballot(&|v| v % 3 == 0),
            ballot(&|v| v % 4 == value % 4),
            values.iter().map(|v| v % 1000).sum(),
            largest(&|v| v),
            values.iter().map(|v| v % 100).sum(),
            largest(&|v| v % 100),
            u32::from(values.iter().any(|v| v % 7 == 0)) + 2,
            if lane < 16 { values[lane ^ 8] } else { ballot(&|v| v % 2 == 0) & 0xFFFF_0000 },
        ];
        let found: Vec<u32> = (0..13).map(|i| out[i * 32 + lane]).collect();
        ensure(found == expected, || format!("lane {lane}: {found:x?}, not {expected:x?}"))?;
    }
    Ok(())
}

/// One kernel writes, one waits for it, and a third reads before it waits, over and
/// over and on all processors: what was written is not hidden by what caches hold.
pub(super) fn early(bench: &Bench<'_>) -> Outcome {
    const ROUNDS: u32 = 64;
    let count = bench.gpu.facts().num_sms * 4 * 64;
    let values: Vec<u32> = (0..count).collect();
    let (first, second) = (bench.put(&values)?, bench.room(values.len())?);
    let (other, unused) = (bench.put(&values)?, bench.room(values.len())?);
    let args = |input, output| Words { input, output, count, pad: 0 };
    let mut launches = Launches::default();
    let mut push =
        |name, args: &Words| launches.push(Kernel { name, threads: 64 }, [count / 64, 1, 1], 0, args);
    for _ in 0..ROUNDS {
        push("selftest_chain", &args(first, second));
        push("selftest_chain", &args(other, unused));
        push("selftest_early", &args(second, first));
    }
    bench.run(&launches)?;
    let found: Vec<u32> = bench.get(first, values.len())?;
    for (place, (found, mut expected)) in found.into_iter().zip(values).enumerate() {
        for _ in 0..ROUNDS {
            expected = expected.wrapping_mul(3).wrapping_add(2);
        }
        ensure(found == expected, || format!("value {place} is {found:08x}, not {expected:08x}"))?;
    }
    Ok(())
}

/// Every thread of a grid in three directions runs once, between its barriers.
pub(super) fn grid(bench: &Bench<'_>) -> Outcome {
    const BLOCKS: usize = 30;
    let output = bench.put(&[0_u32; BLOCKS + 129])?;
    let args = Words { input: 0, output, count: 0, pad: 0 };
    bench.launch(Kernel { name: "selftest_order", threads: 128 }, [5, 3, 2], 0, &args)?;
    let out: Vec<u32> = bench.get(output, BLOCKS + 129)?;
    let sums = (0..BLOCKS as u32).map(|block| (block * 128..(block + 1) * 128).sum::<u32>());
    ensure(out[..BLOCKS].iter().copied().eq(sums), || format!("sums of blocks: {:?}", &out[..BLOCKS]))?;
    let visits = &out[BLOCKS..BLOCKS + 128];
    ensure(visits.iter().all(|&count| count == BLOCKS as u32), || format!("visits: {visits:?}"))?;
    let last = out[BLOCKS + 128];
    ensure(last == BLOCKS as u32 * 128 - 1, || format!("the last thread is {last}"))
}
