//! Small exchanges between emulated GPUs, each on a thread of its own: what is sent
//! arrives, however late, and who waits in vain knows for whom.

#![expect(clippy::unwrap_used, reason = "a test stops at its first surprise")]

use chorale_cuda::{Area, Circle, Cuda, Failure, Gpu, GpuError, Matrix, Offer, area_room};
use chorale_device::{Device, Precision};
use chorale_emulator::{Emulator, Options};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);
const MAX_BYTES: usize = 16 << 10;

fn gpu(seed: u64) -> Cuda {
    let options = Options { seed, memory_bytes: 64 << 20, ..Options::default() };
    Cuda::new(Emulator::new(options).unwrap())
}

/// SplitMix64, the same for all members.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> usize {
        (self.next() % bound) as usize
    }
}

/// Runs each member of a circle on a thread of its own; `waits` is how long each
/// waits for another.
fn run<R: Send>(
    num_members: usize,
    num_channels: usize,
    waits: Duration,
    member: impl Fn(usize, Cuda, Circle) -> R + Sync,
) -> Vec<R> {
    let mut gpus: Vec<Cuda> = (0..num_members as u64).map(gpu).collect();
    let areas: Vec<Area> =
        gpus.iter_mut().map(|gpu| Area::new(gpu, num_channels, MAX_BYTES).unwrap()).collect();
    let offers: Vec<Offer> = areas.iter().map(|area| *area.offer()).collect();
    let circles: Vec<Circle> = areas
        .into_iter()
        .zip(&mut gpus)
        .enumerate()
        .map(|(number, (area, gpu))| area.connect(gpu, number, &offers, waits).unwrap())
        .collect();
    std::thread::scope(|scope| {
        let member = &member;
        let members = gpus.into_iter().zip(circles).enumerate();
        let members: Vec<_> =
            members.map(|(number, (gpu, circle))| scope.spawn(move || member(number, gpu, circle))).collect();
        members.into_iter().map(|member| member.join().unwrap()).collect()
    })
}

/// What is in a matrix of a round: no other round or channel has the same.
fn value(round: usize, row: usize, col: usize) -> f32 {
    (round * 37 % 101 + row * 11 + col % 100) as f32
}

struct Columns {
    cols: Vec<usize>,
    rows: usize,
}

impl Columns {
    /// Of each member, of all sizes down to one element; padding and odd widths
    /// among them.
    fn random(random: &mut Random, num_members: usize) -> Self {
        let widest = [1, 9, 100, 300][random.below(4)];
        let cols = (0..num_members).map(|_| 1 + random.below(widest)).collect();
        Self { cols, rows: 1 + random.below(3) }
    }

    fn all(&self) -> usize {
        self.cols.iter().sum()
    }

    fn values(&self, round: usize, cols: std::ops::Range<usize>) -> Vec<f32> {
        (0..self.rows).flat_map(|row| cols.clone().map(move |col| value(round, row, col))).collect()
    }

    fn part(&self, device: &mut Cuda, round: usize, member: usize) -> Matrix {
        let first: usize = self.cols[..member].iter().sum();
        let mut part = device.matrix(4, self.cols[member], precision(round)).unwrap();
        device.write(&self.values(round, first..first + self.cols[member]), &mut part).unwrap();
        part
    }

    fn whole(&self, device: &mut Cuda, round: usize) -> Matrix {
        device.matrix(4, self.all(), precision(round)).unwrap()
    }
}

fn precision(round: usize) -> Precision {
    if round.is_multiple_of(3) { Precision::Full } else { Precision::Half }
}

