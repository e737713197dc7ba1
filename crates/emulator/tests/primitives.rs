//! Primitives of `gpu.cuh` against plain arithmetic, where the emulator can be held to
//! more than a GPU; `conformance` runs those that both are held to.

mod rig;

use chorale_cuda::{Gpu, Kernel, Launches};
use rig::{Rig, Words, from_bf16, matrix, noise, product, to_bf16};

fn close(bits: u32, expected: f32) -> bool {
    let value = f32::from_bits(bits);
    value == expected || (value.is_nan() && expected.is_nan()) || (value / expected - 1.0).abs() < 1e-6
}

#[test]
fn numbers() {
    let floats: [f32; 12] =
        [0.0, -0.0, 1.0, -1.5, 1.003_906_3, 1.011_718_8, 3.0e38, 1e-3, f32::INFINITY, f32::NAN, 20.0, -40.0];
    let mut next = noise(1);
    let mut words: Vec<u32> = floats.iter().flat_map(|x| [x.to_bits(), (x * 0.7).to_bits()]).collect();
    words.extend((0..200).map(|_| next()));
    let count = words.len() / 2;
    let rig = Rig::new(1);
    let args = Words { input: rig.put(&words), output: rig.room(count * 16), count: count as u32, flag: 0 };
    rig.launch("selftest_numbers", 64, [2, 1, 1], 0, &args);
    let results: Vec<u32> = rig.get(args.output, count * 16);

    for (pair, out) in words.chunks_exact(2).zip(results.chunks_exact(16)) {
        let (a, b) = (pair[0], pair[1]);
        let (x, y) = (f32::from_bits(a), f32::from_bits(b));
        let both = |x: f32, y: f32| u32::from(to_bf16(x)) | u32::from(to_bf16(y)) << 16;
        let halves = |word: u32| (from_bf16(word as u16), from_bf16((word >> 16) as u16));
        let (a0, a1) = halves(a);
        let (b0, b1) = halves(b);
        let bytes: Vec<u8> = a.to_le_bytes().into_iter().chain(b.to_le_bytes()).collect();
        let picked = std::array::from_fn(|i| {
            let nibble = a >> 16 >> (4 * i) & 15;
            let byte = bytes[nibble as usize & 7];
            if nibble & 8 == 0 { byte } else { (byte as i8 >> 7) as u8 }
        });
        let denormal = |x: f32| if x.abs() < f32::MIN_POSITIVE { 0.0 } else { x };
        assert_eq!(out[0], u32::from(to_bf16(x)), "{x}");
        assert_eq!(out[1], from_bf16(b as u16).to_bits());
        assert_eq!(out[2], both(x, y), "{x} {y}");
        assert_eq!([out[3], out[4]], [a0.to_bits(), a1.to_bits()]);
        assert_eq!(out[5], both(a0 * b0, a1 * b1), "{a:08x} {b:08x}");
        assert_eq!(out[6], u32::from_le_bytes(picked));
        assert!(close(out[7], denormal(x.exp2())), "{x}");
        assert!(close(out[8], denormal((x * std::f32::consts::LOG2_E).exp2())), "{x}");
        assert!(x <= 0.0 || close(out[9], 1.0 / x.sqrt()), "{x}");
        assert_eq!(
            out[10..13],
            [a.count_ones(), a.leading_zeros(), if a == 0 { 0 } else { a.trailing_zeros() + 1 }]
        );
        assert_eq!(out[13..15], [((u64::from(a) * u64::from(b)) >> 32) as u32, a.min(b)]);
        assert!(close(out[15], x.max(y)), "{x} {y}");
    }
}

#[test]
fn mma() {
    let (left, right) = (matrix(1, 16, 16), matrix(2, 8, 16));
    let halves: Vec<u16> = left.iter().chain(&right).copied().collect();
    let words = rig::pairs(&halves);
    let sums = product(&left, &right, 16);
    for (name, start) in [("selftest_mma", 1.0), ("selftest_mma_from_zero", 0.0)] {
        let out = Rig::new(1).words(name, 32, 0, &words, 128);
        let expected: Vec<f32> = sums.iter().map(|sum| sum + start).collect();
        let results: Vec<f32> = out.into_iter().map(f32::from_bits).collect();
        assert!(rig::distance(&results, &expected) < 1e-4, "{name}");
    }
}

#[test]
fn quotients() {
    // What is divided by a number that has no reciprocal is 0.
    let pairs = [(1.0, 3.0, 1.0 / 3.0), (-7.5, 0.5, -15.0), (2.0, 3.0e38, 0.0), (1.0, f32::INFINITY, 0.0)];
    let words: Vec<u32> = pairs.iter().flat_map(|(a, b, _)| [f32::to_bits(*a), f32::to_bits(*b)]).collect();
    let out = Rig::new(1).words("selftest_quotients", 32, 0, &words, pairs.len());
    for ((a, b, expected), bits) in pairs.into_iter().zip(out) {
        assert!(close(bits, expected), "{a} / {b}");
    }
}

