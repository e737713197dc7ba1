//! Small exchanges between ranks of this process, each with a GPU or a queue of one:
//! that what is sent arrives, and how long it takes. Ranks that share a GPU show the
//! first; the second means something where each has its own.

use chorale_cuda::{Area, Circle, Cuda, Gpu, GpuError};
use chorale_device::{Device, Precision};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

/// What a member sends at a time.
const BYTES: [usize; 5] = [64, 1 << 10, 8 << 10, 64 << 10, 128 << 10];
const MAX_BYTES: usize = 1 << 20;
/// Exchanges of a list that is replayed as a graph, for times that mean something.
pub const EXCHANGES: usize = 40;
/// Until a list is a graph, and one more.
const LISTS: usize = 4;
/// Ranks that share a GPU take turns on it.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long an exchange takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Exchanged {
    /// What each member sends to each.
    pub bytes: usize,
    /// From one exchange to the next, when many follow each other.
    pub microseconds: f64,
}

/// Lets ranks on these GPUs exchange, at every size, so often in a list.
///
/// # Errors
///
/// Why they cannot, or what came instead of what was sent.
pub fn run(gpus: &[Arc<dyn Gpu>], exchanges: usize) -> Result<Vec<Exchanged>, String> {
    let failed = |error: GpuError| error.to_string();
    let mut devices: Vec<Cuda> = gpus.iter().map(|gpu| Cuda::new(Arc::clone(gpu))).collect();
    let areas = devices.iter_mut().map(|device| Area::new(device, 1, MAX_BYTES).map_err(failed));
    let areas: Vec<Area> = areas.collect::<Result<_, _>>()?;
    let offers: Vec<_> = areas.iter().map(|area| *area.offer()).collect();
    let mut members = Vec::with_capacity(devices.len());
    for (number, (area, mut device)) in areas.into_iter().zip(devices).enumerate() {
        let circle = area.connect(&mut device, number, &offers, PATIENCE).map_err(failed)?;
        members.push(Member { number, exchanges, device, circle });
    }
    let barrier = &Barrier::new(members.len());
    let found: Vec<Result<Vec<Exchanged>, String>> = std::thread::scope(|scope| {
        let members: Vec<_> =
            members.into_iter().map(|member| scope.spawn(move || member.run(barrier))).collect();
        let joined = members.into_iter().map(|member| member.join().unwrap_or(Err("it panicked".to_owned())));
        joined.collect()
    });
    let mut all = found
        .into_iter()
        .enumerate()
        .map(|(number, found)| found.map_err(|reason| format!("member {number}: {reason}")));
    let first = all.next().unwrap_or(Ok(Vec::new()))?;
    all.try_fold(first, |slowest, found| {
        let pairs = slowest.into_iter().zip(found?);
        Ok(pairs.map(|(a, b)| Exchanged { microseconds: a.microseconds.max(b.microseconds), ..a }).collect())
    })
}

struct Member {
    number: usize,
    exchanges: usize,
    device: Cuda,
    circle: Circle,
}

impl Member {
    fn run(mut self, barrier: &Barrier) -> Result<Vec<Exchanged>, String> {
        let mut all = Vec::with_capacity(BYTES.len());
        // All come to each barrier, whatever went wrong, so that nobody waits for ever.
        let mut found = Ok(());
        for bytes in BYTES {
            barrier.wait();
            if let Ok(()) = found {
                found = self.exchange(bytes).map(|microseconds| all.push(Exchanged { bytes, microseconds }));
            }
        }
        found.map(|()| all)
    }

    /// Microseconds from one exchange of so many bytes to the next.
    fn exchange(&mut self, bytes: usize) -> Result<f64, String> {
        let failed = |error: GpuError| error.to_string();
        let Self { number, exchanges, device, circle } = self;
        let num_members = circle.num_members();
        let cols = vec![bytes / size_of::<u16>(); num_members];
        let value = |member: usize, col: usize| (member * 50 + col % 47) as f32;
        let mut part = device.matrix(1, cols[*number], Precision::Half).map_err(failed)?;
        let mut whole = device.matrix(1, cols[0] * num_members, Precision::Half).map_err(failed)?;
        let own: Vec<f32> = (0..cols[0]).map(|col| value(*number, col)).collect();
        device.write(&own, &mut part).map_err(failed)?;
        if !circle.fits_columns(&cols, &part) {
            return Err(format!("{bytes} bytes of {num_members} members are no small exchange"));
        }
        let mut microseconds = 0.0;
        for _ in 0..LISTS {
            device.wait().map_err(failed)?;
            let started = Instant::now();
            for _ in 0..*exchanges {
                circle.send_columns(device, 0, &cols, &part);
                circle.join_columns(device, 0, &cols, 1, &mut whole);
            }
            device.wait().map_err(failed)?;
            microseconds = started.elapsed().as_secs_f64() * 1e6 / *exchanges as f64;
        }
        if let Some(failure) = circle.watch().failure() {
            return Err(format!("{bytes} bytes: {failure:?}"));
        }
        let found = device.read(&whole).map_err(failed)?;
        let mut expected =
            (0..num_members).flat_map(|member| (0..cols[0]).map(move |col| value(member, col)));
        match expected.clone().eq(found.iter().copied()) {
            true => Ok(microseconds),
            false => {
                let at = found.iter().position(|value| Some(*value) != expected.next());
                Err(format!("{bytes} bytes: another number came at {at:?}"))
            }
        }
    }
}