#[test]
fn columns_arrive_whoever_is_late() {
    for num_members in [2, 3, 4] {
        run(num_members, 1, PATIENCE, |member, mut device, mut circle| {
            let (sizes, own) = (&mut Random(7), &mut Random(100 + member as u64));
            for round in 0..150 {
                let columns = Columns::random(sizes, num_members);
                let part = columns.part(&mut device, round, member);
                let mut whole = columns.whole(&mut device, round);
                // One is late now and then, and not always the same.
                if own.below(16) == 0 {
                    std::thread::park_timeout(Duration::from_micros(own.below(3000) as u64));
                }
                circle.send_columns(&mut device, 0, &columns.cols, &part);
                // On the GPU, or waiting for what receives.
                if own.below(2) == 0 {
                    device.flush().unwrap();
                }
                circle.join_columns(&mut device, 0, &columns.cols, columns.rows, &mut whole);
                // Nobody reads every round, so some get ahead of others.
                if own.below(3) != 0 {
                    let expected = columns.values(round, 0..columns.all());
                    assert_eq!(device.read(&whole).unwrap(), expected, "round {round} of member {member}");
                }
            }
            device.wait().unwrap();
            assert_eq!(circle.watch().failure(), None);
        });
    }
}

#[test]
fn channels_do_not_mind_each_other() {
    run(3, 2, PATIENCE, |member, mut device, mut circle| {
        let sizes = &mut Random(3);
        for round in (0..60).step_by(2) {
            let columns = [Columns::random(sizes, 3), Columns::random(sizes, 3)];
            let order = if sizes.below(2) == 0 { [0, 1] } else { [1, 0] };
            let mut wholes: Vec<Matrix> =
                (0..2).map(|channel| columns[channel].whole(&mut device, round + channel)).collect();
            for (channel, columns) in columns.iter().enumerate() {
                let part = columns.part(&mut device, round + channel, member);
                circle.send_columns(&mut device, channel, &columns.cols, &part);
            }
            for channel in order {
                let Columns { cols, rows } = &columns[channel];
                circle.join_columns(&mut device, channel, cols, *rows, &mut wholes[channel]);
            }
            for (channel, (columns, whole)) in columns.iter().zip(&wholes).enumerate() {
                let expected = columns.values(round + channel, 0..columns.all());
                assert_eq!(device.read(whole).unwrap(), expected, "round {round}, channel {channel}");
            }
        }
    });
}

/// One exchange of all members' numbers; what came.
fn exchange(device: &mut Cuda, circle: &mut Circle, member: usize) -> Vec<f32> {
    let cols = vec![8; circle.num_members()];
    let mut part = device.matrix(1, 8, Precision::Half).unwrap();
    let mut whole = device.matrix(1, 8 * cols.len(), Precision::Half).unwrap();
    device.write(&[member as f32; 8], &mut part).unwrap();
    circle.send_columns(device, 0, &cols, &part);
    circle.join_columns(device, 0, &cols, 1, &mut whole);
    device.read(&whole).unwrap()
}

#[test]
fn memory_that_wore_out_is_cleared_between_exchanges() {
    let barrier = Barrier::new(3);
    run(3, 1, PATIENCE, |member, mut device, mut circle| {
        circle.wear_out_after(3);
        for round in 0..10 {
            assert_eq!(circle.is_worn(0), round > 0 && round % 3 == 0);
            if circle.is_worn(0) {
                barrier.wait();
                circle.renew(&mut device, 0);
                device.wait().unwrap();
                barrier.wait();
            }
            let found = exchange(&mut device, &mut circle, member);
            assert!(found.iter().enumerate().all(|(at, value)| *value == (at / 8) as f32), "{found:?}");
        }
    });
}

#[test]
fn who_stops_is_named_by_all_and_nothing_goes_on() {
    let waits = Duration::from_millis(300);
    let failures = run(3, 1, waits, |member, mut device, mut circle| {
        exchange(&mut device, &mut circle, member);
        if member == 1 {
            // Still there, and does nothing any more.
            std::thread::park_timeout(Duration::from_secs(2));
            return None;
        }
        assert_eq!(circle.watch().failure(), None);
        let started = Instant::now();
        exchange(&mut device, &mut circle, member);
        assert!((waits..PATIENCE).contains(&started.elapsed()));
        let failure = circle.watch().failure();
        // What comes later fails at once.
        let started = Instant::now();
        for _ in 0..5 {
            exchange(&mut device, &mut circle, member);
        }
        assert!(started.elapsed() < waits, "{:?}", started.elapsed());
        assert_eq!(circle.watch().failure(), failure);
        failure
    });
    assert_eq!(failures, [Some(Failure::Member(1)), None, Some(Failure::Member(1))]);
}

