//! What the emulator is held to beside what a GPU is: its memory, and what it
//! refuses. `conformance` runs the primitives that both are held to.

mod rig;

use chorale_cuda::{Gpu, Kernel, Launches};
use rig::{Rig, Words};

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
