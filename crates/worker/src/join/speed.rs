//! How fast the device reads its memory: measured when the worker starts, and now
//! and then while it has nothing to do. Whatever else runs on the machine only takes
//! from it, so the best of all counts.

use super::Patience;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

/// Asks for a number or several, whenever somebody wants to know; gives nothing
/// while there is nothing to be known.
pub struct Reading<T>(Arc<dyn Fn() -> Option<T> + Send + Sync>);

impl<T> Reading<T> {
    /// `read` may take a moment, and is called on any thread.
    pub fn new(read: impl Fn() -> Option<T> + Send + Sync + 'static) -> Self {
        Self(Arc::new(read))
    }

    /// As it is now.
    pub fn read(&self) -> Option<T> {
        (self.0)()
    }
}

impl<T> Clone for Reading<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> fmt::Debug for Reading<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reading")
    }
}

/// How a worker knows how fast its device reads its memory, in bytes a second.
#[derive(Clone, Debug)]
pub enum MemoryRate {
    /// Somebody says so, or the device does. It is never measured.
    Known(u64),
    /// Each reading measures it.
    Measured(Reading<u64>),
}

/// Two readings agree if they differ by at most one part in so many: then, most
/// likely, nobody has disturbed either.
const AGREEING_PART: u64 = 20;

/// Fewer readings at the start are not taken for the truth.
const MIN_READINGS: usize = 3;

/// Between the first readings; twice as long each time, so that a program which is
/// busy for a moment spoils some of them and not all.
const FIRST_GAP: Duration = Duration::from_millis(50);

/// The best that is known by now.
#[derive(Debug)]
pub(super) struct Speed {
    best: AtomicU64,
    reading: Option<Reading<u64>>,
}

impl Speed {
    /// Reads until the two best agree, or until `patience.measuring` is over.
    pub(super) async fn new(rate: &MemoryRate, patience: &Patience) -> Self {
        let reading = match rate {
            MemoryRate::Known(bytes_per_s) => {
                return Self { best: AtomicU64::new(*bytes_per_s), reading: None };
            }
            MemoryRate::Measured(reading) => reading.clone(),
        };
        let speed = Self { best: AtomicU64::new(0), reading: Some(reading) };
        let (began, mut gap) = (Instant::now(), FIRST_GAP);
        let mut readings = Vec::new();
        loop {
            readings.extend(speed.measure().await);
            readings.sort_unstable_by(|one, other| other.cmp(one));
            if readings.len() >= MIN_READINGS && readings[0] - readings[1] <= readings[0] / AGREEING_PART {
                break;
            }
            if began.elapsed() + gap >= patience.measuring {
                break;
            }
            sleep(gap).await;
            gap *= 2;
        }
        tracing::info!(
            gb_per_s = gb(speed.bytes_per_s()),
            worst_gb_per_s = gb(readings.last().copied().unwrap_or(0)),
            readings = readings.len(),
            "the memory's rate was measured; --memory-bandwidth says it instead"
        );
        speed
    }

    /// The best of all readings.
    pub(super) fn bytes_per_s(&self) -> u64 {
        self.best.load(Ordering::Relaxed)
    }

    /// The same, unless it is what the worker was told.
    pub(super) fn measured(&self) -> Option<u64> {
        self.reading.as_ref().map(|_| self.bytes_per_s())
    }

    /// Takes one reading, beside everything else; `None` if there was none to take.
    async fn measure(&self) -> Option<u64> {
        let reading = self.reading.clone()?;
        let read = tokio::task::spawn_blocking(move || reading.read()).await;
        // A panic has been reported, and is no reading.
        let bytes_per_s = read.ok().flatten()?;
        self.best.fetch_max(bytes_per_s, Ordering::Relaxed);
        Some(bytes_per_s)
    }

    /// Takes readings in growing intervals, while the rank has nothing to do. Ends
    /// only where there is nothing to be measured.
    pub(super) async fn watch(&self, doing: watch::Receiver<Doing>, patience: Patience) {
        let mut pause = patience.first_measure;
        while self.reading.is_some() {
            sleep(pause).await;
            loop {
                let now = *doing.borrow();
                let Some(wait) = now.quiet_in(patience.quiet) else { break };
                sleep(wait).await;
            }
            let before = self.bytes_per_s();
            let bytes_per_s = self.measure().await.unwrap_or(0);
            if bytes_per_s > before + before / AGREEING_PART {
                tracing::info!(
                    gb_per_s = gb(bytes_per_s),
                    before_gb_per_s = gb(before),
                    "the memory is read faster than was measured before"
                );
            } else {
                tracing::debug!(gb_per_s = gb(bytes_per_s), best_gb_per_s = gb(before), "measured again");
            }
            pause = (pause * 2).min(patience.last_measure);
        }
    }
}