#[test]
fn memory_outlives_a_member_that_dies() {
    let failures = run(2, 1, Duration::from_millis(200), |member, mut device, mut circle| {
        exchange(&mut device, &mut circle, member);
        if member == 1 {
            drop(circle);
            drop(device);
            return None;
        }
        // The other is gone by now; its memory is written to all the same.
        std::thread::park_timeout(Duration::from_millis(300));
        exchange(&mut device, &mut circle, member);
        circle.watch().failure()
    });
    assert_eq!(failures, [Some(Failure::Member(1)), None]);
}

#[test]
fn an_abort_ends_what_waits() {
    let waits = PATIENCE;
    let failures = run(2, 1, waits, |member, mut device, mut circle| {
        if member == 1 {
            std::thread::park_timeout(Duration::from_millis(400));
            return None;
        }
        let started = Instant::now();
        let (abort, watch) = (circle.abort_handle(), circle.watch());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::park_timeout(Duration::from_millis(100));
                abort.abort();
            });
            exchange(&mut device, &mut circle, member);
        });
        assert!(started.elapsed() < waits / 2 && watch.is_aborted());
        watch.failure()
    });
    assert_eq!(failures, [Some(Failure::Aborted), None]);
}

fn reason(error: GpuError) -> String {
    match error {
        GpuError::Unreachable { reason } => reason,
        error => panic!("{error}"),
    }
}

#[test]
fn what_cannot_be_reached_is_said() {
    let lone = Options { has_peers: false, ..Options::default() };
    let lone = &mut Cuda::new(Emulator::new(lone).unwrap());
    assert_eq!(reason(Area::new(lone, 1, MAX_BYTES).err().unwrap()), "the GPU has no peers");

    let device = &mut gpu(1);
    let theirs = Area::new(device, 1, MAX_BYTES).unwrap();
    let offer = *theirs.offer();
    let mut refused = |offer: Offer| {
        let own = Area::new(device, 1, MAX_BYTES).unwrap();
        let offers = [*own.offer(), offer];
        reason(own.connect(device, 0, &offers, PATIENCE).err().unwrap())
    };
    assert_eq!(refused(Offer { host: [9; 16], ..offer }), "member 1: its memory is on another host");
    assert_eq!(refused(Offer { process: [9; 16], ..offer }), "member 1: the GPU has no peers");
    let len = offer.len;
    let said = format!("member 1 offers 4096 bytes, not {len}");
    assert_eq!(refused(Offer { len: 4096, ..offer }), said);
    assert_eq!(refused(Offer { address: offer.address + 256, ..offer }), "member 1: its memory is gone");
    drop(theirs);
    assert_eq!(refused(offer), "member 1: its memory is gone");
}

#[test]
fn an_area_takes_what_is_planned() {
    for (num_channels, max_bytes) in [(1, 2048), (2, 1 << 20), (1, 1 << 20)] {
        let emulator = Emulator::new(Options::default()).unwrap();
        let before = emulator.free_bytes().unwrap();
        let area = Area::new(&mut Cuda::new(Arc::<Emulator>::clone(&emulator)), num_channels, max_bytes);
        let taken = before - emulator.free_bytes().unwrap();
        assert_eq!(taken, area_room(num_channels, max_bytes), "{num_channels} of {max_bytes}");
        drop(area);
        assert_eq!(emulator.free_bytes(), Ok(before));
    }
}

#[test]
fn what_is_measured_on_a_gpu_runs() {
    let gpu = |seed| Emulator::new(Options { seed, memory_bytes: 64 << 20, ..Options::default() }).unwrap();
    let gpus: Vec<Arc<dyn Gpu>> = vec![gpu(1), gpu(2)];
    let found = chorale_kbench::circle::run(&gpus, 3).unwrap();
    assert!(found.len() == 5 && found.iter().all(|exchanged| exchanged.microseconds > 0.0), "{found:?}");
}