#[test]
fn warps() {
    let mut next = noise(3);
    let values: Vec<u32> = (0..32).map(|_| next()).collect();
    let ballot =
        |hit: &dyn Fn(u32) -> bool| (0..32).fold(0, |all, lane| all | u32::from(hit(values[lane])) << lane);
    let number = |value: u32| value % 100;
    for seed in 1..6 {
        let out = Rig::new(seed).words("selftest_warps", 32, 0, &values, 13 * 32);
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
                *values.iter().max().unwrap(),
                values.iter().map(|&v| number(v)).sum(),
                values.iter().map(|&v| number(v)).max().unwrap(),
                u32::from(values.iter().any(|v| v % 7 == 0)) + 2,
                if lane < 16 { values[lane ^ 8] } else { ballot(&|v| v % 2 == 0) & 0xFFFF_0000 },
            ];
            let found: Vec<u32> = (0..13).map(|i| out[i * 32 + lane]).collect();
            assert_eq!(found, expected, "lane {lane} with seed {seed}");
        }
    }
}

#[test]
fn every_thread_of_a_grid_runs_once() {
    let grid = [5, 3, 2];
    let blocks = 30;
    for seed in 1..6 {
        let rig = Rig::new(seed);
        let output = rig.put(&vec![0_u32; blocks + 129]);
        rig.launch("selftest_order", 128, grid, 0, &Words { input: 0, output, count: 0, flag: 0 });
        let out: Vec<u32> = rig.get(output, blocks + 129);
        let sums = (0..blocks as u32).map(|block| (block * 128..(block + 1) * 128).sum::<u32>());
        assert!(out[..blocks].iter().copied().eq(sums));
        assert!(out[blocks..blocks + 128].iter().all(|&visits| visits == blocks as u32));
        assert_eq!(out[blocks + 128], blocks as u32 * 128 - 1);
    }
}

#[test]
fn launches_run_in_order() {
    let rig = Rig::new(4);
    let count = 1000;
    let words: Vec<u32> = (0..count).collect();
    let mut at = rig.put(&words);
    let mut launches = Launches::default();
    for _ in 0..5 {
        let next = rig.room(words.len());
        let args = Words { input: at, output: next, count, flag: 0 };
        launches.push(Kernel { name: "selftest_chain", threads: 64 }, [count.div_ceil(64), 1, 1], 0, &args);
        at = next;
    }
    rig.run(&launches).unwrap();
    let expected: Vec<u32> = words.iter().map(|w| (0..5).fold(*w, |v, _| v * 3 + 1)).collect();
    assert_eq!(rig.get::<u32>(at, words.len()), expected);
}

#[test]
fn several_threads_emulate_at_once() {
    std::thread::scope(|scope| {
        for seed in 0..4 {
            scope.spawn(move || {
                let words: Vec<u32> = (0..96 * 4).map(|i| i * 7 + seed as u32).collect();
                let rig = Rig::new(seed);
                let alone = rig.words("selftest_copies", 32, 96 * 16, &words, 128 * 4);
                for _ in 0..20 {
                    assert_eq!(rig.words("selftest_copies", 32, 96 * 16, &words, 128 * 4), alone);
                }
            });
        }
    });
}

#[test]
fn refuses_launches_that_do_not_fit() {
    let rig = Rig::new(1);
    let refused = |name, threads, shared_bytes, args: &[u32]| {
        let mut launches = Launches::default();
        let mut words = [0; 4];
        words[..args.len()].copy_from_slice(args);
        let kernel = Kernel { name, threads };
        match args.len() {
            4 => launches.push(kernel, [1, 1, 1], shared_bytes, &words),
            _ => launches.push(
                kernel,
                [1, 1, 1],
                shared_bytes,
                &Words { input: 0, output: 0, count: 0, flag: 0 },
            ),
        }
        rig.run(&launches).unwrap_err().to_string()
    };
    assert!(refused("selftest_unknown", 32, 0, &[]).contains("no kernel is called selftest_unknown"));
    assert!(refused("selftest_copies", 32, 0, &[0; 4]).contains("takes 24 bytes of arguments, not 16"));
    assert!(refused("selftest_copies", 64, 0, &[]).contains("blocks of 32 threads, not 64"));
    assert!(refused("selftest_copies", 32, 100 * 1024, &[]).contains("of shared memory"));
    assert!(refused("selftest_boxes", 64, 0, &[]).contains("for sm_90a alone"));
}

#[test]
fn memory_is_counted_and_checked() {
    let rig = Rig::new(1);
    let all = rig.gpu.facts().memory_bytes;
    assert!(rig.gpu.alloc(all + 1).is_err());
    let address = rig.room(100);
    assert_eq!(address % 256, 0);
    assert_eq!(rig.gpu.free_bytes().unwrap(), all - 400);
    // What nobody wrote is NaN.
    assert!(rig.get::<f32>(address, 100).iter().all(|value| value.is_nan()));
    let past = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| rig.get::<u32>(address + 8, 99)));
    assert!(past.is_err());
}
