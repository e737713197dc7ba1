//! Small exchanges between ranks of this process, each with a GPU or a queue of one:
//! that what is sent arrives, and how long it takes. Ranks that share a GPU show the
//! first; the second means something where each has its own.

use chorale_cuda::{Area, Circle, Cuda, Gpu, GpuError, Matrix};
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
    let done: Vec<Option<Done>> = std::thread::scope(|scope| {
        let members: Vec<_> =
            members.into_iter().map(|member| scope.spawn(move || member.run(barrier))).collect();
        members.into_iter().map(|member| member.join().ok()).collect()
    });
    // What they hold is freed now that none exchanges any more.
    let found = done.into_iter().map(|done| done.map_or(Err("it panicked".to_owned()), |(_, found)| found));
    let mut all =
        found.enumerate().map(|(number, found)| found.map_err(|reason| format!("member {number}: {reason}")));
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

/// A member that exchanges no more, and what it found.
type Done = (Member, Result<Vec<Exchanged>, String>);

/// What is exchanged, of one size.
struct Parcel {
    bytes: usize,
    /// Columns of each member.
    cols: Vec<usize>,
    part: Matrix,
    whole: Matrix,
}

/// What a member sends in a column.
fn value(member: usize, col: usize) -> f32 {
    (member * 50 + col % 47) as f32
}

impl Member {
    /// Freeing memory waits for all work of a GPU, and so does what is read for the first
    /// time: neither is done while another member may wait for this one's part.
    fn run(mut self, barrier: &Barrier) -> Done {
        let mut parcels: Result<Vec<Parcel>, String> =
            BYTES.iter().map(|&bytes| self.parcel(bytes)).collect();
        let mut all = Vec::with_capacity(BYTES.len());
        // All come to each barrier, whatever went wrong, so that nobody waits for ever.
        let mut found = Ok(());
        for place in 0..BYTES.len() {
            barrier.wait();
            if let (Ok(()), Ok(parcels)) = (&found, &mut parcels) {
                found = self.exchange(&mut parcels[place]).map(|exchanged| all.push(exchanged));
            }
        }
        barrier.wait();
        let found = found.and(parcels).and_then(|parcels| {
            parcels.iter().try_for_each(|parcel| self.compare(parcel))?;
            // Others may still compare.
            Ok(parcels)
        });
        barrier.wait();
        (self, found.map(|_| all))
    }

    /// Matrices for what is sent and for what comes, which has come to the host once.
    fn parcel(&mut self, bytes: usize) -> Result<Parcel, String> {
        let failed = |error: GpuError| error.to_string();
        let Self { number, device, circle, .. } = self;
        let cols = vec![bytes / size_of::<u16>(); circle.num_members()];
        let mut part = device.matrix(1, cols[*number], Precision::Half).map_err(failed)?;
        let whole = device.matrix(1, cols[0] * cols.len(), Precision::Half).map_err(failed)?;
        let own: Vec<f32> = (0..cols[0]).map(|col| value(*number, col)).collect();
        device.write(&own, &mut part).map_err(failed)?;
        if !circle.fits_columns(&cols, &part) {
            return Err(format!("{bytes} bytes of {} members are no small exchange", cols.len()));
        }
        device.read(&whole).map_err(failed)?;
        Ok(Parcel { bytes, cols, part, whole })
    }

    fn exchange(&mut self, parcel: &mut Parcel) -> Result<Exchanged, String> {
        let failed = |error: GpuError| error.to_string();
        let Self { exchanges, device, circle, .. } = self;
        let Parcel { bytes, cols, part, whole } = parcel;
        let mut microseconds = 0.0;
        for _ in 0..LISTS {
            device.wait().map_err(failed)?;
            let started = Instant::now();
            for _ in 0..*exchanges {
                circle.send_columns(device, 0, cols, part);
                circle.join_columns(device, 0, cols, 1, whole);
            }
            device.wait().map_err(failed)?;
            microseconds = started.elapsed().as_secs_f64() * 1e6 / *exchanges as f64;
        }
        match circle.watch().failure() {
            Some(failure) => Err(format!("{bytes} bytes: {failure:?}")),
            None => Ok(Exchanged { bytes: *bytes, microseconds }),
        }
    }

    /// Whether what came is what was sent.
    fn compare(&mut self, parcel: &Parcel) -> Result<(), String> {
        let Parcel { bytes, cols, whole, .. } = parcel;
        let found = self.device.read(whole).map_err(|error| error.to_string())?;
        let sent = (0..cols.len()).flat_map(|member| (0..cols[0]).map(move |col| value(member, col)));
        let mut pairs = found.iter().zip(sent).enumerate();
        match pairs.find(|(_, (found, sent))| *found != sent) {
            None => Ok(()),
            Some((place, (found, sent))) => {
                let (member, col) = (place / cols[0], place % cols[0]);
                Err(format!("{bytes} bytes: column {col} of member {member} is {found}, not {sent}"))
            }
        }
    }
}