/// What a worker is at.
#[derive(Clone, Copy, Debug)]
pub(super) enum Doing {
    /// It has no place.
    Waiting,
    /// It loads its shard or computes.
    Working,
    /// It has its place, and no step since.
    Idle(Instant),
}

impl Doing {
    /// How long to wait until it may have nothing to do for `quiet`; `None` if it has not.
    fn quiet_in(self, quiet: Duration) -> Option<Duration> {
        match self {
            Self::Waiting => None,
            Self::Working => Some(quiet),
            Self::Idle(since) => quiet.checked_sub(since.elapsed()).filter(|left| !left.is_zero()),
        }
    }
}

fn gb(bytes_per_s: u64) -> f64 {
    bytes_per_s as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// Gives these one after the other, then the last one for ever.
    fn readings(values: &[u64]) -> (MemoryRate, Arc<Mutex<usize>>) {
        let (values, taken) = (values.to_vec(), Arc::new(Mutex::new(0)));
        let count = Arc::clone(&taken);
        let read = move || {
            let mut count = count.lock().unwrap();
            *count += 1;
            values.get(*count - 1).or(values.last()).copied()
        };
        (MemoryRate::Measured(Reading::new(read)), taken)
    }

    async fn start(values: &[u64]) -> (Speed, usize) {
        let (rate, taken) = readings(values);
        let speed = Speed::new(&rate, &Patience::default()).await;
        let num_taken = *taken.lock().unwrap();
        (speed, num_taken)
    }

    #[tokio::test(start_paused = true)]
    async fn the_best_of_several_readings_counts() {
        let (speed, num_taken) = start(&[100, 98, 99]).await;
        assert_eq!((speed.bytes_per_s(), num_taken), (100, 3), "nobody disturbs");
        let (speed, num_taken) = start(&[10, 12, 100, 30, 97]).await;
        assert_eq!((speed.bytes_per_s(), num_taken), (100, 5), "until two agree");
        let began = Instant::now();
        let (speed, num_taken) = start(&[1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]).await;
        assert!(began.elapsed() <= Patience::default().measuring, "{:?}", began.elapsed());
        assert_eq!((speed.bytes_per_s(), num_taken), (32, 6), "or time is up");
    }

    #[tokio::test(start_paused = true)]
    async fn what_somebody_says_is_not_measured() {
        let speed = Speed::new(&MemoryRate::Known(7), &Patience::default()).await;
        assert_eq!((speed.bytes_per_s(), speed.measured()), (7, None));
        let (_tell, doing) = watch::channel(Doing::Waiting);
        speed.watch(doing, Patience::default()).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_machine_that_cannot_be_measured_is_of_use_all_the_same() {
        let rate = MemoryRate::Measured(Reading::new(|| None));
        assert_eq!(Speed::new(&rate, &Patience::default()).await.bytes_per_s(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_measured_again_in_growing_intervals_while_there_is_nothing_to_do() {
        let (rate, taken) = readings(&[10, 10, 10, 10, 80, 20]);
        let speed = Arc::new(Speed::new(&rate, &Patience::default()).await);
        let (tell, doing) = watch::channel(Doing::Waiting);
        let watching = Arc::clone(&speed);
        let task = tokio::spawn(async move { watching.watch(doing, Patience::default()).await });
        let after = async |seconds| {
            sleep(Duration::from_secs(seconds)).await;
            (*taken.lock().unwrap(), speed.bytes_per_s())
        };
        assert_eq!(after(9).await, (3, 10));
        assert_eq!(after(2).await, (4, 10), "after 10 s");
        assert_eq!(after(20).await, (5, 80), "and 20 s later");
        assert_eq!(after(40).await, (6, 80), "it never goes down");
        tell.send_replace(Doing::Working);
        assert_eq!(after(1000).await.0, 6, "not while it works");
        tell.send_replace(Doing::Idle(Instant::now()));
        assert_eq!(after(20).await.0, 6);
        assert_eq!(after(50).await.0, 7, "after half a minute of quiet");
        task.abort();
    }
}
